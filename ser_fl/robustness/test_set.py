"""What is attacked: utterances, who spoke them, and the classifier.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ser_fl.attacks.threat_model import Box
from ser_fl.devices import send
from ser_fl.randomness import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """The utterances that are attacked, and the classifier."""

    model: nn.Module
    """Maps features of shape (B, F, L) to logits of shape (B, C); in evaluation mode."""
    features_NFL: Tensor
    """Standardised, inside the box."""
    labels_N: Tensor
    ids: tuple[str, ...]
    num_classes: int
    box: Box
    seed: int
    batch_size: int = 64
    speakers: tuple[str, ...] = ()
    """Who speaks each utterance; empty where nobody says."""
    sexes: tuple[str | None, ...] = ()
    """Of the speakers; empty where nobody says."""
    emotions: tuple[str, ...] = ()
    """Names of the classes; empty for their numbers."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> TestSet:
        """The same test_set on a device; the model itself moves there."""
        return replace(
            self,
            model=self.model.to(device),
            features_NFL=send(self.features_NFL, device),
            labels_N=send(self.labels_N, device),
            box=self.box.to(device),
        )

    def subset(self, size: int | None) -> TestSet:
        """A fixed subset of about ``size`` utterances, spread evenly over the emotions; all where it is None."""
        if size is None or size >= len(self):
            return self
        return self.take(balanced_rows(self.labels_N.tolist(), self.ids, size, self.seed))

    def take(self, rows: Sequence[int]) -> TestSet:
        """The same for some of its utterances, in the order given."""
        rows = list(rows)  # a tuple would index dimensions
        if rows == list(range(len(self))):
            return self
        return replace(
            self,
            features_NFL=self.features_NFL[rows],
            labels_N=self.labels_N[rows],
            ids=tuple(self.ids[row] for row in rows),
            speakers=tuple(self.speakers[row] for row in rows) if self.speakers else (),
            sexes=tuple(self.sexes[row] for row in rows) if self.sexes else (),
        )

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Where utterances lie in this test_set."""
        places = {utterance_id: row for row, utterance_id in enumerate(self.ids)}
        return [places[utterance_id] for utterance_id in ids]


def digest_of_weights(model: nn.Module) -> str:
    """One word for a model's parameters and buffers, the same wherever the model is."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def digest_of(test_set: TestSet) -> str:
    """One word for all that attacks on a test_set depend on, batches apart: model, utterances, box, seed, device."""
    digest = hashlib.blake2b(digest_size=16)
    known = (test_set.ids, test_set.num_classes, test_set.seed, test_set.features_NFL.device.type)
    digest.update(f"{digest_of_weights(test_set.model)} {known!r}".encode())
    for tensor in (test_set.features_NFL, test_set.labels_N, test_set.box.lower_F1, test_set.box.upper_F1):
        digest.update(b"none" if tensor is None else _bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def balanced_rows(labels_N: Sequence[int], ids: Sequence[str], size: int, seed: int) -> list[int]:
    """Rows of a subset: emotions in turn, each in an order drawn per utterance, so that all attacks share it."""
    queues: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: derive_seed("subset", seed, ids[row])):
        queues.setdefault(labels_N[row], []).append(row)
    chosen: list[int] = []
    while len(chosen) < size:
        for label in sorted(queues):
            if queues[label] and len(chosen) < size:
                chosen.append(queues[label].pop(0))
    return sorted(chosen)
