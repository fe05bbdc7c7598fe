"""What is alive while rounds go by: counted tensors of a weight's shape, garbage that nobody has collected included."""

from __future__ import annotations

import gc
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from ser_fl import train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.runs.records import RoundRecord

HIDDEN = 13
SMALL = (
    *("experiment=debug", "tracking=none", "data.utterances_per_emotion=4", "federation.batch_size=4"),
    *("clients.by=iid", f"model.hidden={HIDDEN}", "federation.num_rounds=3", "federation.server_momentum=0.5"),
)


class Counter(pl.Callback):
    """Counts recurrent weights that are alive at each client's end, with its optimiser, and after every round."""

    def __init__(self) -> None:
        self.training: list[int] = []
        self.between: list[int] = []
        self.seen: list[set[str]] = [set()]
        """Clients that have trained, after every round."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training.append(num_alive())

    def on_round(self, record: RoundRecord) -> None:
        self.between.append(num_alive())
        self.seen.append(self.seen[-1] | set(record.cohort))


def num_alive() -> int:
    """Tensors of the shape of a recurrent weight: one a model, update, sum, gradient and moment, and direction."""
    shape = (3 * HIDDEN, HIDDEN)
    return sum(issubclass(type(thing), torch.Tensor) and thing.shape == shape for thing in gc.get_objects())


def settings(folder: Path, *changed: str) -> Config:
    return compose([*SMALL, f"data.cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}", *changed])


def counted(folder: Path, *changed: str) -> Counter:
    counter = Counter()
    gc.collect()
    before = num_alive()
    train(settings(folder, *changed), callbacks=[counter], on_round=counter.on_round)
    gc.collect()
    assert num_alive() == before, "a run leaves nothing"
    return counter


def test_a_serial_round_holds_as_many_states_for_ten_clients_as_for_two(tmp_path: Path) -> None:
    few, many = (counted(tmp_path / f"{count}", f"clients.num_clients={count}") for count in (2, 10))
    assert (len(few.seen[-1]), len(many.seen[-1])) == (2, 10)
    assert 0 < max(many.training) <= max(few.training)
    assert max(many.between) <= max(few.between) < max(few.training)


def test_only_clients_that_keep_their_optimiser_leave_something_behind(tmp_path: Path) -> None:
    """Two moments of two directions each; those of clients that were not sampled yet do not exist."""
    sampled = ("clients.num_clients=10", "federation.fraction_train=0.2")
    lost = counted(tmp_path / "lost", *sampled)
    kept = counted(tmp_path / "kept", *sampled, "federation.keep_optimiser=true")
    moments = [4 * len(seen) for seen in kept.seen[1:]]
    assert [many - few for many, few in zip(kept.between, lost.between, strict=True)] == moments
    assert moments[-1] < 40


@pytest.mark.slow
def test_three_hundred_clients_hold_what_ten_do(tmp_path: Path) -> None:
    """With ten of them a round."""
    corpus = ("data.num_speakers=10", "data.utterances_per_emotion=12")
    given = (
        ("clients.num_clients=10", "federation.fraction_train=1"),
        ("clients.num_clients=300", "federation.fraction_train=0.0334"),
    )
    ten, hundreds = (counted(tmp_path / f"{index}", *corpus, *each) for index, each in enumerate(given))
    assert len(hundreds.seen[1]) == len(ten.seen[1]) == 10
    assert max(hundreds.training) <= max(ten.training) and max(hundreds.between) <= max(ten.between)
