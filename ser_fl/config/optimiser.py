"""The clients' optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ser_fl.config.values import Count, Fraction, Positive, Share, stage


@stage
class OptimiserConfig:
    """Optimiser of a client's local epochs; new at every round unless `federation.keep_optimiser`."""

    name: Literal["adam", "adamw", "sgd"]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    momentum: Share
    """sgd only."""
    schedule: Literal["constant", "cosine"]
    """Over rounds: constant, or a cosine down to `final_fraction` of the rate at round `decay_rounds`; of the server's
    rate where it has one (`federation.server_optimiser=adam`)."""
    decay_rounds: Count
    final_fraction: Fraction
