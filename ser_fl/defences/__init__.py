"""Test-time defences: what stands between features and an unchanged classifier when it is evaluated.

To add one, write a class with the members of `Defence` and name it in `DEFENCES`.

Legend: B utterances, F mel bins, L frames, R runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ser_fl.defences.randomisation import (
    Classifier,
    ExpectedRandomisation,
    Randomisation,
    RandomisationEnsemble,
)
from ser_fl.errors import unknown_name

__all__ = [
    "DEFENCES",
    "Classifier",
    "Defence",
    "ExpectedRandomisation",
    "NoDefence",
    "Randomisation",
    "RandomisationEnsemble",
    "build_defence",
]


class Defence(Protocol):
    """A test-time defence; all its randomness comes from (seed, utterance key, draw)."""

    @property
    def name(self) -> str:
        """Name in `DEFENCES` and in attack records."""
        ...

    @property
    def num_draws(self) -> int:
        """Forward passes per utterance in `predict`."""
        ...

    @property
    def run_weights(self) -> tuple[float, ...]:
        """How much each of the R runs of `predict` counts; they sum to 1."""
        ...

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """What the classifier is shown in one draw: differentiable, so that an adaptive attack can average over it.

        An attacker does not know the defence's own draws: give it another seed.
        """
        ...

    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        """Predicted classes of every run, without gradients.

        Args:
            model: classifier in eval mode, on the device of the features.
            features_BFL: shape (B, F, L); one batch, as it goes through the model in one forward per draw. The
                result for an utterance does not depend on the others in the batch.
            keys_B: utterance ids, which key the draws.
            seed: seed of the evaluation.

        Returns:
            Shape (R, B), int64. The mean of the R runs' confusion matrices, by `run_weights`, is what is scored.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDefence:
    """The bare classifier."""

    name: str = "none"
    num_draws: int = 1
    run_weights: tuple[float, ...] = (1.0,)

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """The features as they are."""
        return features_BFL

    @torch.no_grad()
    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        """Predicted classes, int64, shape (1, B)."""
        return model(features_BFL).argmax(dim=-1)[None]


DEFENCES: Mapping[str, Callable[[], Defence]] = MappingProxyType(
    {
        "none": NoDefence,
        "randomisation": Randomisation,
        "randomisation_expected": ExpectedRandomisation,
        "randomisation_ensemble": RandomisationEnsemble,
    }
)
"""Defences by name, each with its default settings when called."""


def build_defence(name: str) -> Defence:
    """The defence of that name, with its default settings.

    Raises:
        UserError: no such defence; the known ones are listed.
    """
    if name not in DEFENCES:
        raise unknown_name("defence", name, DEFENCES)
    return DEFENCES[name]()
