"""Batched augmentation of training features: each utterance of a batch by its own draw.

Legend: B batch, F mel bins, L frames, C classes.
"""

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from ser_fl.config.data import AugmentationConfig
from ser_fl.devices import send


def augment(features_BFL: Tensor, labels_B: Tensor, config: AugmentationConfig, stream: Generator) -> Tensor:
    """Features of the same shape after every augmentation that is on, in this order: time, speaker, room, masks.

    Masks are those of SpecAugment (Park et al., arXiv 1904.08779), without its time warping; masked cells become 0, the
    training mean of standardised features. `splice` pairs by the labels; all draws come from the stream, on the CPU.
    """
    if config.roll:
        features_BFL = roll_in_time(features_BFL, stream)
    if config.splice:
        features_BFL = splice(features_BFL, labels_B, config.splice, stream)
    if config.max_mel_warp:
        features_BFL = warp_mel(features_BFL, config.max_mel_warp, stream)
    if config.max_equalisation:
        features_BFL = equalise(features_BFL, config.max_equalisation, stream)
    for count, longest, axis in (
        (config.time_masks, config.max_time_mask, 2),
        (config.mel_masks, config.max_mel_mask, 1),
    ):
        for _ in range(count):
            features_BFL = mask_band(features_BFL, axis, longest, stream)
    return features_BFL


def mix(
    features_BFL: Tensor, labels_B: Tensor, num_classes: int, alpha: float, stream: Generator
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., arXiv 1710.09412): each utterance and one of the batch, paired at random, as a weighted mean
    of features, and of labels, which then have shape (B, C). The utterance's own share is s or 1 - s, whichever is
    larger, s from Beta(alpha, alpha): over a batch the same pairs and shares as in the paper, and its own label stays
    the likelier one. Deviation: shares are drawn for each utterance, where the authors' code draws one a batch.
    """
    seed = int(torch.randint(2**62, (), generator=stream))
    share_B = np.random.default_rng(seed).beta(alpha, alpha, len(labels_B))
    own_B1 = send(torch.from_numpy(np.maximum(share_B, 1 - share_B)).float()[:, None], features_BFL.device)
    other_B = send(torch.randperm(len(labels_B), generator=stream), features_BFL.device)
    given_BC = one_hot(labels_B, num_classes).float()
    mixed_BFL = torch.lerp(features_BFL[other_B], features_BFL, own_B1[..., None].to(features_BFL.dtype))
    return mixed_BFL, torch.lerp(given_BC[other_B], given_BC, own_B1)


def uniform(rows: int, columns: int, stream: Generator) -> Tensor:
    """Draws from [0, 1), float32 whatever the default dtype, on the CPU."""
    return torch.rand((rows, columns), generator=stream, dtype=torch.float32)


def roll_in_time(features_BFL: Tensor, stream: Generator) -> Tensor:
    """Rotate each utterance by a number of frames uniform in 0..L-1."""
    num_frames = features_BFL.shape[2]
    shift_B1 = torch.randint(num_frames, (len(features_BFL), 1), generator=stream)
    source_BL = (torch.arange(num_frames) - shift_B1) % num_frames
    return features_BFL.gather(2, send(source_BL, features_BFL.device)[:, None].expand_as(features_BFL))


def splice(features_BFL: Tensor, labels_B: Tensor, share: float, stream: Generator) -> Tensor:
    """Replace the end of a ``share`` of utterances by that of another of the batch with the same emotion. The cut is
    uniform in 0..L-1. The label stays true, since all of an utterance shows its emotion. One alone in its emotion stays
    as it is.
    """
    num_frames = features_BFL.shape[2]
    cut_B1 = torch.randint(num_frames, (len(features_BFL), 1), generator=stream)
    taken_B1 = uniform(len(features_BFL), 1, stream) < share
    other_BL = send(taken_B1 & (torch.arange(num_frames) >= cut_B1), features_BFL.device)
    others_BFL = features_BFL[partners(labels_B, stream)]
    return torch.where(other_BL[:, None], others_BFL, features_BFL)


def partners(labels_B: Tensor, stream: Generator) -> Tensor:
    """For each row another row of the same label, shape (B,): the next one in a random circle of the label's rows."""
    shuffled_B = send(torch.randperm(len(labels_B), generator=stream), labels_B.device)
    order_B = shuffled_B[labels_B[shuffled_B].argsort(stable=True)]
    sorted_B = labels_B[order_B]
    first_B = torch.searchsorted(sorted_B, sorted_B)
    end_B = torch.searchsorted(sorted_B, sorted_B, right=True)
    onward_B = torch.arange(1, len(labels_B) + 1, device=labels_B.device)
    partners_B = torch.empty_like(order_B)
    partners_B[order_B] = order_B[torch.where(onward_B < end_B, onward_B, first_B)]
    return partners_B


def warp_mel(features_BFL: Tensor, largest: float, stream: Generator) -> Tensor:
    """Stretch the mel axis of each utterance by a factor uniform in 1 - ``largest`` to 1 + ``largest``. As vocal tract
    length perturbation (Jaitly and Hinton 2013), on mel bins: bin f takes the value at f times the factor, interpolated
    between its neighbours; above the highest bin that bin's value goes on.
    """
    size = features_BFL.shape[1]
    factor_B1 = 1 + (2 * uniform(len(features_BFL), 1, stream) - 1) * largest
    place_BF = (torch.arange(size) * factor_B1).clamp(max=size - 1)
    below_BF = place_BF.floor().long()
    weight_BF1, below_BF1, above_BF1 = (
        send(part_BF[..., None], features_BFL.device)
        for part_BF in (place_BF - below_BF, below_BF, (below_BF + 1).clamp(max=size - 1))
    )
    low_BFL, high_BFL = (features_BFL.gather(1, row.expand_as(features_BFL)) for row in (below_BF1, above_BF1))
    return torch.lerp(low_BFL, high_BFL, weight_BF1.to(features_BFL.dtype))


def equalise(features_BFL: Tensor, largest: float, stream: Generator) -> Tensor:
    """Add to each utterance a smooth curve over mel bins, the same in all frames and at most ``largest`` anywhere: a
    constant, half a cosine and a whole one, of amplitudes uniform within a third of it each, a gain, a tilt and a bend.
    """
    size = features_BFL.shape[1]
    place_F = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    curves_KF = torch.stack([torch.cos(torch.pi * order * place_F) for order in range(3)])
    amplitude_BK = (2 * uniform(len(features_BFL), 3, stream) - 1) * (largest / 3)
    return features_BFL + send(amplitude_BK @ curves_KF, features_BFL.device)[..., None]


def mask_band(features_BFL: Tensor, axis: int, longest: int, stream: Generator) -> Tensor:
    """Set a band of each utterance along ``axis`` (1: mel bins, 2: frames) to 0. Its length is uniform in
    0..``longest`` (at most the axis), its start uniform over where it fits.
    """
    size, count = features_BFL.shape[axis], len(features_BFL)
    length_B1 = torch.randint(min(longest, size) + 1, (count, 1), generator=stream)
    start_B1 = (uniform(count, 1, stream) * (size - length_B1 + 1)).long()
    positions = torch.arange(size)
    masked = (positions >= start_B1) & (positions < start_B1 + length_B1)
    return features_BFL.masked_fill(send(masked, features_BFL.device).unsqueeze(3 - axis), 0.0)
