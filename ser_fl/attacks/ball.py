"""The ball that a perturbation stays in, L-infinity or L2, with a radius for each utterance.

Legend: B utterances; whatever follows B is what is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ser_fl.attacks.budget import Norm
from ser_fl.devices import send

_TINY = 1e-12


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
            radius = self._as(self.radius_B)
            return step.clamp(-radius, radius).add_(self.clean)
        length = self._as(lengths(step))
        shrink = torch.where(length > self._as(self.radius_B), self._as(self.radius_B) / length.clamp(min=_TINY), 1.0)
        return self.clean + step * shrink

    def steepest(self, gradient: Tensor) -> Tensor:
        """The perturbation of norm 1 along which a loss of this gradient rises most, shape (B, ...)."""
        if self.norm == "inf":
            return gradient.sign()
        return gradient / self._as(lengths(gradient)).clamp(min=_TINY)

    def random(self, generators_B: Iterable[Generator]) -> Tensor:
        """Inputs that are uniform in the ball, each by a generator of its own (all on one device), shape (B, ...)."""
        drawn = torch.cat([self._draw(self.clean.shape[1:], stream) for stream in generators_B])
        return self.clean + send(drawn, self.clean.device) * self._as(self.radius_B)

    def _draw(self, shape: torch.Size, stream: Generator) -> Tensor:
        """One perturbation in the ball of radius 1, shape (1, ...)."""
        if self.norm == "inf":
            return 2 * torch.rand((1, *shape), generator=stream, device=stream.device) - 1
        direction = torch.randn((1, *shape), generator=stream, device=stream.device)
        share = torch.rand(1, generator=stream, device=stream.device, dtype=torch.float64) ** (1 / shape.numel())
        inside: Tensor = direction / direction.norm() * share.float()
        return inside

    def _as(self, value_B: Tensor) -> Tensor:
        """One value an utterance, to be broadcast over its inputs."""
        return value_B.view(-1, *(1,) * (self.clean.dim() - 1))


def lengths(step: Tensor) -> Tensor:
    """L2 norm of each utterance's part, shape (B,)."""
    length_B: Tensor = torch.linalg.vector_norm(step.flatten(1), dim=1)
    return length_B
