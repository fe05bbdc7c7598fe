"""The ball that a perturbation stays in, L-infinity or L2, with a radius for each utterance.

Legend: B utterances; whatever follows B is what is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ser_fl.attacks.threat_model import Norm
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
