"""What a Lightning user expects of the module and the data module, by themselves and as clients."""

from __future__ import annotations

import csv
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from ser_fl import train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump, parse
from ser_fl.config.training import EXCLUDED, TrainerConfig
from ser_fl.data.datamodule import EmotionDataModule
from ser_fl.data.prepared import prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.rounds import checkpoint_key
from ser_fl.metrics import confusion_matrix, scores
from ser_fl.models.classifier import EmotionClassifier
from ser_fl.models.networks import build_network
from ser_fl.runs.records import ClientUpdate

EPOCHS = 3
FIGURES = ("loss", "uar", "accuracy")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lightning")


def settings(cache: Path, *changed: str) -> Config:
    """Ten training utterances of two speakers in batches of four; dropout, so that streams matter."""
    base = ("experiment=debug", "tracking=none", "data.utterances_per_emotion=2", "federation.batch_size=4")
    return compose([*base, "model.dropout=0.3", f"data.cache_dir={cache}", *changed])


@pytest.fixture
def data(cache: Path) -> EmotionDataModule:
    return EmotionDataModule(settings(cache))


@pytest.fixture
def classifier(data: EmotionDataModule) -> EmotionClassifier:
    return of(data)


def of(data: EmotionDataModule, **named: Any) -> EmotionClassifier:
    config = data.config
    return EmotionClassifier(
        config.model, len(data.classes), optimiser=config.optimiser, augmentation=config.augmentation, **named
    )


def trainer(folder: Path, *callbacks: Callback, **flags: Any) -> pl.Trainer:
    """As a user's own, on one thread and without talk."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **flags}
    )


def by_hand(classifier: EmotionClassifier, data: EmotionDataModule, part: str) -> dict[str, float]:
    """Loss and the project's own metrics of a whole part at once."""
    examples = data.examples(part)  # type: ignore[arg-type]
    assert set(examples.labels_N.tolist()) == set(range(len(data.classes)))
    classifier.eval()
    with torch.no_grad():
        logits_NC = classifier(examples.features_NFL)
    found = scores(confusion_matrix(examples.labels_N.tolist(), logits_NC.argmax(dim=1).tolist(), len(data.classes)))
    loss = functional.cross_entropy(logits_NC, examples.labels_N)
    return {"loss": float(loss), "uar": found.uar, "accuracy": found.accuracy}


def test_validate_test_and_predict_are_the_projects_own_figures(cache: Path, tmp_path: Path) -> None:
    """UAR by torchmetrics, batch by batch, is UAR by the confusion matrix, where all classes occur."""
    halves = ("split.test_fraction=0.4", "split.validation_fraction=0.5", "data.utterances_per_emotion=6")
    data, user = EmotionDataModule(settings(cache, *halves)), trainer(tmp_path)
    classifier = of(data)
    user.fit(classifier, datamodule=data)
    for part, ask, prefix in (("validation", user.validate, "val"), ("test", user.test, "test")):
        (found,) = ask(classifier, datamodule=data, verbose=False)
        expected = {f"{prefix}_{name}": value for name, value in by_hand(classifier, data, part).items()}
        assert found == pytest.approx(expected, abs=1e-6)
    batches = user.predict(classifier, datamodule=data)
    probabilities_NC = torch.cat(batches)  # type: ignore[arg-type]
    examples = data.examples("test")
    assert probabilities_NC.shape == (len(examples), len(data.classes))
    with torch.no_grad():
        expected_NC = classifier(examples.features_NFL).softmax(dim=1)
    torch.testing.assert_close(probabilities_NC, expected_NC, rtol=0, atol=1e-5)
    alone = user.predict(classifier, dataloaders=DataLoader([examples.features_NFL[:2]], batch_size=None))
    torch.testing.assert_close(alone, [expected_NC[:2]], rtol=0, atol=1e-5)


def test_the_parts_are_the_splits_and_only_training_is_shuffled(data: EmotionDataModule) -> None:
    prepared = data.prepared
    for part, loader in (
        ("validation", data.val_dataloader()),
        ("test", data.test_dataloader()),
        ("test", data.predict_dataloader()),
    ):
        features, labels = zip(*loader, strict=True)
        rows = list(getattr(prepared.split, part))
        assert torch.equal(torch.cat(features), prepared.standardisation(prepared.store.features_NFL[rows]))
        assert torch.equal(torch.cat(labels), prepared.store.labels_N[rows])
    first, second = (torch.cat([features for features, _ in data.train_dataloader()]) for _ in range(2))
    assert not torch.equal(first, second) and torch.equal(first.sum(0).sort()[0], first.sum(0).sort()[0])
    held = prepared.standardisation(prepared.store.features_NFL[list(prepared.split.train)])
    for epoch in (first, second):
        assert sorted(map(float, epoch.sum(dim=(1, 2)))) == sorted(map(float, held.sum(dim=(1, 2))))


class Saving(Callback):
    """Saves a checkpoint wherever Lightning lets one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"validated-{trainer.current_epoch}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch}.ckpt")


def test_a_fit_that_goes_on_ends_with_the_weights_of_an_uninterrupted_one(cache: Path, tmp_path: Path) -> None:
    """From the middle of an epoch, its validation and its end, in a process whose streams are elsewhere."""
    config = settings(cache, "augmentation=masks")

    def fitted(seed: int, ckpt_path: Path | None, *callbacks: Callback) -> EmotionClassifier:
        data = EmotionDataModule(config)
        module = of(data)
        torch.manual_seed(seed)
        user = trainer(tmp_path, *callbacks, enable_checkpointing=False)
        user.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module

    whole = fitted(1, None, Saving(tmp_path))
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert {path.stem.split("-")[0] for path in saved} == {"step", "validated", "epoch"} and len(saved) > 2 * EPOCHS
    for path in saved:
        resumed = fitted(2, path)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), f"{path.stem}: {name}"
    other = fitted(2, None)
    assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_checkpoint_says_all_that_is_needed(
    classifier: EmotionClassifier, data: EmotionDataModule, tmp_path: Path
) -> None:
    """Without arguments, and without pickle: torch loads it as weights only. The loader's streams stay as they are."""
    user = trainer(tmp_path)
    user.fit(classifier, datamodule=data)
    path = tmp_path / "last.ckpt"
    user.save_checkpoint(path)
    torch.load(path, weights_only=True)
    before = torch.get_rng_state()
    loaded = EmotionClassifier.load_from_checkpoint(path, weights_only=True)
    again = EmotionClassifier.load_from_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.hparams == again.hparams == classifier.hparams and loaded.optimiser == data.config.optimiser
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_network_of_ones_own_is_trained(data: EmotionDataModule, tmp_path: Path) -> None:
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(len(data.classes)))
    own(next(iter(data.val_dataloader()))[0])
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    trainer(tmp_path).fit(of(data, network=own), datamodule=data)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("optimiser", {"name": "adam"})])
def test_a_wrong_setting_is_told_in_one_line(classifier: EmotionClassifier, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        EmotionClassifier(**{**classifier.hparams, name: value})


def test_loggers_receive_what_is_logged(classifier: EmotionClassifier, data: EmotionDataModule, tmp_path: Path) -> None:
    """Also the learning rate and the hyper-parameters; stock callbacks that need a logger or validation work."""
    logger = CSVLogger(tmp_path, name="csv")
    user = trainer(
        tmp_path,
        LearningRateMonitor(),
        ModelCheckpoint(tmp_path / "best", monitor="val_uar", mode="max"),
        EarlyStopping("val_loss", patience=EPOCHS),
        logger=logger,
    )
    user.fit(classifier, datamodule=data)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for part in ("train", "val"):
        for figure in FIGURES:
            assert len([row for row in rows if row[f"{part}_{figure}"]]) == EPOCHS
    rates = {float(row["lr-Adam"]) for row in rows if row["lr-Adam"]}
    assert rates == {data.config.optimiser.learning_rate}
    logged = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert logged == dict(classifier.hparams) and logged["optimiser"]["name"] == "adam"
    assert len(list((tmp_path / "best").glob("*.ckpt"))) == 1


def test_wandb_receives_what_is_logged(
    classifier: EmotionClassifier, data: EmotionDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="tests", save_dir=tmp_path, offline=True)
    try:
        trainer(tmp_path, logger=logger).fit(classifier, datamodule=data)
        summary, config = dict(logger.experiment.summary), dict(logger.experiment.config)
    finally:
        logger.experiment.finish()
    assert {f"{part}_{figure}" for part in ("train", "val") for figure in FIGURES} <= summary.keys()
    assert summary["train_loss"] == pytest.approx(float(classifier.train_figures["loss"]))
    assert config["num_classes"] == len(data.classes)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_an_empty_or_diverged_epoch_is_seen(classifier: EmotionClassifier) -> None:
    assert classifier.score_epoch() == {}
    classifier._steps += [
        (torch.tensor(1.0), torch.eye(7)[:3], torch.tensor([0, 1, 2])),
        (torch.tensor(3.0), torch.eye(7)[:1], torch.tensor([4])),
    ]
    figures = classifier.score_epoch()
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(
        {"loss": 1.5, "uar": 0.75, "accuracy": 0.75}  # recalls 1, 1, 1 and 0; three classes do not occur
    )
    classifier._steps.append((torch.tensor(float("nan")), torch.eye(7)[:1], torch.tensor([0])))
    assert torch.isnan(classifier.score_epoch()["loss"])


# As clients.


def update(config: Config, *callbacks: Callback, client_id: str = "f01") -> ClientUpdate:
    """Of one client in round 1, from the initial weights."""
    clients = Clients(config, prepare(config), OwnObjects(callbacks=callbacks))
    state = dict(build_network(config.model, len(clients.data.store.classes), seed=config.seed).state_dict())
    return clients.update(ClientTask(round=1, client_id=client_id, state=state, learning_rate=0.01))


class Steps(Callback):
    """What a step finds: batches so far, gradients after clipping, and flags of the process."""

    def __init__(self) -> None:
        self.batches = 0
        self.gradients: list[Tensor] = []
        self.flags: set[tuple[bool, bool]] = set()

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        found = [parameter.grad.flatten() for parameter in pl_module.parameters() if parameter.grad is not None]
        if found:
            self.gradients.append(torch.cat(found))
        self.flags.add((torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()))


def clipped(largest: Callable[[Tensor], Tensor], *flags: str) -> Callable[[Path], bool]:
    def holds(cache: Path) -> bool:
        free, steps = Steps(), Steps()
        update(settings(cache), free)
        update(settings(cache, *flags), steps)
        before, after = (max(float(largest(each)) for each in found.gradients) for found in (free, steps))
        return before > 0.01 and after <= 0.01 * (1 + 1e-3)

    return holds


@pytest.mark.parametrize(
    "holds",
    [
        clipped(lambda gradient: gradient.norm(), "trainer.gradient_clip_val=0.01"),
        clipped(
            lambda gradient: gradient.abs().max(),
            "trainer.gradient_clip_val=0.01",
            "trainer.gradient_clip_algorithm=value",
        ),
    ],
    ids=["norm", "value"],
)
def test_gradients_of_clients_are_clipped(cache: Path, holds: Callable[[Path], bool]) -> None:
    assert holds(cache)


def test_flags_reach_a_clients_trainer(cache: Path) -> None:
    """Ten utterances in batches of two are five batches."""
    small = "federation.batch_size=2"
    for flag, batches in (("trainer.limit_train_batches=2", 2), ("trainer.limit_train_batches=0.6", 3)):
        steps = Steps()
        update(settings(cache, small, flag), steps)
        assert steps.batches == batches
    taken = list[int]()

    class Counting(Callback):
        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            taken.append(trainer.global_step)

    update(settings(cache, small), Counting())
    update(settings(cache, small, "trainer.accumulate_grad_batches=2"), Counting())
    assert taken == [5, 3]
    steps = Steps()
    update(settings(cache, "trainer.deterministic=true", "trainer.detect_anomaly=true"), steps)
    assert steps.flags == {(True, True)}
    assert not torch.are_deterministic_algorithms_enabled() and not torch.is_anomaly_enabled()


@pytest.mark.parametrize("name", sorted(EXCLUDED))
def test_flags_that_a_round_has_no_room_for_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{name} cannot be set: \w+") as raised:
        compose([f"trainer.{name}=1"])
    content = dump(compose([]))
    content["trainer"][name] = 1
    with pytest.raises(UserError) as from_file:
        parse(content)
    assert str(raised.value) == str(from_file.value) and "\n" not in str(raised.value)


def test_lightning_has_no_flag_that_is_neither_taken_nor_refused() -> None:
    flags = set(inspect.signature(pl.Trainer).parameters) - {"model_registry", "enable_autolog_hparams"}
    assert flags == set(EXCLUDED) | set(vars(TrainerConfig()))
    taken = {name: inspect.signature(pl.Trainer).parameters[name].default for name in vars(TrainerConfig())}
    loose = {"gradient_clip_algorithm", "deterministic", "benchmark"}  # None is what the same comes to
    for name, value in vars(TrainerConfig()).items():
        assert taken[name] == value or (name in loose and taken[name] is None)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("executor.engine=loop", "trainer.gradient_clip_val=1"), r"gradient_clip_val=1\.0 needs executor\.engine=tr"),
        (("executor.engine=loop", "precision=16-mixed", "executor.accelerator=auto"), "16-mixed needs executor.engine"),
        (
            ("objective=free", "precision=16-mixed", "executor.accelerator=auto"),
            "until it overflows: take bf16-mixed or 32-true",
        ),
        (("precision=16-mixed",), r"16-mixed needs a GPU, got executor\.accelerator=cpu"),
        (("trainer.gradient_clip_val=0",), r"gradient_clip_val must be .*, got 0"),
        (("trainer.gradient_clip_algorithm=value",), "gradient_clip_algorithm=value needs trainer.gradient_clip_val"),
        (("trainer.limit_train_batches=0",), r"limit_train_batches must be .*, got 0"),
        (("trainer.limit_train_batches=1.5",), r"limit_train_batches must be .*, got 1\.5"),
        (("trainer.deterministic=maybe",), "deterministic must be true, false or warn, got 'maybe'"),
        (("trainer.deterministic=true", "trainer.benchmark=true"), "benchmark must be false"),
    ],
)
def test_contradictions_are_told_in_one_line(changed: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        compose(changed)


def test_a_resumed_run_must_have_the_same_flags_and_may_have_another_engine() -> None:
    key = checkpoint_key(compose([]))
    assert checkpoint_key(compose(["executor.engine=loop"])) == key
    assert checkpoint_key(compose(["trainer.gradient_clip_val=1"])) != key


def test_the_settings_of_a_run_of_before_still_load() -> None:
    """It had no flags, and chose its engine by itself."""
    content = dump(compose([]))
    del content["trainer"]
    content["executor"]["engine"] = "auto"
    assert parse(json.loads(json.dumps(content))) == compose([])


@pytest.mark.parametrize("callback", [LearningRateMonitor(), ModelCheckpoint(), TQDMProgressBar()])
def test_callbacks_that_cannot_watch_a_client_say_why(cache: Path, tmp_path: Path, callback: Callback) -> None:
    config = settings(cache, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match=rf"{type(callback).__name__} cannot watch a client: \w+"):
        train(config, callbacks=[callback])
    assert not (tmp_path / "run").exists()


def test_early_stopping_begins_anew_with_every_client(cache: Path) -> None:
    """A loss that must fall by 100 each epoch stops each client after its second one."""
    config = settings(cache, "federation.local_epochs=5")
    clients, epochs = [], list[int]()

    class Ended(Callback):
        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            epochs.append(trainer.current_epoch)

    stopping = EarlyStopping("train_loss", min_delta=100.0, patience=1)
    clients = Clients(config, prepare(config), OwnObjects(callbacks=(stopping, Ended())))
    state = dict(build_network(config.model, len(clients.data.store.classes), seed=config.seed).state_dict())
    for client_id in ("f01", "m01", "f01"):
        clients.update(ClientTask(round=1, client_id=client_id, state=state, learning_rate=0.01))
    assert epochs == [2, 2, 2] and stopping.stopped_epoch == 1
