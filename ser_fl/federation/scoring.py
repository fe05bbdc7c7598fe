"""Scoring the server's models: confusion matrices from the holders of the data, summed.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ser_fl.attacks.budget import Box
from ser_fl.attacks.gradient import own_starts, pgd
from ser_fl.config import Config
from ser_fl.data.partition import Indices
from ser_fl.devices import devices_of
from ser_fl.evaluation.scoring import Evaluator, Perturb
from ser_fl.metrics import Confusion
from ser_fl.models.catalogue import build_network
from ser_fl.randomness import generator
from ser_fl.records import State


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores the models of a server on any part."""

    config: Config
    evaluator: Evaluator
    box: Box

    def by_holder(
        self, models: Mapping[str, State], holders: Mapping[str, Indices], perturb: Perturb | None = None
    ) -> dict[str, Confusion]:
        """Confusion matrix of each holder, summed over models where clients keep their own.

        A client's own model (`federation=local_only`) is scored on its own speaker's utterances where this part has
        some, and on everybody's otherwise.
        """
        num_classes = len(self.evaluator.store.classes)
        summed = {holder: np.zeros((num_classes, num_classes)) for holder in holders}
        (device, *_) = devices_of(self.config.executor.accelerator)
        network = build_network(self.config.model, num_classes, seed=self.config.seed).to(device)
        for owner, state in models.items():
            network.load_state_dict(state)
            scored = {owner: holders[owner]} if owner in holders else holders
            for holder, confusion in self.evaluator.confusions(network, scored, perturb).items():
                summed[holder] += confusion
        return summed

    def confusion(self, models: Mapping[str, State], holders: Mapping[str, Indices]) -> Confusion:
        """Summed over all holders."""
        return total(self.by_holder(models, holders))

    def robust_confusion(self, models: Mapping[str, State], holders: Mapping[str, Indices]) -> Confusion:
        """Summed over all holders, under the selection attack."""
        return total(self.by_holder(models, holders, self.selection_attack))

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
            step_size=selection.epsilon / 4,
            steps=selection.steps,
            box=self.box,
            start_BFL=own_starts(features_BFL, selection.epsilon, streams),
        )


def total(confusions: Mapping[str, Confusion]) -> Confusion:
    """Sum of the holders' matrices."""
    return np.asarray(np.sum(list(confusions.values()), axis=0), dtype=np.float64)
