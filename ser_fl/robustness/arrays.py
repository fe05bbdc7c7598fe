"""Utterances in arrays of any make: features, labels and a box as attacks take them, or one line that says why not.

Attacks move features of shape (B, F, L). What comes without frames has one, and channels lie one above the other.

Legend: B and N utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ser_fl.attacks.threat_model import Box
from ser_fl.errors import UserError, one_line, shown

Numbers = Tensor | npt.ArrayLike
"""A tensor or an array of any real type, or nested lists of numbers."""


def features_of(given: Numbers) -> tuple[Tensor, tuple[int, ...]]:
    """Features as float32 of shape (N, F, L), and the shape that one utterance came in.

    Raises:
        UserError: they are no real numbers, or none at all.
    """
    features = _numbers(given, "features", torch.float32)
    if features.ndim < 2 or not math.prod(features.shape):
        raise UserError(
            f"features must be of shape (utterances, bins, frames) and not empty, got {tuple(features.shape)}"
        )
    return _stacked(features), tuple(features.shape[1:])


def as_taken(features_BFL: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Features of shape (B, F, L) in the shape that they came in.

    Raises:
        UserError: a defence has changed their size, and there are more channels than one, or no frames.
    """
    if len(shape) == 2:
        return features_BFL
    if len(shape) == 3 and shape[0] == 1:
        return features_BFL[:, None]
    if features_BFL.shape[1:].numel() != math.prod(shape):
        raise UserError(
            f"a defence changes the size of utterances, which those of shape {shape} cannot: give features of shape "
            "(utterances, bins, frames), or take a defence such as quantisation"
        )
    return features_BFL.reshape(len(features_BFL), *shape)


def labels_of(given: Numbers, num_utterances: int, num_classes: int) -> Tensor:
    """Labels as int64 of shape (N,), each in [0, C), from whole numbers or one-hot rows.

    Raises:
        UserError: they are something else, or not one an utterance.
    """
    labels = _numbers(given, "labels", torch.float64).cpu()
    if not labels.ndim or len(labels) != num_utterances:
        raise UserError(
            f"labels must be one an utterance, got the shape {tuple(labels.shape)} for {num_utterances} utterances"
        )
    if labels.shape[1:] == (num_classes,):
        if not bool((((labels == 0) | (labels == 1)).all(1) & (labels.sum(1) == 1)).all()):
            raise UserError("labels of two dimensions must be one-hot, got rows that are not: give true classes")
        return labels.argmax(1)
    if labels.shape[1:] not in ((), (1,)):
        raise UserError(
            f"labels must be of shape ({num_utterances},), or one-hot ({num_utterances}, {num_classes}) as the model's "
            f"logits are, got {tuple(labels.shape)}"
        )
    labels = labels.flatten()
    if odd := (~((labels >= 0) & (labels < num_classes) & (labels == labels.floor()))).nonzero().flatten().tolist():
        raise UserError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, since the model answers {num_classes} logits, "
            f"got {labels[odd[0]]:g} for utterance {odd[0]}"
        )
    return labels.long()


def box_in_shape(box: Box, shape: tuple[int, ...]) -> Box:
    """The box of utterances as they are attacked, from that of utterances as they came.

    Raises:
        UserError: a side does not broadcast to that shape.
    """
    if box.lower_F1 is None or box.upper_F1 is None:
        return box
    sides = []
    for side in (box.lower_F1, box.upper_F1):
        try:
            whole = torch.broadcast_to(side, shape)
        except RuntimeError:
            raise UserError(
                f"the sides of a box must broadcast to the shape of an utterance, got {tuple(side.shape)} for {shape}"
            ) from None
        sides.append(side if len(shape) == 2 else _stacked(whole[None])[0])
    return Box(*sides)


def _stacked(features: Tensor) -> Tensor:
    """Of shape (N, F, L)."""
    return features[:, :, None] if features.ndim == 2 else features.reshape(len(features), -1, features.shape[-1])


def _numbers(given: Any, name: str, dtype: torch.dtype) -> Tensor:
    """As a tensor: where it is, if it is one, or else on the CPU.

    Raises:
        UserError: it is not a rectangle of real numbers.
    """
    try:
        if isinstance(given, (list, tuple)) and given and all(isinstance(part, Tensor) for part in given):
            given = torch.stack(list(given))
        if not isinstance(given, Tensor):
            array = np.asarray(given)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"it holds {array.dtype}")
            return torch.from_numpy(array.astype(np.float32 if dtype == torch.float32 else np.float64))
        if given.is_complex():
            raise ValueError(f"it holds {given.dtype}")
        with torch.inference_mode(False):  # a tensor made under it cannot take part in a gradient; its clone can
            return (given.clone() if given.is_inference() else given.detach()).to(dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{name} must be real numbers, as many for every utterance, got {shown(given)} "
            f"({one_line(str(error), 200)}): give a tensor or an array"
        ) from error
