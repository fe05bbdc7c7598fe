"""What an attack may do: the box that inputs live in, the ball a perturbation stays in, and the budget it must keep to.

Legend: B utterances, F mel bins, L frames; "..." is whatever is moved, mel bins and frames or samples. Features are
standardised log-mel, float32; epsilon is in their units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Generator, Tensor

from ser_fl.devices import send
from ser_fl.errors import UserError

Norm = Literal["inf", "2"]

RELATIVE_TOLERANCE = 1e-6
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """The values that a feature may take, per mel bin: from the standardised log floor to the training maximum.

    Clean features are clipped to the box before anything is measured. The paper's code has none: `Box.unbounded()`.

    Args:
        lower_F1: smallest value, any shape that broadcasts to (B, F, L); None together with `upper_F1` for no box.
        upper_F1: largest value, same.

    Raises:
        UserError: only one side is given, or a lower bound lies above its upper bound.
    """

    lower_F1: Tensor | None
    upper_F1: Tensor | None

    def __post_init__(self) -> None:
        if self.lower_F1 is None and self.upper_F1 is None:
            return
        if self.lower_F1 is None or self.upper_F1 is None:
            raise UserError("a box needs a lower and an upper bound, got one of them: give both, or none")
        if not bool((self.lower_F1 <= self.upper_F1).all()):
            raise UserError("a box needs lower <= upper in every mel bin, got one where it is not, or not a number")

    @classmethod
    def unbounded(cls) -> Self:
        """No box: every value is allowed."""
        return cls(None, None)

    @classmethod
    def of(cls, lower_F1: Tensor, upper_F1: Tensor) -> Self:
        """The box between two sides; unbounded where a side is infinite (``frontend.clip=none``)."""
        bounded = bool(torch.isfinite(lower_F1).all() and torch.isfinite(upper_F1).all())
        return cls(lower_F1, upper_F1) if bounded else cls.unbounded()

    def clip(self, features_BFL: Tensor) -> Tensor:
        """Nearest features inside the box; the features themselves where there is none."""
        if self.lower_F1 is None or self.upper_F1 is None:
            return features_BFL
        return torch.clamp(features_BFL, self.lower_F1, self.upper_F1)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Box:
        """The same box on another device, or of another type of number; itself where it is that already.

        Its values are not looked at again, which would wait for a GPU; whoever needs it in a loop moves it once.
        """
        if self.lower_F1 is None or self.upper_F1 is None:
            return self
        lower_F1, upper_F1 = self.lower_F1.to(device, dtype), self.upper_F1.to(device, dtype)
        if lower_F1 is self.lower_F1 and upper_F1 is self.upper_F1:
            return self
        moved = copy(self)
        object.__setattr__(moved, "lower_F1", lower_F1)
        object.__setattr__(moved, "upper_F1", upper_F1)
        return moved


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """All inputs within a radius of the clean ones."""

    clean: Tensor
    """Shape (B, ...)."""
    radius_B: Tensor
    """Same device, >= 0, in the units of the inputs."""
    norm: Norm

    def subset(self, rows_N: Tensor) -> Ball:
        """The ball of some of the utterances."""
        return Ball(self.clean[rows_N], self.radius_B[rows_N], self.norm)

    def project(self, moved: Tensor) -> Tensor:
        """The nearest inputs inside, shape (B, ...)."""
        step = moved - self.clean
        if self.norm == "inf":
            radius = per_utterance(self.radius_B, step)
            return step.clamp(-radius, radius).add_(self.clean)
        length_B = lengths(step)
        shrink_B = torch.where(length_B > self.radius_B, self.radius_B / length_B.clamp(min=_TINY), 1.0)
        return self.clean + step * per_utterance(shrink_B, step)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The perturbation of norm 1 along which a loss of this gradient rises most, shape (B, ...)."""
        if self.norm == "inf":
            return gradient.sign()
        # A sure model's gradient is so small that its squares would be nothing.
        largest_B = gradient.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_utterance(largest_B, gradient)
        return scaled / per_utterance(lengths(scaled).clamp(min=_TINY), scaled)

    def random(self, generators_B: Iterable[Generator]) -> Tensor:
        """Inputs that are uniform in the ball, each by a generator of its own (all on one device), shape (B, ...)."""
        drawn = torch.cat([self._draw(self.clean.shape[1:], stream) for stream in generators_B])
        return self.clean + send(drawn, self.clean.device) * per_utterance(self.radius_B, drawn)

    def _draw(self, shape: torch.Size, stream: Generator) -> Tensor:
        """One perturbation in the ball of radius 1, shape (1, ...)."""
        if self.norm == "inf":
            return 2 * torch.rand((1, *shape), generator=stream, device=stream.device) - 1
        direction = torch.randn((1, *shape), generator=stream, device=stream.device)
        share = torch.rand(1, generator=stream, device=stream.device, dtype=torch.float64) ** (1 / shape.numel())
        inside: Tensor = direction / direction.norm() * share.float()
        return inside


def per_utterance(value_B: Tensor, inputs: Tensor) -> Tensor:
    """One value an utterance, shaped to be broadcast over its inputs."""
    return value_B.view(-1, *(1,) * (inputs.dim() - 1))


def lengths(step: Tensor) -> Tensor:
    """L2 norm of each utterance's part, shape (B,)."""
    length_B: Tensor = torch.linalg.vector_norm(step.flatten(1), dim=1)
    return length_B


def budget_of(epsilon: float, norm: Norm, features_shape: tuple[int, ...]) -> float:
    """Largest norm of a perturbation that counts as a success.

    Args:
        epsilon: L-infinity budget, >= 0, in units of the features.
        norm: the norm that the attack minimises or keeps to.
        features_shape: (F, L), or (B, F, L).

    Returns:
        epsilon itself for "inf". For "2" it is epsilon * sqrt(F * L): the L2 norm of a perturbation of +-epsilon in
        every cell, so that one epsilon means one budget for all attacks and none is asked for less than PGD may use.

    >>> budget_of(0.5, "2", (64, 100))
    40.0
    """
    if norm == "inf":
        return epsilon
    return epsilon * math.sqrt(math.prod(features_shape[-2:]))


def distance(clean_BFL: Tensor, adversarial_BFL: Tensor, norm: Norm) -> Tensor:
    """Norm of each utterance's perturbation: float64, shape (B,)."""
    difference_BD = (adversarial_BFL.double() - clean_BFL.double()).flatten(1)
    norm_B: Tensor = torch.linalg.vector_norm(difference_BD, ord=math.inf if norm == "inf" else 2, dim=1)
    return norm_B


def keep_within(clean_BFL: Tensor, adversarial_BFL: Tensor, norm: Norm, budget: float) -> Tensor:
    """Adversarial utterances within the budget, and the clean ones in place of the others.

    L-infinity attacks stay inside their ball by construction. Minimal-norm attacks (C&W, DeepFool) look for the
    nearest adversarial utterance however far it is: one beyond the budget has failed, and its clean utterance is shown
    to the model. The tolerance is 1e-6 of the budget, and for "inf" one rounding of its largest feature to float32.
    """
    distance_B = distance(clean_BFL, adversarial_BFL, norm)
    allowed_B = torch.full_like(distance_B, budget * (1 + RELATIVE_TOLERANCE))
    if norm == "inf" and clean_BFL.numel():
        allowed_B += torch.finfo(torch.float32).eps * clean_BFL.abs().flatten(1).amax(1)
    inside_B11 = (distance_B <= allowed_B)[:, None, None]
    return torch.where(inside_B11, adversarial_BFL, clean_BFL)
