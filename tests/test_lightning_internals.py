"""What is used of Lightning beyond its documented interface: each test fails where Lightning no longer needs it."""

from __future__ import annotations

import gc
import importlib.metadata
import signal
from importlib.metadata import requires, version
from typing import Any
from weakref import ref

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from packaging.requirements import Requirement

from ser_fl.training.lightning_internals import QuickHookNames, copy_of, leave_signals_alone, let_go


def trainer(**flags: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, limit_train_batches=2, **quiet, **flags)


def test_they_are_held_to_a_range_of_versions() -> None:
    needed = next(Requirement(line) for line in requires("ser-fl") or () if line.startswith("lightning"))
    assert str(needed.specifier) == "<2.7,>=2.6.4"
    assert version("lightning") in needed.specifier


@pytest.mark.parametrize("own", [True, False])
def test_lightning_takes_sigterm_unless_it_is_told_not_to(own: bool) -> None:
    found = []

    class During(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    user = trainer(callbacks=[During()])
    if own:
        leave_signals_alone(user)
    user.fit(BoringModel())
    assert (found == [before]) == own
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_new_trainer_looks_through_all_packages_and_a_copy_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    distributions = importlib.metadata.distributions

    def counted(**named: Any) -> Any:
        looked.append(named)
        return distributions(**named)

    monkeypatch.setattr(importlib.metadata, "distributions", counted)
    unused = trainer()
    assert looked
    looked.clear()
    copy_of(unused)
    assert not looked


def test_a_trainer_that_ran_does_not_fit_again() -> None:
    steps = []

    class Counting(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(1)

    counting = Counting()
    user = trainer(callbacks=[counting])
    fresh = copy_of(user)
    user.fit(BoringModel())
    user.fit(BoringModel())
    assert len(steps) == 2
    assert fresh.callbacks == [counting]  # type: ignore[attr-defined]
    fresh.fit(BoringModel())
    assert len(steps) == 4


class Logging(BoringModel):
    def on_train_epoch_end(self) -> None:
        self.log("loss", torch.tensor(1.0))


@pytest.mark.parametrize("is_let_go", [True, False])
def test_a_trainer_holds_what_it_trained_until_it_lets_go(is_let_go: bool) -> None:
    gc.disable()
    try:
        user, module = trainer(callbacks=[pl.callbacks.EarlyStopping("loss")]), Logging()
        user.fit(module)
        held = [ref(module), ref(user.optimizers[0]), ref(user.train_dataloader)]
        del module
        if is_let_go:
            let_go(user)
            assert float(user.callback_metrics["loss"]) == 1
        else:
            del user
        assert [thing() is None for thing in held] == [is_let_go] * len(held)
    finally:
        gc.enable()


def test_lightning_notes_hooks_on_the_module_in_every_step() -> None:
    noted = []

    class Noted(BoringModel):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_current_fx_name":
                noted.append(value)
            super().__setattr__(name, value)

    trainer().fit(Noted())
    assert noted.count("training_step") == 2 and len(noted) > 2 * 20


def test_a_quick_module_is_a_module() -> None:
    module = QuickHookNames()
    module.layer, module._current_fx_name = torch.nn.Linear(1, 1), "forward"
    assert len(list(module.parameters())) == 2 and module._current_fx_name == "forward"
