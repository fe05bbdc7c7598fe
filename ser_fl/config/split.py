"""Which utterances train, select and test."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ser_fl.config.values import Amount, Count, Share, Speaker, stage
from ser_fl.errors import shown


@stage
class SplitConfig:
    """Which utterances train, select and test."""

    name: Literal["within_speaker", "speaker_independent", "published"]
    """within_speaker: the paper's, a share of every speaker's utterances. speaker_independent: no speaker in two parts.
    published: the corpus's or the manifest's own split column."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    """Draws the split; its own setting, so that runs of several seeds share one split."""
    test_fraction: Share
    """within_speaker: share of every speaker's utterances that is the pooled test set."""
    validation_fraction: Share
    """within_speaker: share of every speaker's remaining utterances that selects the round."""
    test_speakers: tuple[Speaker, ...]
    """speaker_independent: named test speakers; empty: folds."""
    validation_speakers: tuple[Speaker, ...]
    """speaker_independent: named validation speakers; empty: drawn."""
    fold: Amount
    """speaker_independent without named speakers: which fold is left out, from 0."""
    num_test_speakers: Count
    num_validation_speakers: Count

    def __post_init__(self) -> None:
        for setting in ("test_speakers", "validation_speakers", "fold"):
            if self.name != "speaker_independent" and getattr(self, setting):
                raise ValueError(
                    f"split.{setting} goes with split=speaker_independent, got {shown(getattr(self, setting))} with "
                    f"split={self.name}"
                )
