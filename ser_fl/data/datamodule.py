"""Lightning data modules over tensors already in memory: of a corpus, and of a client in one round.

Legend: N utterances, B batch, F mel bins, L frames.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset

from ser_fl.config.schema import Config
from ser_fl.data.features import Examples, load_examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.data.splits import Part
from ser_fl.devices import send
from ser_fl.randomness import generator

Batch = tuple[Tensor, ...]
"""features_BFL, labels_B, and behind them what the examples have more."""


class ShuffledBatches(IterableDataset[Batch]):
    """All examples once per iteration, in an order drawn from the stream, in batches of nearly equal size: a last batch
    of one or two utterances would upset batch normalisation.

    Args:
        examples: of whom.
        batch_size: the largest.
        stream: where orders are drawn from.
        most: an iteration ends after so many batches; None takes them all.
        replays: each batch is given so many times in a row. An iteration is about as long as without: it takes the
            nearest whole number to one in ``replays`` batches, at least one; the next goes on where it stopped.
        balanced: an order is as long, and has each class equally often, up to one utterance (`balanced_order`).
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        stream: Generator,
        *,
        most: int | None = None,
        replays: int = 1,
        balanced: bool = False,
    ) -> None:
        self.examples = examples
        self.stream = stream
        self.balanced = balanced
        self.replays = replays
        self.num_batches = -(-len(examples.labels_N) // batch_size)
        self.num_taken = min(self.num_batches, most or self.num_batches)
        self.num_distinct = max(1, (2 * self.num_taken + replays) // (2 * replays))
        self._to_come: list[Tensor] = []
        self._goes_on = False

    def __len__(self) -> int:
        return self.num_distinct * self.replays

    def __iter__(self) -> Iterator[Batch]:
        if self.replays == 1 and not self._goes_on:
            self._to_come = []
        count = len(self._to_come) if self._goes_on else self.num_distinct
        self._goes_on = False
        for _ in range(count):
            if not self._to_come:  # larger batches come first
                labels_N = self.examples.labels_N
                if self.balanced:
                    order_N = balanced_order(labels_N, self.stream)
                else:
                    order_N = torch.randperm(len(labels_N), generator=self.stream)
                self._to_come = list(order_N.tensor_split(self.num_batches)[: self.num_taken])
            rows = self._to_come.pop(0)
            batch: Batch = self.examples.features_NFL[rows], self.examples.labels_N[rows]
            if self.examples.speakers_N is not None:
                batch = *batch, self.examples.speakers_N[rows]
            for _ in range(self.replays):
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.stream.get_state(), "to_come": list(self._to_come)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.set_state(state["stream"].cpu())
        self._to_come = [rows.cpu() for rows in state["to_come"]]
        self._goes_on = bool(self._to_come)


def balanced_order(labels_N: Tensor, stream: Generator) -> Tensor:
    """Rows of shape (N,), each class that is there equally often, up to one; of a class all come before one does again.
    Who has one more is drawn, as the order of all.
    """
    present = labels_N.bincount().nonzero().flatten()
    share, left = divmod(len(labels_N), len(present))
    drawn: list[Tensor] = []
    for place, label in enumerate(present[torch.randperm(len(present), generator=stream)]):
        rows, count = (labels_N == label).nonzero().flatten(), share + (place < left)
        rounds = [rows[torch.randperm(len(rows), generator=stream)] for _ in range(-(-count // len(rows)))]
        drawn.append(torch.cat(rounds)[:count])
    return torch.cat(drawn)[torch.randperm(len(labels_N), generator=stream)]


class _StatefulLoader(DataLoader[Batch]):
    """A loader of shuffled batches whose state goes into Lightning's checkpoints."""

    def __init__(self, batches: ShuffledBatches) -> None:
        super().__init__(batches, batch_size=None, generator=Generator())
        self.state_dict = batches.state_dict
        self.load_state_dict = batches.load_state_dict


class EmotionDataModule(pl.LightningDataModule):
    """A corpus for one Trainer: features of its training, validation and test utterances, all clients' together.

    Split and standardised as `ser_fl.train` does it; of the configuration its data, front end, split, batch size and
    seed count. What is predicted are the test utterances. Loaders have generators of their own: they draw seeds for
    workers that there are none of, once more where a fit goes on from a checkpoint, and would draw them from dropout's
    stream.
    """

    def __init__(self, config: Config, prepared: Prepared | None = None) -> None:
        super().__init__()
        self.config = config
        self._given = prepared

    @cached_property
    def prepared(self) -> Prepared:
        """The data; features that the cache lacks are computed when somebody first asks."""
        return self._given or prepare(self.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the emotions, in the order of the logits."""
        return self.prepared.store.classes

    def examples(self, part: Part) -> Examples:
        """Standardised features and labels of a part."""
        return load_examples(self.prepared.store, getattr(self.prepared.split, part), self.prepared.standardisation)

    @cached_property
    def _train_loader(self) -> _StatefulLoader:
        stream = generator(self.config.seed, "batches")
        return _StatefulLoader(ShuffledBatches(self.examples("train"), self.config.federation.batch_size, stream))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    predict_dataloader = test_dataloader

    def _in_order(self, part: Part) -> DataLoader[Batch]:
        examples, size = self.examples(part), self.config.federation.batch_size
        batches = list(zip(torch.split(examples.features_NFL, size), torch.split(examples.labels_N, size), strict=True))
        return DataLoader(batches, batch_size=None, generator=Generator())  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Of shuffling. Lightning asks the loader for it too, but does not give it back at the end of an epoch."""
        return self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_loader.load_state_dict(state_dict)


class ClientDataModule(pl.LightningDataModule):
    """Feeds one client's examples of one round to its Trainer. A callback finds whose batches it sees as
    ``trainer.datamodule.client_id`` and ``trainer.datamodule.round``.
    """

    def __init__(self, batches: ShuffledBatches, *, client_id: str, round: int) -> None:
        super().__init__()
        self.client_id = client_id
        self.round = round
        self.batches = batches

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches come ready made from memory: no worker processes, no collation."""
        return DataLoader(self.batches, batch_size=None, num_workers=0)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch on the Trainer's device; Lightning's own way there costs more than the way."""
        return tuple(send(tensor, device) for tensor in batch)
