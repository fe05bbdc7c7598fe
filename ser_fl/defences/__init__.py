"""Test-time defences: what stands between features and an unchanged classifier when it is evaluated.

To add one, write a class with the members of `Defence` and name it in `DEFENCES`.

Legend: B utterances, F mel bins, L frames, R runs, K outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from ser_fl.defences.randomisation import (
    Classifier,
    ExpectedRandomisation,
    Randomisation,
    RandomisationEnsemble,
)
from ser_fl.defences.squeezing import Deterministic, MedianSmoothing, Quantisation
from ser_fl.errors import unknown_name

__all__ = [
    "DEFENCES",
    "Classifier",
    "Defence",
    "ExpectedRandomisation",
    "MedianSmoothing",
    "NoDefence",
    "Quantisation",
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
        """What the classifier is shown in one draw; differentiable, or else there is an `approximation`.

        An attacker does not know the defence's own draws: give it another seed.
        """
        ...

    @property
    def approximation(self) -> Callable[[Tensor], Tensor] | None:
        """Maps features to nearly what `transform` shows of them, with a useful gradient; None where that has its own.

        The backward pass of an adaptive attack goes through it (BPDA: arXiv 1802.00420, section 4.1).
        """
        ...

    @property
    def outcome_weights(self) -> tuple[float, ...] | None:
        """Probability of each outcome of the randomness, in the order of their numbers; None where there is no list.

        One outcome of weight 1 is a defence without randomness.
        """
        ...

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        """What the classifier is shown with these outcomes, K for each utterance, as `transform` would with each.

        Returns:
            Shape (K * B, ...): all utterances with their first outcome, then with their second, and so on.

        Raises:
            NotImplementedError: outcomes are not listed.
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
class NoDefence(Deterministic):
    """The bare classifier."""

    name: str = "none"

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """The features as they are."""
        return features_BFL


DEFENCES: Mapping[str, Callable[[], Defence]] = MappingProxyType(
    {
        "none": NoDefence,
        "randomisation": Randomisation,
        "randomisation_expected": ExpectedRandomisation,
        "randomisation_ensemble": RandomisationEnsemble,
        "quantisation": Quantisation,
        "smoothing": MedianSmoothing,
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
