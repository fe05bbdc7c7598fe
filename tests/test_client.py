"""What a client does in a round, end to end: what its Trainer is fed, and what it leaves alone."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from ser_fl import train
from ser_fl.compose import compose
from ser_fl.config import Config
from ser_fl.data.datamodule import Batch, load_examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.federation.client import ClientTask, quiet_trainer
from ser_fl.federation.experiment import make_clients
from ser_fl.federation.objectives import Objective
from ser_fl.models.catalogue import build_network
from ser_fl.records import ClientUpdate

EPSILON = 0.5


class Fed(pl.Callback):
    """Keeps every batch that a Trainer is fed."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.whose: set[tuple[str, int]] = set()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.batches.append(batch[0].clone())
        module = trainer.datamodule  # type: ignore[attr-defined]
        self.whose.add((module.client_id, module.round))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


def settings(cache: Path, *changed: str) -> Config:
    base = ("experiment=debug", "tracking=none", "data.utterances_per_emotion=2", "federation.batch_size=4")
    return compose([*base, "augmentation=none", f"data.cache_dir={cache}", f"objective.epsilon={EPSILON}", *changed])


def update(config: Config, prepared: Prepared, number: int, *callbacks: pl.Callback) -> ClientUpdate:
    """Of client f01, from the initial weights."""
    clients = make_clients(config, prepared, callbacks)
    state = dict(build_network(config.model, len(prepared.store.classes), seed=config.seed).state_dict())
    return clients.update(ClientTask(round=number, client_id="f01", state=state, learning_rate=0.01))


def nearest(rows_NFL: Tensor, held_MFL: Tensor) -> Tensor:
    """L-infinity distance of each row to the nearest clean utterance of the client, shape (N,)."""
    return (rows_NFL[:, None] - held_MFL[None]).abs().amax(dim=(2, 3)).amin(dim=1)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_per_round_trains_on_half_and_its_copies(cache: Path, name: str) -> None:
    """Ten utterances: round 1 trains on all, round 2 on five and five copies within epsilon of clean utterances."""
    config = settings(cache, f"objective={name}")
    prepared, clean, mixed = prepare(config), Fed(), Fed()
    held = load_examples(prepared.store, prepared.clients["f01"], prepared.standardisation).features_NFL
    assert update(config, prepared, 1, clean).num_examples == len(held) == 10
    assert torch.equal(nearest(torch.cat(clean.batches), held), torch.zeros(10))
    assert update(config, prepared, 2, mixed).num_examples == 5
    assert (clean.whose, mixed.whose) == ({("f01", 1)}, {("f01", 2)})
    distance = nearest(torch.cat(mixed.batches), held)
    assert len(distance) == 10 and int((distance == 0).sum()) == 5
    assert float(distance.max()) <= EPSILON * (1 + 1e-5)
    assert bool((distance[distance > 0] > EPSILON / 4).all())


def test_per_step_hardens_every_batch_from_its_round_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardened: list[int] = []
    harden = Objective.harden

    def counted(self: Objective, network: nn.Module, features_BFL: Tensor, *rest: Any, **named: Any) -> Tensor:
        hardened.append(len(features_BFL))
        return harden(self, network, features_BFL, *rest, **named)

    monkeypatch.setattr(Objective, "harden", counted)
    config = settings(cache, "objective=pgd", "objective.recipe=per_step", "objective.from_round=3")
    prepared = prepare(config)
    assert update(config, prepared, 2).num_examples == 10 and hardened == []
    adversarial = update(config, prepared, 3)
    assert adversarial.num_examples == sum(hardened) == 10
    clean = update(settings(cache), prepared, 3)
    assert any(not torch.equal(tensor, clean.state[name]) for name, tensor in adversarial.state.items())


def test_interrupted_training_is_an_interrupt_and_leaves_the_signal_alone(cache: Path, tmp_path: Path) -> None:
    """Lightning would end the process with code 1 and go on ignoring Ctrl-C."""

    class CtrlC(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(replace(settings(cache), run_dir=str(tmp_path / "run")), callbacks=[CtrlC()])  # type: ignore[type-var]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_trainer_neither_joins_a_cluster_nor_writes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under SLURM the round loop owns signals and requeueing."""
    for name, value in {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "7",
        "SLURM_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.chdir(tmp_path)
    config = settings(cache)
    assert isinstance(quiet_trainer(config, ())._accelerator_connector.cluster_environment, LightningEnvironment)
    update(config, prepare(config), 1)
    assert list(tmp_path.iterdir()) == []


def test_torchmetrics_of_an_epoch_reach_a_users_callback(cache: Path) -> None:
    seen: list[dict[str, float]] = []

    class End(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    config = settings(cache)
    sent = update(config, prepare(config), 1, End())
    assert seen[0].keys() == {"train_loss", "train_accuracy"}
    assert seen[0]["train_loss"] == pytest.approx(sent.train_loss)
    assert seen[0]["train_accuracy"] * 10 == pytest.approx(round(seen[0]["train_accuracy"] * 10))
