"""What an attack may do: the norms, the box that inputs live in, the ball a perturbation stays in, and the budget.

To add a norm, give it an entry in `NORMS`: attacks, budgets and records take all that they need of a norm from there.

Legend: B utterances, F mel bins, L frames, D values of an utterance; "..." is whatever is moved, mel bins and frames or
samples. Features are standardised log-mel, float32; epsilon is in their units.
"""

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, cast

import torch
from torch import Generator, Tensor

from ser_fl.devices import send
from ser_fl.errors import UserError, unknown_name

Norm = Literal["inf", "2"]

RELATIVE_TOLERANCE = 1e-6
_TINY = 1e-12


def per_utterance(value_B: Tensor, inputs: Tensor) -> Tensor:
    """One value an utterance, shaped to be broadcast over its inputs."""
    return value_B.view(-1, *(1,) * (inputs.dim() - 1))


def either(first_B: Tensor, these: Iterable[Tensor], those: Iterable[Tensor]) -> list[Tensor]:
    """Of pairs of tensors with a row an utterance: the rows of the first where it is meant, else of the second."""
    pairs = zip(these, those, strict=True)
    return [torch.where(per_utterance(first_B, this), this, that) for this, that in pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormFunctions:
    """All that is particular to a norm; perturbations and gradients are of shape (B, ...)."""

    order: float
    """As ART's users write it."""
    size: Callable[[Tensor], Tensor]
    """Norm of each perturbation, shape (B,)."""
    dual_size: Callable[[Tensor], Tensor]
    """As `rise_of` says, shape (B,); may be 0."""
    shortened: Callable[[Tensor, Tensor], Tensor]
    """(perturbations, radius_B) -> the nearest perturbations of no larger norm, a new tensor."""
    steepest: Callable[[Tensor], Tensor]
    """The perturbation of norm 1 along which a loss of a gradient rises most, same shape."""
    drawn: Callable[[torch.Size, Generator], Tensor]
    """One perturbation that is uniform in the ball of radius 1, shape (1, ...), on the generator's device."""
    of_ones: Callable[[int], float]
    """Norm of a perturbation of 1 in each of D values."""
    rounded: bool = False
    """Whether `keep_within` lets the rounding of the largest feature pass."""


def _length(step: Tensor) -> Tensor:
    length_B: Tensor = torch.linalg.vector_norm(step.flatten(1), dim=1)
    return length_B


def _shortened_l2(step: Tensor, radius_B: Tensor) -> Tensor:
    length_B = _length(step)
    return step * per_utterance(torch.where(length_B > radius_B, radius_B / length_B.clamp(min=_TINY), 1.0), step)


def _steepest_l2(gradient: Tensor) -> Tensor:
    # A sure model's gradient is so small that its squares would be nothing.
    largest_B = gradient.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
    scaled = gradient / per_utterance(largest_B, gradient)
    return scaled / per_utterance(_length(scaled).clamp(min=_TINY), scaled)


def _drawn_l2(shape: torch.Size, stream: Generator) -> Tensor:
    direction = torch.randn((1, *shape), generator=stream, device=stream.device)
    share = torch.rand(1, generator=stream, device=stream.device, dtype=torch.float64) ** (1 / shape.numel())
    inside: Tensor = direction / direction.norm() * share.float()
    return inside


class _Norms(dict[Norm, NormFunctions]):
    def __missing__(self, norm: Norm) -> NormFunctions:
        raise unknown_name("norm", str(norm), self)


NORMS = _Norms(
    {
        "inf": NormFunctions(
            order=math.inf,
            size=lambda step: step.flatten(1).abs().amax(dim=1),
            dual_size=lambda gradient: gradient.flatten(1).abs().sum(dim=1),
            shortened=lambda step, radius_B: step.clamp(-(radius := per_utterance(radius_B, step)), radius),
            steepest=torch.sign,
            drawn=lambda shape, stream: 2 * torch.rand((1, *shape), generator=stream, device=stream.device) - 1,
            of_ones=lambda number: 1.0,
            rounded=True,
        ),
        "2": NormFunctions(
            order=2,
            size=_length,
            dual_size=_length,
            shortened=_shortened_l2,
            steepest=_steepest_l2,
            drawn=_drawn_l2,
            of_ones=math.sqrt,
        ),
    }
)
"""By name; another name is a `UserError` that lists them."""


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """The values that a feature may take, per mel bin: from the standardised log floor to the training maximum. Clean
    features are clipped to it before anything is measured. The paper's code has none: `Box.unbounded()`. One side
    alone, or a lower bound above its upper bound, is a `UserError`.
    """

    lower_F1: Tensor | None
    """Of any shape that broadcasts to (B, F, L); both None for no box."""
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

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """The same box elsewhere, or of another type of number; its values are not looked at, which waits for a GPU."""
        if self.lower_F1 is None or self.upper_F1 is None:
            return self
        lower_F1, upper_F1 = self.lower_F1.to(device, dtype), self.upper_F1.to(device, dtype)
        if lower_F1 is self.lower_F1 and upper_F1 is self.upper_F1:
            return self
        moved = copy(self)
        object.__setattr__(moved, "lower_F1", lower_F1)
        object.__setattr__(moved, "upper_F1", upper_F1)
        return moved


class Rows:
    """A dataclass whose tensors and ``keys_B`` have a row an utterance."""

    __slots__ = ()

    def subset(self, rows_N: Tensor) -> Self:
        """The same for some of the utterances."""
        part = copy(self)
        for field in fields(cast(Any, self)):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = value[rows_N]
            elif isinstance(value, Rows):
                value = value.subset(rows_N)
            elif field.name == "keys_B":
                value = [value[row] for row in rows_N.tolist()]
            object.__setattr__(part, field.name, value)
        return part


@dataclass(frozen=True, slots=True, eq=False)
class Ball(Rows):
    """All inputs within a radius of the clean ones."""

    clean: Tensor
    """Shape (B, ...)."""
    radius_B: Tensor
    """Same device, >= 0, in the units of the inputs."""
    norm: Norm

    def project(self, moved: Tensor) -> Tensor:
        """The nearest inputs inside, shape (B, ...)."""
        return NORMS[self.norm].shortened(moved - self.clean, self.radius_B).add_(self.clean)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The perturbation of norm 1 along which a loss of this gradient rises most, shape (B, ...)."""
        return NORMS[self.norm].steepest(gradient)

    def random(self, generators_B: Iterable[Generator]) -> Tensor:
        """Inputs that are uniform in the ball, each by a generator of its own (all on one device), shape (B, ...)."""
        draw = NORMS[self.norm].drawn
        drawn = torch.cat([draw(self.clean.shape[1:], stream) for stream in generators_B])
        return self.clean + send(drawn, self.clean.device) * per_utterance(self.radius_B, drawn)


def budget_of(epsilon: float, norm: Norm, features_shape: tuple[int, ...]) -> float:
    """Largest norm of a perturbation of features of shape (..., F, L) that counts as a success: that of +-epsilon in
    every cell, epsilon itself in L-infinity, epsilon * sqrt(F * L) in L2. So one epsilon means one budget for all
    attacks, and none is asked for less than PGD may use.

    >>> budget_of(0.5, "2", (64, 100))
    40.0
    """
    return epsilon * NORMS[norm].of_ones(math.prod(features_shape[-2:]))


def distance(clean_BFL: Tensor, adversarial_BFL: Tensor, norm: Norm) -> Tensor:
    """Norm of each utterance's perturbation: float64, shape (B,)."""
    return NORMS[norm].size(adversarial_BFL.double() - clean_BFL.double())


def keep_within(clean_BFL: Tensor, adversarial_BFL: Tensor, norm: Norm, budget: float) -> Tensor:
    """Adversarial utterances within the budget, and the clean ones in place of the others, which have failed:
    minimal-norm attacks (C&W, DeepFool) look however far it is. The tolerance is 1e-6 of the budget, and for "inf" one
    rounding of its largest feature to float32.
    """
    distance_B = distance(clean_BFL, adversarial_BFL, norm)
    allowed_B = torch.full_like(distance_B, budget * (1 + RELATIVE_TOLERANCE))
    if NORMS[norm].rounded and clean_BFL.numel():
        allowed_B += torch.finfo(torch.float32).eps * clean_BFL.abs().flatten(1).amax(1)
    return torch.where((distance_B <= allowed_B)[:, None, None], adversarial_BFL, clean_BFL)
