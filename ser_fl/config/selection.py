"""What the best round is selected by."""

from __future__ import annotations

from typing import Literal

from ser_fl.config.values import Amount, Count, Epsilon, stage


@stage
class SelectionConfig:
    """The attack on validation utterances in rounds that measure robust UAR, and what selects the best round."""

    by: Literal["clean", "robust"]
    robust_every: Amount
    """Measure robust validation UAR every so many rounds; 0: never."""
    epsilon: Epsilon
    steps: Count
    every: Count = 1
    """Score the model on validation utterances every so many rounds, and after the last of `federation.num_rounds`.
    `federation.patience` ends after a round that is scored."""
