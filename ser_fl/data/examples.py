"""Standardised features and labels, in memory: what is trained on and what is tested.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ser_fl.data.features import FeatureStore
from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import Indices
from ser_fl.devices import send


@dataclass(frozen=True, slots=True)
class Examples:
    """Standardised features and labels of some utterances."""

    features_NFL: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device) -> Examples:
        """The same examples on a device."""
        return Examples(send(self.features_NFL, device), send(self.labels_N, device))


def load_examples(store: FeatureStore, indices: Indices, standardisation: Standardisation) -> Examples:
    """Read utterances from the store and standardise them; nothing of it is kept."""
    rows = torch.tensor(indices, dtype=torch.int64)
    with torch.no_grad():
        return Examples(standardisation(store.features_NFL[rows]), store.labels_N[rows])
