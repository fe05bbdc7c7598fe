"""What a test-time defence is: a transformation of features in front of a classifier, with or without randomness.

A defence of your own derives from `Defence`, or from `Deterministic` where it draws nothing, and needs two members:

    class Jitter(Defence):
        name = "jitter"

        def transform(self, features_BFL, keys_B, *, seed, draw):
            noise = [torch.randn(features_BFL.shape[1:], generator=generator(seed, key, draw)) for key in keys_B]
            return features_BFL + 0.1 * torch.stack(noise).to(features_BFL)

Legend: B utterances, F mel bins, L frames, C classes, R runs, K outcomes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ser_fl.errors import UserError, shown, unknown_name

Classifier = Callable[[Tensor], Tensor]
"""Features of shape (B, F, L), any F and L, to logits of shape (B, C)."""


class Defence(ABC):
    """A test-time defence; all its randomness comes from (seed, utterance key, draw). All but `name` and `transform`
    have defaults: one draw an utterance, whose prediction is scored.
    """

    name: str
    """Name in attack records; also in `DEFENCES`, for one that is asked for by name."""
    num_draws: int = 1
    """Forward passes per utterance in `predict`."""
    moves_bins: ClassVar[bool] = False
    """Whether a bin may be shown in another one's place, which only mel bins allow."""

    @abstractmethod
    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """What the classifier is shown in one draw; differentiable, or else there is an `approximation`.

        Args:
            features_BFL: standardised log-mel features of shape (B, F, L), on any device.
            keys_B: utterance ids, which key the draws: what is drawn for one does not depend on the others.
            seed: of the defence's draws. An attacker does not know them: give it another seed.
            draw: number of the draw, from 0.

        Returns:
            Shape (B, F', L'): the classifier takes any size.
        """

    @property
    def run_weights(self) -> tuple[float, ...]:
        """How much each of the R runs of `predict` counts; they sum to 1. By default every draw is a run."""
        return (1 / self.num_draws,) * self.num_draws

    @property
    def approximation(self) -> Callable[[Tensor], Tensor] | None:
        """Maps features to nearly what `transform` shows of them, with a useful gradient; None where that has its own.
        The backward pass of an adaptive attack goes through it (BPDA: arXiv 1802.00420, section 4.1).
        """
        return None

    @property
    def outcome_weights(self) -> tuple[float, ...] | None:
        """Probability of each outcome of the randomness, in the order of their numbers; None where there is no list. An
        adaptive attack takes the exact expectation over listed outcomes, else draws. One outcome of weight 1 is no
        randomness.
        """
        return None

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        """What the classifier is shown with K outcomes of each utterance, as `transform` would. Shape (K * B, F', L'):
        all utterances with their first outcome, then with their second, and so on.
        """
        raise NotImplementedError(f"{self.name} lists no outcomes")

    @torch.no_grad()
    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        """Predicted classes of every run, without gradients: int64, shape (R, B), by one forward pass of the batch per
        draw; the model is in eval mode. The mean of the R confusion matrices, by `run_weights`, is what is scored.
        """
        shown_B = (self.transform(features_BFL, keys_B, seed=seed, draw=draw) for draw in range(self.num_draws))
        return torch.stack([model(features).argmax(dim=-1) for features in shown_B])


class Deterministic(Defence):
    """A defence without randomness: one outcome. Neither keys, seed nor draw matter to its `transform`."""

    @property
    def outcome_weights(self) -> tuple[float, ...]:
        return (1.0,)

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        shown_BFL = self.transform(features_BFL, [""] * len(features_BFL), seed=0, draw=0)
        return shown_BFL.repeat(len(numbers_KB), 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDefence(Deterministic):
    name: str = "none"

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        return features_BFL


DEFENCES: dict[str, Callable[[], Defence]] = {"none": NoDefence}
"""Defences by name, each with its default settings when called; an entry more makes another name."""


def build_defence(given: str | Defence) -> Defence:
    """The defence of that name, with its default settings; or the very object. A `UserError` says that there is no such
    defence (the known ones are listed), or that the object is none.
    """
    if isinstance(given, str):
        if given not in DEFENCES:
            raise unknown_name("defence", given, DEFENCES)
        return DEFENCES[given]()
    if not isinstance(given, Defence):
        raise UserError(
            f"a defence is a name or an object of a class derived from ser_fl.defences.Defence, got {shown(given)}"
        )
    weights = given.run_weights
    if not math.isclose(sum(weights), 1, abs_tol=1e-6) or min(weights) < 0:
        raise UserError(f"run_weights of defence {given.name!r} must be 0 or more and sum to 1, got {shown(weights)}")
    return given
