"""Robust federated speech emotion recognition: train, benchmark, evaluate, load, predict."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ser_fl.api import Run as Run
    from ser_fl.api import benchmark as benchmark
    from ser_fl.api import train as train
    from ser_fl.baselines import baseline as baseline
    from ser_fl.config.compose import compose as compose
    from ser_fl.cross_validation import crossval as crossval
    from ser_fl.evaluation import evaluate as evaluate
    from ser_fl.exporting.export import export as export
    from ser_fl.models.emotion_model import load_model as load
    from ser_fl.prediction import predict as predict
    from ser_fl.prediction import predict_each as predict_each

__version__ = "0.1.0"
__all__ = [
    "Run",
    "baseline",
    "benchmark",
    "compose",
    "crossval",
    "evaluate",
    "export",
    "load",
    "predict",
    "predict_each",
    "train",
]

_HOMES = {
    "Run": ("ser_fl.api", "Run"),
    "baseline": ("ser_fl.baselines", "baseline"),
    "benchmark": ("ser_fl.api", "benchmark"),
    "compose": ("ser_fl.config.compose", "compose"),
    "crossval": ("ser_fl.cross_validation", "crossval"),
    "evaluate": ("ser_fl.evaluation", "evaluate"),
    "export": ("ser_fl.exporting.export", "export"),
    "load": ("ser_fl.models.emotion_model", "load_model"),
    "predict": ("ser_fl.prediction", "predict"),
    "predict_each": ("ser_fl.prediction", "predict_each"),
    "train": ("ser_fl.api", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import ser_fl`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ser_fl' has no attribute {name!r}")
    from ser_fl.runs.environment import collection_paused

    module, attribute = _HOMES[name]
    with collection_paused():
        found = globals()[name] = getattr(import_module(module), attribute)
    return found
