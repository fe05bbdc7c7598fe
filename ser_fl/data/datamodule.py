"""What a client trains on in one round, as a Lightning data module over tensors already in memory.

Legend: N utterances, B batch, F mel bins, L frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset

from ser_fl.data.examples import Examples, load_examples
from ser_fl.devices import send

__all__ = ["Batch", "ClientDataModule", "Examples", "load_examples"]

Batch = tuple[Tensor, Tensor]
"""features_BFL, labels_B."""


class _ShuffledBatches(IterableDataset[Batch]):
    """All examples once per iteration, in an order drawn from the stream, in batches of nearly equal size.

    Nearly equal, because a last batch of one or two utterances would upset batch normalisation. With ``most``, an
    iteration ends after so many batches.
    """

    def __init__(self, examples: Examples, batch_size: int, stream: Generator, most: int | None) -> None:
        self.examples = examples
        self.num_batches = -(-len(examples) // batch_size)
        self.num_taken = min(self.num_batches, most or self.num_batches)
        self.stream = stream

    def __len__(self) -> int:
        return self.num_taken

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.shuffled():
            yield self.batch(rows)

    def shuffled(self) -> tuple[Tensor, ...]:
        """The rows of each batch of an iteration; larger batches first."""
        batches = torch.randperm(len(self.examples), generator=self.stream).tensor_split(self.num_batches)
        return batches[: self.num_taken]

    def batch(self, rows: Tensor) -> Batch:
        return self.examples.features_NFL[rows], self.examples.labels_N[rows]


class _ReplayedBatches(_ShuffledBatches):
    """The same batches, each so many times in a row, in an iteration that is about as long as without replays.

    It takes the nearest whole number to one in ``replays`` batches, and one at least; the next iteration goes on where
    it stopped.
    """

    def __init__(self, examples: Examples, batch_size: int, stream: Generator, most: int | None, replays: int) -> None:
        super().__init__(examples, batch_size, stream, most)
        self.replays = replays
        self.distinct_batches = max(1, (2 * self.num_taken + replays) // (2 * replays))
        self._to_come: list[Tensor] = []

    def __len__(self) -> int:
        return self.distinct_batches * self.replays

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.distinct_batches):
            self._to_come = self._to_come or list(self.shuffled())
            batch = self.batch(self._to_come.pop(0))
            for _ in range(self.replays):
                yield batch


class ClientDataModule(pl.LightningDataModule):
    """Feeds one client's examples of one round to its Trainer.

    A callback finds whose batches it sees as ``trainer.datamodule.client_id`` and ``trainer.datamodule.round``.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        stream: Generator,
        client_id: str,
        round: int,
        most: int | None = None,
        replays: int = 1,
    ) -> None:
        super().__init__()
        self.client_id = client_id
        self.round = round
        self.batches = (
            _ShuffledBatches(examples, batch_size, stream, most)
            if replays == 1
            else _ReplayedBatches(examples, batch_size, stream, most, replays)
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches come ready made from memory: no worker processes, no collation."""
        return DataLoader(self.batches, batch_size=None, num_workers=0)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch on the Trainer's device; Lightning's own way there costs more than the way."""
        features_BFL, labels_B = (send(tensor, device) for tensor in batch)
        return features_BFL, labels_B
