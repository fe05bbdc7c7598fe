"""What an import costs: heavy libraries are imported by what uses them, when it is used."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ser_fl.config.compose import compose
from ser_fl.data.prepared import prepare
from ser_fl.runs.environment import collection_paused

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
    names = (
        "ser_fl",
        "ser_fl.errors",
        "ser_fl.randomness",
        "ser_fl.runs.folder",
        "ser_fl.runs.records",
        "ser_fl.runs.environment",
        "ser_fl.cli.main",
    )
    assert newly_imported(*names) == {name: set() for name in names}


def test_reports_and_settings_need_no_model() -> None:
    found = newly_imported(
        "ser_fl.report.tables",
        "ser_fl.report.four_way",
        "ser_fl.report.page",
        "ser_fl.cli.terminal",
        "ser_fl.data.utterance",
        "ser_fl.config.compose",
        "ser_fl.metrics",
        "ser_fl.data.corpora",
        "ser_fl.data.inspection",
    )
    assert found.pop("ser_fl.config.compose") == {"pydantic"}  # Hydra with the first composition
    assert found.pop("ser_fl.metrics") == {"numpy"}
    assert found.pop("ser_fl.data.corpora") <= {"soundfile"}  # neither torch nor what reads settings
    assert set().union(*found.values()) == set()


def test_data_and_defences_need_no_lightning() -> None:
    """Only the data module is Lightning's; a benchmark and a corpus check do not wait for it."""
    names = ("prepared", "features", "inspection", "augmentation")
    found = newly_imported(*(f"ser_fl.data.{name}" for name in names), "ser_fl.defences", "ser_fl.data.datamodule")
    assert "lightning" in found.pop("ser_fl.data.datamodule"), "the probe sees what there is"
    assert set().union(*found.values()).isdisjoint({"lightning", "torchmetrics"})


def test_libraries_wait_for_their_use() -> None:
    """Attacks wait for ART, tracking for W&B, settings for Hydra, figures for matplotlib."""
    found = newly_imported("ser_fl.defences", "ser_fl.attacks.registry", "ser_fl.tracking", "ser_fl:predict")
    later = {"art", "wandb", "tensorboard", "hydra", "omegaconf", "matplotlib", "lightning", "sklearn"}
    assert {name: libraries & later for name, libraries in found.items()} == {name: set() for name in found}
    assert "torch" in found["ser_fl.defences"]  # the probe sees what there is


def test_training_and_benchmark_wait_for_art_wandb_and_hydra() -> None:
    found = newly_imported("ser_fl:benchmark", "ser_fl:train")
    assert set().union(*found.values()).isdisjoint({"art", "wandb", "tensorboard", "hydra", "omegaconf"})


_FIRST_BATCH = """
import json, os, sys

class Finder:
    "Finds nothing, and remembers who asked for matplotlib first."
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib" and not asked:
            frame = sys._getframe(1)
            while frame.f_globals["__name__"].startswith("importlib"):
                frame = frame.f_back
            asked.append(frame.f_globals["__name__"])

asked = []
sys.meta_path.insert(0, Finder())
from ser_fl import train
from ser_fl.config.compose import compose
from lightning.pytorch import Callback

class FirstBatch(Callback):
    def on_train_batch_start(self, *arguments):
        found = sorted(name for name in json.loads(sys.argv[1]) if name in sys.modules)
        print(json.dumps([found, asked]), flush=True)
        os._exit(0)

train(compose(sys.argv[2:]), callbacks=[FirstBatch()])
"""


def test_training_begins_with_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    """A clean objective, nothing tracked, features in the cache. Only torchmetrics, unasked, imports matplotlib."""
    settings = ["experiment=debug", "objective=clean", "tracking=none", f"data.cache_dir={tmp_path / 'cache'}"]
    prepare(compose(settings))
    libraries = ("art", "wandb", "tensorboard", "torchaudio", "sklearn", "flwr")
    unused = (*libraries, "ser_fl.report", "ser_fl.attacks.registry")
    arguments = [json.dumps([*unused, "torch", "matplotlib"]), *settings, f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", _FIRST_BATCH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, asked = json.loads(done.stdout.splitlines()[-1])
    assert "torch" in found, "the probe sees what there is"
    assert set(found) <= {"torch", "matplotlib"}
    assert all(name.startswith("torchmetrics.") for name in asked)
    assert len(asked) == ("matplotlib" in found)


def test_imports_of_public_names_leave_the_collector_as_it_was() -> None:
    program = "import gc, sys; gc.disable() if '{}' else 0; from ser_fl import compose; print(gc.isenabled())"
    for first, expected in (("", "True"), ("off", "False")):
        command = [sys.executable, "-c", program.format(first)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected


def test_collection_is_paused_and_resumed_even_by_a_failure() -> None:
    def fail() -> None:
        with collection_paused():
            assert not gc.isenabled()
            raise ImportError

    assert gc.isenabled()
    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()


def test_every_public_name_stays_what_it_is() -> None:
    """A module of the same name would take a function's place as soon as it is imported."""
    code = (
        "import ser_fl\n"
        "for _ in range(2):\n"
        "    kinds = {type(getattr(ser_fl, name)).__name__ for name in ser_fl.__all__}\n"
        "    assert kinds == {'function', 'type'}, kinds\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_glossary_names_files_that_are_there() -> None:
    root = Path(__file__).parents[1]
    named = re.findall(r"`([a-z_/]+/(?:[a-z_]+\.py)?)`", (root / "docs" / "glossary.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert not [name for name in named if not (root / "ser_fl" / name).exists() and not (root / name).exists()]
