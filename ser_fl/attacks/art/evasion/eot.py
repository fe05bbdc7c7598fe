"""Expectation over transformation as an attack of ART, for any random transformation.

ART's own expectations over transformation are preprocessors of images. This class takes the transformation as a
function; our benchmark does not need it.

Legend: B inputs, K draws; whatever follows B is an input: features, samples or pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ser_fl.attacks.art.evasion.base import BallAttack
from ser_fl.attacks.art.evasion.parameters import Parameter, function, real, whole
from ser_fl.attacks.pgd import descend
from ser_fl.attacks.target import Expectation, Target
from ser_fl.attacks.threat_model import Box
from ser_fl.randomness import generator

Transform = Callable[[Tensor, Generator], Tensor]
"""(one input, a generator on the CPU) -> what the classifier is shown; both of shape (1, ...); differentiable."""


class ExpectationOverTransformationPGD(BallAttack):
    """Projected gradient ascent of the mean cross-entropy over a random transformation (arXiv 1707.07397, 1802.00420).

    Each step draws anew, by (seed, row of the input, step), so that the result depends on no batch. What several random
    starts have found is compared under draws that are common to them.

    Args:
        estimator: a PyTorchClassifier whose model gives logits.
        transform: what stands in front of it at test time.
        samples: draws a step.
        norm: np.inf, "inf", 2 or "2".
        eps: radius of the ball, in the units of the inputs.
        eps_step: length of a step, >= 0, in the same units.
        max_iter: steps.
        num_random_init: random starts; 0 starts once, at the input.
        given: ``targeted``, ``batch_size``, ``seed`` (of starts and draws) and ``verbose``, as of `BallAttack`.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {
        **BallAttack.parameters,
        "transform": function(),
        "samples": whole(16, least=1),
        "eps_step": real(0.1),
        "num_random_init": whole(0, least=0),
    }

    def __init__(self, estimator: Any, transform: Transform, **given: Any) -> None:
        super().__init__(estimator, transform=transform, **given)

    def _expectation(self) -> Expectation:
        return _OverTransform(self.transform, self.seed, self.samples)

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        ball = self._ball(clean)
        starts = [self._start(target, ball, "eot", restart) for restart in range(self.num_random_init)]
        return descend(
            target,
            ball,
            labels_B,
            steps=self.max_iter,
            step_size=self.eps_step,
            starts=torch.stack(starts) if starts else None,
            box=box,
        )


@dataclass(frozen=True, slots=True)
class _OverTransform:
    """Draws of any transformation, keyed by (seed, input, step, draw)."""

    function: Transform
    seed: int
    samples: int

    @property
    def weights(self) -> tuple[float, ...]:
        return (1 / self.samples,) * self.samples

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        return torch.cat(
            [
                self.function(features_BFL[row : row + 1], generator("eot", self.seed, key, step, draw))
                for draw in draws
                for row, key in enumerate(keys_B)
            ]
        )
