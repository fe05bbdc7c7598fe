"""Expectation over transformation as an attack of ART's, for any PyTorch classifier and any random transformation.

ART's own expectations over transformation are preprocessors of images. This class belongs to ART's family in what it
is given and returns, and takes the transformation as a function; our benchmark does not need it.

Legend: B inputs, K draws; whatever follows B is an input: features, samples or pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ser_fl.attacks.ball import Ball
from ser_fl.attacks.budget import Box, Norm
from ser_fl.attacks.descent import descend
from ser_fl.attacks.estimator import Array, Passes, import_art
from ser_fl.attacks.gradient import attacked
from ser_fl.attacks.victim import Victim
from ser_fl.errors import UserError
from ser_fl.randomness import generator

import_art()  # before ART's own imports, which would close all logs

from art.attacks.attack import EvasionAttack  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402

Transform = Callable[[Tensor, Generator], Tensor]
"""(one input, a generator on the CPU) -> what the classifier is shown; both of shape (1, ...); differentiable."""


class ExpectationOverTransformationPGD(EvasionAttack):  # type: ignore[misc]
    """Projected gradient ascent of the mean cross-entropy over a random transformation (arXiv 1707.07397, 1802.00420).

    Each step draws anew, by (seed, index of the input, step), so that the result depends on no batch. What several
    random starts have found is compared under draws that are common to them.

    Args:
        estimator: a PyTorchClassifier of logits, with preprocessing of PyTorch's or none.
        transform: what stands in front of it at test time.
        samples: draws a step, >= 1.
        norm: ``"inf"``, ``np.inf`` or 2.
        eps: radius of the ball, > 0, in the units of the inputs.
        eps_step: length of a step, > 0, in the same units.
        max_iter: steps, >= 1.
        num_random_init: random starts; 0 starts once, at the input.
        batch_size: inputs at a time.
        seed: of starts and draws.

    Raises:
        UserError: a value out of its range, or preprocessing that is not PyTorch's.
    """

    attack_params: ClassVar[list[str]] = [
        *EvasionAttack.attack_params,
        *("transform", "samples", "norm", "eps", "eps_step", "max_iter", "num_random_init", "batch_size", "seed"),
    ]
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: Any,
        transform: Transform,
        *,
        samples: int = 16,
        norm: str | float = "inf",
        eps: float = 0.3,
        eps_step: float = 0.1,
        max_iter: int = 100,
        num_random_init: int = 0,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(estimator=estimator)
        self.transform, self.samples, self.norm, self.eps, self.eps_step = transform, samples, norm, eps, eps_step
        self.max_iter, self.num_random_init, self.batch_size, self.seed = max_iter, num_random_init, batch_size, seed
        self._check_params()

    def _check_params(self) -> None:
        for name, least in (("samples", 1), ("max_iter", 1), ("num_random_init", 0), ("batch_size", 1)):
            if not getattr(self, name) >= least:
                raise UserError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("eps", "eps_step"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.norm not in ("inf", math.inf, 2):
            raise UserError(f"norm must be inf or 2, got {self.norm}")
        if not self.estimator.all_framework_preprocessing:
            raise UserError("the estimator has preprocessing without a gradient in PyTorch: make it part of transform")

    def generate(self, x: Array, y: Any = None, **kwargs: Any) -> Array:
        """Adversarial inputs, inside the ball and the estimator's clip values.

        Args:
            x: inputs, shape (B, ...).
            y: true classes, shape (B,), or one-hot, shape (B, C); None for what the estimator predicts.
            kwargs: none are known; here because ART's classes have it.
        """
        classes = np.asarray(self.estimator.predict(x, batch_size=self.batch_size) if y is None else y)
        classes = classes.argmax(1) if classes.ndim == 2 and classes.shape[1] > 1 else classes.reshape(-1)
        network, passes = _Estimated(self.estimator), Passes()
        made: list[Array] = []
        with attacked(network):
            for first in range(0, len(x), self.batch_size):
                rows = range(first, min(first + self.batch_size, len(x)))
                victim = Victim(
                    network=network,
                    keys_B=[str(row) for row in rows],
                    passes=passes,
                    expectation=_OverTransform(self.transform, self.seed, self.samples),
                )
                clean = torch.from_numpy(x[rows.start : rows.stop].astype(np.float32)).to(self.estimator.device)
                labels_B = torch.from_numpy(classes[rows.start : rows.stop].astype(np.int64)).to(clean.device)
                made.append(self._craft(victim, clean, labels_B).cpu().numpy())
        return np.concatenate(made) if made else x.astype(np.float32)

    def _craft(self, victim: Victim, clean: Tensor, labels_B: Tensor) -> Tensor:
        norm: Norm = "2" if self.norm == 2 else "inf"
        box = Box.unbounded()
        if self.estimator.clip_values is not None:
            lower, upper = (torch.as_tensor(side).to(clean) for side in self.estimator.clip_values)
            box = Box(lower, upper)
        ball = Ball(box.clip(clean), clean.new_full((len(clean),), self.eps), norm)
        starts = [
            ball.random(generator("eot", self.seed, key, restart) for key in victim.keys_B)
            for restart in range(self.num_random_init)
        ]
        return descend(
            victim,
            ball,
            labels_B,
            steps=self.max_iter,
            step_size=self.eps_step,
            starts=torch.stack(starts) if starts else None,
            box=box,
        )


class _Estimated(nn.Module):
    """An estimator's network behind its preprocessing."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.network = estimator.model
        self._estimator = estimator

    def forward(self, inputs: Tensor) -> Tensor:
        prepared, _ = self._estimator._apply_preprocessing(inputs, y=None, fit=False, no_grad=False)
        output = self.network(prepared)
        logits_BC: Tensor = output[-1] if isinstance(output, (list, tuple)) else output
        return logits_BC


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
