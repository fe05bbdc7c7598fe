"""Batched augmentation of training features.

Legend: B batch, F mel bins, L frames.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ser_fl.config import AugmentationConfig
from ser_fl.devices import send


def augment(features_BFL: Tensor, config: AugmentationConfig, stream: Generator) -> Tensor:
    """Rotate in time and mask, each utterance of the batch with its own draw.

    Masks as in SpecAugment (Park et al., arXiv 1904.08779), without time warping; masked cells become 0, the training
    mean of standardised features.
    """
    if config.roll:
        features_BFL = roll_in_time(features_BFL, stream)
    for count, longest, axis in (
        (config.time_masks, config.max_time_mask, 2),
        (config.mel_masks, config.max_mel_mask, 1),
    ):
        for _ in range(count):
            features_BFL = mask_band(features_BFL, axis, longest, stream)
    return features_BFL


def roll_in_time(features_BFL: Tensor, stream: Generator) -> Tensor:
    """Rotate each utterance by a number of frames uniform in 0..L-1."""
    num_frames = features_BFL.shape[2]
    shift_B1 = torch.randint(num_frames, (len(features_BFL), 1), generator=stream)
    source_BL = (torch.arange(num_frames) - shift_B1) % num_frames
    return features_BFL.gather(2, send(source_BL, features_BFL.device)[:, None].expand_as(features_BFL))


def mask_band(features_BFL: Tensor, axis: int, longest: int, stream: Generator) -> Tensor:
    """Set a band of each utterance along ``axis`` (1: mel bins, 2: frames) to 0.

    Its length is uniform in 0..``longest`` (at most the axis), its start uniform over where it fits.
    """
    size, count = features_BFL.shape[axis], len(features_BFL)
    length_B1 = torch.randint(min(longest, size) + 1, (count, 1), generator=stream)
    start_B1 = (torch.rand((count, 1), generator=stream) * (size - length_B1 + 1)).long()
    positions = torch.arange(size)
    masked = (positions >= start_B1) & (positions < start_B1 + length_B1)
    return features_BFL.masked_fill(send(masked, features_BFL.device).unsqueeze(3 - axis), 0.0)
