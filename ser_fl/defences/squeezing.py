"""Defences without randomness: features are coarsened before the classifier sees them.

Feature squeezing (Xu et al. 2018, arXiv 1704.01155) reduces what an attacker may write into: fewer values a cell (bit
depth), or less detail between neighbours (median smoothing). The paper compares predictions with and without to detect
an attack; here the squeezed prediction is the one that counts. Rounding has no useful gradient, which stops an attack
that does not know of it and none that does.

Legend: B utterances, F mel bins, L frames, K outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ser_fl.defences.randomisation import Classifier
from ser_fl.errors import UserError


class Deterministic:
    """What defences without randomness have in common: one draw, one run, one outcome."""

    @property
    def num_draws(self) -> int:
        """Forward passes per utterance in `predict`."""
        return 1

    @property
    def run_weights(self) -> tuple[float, ...]:
        """One prediction, one run."""
        return (1.0,)

    @property
    def outcome_weights(self) -> tuple[float, ...]:
        """The one outcome is certain."""
        return (1.0,)

    @property
    def approximation(self) -> Callable[[Tensor], Tensor] | None:
        """None is needed where `transform` has a useful gradient."""
        return None

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """What the classifier is shown, shape (B, F, L); neither keys, seed nor draw matter."""
        raise NotImplementedError

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        """What the classifier is shown, K times over: shape (K * B, F, L)."""
        shown_BFL = self.transform(features_BFL, [""] * len(features_BFL), seed=0, draw=0)
        return shown_BFL.repeat(len(numbers_KB), 1, 1)

    @torch.no_grad()
    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        """Predicted classes, int64, shape (1, B)."""
        return model(self.transform(features_BFL, keys_B, seed=seed, draw=0)).argmax(dim=-1)[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation(Deterministic):
    """Every cell rounded to the nearest multiple of a step.

    The paper rounds pixels in [0, 1] to 2^i levels. Standardised log-mel features have a range of their own in every
    mel bin, and one standard deviation in all: a step of 0.5 leaves 4 bits to the eight standard deviations around the
    mean, which is what the paper takes for photographs.
    """

    step: float = 0.5
    """Between neighbouring levels, in standardised log-mel units, > 0."""
    name: str = "quantisation"

    def __post_init__(self) -> None:
        if not 0 < self.step < math.inf:
            raise UserError(f"step must be > 0 and finite, got {self.step}: the default is 0.5")

    @property
    def approximation(self) -> Callable[[Tensor], Tensor]:
        """The identity: rounding moves a cell by half a step at most, and follows it on average."""
        return lambda features_BFL: features_BFL

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """Rounded features, shape (B, F, L); their gradient is zero."""
        return (features_BFL / self.step).round() * self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianSmoothing(Deterministic):
    """Every cell replaced by the median of its mel bin over a few frames; edges are repeated.

    Along time only, since neighbouring mel bins are not neighbouring pixels. Its gradient, that of the frame which is
    the median, is exact, so that an attack needs no approximation of it.
    """

    frames: int = 3
    """Width of the window, odd, >= 1."""
    name: str = "smoothing"

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 2 == 0:
            raise UserError(f"frames must be odd and 1 or more, got {self.frames}: the default is 3")

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """Smoothed features, shape (B, F, L); differentiable."""
        margin = self.frames // 2
        return pad(features_BFL, (margin, margin), mode="replicate").unfold(-1, self.frames, 1).median(dim=-1).values
