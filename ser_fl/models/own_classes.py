"""Emotions that only some corpora have: a network of all of them, asked for those of the corpus that it hears.

What a corpus lacks is left out of the softmax, so that no utterance of it moves what the others teach: in a client's
loss it is the restricted softmax of FedRS with alpha = 0 (Li and Zhan, KDD 2021), by corpora in place of clients.

Legend: B batch, F mel bins, L frames, C all classes, K those of one corpus.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ser_fl.data.features import FeatureStore
from ser_fl.devices import device_of


class OwnClasses(nn.Module):
    """A network's logits of one corpus's classes, of shape (B, K); what the others' rows would say gets no gradient."""

    def __init__(self, network: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.classes_K: Tensor
        self.register_buffer("classes_K", torch.tensor(classes, device=device_of(network)), persistent=False)

    def forward(self, features_BFL: Tensor) -> Tensor:
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC.index_select(1, self.classes_K)


class Masked(nn.Module):
    """A network's logits of shape (B, C) for utterances of several corpora: -inf for classes that theirs lack."""

    def __init__(self, network: nn.Module, absent_BC: Tensor) -> None:
        super().__init__()
        self.network = network
        self.absent_BC = absent_BC.to(device_of(network))

    def forward(self, features_BFL: Tensor) -> Tensor:
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC.masked_fill(self.absent_BC[:, : logits_BC.shape[1]], float("-inf"))


def asked_of(network: nn.Module, store: FeatureStore, rows: Sequence[int]) -> nn.Module:
    """The network for some utterances of a store: itself, where their corpora have all classes."""
    absent_BC = store.absent(rows)
    return network if absent_BC is None else Masked(network, absent_BC)
