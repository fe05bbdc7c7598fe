"""Our attacks as evasion attacks of ART, for any of its PyTorchClassifiers and inputs of any shape.

Used like ART's own: ``CarliniWagnerL2(classifier).generate(x, y)``. Importing this module imports ART. All take
``targeted``, ``batch_size`` and ``verbose`` (see `TensorAttack`), those in a ball ``seed`` too (`BallAttack`).

Legend: B inputs, N some of them; whatever follows B is an input: features, samples or pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ser_fl.attacks.art.tensor_attack import NORM_OF, BallAttack, Parameter, TensorAttack, choice, real, refused, whole
from ser_fl.attacks.autopgd import restarted
from ser_fl.attacks.carlini_wagner import SEARCH_STEPS, carlini_wagner_l2, carlini_wagner_linf
from ser_fl.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio
from ser_fl.attacks.minimum_norm import fast_minimum_norm
from ser_fl.attacks.pgd import descend
from ser_fl.attacks.target import Expectation, Target
from ser_fl.attacks.threat_model import Box
from ser_fl.randomness import generator

__all__ = ["AutoPGD", "CarliniWagnerL2", "CarliniWagnerLInf", "ExpectationOverTransformationPGD", "FastMinimumNorm"]

LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "difference_logits_ratio": difference_of_logits_ratio}
"""Under ART's names."""
Transform = Callable[[Tensor, Generator], Tensor]
"""(one input, a generator on the CPU) -> what the classifier is shown; both of shape (1, ...); differentiable."""


class AutoPGD(BallAttack):
    """AutoPGD (Croce and Hein 2020, arXiv 2003.01690); stands in for AutoProjectedGradientDescent.

    Args:
        estimator: a PyTorchClassifier whose model gives logits.
        norm: np.inf, "inf", 2 or "2".
        eps: radius of the ball, in the units of the inputs.
        max_iter: steps.
        nb_random_init: random starts; 0 starts once, at the input.
        loss_type: a key of `LOSSES`.
    """

    parameters = BallAttack.parameters | {
        "nb_random_init": whole(1, least=0),
        "loss_type": choice("cross_entropy", LOSSES),
        "eps_step": refused(None, "AutoPGD begins at twice eps and chooses its steps by itself"),
    }

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        ball = self._ball(clean)

        def starts(rows_N: Tensor, number: int) -> Tensor | None:
            if not self.nb_random_init:
                return None
            return self._start(target.subset(rows_N), ball.subset(rows_N), "apgd", number)

        losses = [lambda rows_N: LOSSES[self.loss_type]] * max(self.nb_random_init, 1)
        return restarted(target, ball, labels_B, losses=losses, starts=starts, steps=self.max_iter, box=box)


class ExpectationOverTransformationPGD(BallAttack):
    """Projected gradient ascent of the mean cross-entropy over a random transformation (arXiv 1707.07397, 1802.00420).

    ART's own expectations over transformation are preprocessors of images; this class takes any function. Each step
    draws anew, by (seed, row, step), so that no result depends on batches. Starts are compared under common draws.

    Args:
        estimator: a PyTorchClassifier whose model gives logits.
        transform: what stands in front of it at test time.
        samples: draws a step.
        norm: np.inf, "inf", 2 or "2".
        eps: radius of the ball, in the units of the inputs.
        eps_step: length of a step, >= 0, in the same units.
        max_iter: steps.
        num_random_init: random starts; 0 starts once, at the input.
    """

    parameters = BallAttack.parameters | {
        "transform": Parameter(None, "a function", callable),
        "samples": whole(16, least=1),
        "eps_step": real(0.1),
        "num_random_init": whole(0, least=0),
    }

    def __init__(self, estimator: Any, transform: Transform, **given: Any) -> None:
        super().__init__(estimator, transform=transform, **given)

    def _expectation(self) -> Expectation:
        return _OverTransform(self.transform, self.seed, (1 / self.samples,) * self.samples)

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        ball = self._ball(clean)
        starts = [self._start(target, ball, "eot", restart) for restart in range(self.num_random_init)]
        begun = torch.stack(starts) if starts else None
        return descend(target, ball, labels_B, steps=self.max_iter, step_size=self.eps_step, starts=begun, box=box)


@dataclass(frozen=True, slots=True)
class _OverTransform:
    """Draws of any transformation, keyed by (seed, input, step, draw)."""

    function: Transform
    seed: int
    weights: tuple[float, ...]

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        shown = [
            self.function(features_BFL[row : row + 1], generator("eot", self.seed, key, step, draw))
            for draw in draws
            for row, key in enumerate(keys_B)
        ]
        return torch.cat(shown)


class CarliniWagnerL2(TensorAttack):
    """Carlini and Wagner's L2 attack, `carlini_wagner.carlini_wagner_l2`; stands in for CarliniL2Method.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        max_iter: iterations for each constant, at most.
        binary_search_steps: constants that are tried.
    """

    parameters = TensorAttack.parameters | {
        "max_iter": whole(20, least=1),
        "binary_search_steps": whole(SEARCH_STEPS, least=1),
    }

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        how: dict[str, Any] = {"search_steps": self.binary_search_steps, "targeted": self.targeted}
        return carlini_wagner_l2(target, clean, labels_B, box=box, steps=self.max_iter, **how)


class CarliniWagnerLInf(TensorAttack):
    """Carlini and Wagner's L-infinity attack, `carlini_wagner.carlini_wagner_linf`; stands in for CarliniLInfMethod.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        initial_tau: the largest change of a value that is looked at, >= 0.
        max_iter: iterations, for all bounds together.
    """

    parameters = TensorAttack.parameters | {"initial_tau": real(1.0), "max_iter": whole(40, least=1)}

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        how: dict[str, Any] = {"tau_B": clean.new_full((len(clean),), self.initial_tau), "targeted": self.targeted}
        return carlini_wagner_linf(target, clean, labels_B, box=box, steps=self.max_iter, **how)


class FastMinimumNorm(TensorAttack):
    """The fast minimum-norm attack, `minimum_norm.fast_minimum_norm`, which ART does not have.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        norm: the norm that is made small, np.inf, "inf", 2 or "2".
        max_iter: iterations.
    """

    parameters = TensorAttack.parameters | {"norm": choice(np.inf, NORM_OF), "max_iter": whole(30, least=1)}

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        how: dict[str, Any] = {"norm": NORM_OF[self.norm], "targeted": self.targeted}
        return fast_minimum_norm(target, clean, labels_B, box=box, steps=self.max_iter, **how)
