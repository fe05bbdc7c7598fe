"""Mixup in a client's training: after other augmentation, in both engines, and in a Trainer of one's own."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import ser_fl
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import EmotionDataModule
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.models.classifier import EmotionClassifier
from ser_fl.models.networks import build_network
from ser_fl.runs.records import ClientUpdate
from ser_fl.training.objectives import ClientRound, Objective

MIXED = "augmentation.mixup=0.5"


def config(*more: str) -> Config:
    return ser_fl.compose(["experiment=debug", "tracking=none", "data.utterances_per_emotion=2", *more])


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config())


class Watching(Objective):
    """Keeps what the steps were given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def loss(
        self, given: ClientRound, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.seen.append((features_BFL, labels_B))
        return super().loss(given, network, features_BFL, labels_B)


def update(settings: Config, prepared: Prepared, own: OwnObjects = OwnObjects()) -> ClientUpdate:  # noqa: B008
    state = build_network(settings.model, len(prepared.store.classes), seed=1).state_dict()
    task = ClientTask(round=1, client_id="m01", state=state, learning_rate=0.01)
    return Clients(settings, prepared, own).update(task)


def test_batches_are_mixed_after_all_else(prepared: Prepared) -> None:
    """Each mixed utterance is the weighted mean of two that the other augmentation gave, with labels by those shares;
    without smoothing a label's probabilities are the shares."""
    plain, mixed = Watching(), Watching()
    more = ("augmentation=masks", "augmentation.label_smoothing=0")
    update(config(*more), prepared, OwnObjects(objective=plain))
    update(config(*more, MIXED), prepared, OwnObjects(objective=mixed))
    given, labels = plain.seen[0]
    found, targets = mixed.seen[0]
    assert targets.shape == (len(labels), 7) and len({*labels.tolist()}) > 1
    for row, (utterance, target) in enumerate(zip(found, targets, strict=True)):
        fits = []
        for other in range(len(given)):
            to_other = given[other] - given[row]
            share = float(((utterance - given[row]) * to_other).sum() / to_other.square().sum().clamp(min=1e-9))
            fits.append((float((utterance - given[row] - share * to_other).abs().max()), share, other))
        misfit, share, other = min(fits)
        assert misfit < 1e-4 and -1e-6 <= share <= 0.5
        expected = torch.zeros(7)
        expected[labels[row]] += 1 - share
        expected[labels[other]] += share
        torch.testing.assert_close(target, expected, atol=1e-4, rtol=0)


def test_mixed_training_is_the_same_by_loop_and_trainer(prepared: Prepared) -> None:
    by_trainer, by_loop = (
        update(config(MIXED, "class_balance=loss", f"executor.engine={engine}"), prepared)
        for engine in ("trainer", "loop")
    )
    unmixed = update(config("class_balance=loss"), prepared)
    assert by_trainer.train_loss == by_loop.train_loss != unmixed.train_loss
    assert all(torch.equal(by_trainer.state[name], by_loop.state[name]) for name in by_loop.state)


def test_a_trainer_of_ones_own_mixes_too(prepared: Prepared, tmp_path: Path) -> None:
    """Its training UAR is of each utterance's own label, which is the likelier one."""
    losses = []
    for more in ((), (MIXED,)):
        settings = config(*more)
        module = EmotionClassifier(
            settings.model, 7, optimiser=settings.optimiser, augmentation=settings.augmentation, seed=1
        )
        trainer = pl.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        trainer.fit(module, EmotionDataModule(settings, prepared))
        losses.append(float(module.train_figures["loss"]))
        assert 0 <= float(module.train_figures["uar"]) <= 1
    assert losses[0] != losses[1]


@pytest.mark.parametrize("objective", ["pgd", "trades", "free", "fast"])
def test_mixup_under_attack_is_refused_in_a_line(objective: str) -> None:
    with pytest.raises(UserError, match=rf"augmentation\.mixup goes with objective=clean, got {objective}: .* two$"):
        config(MIXED, f"objective={objective}")
