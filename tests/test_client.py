"""What a client does in a round, end to end: what its Trainer is fed, and what it leaves alone."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torchmetrics import MeanMetric

from ser_fl import train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import Batch
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.models.networks import build_network
from ser_fl.runs.records import ClientUpdate
from ser_fl.training import trainer
from ser_fl.training.lightning_internals import copy_of
from ser_fl.training.objectives import ClientRound
from ser_fl.training.objectives.adversarial import Free, PerStep
from ser_fl.training.trainer import Trainers, has_installed_callbacks, quiet_trainer

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
    clients = Clients(config, prepared, OwnObjects(callbacks=callbacks))
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
    harden = PerStep.harden

    def counted(self: PerStep, given: ClientRound, epsilon: float, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        hardened.append(len(features_BFL))
        return harden(self, given, epsilon, features_BFL, labels_B)

    monkeypatch.setattr(PerStep, "harden", counted)
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


class Measured(pl.Callback):
    """What a callback finds at the end of training, and torchmetrics' own mean of the last epoch's losses."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.mean = MeanMetric()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.mean.update(outputs["loss"], len(batch[1]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found, self.logged = dict(trainer.callback_metrics), dict(trainer.logged_metrics)


def test_metrics_of_the_last_epoch_reach_a_users_callback(cache: Path) -> None:
    config, measured, meddler = settings(cache, "federation.local_epochs=3"), Measured(), Meddler()
    sent = update(config, prepare(config), 1, measured, meddler)
    assert meddler.trainers[0].callback_metrics == measured.found, "for as long as somebody wants them"
    assert measured.found.keys() == measured.logged.keys() == {"train_loss", "train_uar", "train_accuracy"}
    assert sent.train_loss == float(measured.found["train_loss"]) == float(measured.mean.compute())
    accuracy = float(measured.found["train_accuracy"])
    assert accuracy * 10 == pytest.approx(round(accuracy * 10))


def test_lightnings_own_callbacks_can_monitor_them(cache: Path) -> None:
    """A loss that must fall by 100 each epoch stops training after the second one."""
    config, measured = settings(cache, "federation.local_epochs=5"), Measured()
    stopping = EarlyStopping("train_loss", min_delta=100.0, patience=1)
    update(config, prepare(config), 1, stopping, measured)
    assert stopping.stopped_epoch == 1


class Meddler(pl.Callback):
    """Notes each Trainer as it begins, and leaves it as no other may find it."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int, int | None, bool, int, int]] = []
        self.trainers: list[pl.Trainer] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        at = trainer.global_step, trainer.current_epoch, trainer.max_epochs, trainer.should_stop
        self.begun.append((*at, len(trainer.callback_metrics), len(trainer.callbacks)))  # type: ignore[attr-defined]
        self.trainers.append(trainer)
        assert self in trainer.callbacks, "a callback is the user's own, not a copy"  # type: ignore[attr-defined]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True
        trainer.accumulate_grad_batches = 7
        trainer.limit_train_batches = 1
        trainer.fit_loop.max_epochs = 99
        trainer.callbacks.append(pl.Callback())  # type: ignore[attr-defined]


def test_every_client_has_a_trainer_that_is_as_good_as_new(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, meddler = settings(cache, "federation.local_epochs=2"), Meddler()
    prepared = prepare(config)
    clients = Clients(config, prepared, OwnObjects(callbacks=(meddler,)))
    state = dict(build_network(config.model, len(prepared.store.classes), seed=config.seed).state_dict())
    tasks = [ClientTask(round=1, client_id=name, state=state, learning_rate=0.01) for name in ("f01", "m01", "f01")]
    sent = [clients.update(task) for task in tasks]
    assert meddler.begun == [(0, 0, 2, False, 0, 1)] * 3
    assert len({id(trainer) for trainer in meddler.trainers}) == 3
    monkeypatch.setattr(trainer, "copy_of", lambda unused: quiet_trainer(config, [meddler]))
    for task, mine in zip(tasks, sent, strict=True):
        expected = clients.update(task)
        assert mine.train_loss == expected.train_loss
        assert all(torch.equal(tensor, expected.state[name]) for name, tensor in mine.state.items())


def test_a_copied_trainer_holds_what_a_new_one_holds(cache: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        config = settings(cache, f"precision={precision}")
        assert inside(copy_of(quiet_trainer(config, ()))) == inside(quiet_trainer(config, ()))


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_client_held_is_freed_when_it_is_done(cache: Path, fails: bool) -> None:
    """Without the garbage collector, which would leave many clients' examples and optimisers alive until it comes."""
    held: list[ReferenceType[Any]] = []

    class Holding(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            optimiser = trainer.optimizers[0]
            moments = next(iter(optimiser.state.values()))["exp_avg"]
            examples = trainer.datamodule.batches.examples  # type: ignore[attr-defined]
            held.extend(map(ref, (trainer.datamodule, examples.features_NFL, moments)))  # type: ignore[attr-defined]
            held.extend(map(ref, pl_module.parameters()))
            if fails:
                raise RuntimeError("microphone unplugged")

    config = settings(cache)
    prepared = prepare(config)
    gc.disable()
    try:
        with pytest.raises(RuntimeError) if fails else nullcontext() as raised:
            update(config, prepared, 1, Holding())
        del raised
        assert len(held) > 10
        assert [thing() for thing in held if thing() is not None] == []
    finally:
        gc.enable()


def inside(thing: Any, seen: dict[int, int] | None = None) -> Any:
    """Everything that an object leads to, as plain values; objects that were met before by the order of meeting."""
    seen = {} if seen is None else seen
    if isinstance(thing, (str, bytes, int, float, bool, type(None), type, torch.device, torch.dtype)):
        return thing
    if id(thing) in seen:
        return seen[id(thing)]
    seen[id(thing)] = len(seen)
    if isinstance(thing, dict):
        return {str(key): inside(value, seen) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [inside(value, seen) for value in thing]
    if not type(thing).__module__.startswith(("lightning", "ser_fl")):
        return type(thing).__name__
    return type(thing).__name__, inside(dict(sorted(vars(thing).items())), seen)


class Passes(pl.Callback):
    """Counts the network's forward and backward passes, and keeps what goes in beside the clean batch."""

    def __init__(self) -> None:
        self.forward = self.backward = 0
        self.clean: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.forward += 1
            self.inputs.append(inputs[0].detach().clone())
            output.register_hook(count_backward)

        def count_backward(gradient: Tensor) -> None:
            self.backward += 1

        pl_module.network.register_forward_hook(count)  # type: ignore[union-attr, operator]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.clean.append(batch[0].clone())


def assert_same_weights(mine: ClientUpdate, theirs: ClientUpdate) -> None:
    assert mine.state.keys() == theirs.state.keys()
    for name, tensor in mine.state.items():
        assert torch.equal(tensor, theirs.state[name]), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_free_takes_one_forward_and_one_backward_pass_a_replay(cache: Path, precision: str) -> None:
    """Ten utterances in five batches: two of them in the first epoch, three times each, and two others in the second.

    The perturbation is made of the gradients of these passes: zero in the first, full steps of epsilon later.
    """
    config = settings(
        cache,
        "objective=free",
        "objective.replays=3",
        "federation.batch_size=2",
        "federation.local_epochs=2",
        f"precision={precision}",
    )
    prepared, passes = prepare(config), Passes()
    sent = update(config, prepared, 1, passes)
    assert (passes.forward, passes.backward, len(passes.clean)) == (12, 12, 12)
    minibatches = [passes.clean[first] for first in range(0, 12, 3)]
    for step, clean_BFL in enumerate(passes.clean):
        assert torch.equal(clean_BFL, minibatches[step // 3])
    held = load_examples(prepared.store, prepared.clients["f01"], prepared.standardisation).features_NFL
    assert len(torch.cat(minibatches).unique(dim=0)) == sum(map(len, minibatches)) == 8
    assert sent.num_examples == len(held) == 10
    assert torch.equal(passes.inputs[0], passes.clean[0])
    box = Clients(config, prepared).box
    assert box.upper_F1 is not None
    reached_BFL = torch.zeros(())
    for clean_BFL, inputs_BFL in zip(passes.clean[1:], passes.inputs[1:], strict=True):
        moved_BFL = inputs_BFL - clean_BFL
        assert torch.equal(inputs_BFL, box.clip(inputs_BFL))
        assert float(moved_BFL.abs().max()) <= EPSILON * (1 + 1e-5)
        reached_BFL = ((moved_BFL.abs() - EPSILON).abs() < 1e-5).float().mean()
        assert float(reached_BFL) > 0.2, "carried over from the replay, the minibatch and the epoch before"


def test_few_batches_of_a_round_are_drawn_anew_and_weigh_as_all(cache: Path) -> None:
    """Ten utterances in five batches, three of which are taken in each epoch."""
    config = settings(cache, "federation.local_batches=3", "federation.batch_size=2", "federation.local_epochs=2")
    prepared, met = prepare(config), list[Tensor]()
    for number in range(1, 6):
        passes = Passes()
        sent = update(config, prepared, number, passes)
        assert (passes.forward, passes.backward, sent.num_examples) == (6, 6, 10)
        for epoch in (passes.clean[:3], passes.clean[3:]):
            assert [len(batch) for batch in epoch] == [2, 2, 2]
            assert len(torch.cat(epoch).unique(dim=0)) == 6
        met += passes.clean
    assert len(torch.cat(met).unique(dim=0)) == 10
    orders = [torch.cat(met[first : first + 3]) for first in range(0, len(met), 3)]
    assert all(not torch.equal(one, other) for one, other in pairwise(orders))


def test_replays_count_among_few_batches(cache: Path) -> None:
    """As many steps as the batches would make without replays: two minibatches twice, of five in all."""
    few = ("federation.local_batches=4", "federation.batch_size=2")
    config, passes = settings(cache, "objective=free", "objective.replays=2", *few), Passes()
    update(config, prepare(config), 1, passes)
    assert (passes.forward, passes.backward) == (4, 4)


def test_as_many_batches_as_there_are_is_all_of_them_to_the_bit(cache: Path) -> None:
    prepared = prepare(settings(cache))
    whole = update(settings(cache), prepared, 1)
    for count in (3, 99):  # ten utterances in batches of four
        assert_same_weights(update(settings(cache, f"federation.local_batches={count}"), prepared, 1), whole)
    assert update(settings(cache, "federation.local_batches=2"), prepared, 1).update_norm != whole.update_norm


def test_fast_takes_two_forward_passes_a_step(cache: Path) -> None:
    config, passes = settings(cache, "objective=fast", "federation.batch_size=2"), Passes()
    update(config, prepare(config), 1, passes)
    assert (passes.forward, passes.backward, len(passes.clean)) == (10, 10, 5)
    for clean_BFL, start_BFL, hardened_BFL in zip(passes.clean, passes.inputs[::2], passes.inputs[1::2], strict=True):
        for inputs_BFL in (start_BFL, hardened_BFL):
            assert 0.9 * EPSILON < float((inputs_BFL - clean_BFL).abs().max()) <= EPSILON * (1 + 1e-5)


@pytest.mark.parametrize("name", ["fast", "free"])
@pytest.mark.parametrize(
    "changed", [("objective.epsilon=0",), ("objective.from_round=2",)], ids=["no budget", "not yet"]
)
def test_without_a_perturbation_they_are_clean_training_to_the_bit(
    cache: Path, name: str, changed: tuple[str, ...]
) -> None:
    config = settings(cache, f"objective={name}", *changed)
    if name == "free" and config.objective.epsilon == 0:
        config = replace(config, objective=replace(config.objective, replays=1))  # type: ignore[type-var]
    prepared = prepare(config)
    assert_same_weights(update(config, prepared, 1), update(settings(cache), prepared, 1))
    attacked = settings(cache, f"objective={name}")
    assert update(attacked, prepared, 1).update_norm != update(settings(cache), prepared, 1).update_norm


def test_replays_without_a_perturbation_are_clean_training_on_the_replayed_batches(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With masks and rolls, which are drawn once a minibatch: they would differ from replay to replay."""
    config = settings(cache, "objective=free", "objective.epsilon=0", "augmentation=masks", "federation.local_epochs=2")
    prepared, passes = prepare(config), Passes()
    free = update(config, prepared, 1, passes)
    for first in range(0, len(passes.inputs), 4):
        assert not torch.equal(passes.inputs[first], passes.clean[first])
        assert all(torch.equal(inputs, passes.inputs[first]) for inputs in passes.inputs[first : first + 4])
    monkeypatch.setattr(Free, "perturbed_loss", lambda self, given, perturbation, *step: self.loss(given, *step))
    assert_same_weights(free, update(config, prepared, 1))


@pytest.mark.parametrize(
    "changed",
    [
        (),
        ("federation.local_epochs=3", "augmentation=light", "federation.keep_optimiser=true"),
        ("precision=bf16-mixed", "objective=pgd", "objective.recipe=per_step", "objective.from_round=1"),
        ("objective=free", "federation.freeze_norm_from=1", "optimiser=sgd"),
        pytest.param(("objective=pgd", "objective.from_round=1", "model=vgg15"), marks=pytest.mark.slow),
        ("federation.local_batches=2", "federation.local_epochs=2", "augmentation.splice=1"),
        ("objective=free", "objective.replays=2", "federation.local_batches=4", "federation.batch_size=2"),
        ("model.norm=renorm", "precision=bf16-mixed", "objective=free"),
    ],
    ids=["clean", "epochs", "bf16", "free", "copies", "few batches", "free, few batches", "renormalised"],
)
def test_the_loop_takes_the_trainers_steps(cache: Path, changed: tuple[str, ...]) -> None:
    """The same bits of weights, optimiser and loss, dropout included, with a Trainer and without."""
    updates = []
    for engine in ("trainer", "loop"):
        config = settings(cache, *changed, f"executor.engine={engine}")
        clients = Clients(config, prepare(config))
        state = dict(build_network(config.model, len(clients.data.store.classes), seed=config.seed).state_dict())
        first = clients.update(ClientTask(round=1, client_id="f01", state=state, learning_rate=0.01))
        task = ClientTask(
            round=2, client_id="f01", state=first.state, learning_rate=0.01, optimiser_state=first.optimiser_state
        )
        updates.append(clients.update(task))
    by_trainer, in_loop = updates
    assert by_trainer.train_loss == in_loop.train_loss
    for mine, expected in ((in_loop.state, by_trainer.state), (in_loop.optimiser_state, by_trainer.optimiser_state)):
        assert mine.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in mine.items())


def test_a_trainer_is_the_default_and_the_loop_a_choice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(cache)
    prepared = prepare(config)
    monkeypatch.setattr(Trainers, "fit", None)
    with pytest.raises(TypeError, match="not callable"):
        update(config, prepared, 1)
    update(settings(cache, "executor.engine=loop"), prepared, 1)
    with pytest.raises(UserError, match=r"executor\.engine=loop runs no callbacks.*executor\.engine=trainer"):
        train(settings(cache, "executor.engine=loop", f"run_dir={cache / 'none'}"), callbacks=[Fed()])
    assert not (cache / "none").exists()


def test_installed_callbacks_call_for_a_trainer_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that gives every Trainer a callback, by Lightning's own entry point."""
    information = tmp_path / "watching-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: watching\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[lightning.pytorch.callbacks_factory]\nwatching = watching:make\n")
    (tmp_path / "watching.py").write_text(
        "import lightning.pytorch as pl\n"
        "steps = []\n"
        "class Watching(pl.Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        steps.append(trainer.global_step)\n"
        "def make():\n"
        "    return Watching()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    has_installed_callbacks.cache_clear()
    try:
        with pytest.raises(UserError, match=r"executor\.engine=loop runs no callbacks"):
            train(settings(cache, "executor.engine=loop", f"run_dir={cache / 'none'}"))
        config = settings(cache)
        update(config, prepare(config), 1)
        assert importlib.import_module("watching").steps == [1, 2, 3]
    finally:
        has_installed_callbacks.cache_clear()
        sys.modules.pop("watching", None)


@pytest.mark.parametrize("engine", ["trainer", "loop"])
def test_clients_train_whatever_the_caller_has_switched_off(cache: Path, engine: str) -> None:
    config = settings(cache, f"executor.engine={engine}")
    prepared = prepare(config)
    expected = update(config, prepared, 1)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            found = update(config, prepared, 1)
        assert all(torch.equal(tensor, found.state[name]) for name, tensor in expected.state.items())


def test_no_step_of_an_optimiser_loads_nvml(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's import asks torch to look for GPUs by it, and Adam looks in every step."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: asked.append("nvml") or 0)
    config = settings(cache)
    clients = Clients(config, prepare(config))
    state = dict(build_network(config.model, len(clients.data.store.classes), seed=config.seed).state_dict())
    task = ClientTask(round=1, client_id="f01", state=state, learning_rate=0.01)
    clients.update(task)  # a Trainer looks for hardware when it is set up
    asked.clear()
    clients.update(task)
    assert asked == []
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    torch.cuda.is_available()
    assert asked == ["nvml"]
