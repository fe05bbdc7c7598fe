"""Augmentation of training features."""

from __future__ import annotations

from ser_fl.config.values import Amount, NonNegative, Proportion, Share, stage


@stage
class AugmentationConfig:
    """Batched augmentation of training features."""

    roll: bool
    """Rotate clips in time by a random number of frames: clips are repeated, so a rotation is a later start."""
    time_masks: Amount
    max_time_mask: Amount
    """Frames of one mask at most."""
    mel_masks: Amount
    max_mel_mask: Amount
    """Mel bins of one mask at most."""
    label_smoothing: Share
    max_mel_warp: Share = 0.0
    """Stretch or squeeze the mel axis by up to this share: another vocal tract."""
    max_equalisation: NonNegative = 0.0
    """Add a smooth curve over mel bins of up to this many standardised log-mel units: another microphone or room."""
    splice: Proportion = 0.0
    """Share of utterances that go on, from a random frame, as another of their batch with the same emotion."""
