"""What a hostile client may do, where, and what it knows.

Legend: N utterances, H hostile clients of a round, K clients whose updates are known, P entries of an update.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ser_fl.attacks.waveform_domain import Waveform
from ser_fl.data.features import Examples
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.training.objectives import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRound:
    """What a hostile client has before it trains."""

    examples: Examples
    """Standardised features and labels, on the CPU."""
    ids: tuple[str, ...]
    """Utterance ids of the examples."""
    classes: tuple[str, ...]
    """Emotions, in the order of the labels."""
    recordings: Callable[[], Waveform]
    """The recordings behind the features, read when asked for."""
    stream: Generator
    """The client's own for its attack, the same in every round; what it trains with is drawn elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the hostile clients of a round know together when they choose what to send. An update is the state that
    training gave minus the state that was received: all parameters in one row, float64. Running statistics of batch
    norm stay as training left them: a variance below zero would be refused at arrival.
    """

    round: int
    received_P: Tensor
    own_HP: Tensor
    """Updates that their own training gave, in the order of the cohort."""
    others_KP: Tensor
    """Those of all honest clients with knowledge=all, else none: (0, P)."""
    cohort_size: int
    streams: tuple[Generator, ...]
    """Of each hostile client in this round."""

    @property
    def known_KP(self) -> Tensor:
        """All updates that they know: their own and the others'."""
        return torch.cat([self.own_HP, self.others_KP])

    def all_send(self, update_P: Tensor) -> Tensor:
        """The same update from every hostile client, shape (H, P)."""
        return update_P.expand_as(self.own_HP)


class Adversary:
    """A hostile client; one of your own overrides what it changes. One object serves all clients and rounds, and is
    pickled for worker processes.
    """

    knowledge = "own"
    """What the kind's paper lets it know, where `adversaries.knowledge` is null."""

    def statistics(self, own: FeatureStatistics) -> FeatureStatistics:
        """What it tells of its features at enrolment."""
        return own

    def examples(self, given: LocalRound) -> Examples:
        """What it trains on."""
        return given.examples

    def objective(self, objective: Objective) -> Objective:
        """What it minimises, in place of the configured objective."""
        return objective

    def updates(self, seen: Seen) -> Tensor | None:
        """What the hostile clients of a round send, shape (H, P); None: what training gave, to the bit."""
        return None
