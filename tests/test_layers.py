"""What an import costs: heavy libraries are imported by what uses them, when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    *("torch", "torchaudio", "lightning", "torchmetrics", "art", "wandb", "tensorboard", "hydra", "omegaconf"),
    *("matplotlib", "numpy", "scipy", "sklearn", "pydantic", "soundfile"),
)

_PROBE = """
import importlib, json, sys
heavy, names = json.loads(sys.argv[1])
found = {}
for name in names:
    before = {library for library in heavy if library in sys.modules}
    module, _, attribute = name.partition(":")
    loaded = importlib.import_module(module)
    if attribute:
        getattr(loaded, attribute)
    found[name] = sorted({library for library in heavy if library in sys.modules} - before)
print(json.dumps(found))
"""


def newly_imported(*names: str) -> dict[str, set[str]]:
    """Heavy libraries that each import adds, one after the other in a fresh interpreter; "module:name" uses a name."""
    command = [sys.executable, "-c", _PROBE, json.dumps([HEAVY, names])]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: set(found) for name, found in json.loads(output).items()}


def test_package_and_command_line_import_nothing_heavy() -> None:
    names = ("ser_fl", "ser_fl.errors", "ser_fl.randomness", "ser_fl.records", "ser_fl.environment", "ser_fl.cli")
    assert newly_imported(*names) == {name: set() for name in names}


def test_reports_and_settings_need_no_model() -> None:
    found = newly_imported(
        "ser_fl.report.tables",
        "ser_fl.report.four_way",
        "ser_fl.report.page",
        "ser_fl.commands",
        "ser_fl.data.utterance",
        "ser_fl.compose",
        "ser_fl.metrics",
        "ser_fl.data.corpora",
    )
    assert found.pop("ser_fl.compose") == {"pydantic"}  # Hydra with the first composition
    assert found.pop("ser_fl.metrics") == {"numpy"}
    assert found.pop("ser_fl.data.corpora") <= {"soundfile"}
    assert set().union(*found.values()) == set()


def test_libraries_wait_for_their_use() -> None:
    """Attacks wait for ART, tracking for W&B, settings for Hydra, figures for matplotlib."""
    found = newly_imported("ser_fl.defences", "ser_fl.attacks.catalogue", "ser_fl.tracking", "ser_fl:predict")
    later = {"art", "wandb", "tensorboard", "hydra", "omegaconf", "matplotlib", "lightning", "sklearn"}
    assert {name: libraries & later for name, libraries in found.items()} == {name: set() for name in found}
    assert "torch" in found["ser_fl.defences"]  # the probe sees what there is


def test_training_and_benchmark_wait_for_art_wandb_and_hydra() -> None:
    found = newly_imported("ser_fl:benchmark", "ser_fl:train")
    assert set().union(*found.values()).isdisjoint({"art", "wandb", "tensorboard", "hydra", "omegaconf"})
