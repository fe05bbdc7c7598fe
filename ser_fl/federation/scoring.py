"""Scoring the server's models: confusion matrices from the holders of the data, summed.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from ser_fl.attacks.pgd import own_starts, pgd
from ser_fl.attacks.step_size import default_step_size
from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config
from ser_fl.data.features import FeatureStore
from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import Part, Split, holders
from ser_fl.devices import devices_of
from ser_fl.metrics import Confusion
from ser_fl.models.networks import NetworkSource, build_network
from ser_fl.randomness import generator
from ser_fl.robustness.evaluator import Evaluator, Perturb
from ser_fl.runs.records import ClientFailure, State


@dataclass(frozen=True, slots=True)
class Scored:
    """Confusion matrices of the holders of a part."""

    by_holder: dict[str, Confusion]
    """By speaker; summed over models where clients keep their own."""
    failures: tuple[ClientFailure, ...] = ()
    """Holders that gave none. Without them figures are of other utterances, not to be compared with other rounds'."""

    @property
    def total(self) -> Confusion:
        """Sum of the holders' matrices."""
        return np.asarray(np.sum(list(self.by_holder.values()), axis=0), dtype=np.float64)


class Scorer(Protocol):
    """Asks the holders of a part how well a server's models do."""

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """Score the models on a part, under the selection attack where asked for.

        A client's own model (`federation=local_only`) is scored on its own speaker's utterances where this part has
        some, and on everybody's otherwise.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalScorer:
    """A `Scorer` for all data that are on this machine."""

    config: Config
    store: FeatureStore
    standardisation: Standardisation
    split: Split
    own_network: NetworkSource | None = None
    """A user's own, in place of the configured one."""

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """Confusion matrices of all holders of the part."""
        num_classes, held = len(self.store.classes), holders(self.store.utterances, getattr(self.split, part))
        perturb: Perturb | None = self.selection_attack if attacked else None
        evaluator = Evaluator(self.store, self.standardisation)
        summed = {holder: np.zeros((num_classes, num_classes)) for holder in held}
        network = build_network(self.config.model, num_classes, seed=self.config.seed, own=self.own_network)
        network = network.to(devices_of(self.config.executor.accelerator)[0])
        for owner, state in models.items():
            network.load_state_dict(state)
            scored = {owner: held[owner]} if owner in held else held
            for holder, confusion in evaluator.confusions(network, scored, perturb).items():
                summed[holder] += confusion
        return Scored(summed)

    def selection_attack(
        self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, ids: tuple[str, ...]
    ) -> Tensor:
        """PGD from a random start keyed by (seed, utterance), so that it is the same in every round and batch."""
        selection = self.config.selection
        streams = (generator(self.config.seed, "selection", utterance_id) for utterance_id in ids)
        return pgd(
            network,
            features_BFL,
            labels_B,
            epsilon=selection.epsilon,
            step_size=default_step_size(selection.epsilon),
            steps=selection.steps,
            box=Box.of(self.standardisation.lower_F1, self.standardisation.upper_F1),
            start_BFL=own_starts(features_BFL, selection.epsilon, streams),
        )
