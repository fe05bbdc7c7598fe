"""Scoring a classifier: confusion matrices per holder of the data, summed by whoever asks.

Legend: N utterances, B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ser_fl.data.datamodule import load_examples
from ser_fl.data.features import FeatureStore
from ser_fl.data.frontend import Standardisation
from ser_fl.data.partition import Indices
from ser_fl.metrics import Confusion, confusion_matrix

EVALUATION_BATCH = 64

Perturb = Callable[[nn.Module, Tensor, Tensor, tuple[str, ...]], Tensor]
"""(network, features_BFL, labels_B, utterance ids) -> features_BFL: an attack on utterances that are scored."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Scores networks on the utterances of a part, in fp32 and true evaluation mode."""

    store: FeatureStore
    standardisation: Standardisation

    def confusions(
        self, network: nn.Module, holders: Mapping[str, Indices], perturb: Perturb | None = None
    ) -> dict[str, Confusion]:
        """Each holder's confusion matrix of shape (C, C); what a holder sends is nothing else."""
        network.eval()
        return {holder: self._confusion(network, indices, perturb) for holder, indices in holders.items()}

    def _confusion(self, network: nn.Module, indices: Indices, perturb: Perturb | None) -> Confusion:
        predictions: list[Tensor] = []
        for start in range(0, len(indices), EVALUATION_BATCH):
            rows = indices[start : start + EVALUATION_BATCH]
            examples = load_examples(self.store, rows, self.standardisation)
            features_BFL = examples.features_NFL
            if perturb is not None:
                ids = tuple(self.store.utterances[row].utterance_id for row in rows)
                features_BFL = perturb(network, features_BFL, examples.labels_N, ids)
            with torch.inference_mode():
                predictions.append(network(features_BFL).argmax(dim=1))
        labels = self.store.labels_N[torch.tensor(indices)]
        return confusion_matrix(labels.tolist(), torch.cat(predictions).tolist(), len(self.store.classes))
