"""Defences without randomness: features are coarsened before the classifier sees them.

Feature squeezing (Xu et al. 2018, arXiv 1704.01155) leaves an attacker less room: fewer values a cell (bit depth), or
less detail between neighbours (median smoothing). The paper detects an attack by comparing predictions with and without
squeezing; here the squeezed prediction counts. Rounding has no useful gradient: that stops only an attacker who does
not know of it.

Legend: B utterances, F mel bins, L frames.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from ser_fl.defences.defence import Deterministic
from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation(Deterministic):
    """Every cell rounded to the nearest multiple of a step.

    The paper rounds pixels in [0, 1] to 2^i levels. Standardised log-mel features have one standard deviation and
    another range in every bin: a step of 0.5 leaves 16 levels for eight standard deviations, the 4 bits that the paper
    takes for photographs.
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
        return (features_BFL / self.step).round() * self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianSmoothing(Deterministic):
    """Every cell replaced by the median of its mel bin over a few frames; edges are repeated. Along time only, since
    neighbouring mel bins are not neighbouring pixels. Its gradient, that of the frame which is the median, is exact.
    """

    frames: int = 3
    """Width of the window, odd, >= 1."""
    name: str = "smoothing"

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 2 == 0:
            raise UserError(f"frames must be odd and 1 or more, got {self.frames}: the default is 3")

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        margin = self.frames // 2
        return pad(features_BFL, (margin, margin), mode="replicate").unfold(-1, self.frames, 1).median(dim=-1).values
