"""All that is used of Lightning beyond what it documents, for lightning>=2.6.4,<2.7, and why.
`tests/test_lightning_internals.py` asks Lightning itself, and fails where something here is no longer needed.
"""

import copy
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class _NoSignals(_SignalConnector):
    """Lightning's own ends the process after the batch in which SIGTERM comes, and no flag turns it off."""

    def register_signal_handlers(self) -> None:
        pass


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """The round loop owns signals, under SLURM too: a round in flight is finished."""
    trainer._signal_connector = _NoSignals(trainer)


def copy_of(trainer: pl.Trainer) -> pl.Trainer:
    """A Trainer as good as new, of one that never ran: its callbacks and its profiler are shared, not copied. A new one
    looks through every installed package for plugins, which takes longer than all else that it does for a small client.
    One that ran cannot fit again: it would count on from its last step.
    """
    shared = (*trainer.callbacks, trainer.profiler)  # type: ignore[attr-defined]
    return copy.deepcopy(trainer, {id(part): part for part in shared})


def let_go(trainer: pl.Trainer) -> None:
    """Drop the client's examples, network and optimiser, so that they are freed at once.

    A Trainer and its parts hold each other, logged metrics hold themselves and the strategy that sums them, and
    callbacks hold the module by their logging functions: all would stay until the garbage collector comes by, many
    clients later. The metrics' values stay, for a callback that kept the Trainer.
    """
    vars(trainer.strategy).clear()
    for part in vars(trainer).keys() - {"state", "callbacks", "_logger_connector"}:
        delattr(trainer, part)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for function in ("log", "log_dict"):
            vars(callback).pop(function, None)


class QuickHookNames(pl.LightningModule):
    """A module that notes quickly which hook is running, as Lightning asks some forty times a step: a module looks with
    every attribute that is set whether it is a parameter, a buffer or a module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
