"""A run's name is any text of the user's, wherever the run is called by a name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ser_fl
from ser_fl.cli.main import main
from ser_fl.cli.training_job import placed
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.errors import UserError
from ser_fl.federation.checkpoint import given_folder, new_folders
from ser_fl.federation.flower.nodes import told_settings
from ser_fl.report.reader import read_run

SMALL = ("experiment=debug", "data.utterances_per_emotion=2", "federation.num_rounds=1")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("my run #2", "my run #2"),
        ("2024", "2024"),
        ("a/b", "a_b"),
        ("/etc/x", "_etc_x"),
        ("..", "_"),
        (".", "_"),
        ("../..", ".._.."),
        ("été: 1,2", "été: 1,2"),
        ("null", "debug"),
        ("", "debug"),
    ],
)
def test_the_folder_of_a_name_is_one_below_runs(name: str, folder: str) -> None:
    config = compose([*SMALL, f"run_name={name}"])
    (parent,) = {path.parent for path, _ in zip(new_folders(config), range(3), strict=False)}
    assert parent == Path("runs") / folder
    assert placed(config, "study", "1", "group").run_dir == str(parent / "study-1-1")
    assert config.run_name == (None if name == "null" else name)


def test_a_misspelt_experiment_is_none() -> None:
    with pytest.raises(UserError, match="unknown experiment 'nemo_lf'"):
        compose(["experiment=nemo_lf"])


def test_a_named_run_is_called_so_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "run_name=my run #2", "tracking=none", "data.cache_dir=cache"]
    done = subprocess.run([sys.executable, "-m", "ser_fl", "train", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "my run #2  round   1" in done.stdout
    (folder,) = Path("runs/my run #2").iterdir()
    assert read_run(folder).name == "my run #2"
    config = compose([*words, "resume=true"])
    assert given_folder(config) == folder, "the newest run of this name"
    assert given_folder(replace(config, run_name="my run #3")) is None
    assert ser_fl.Run(folder).read_json(folder / "summary.json")["experiment"] == "debug"
    assert told_settings(config)["run_name"] is None, "nobody else's business"


def test_a_run_goes_on_under_another_name(tmp_path: Path) -> None:
    def config(*more: str) -> Config:
        return compose([*SMALL, f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}", *more])

    ser_fl.train(config())
    assert ser_fl.train(config("run_name=other", "resume=true")).root == tmp_path / "run"


def test_a_run_that_grows_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "tracking=none", f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *words, "run_name=my run #2"]) == 0
    assert main(["train", *words, "resume=true", "federation.num_rounds=2"]) == 0
    assert "my run #2  round   2" in capsys.readouterr().out
    assert read_run(tmp_path / "run").name == "my run #2"
    ser_fl.train(compose([*words, "resume=true", "federation.num_rounds=3"]))
    kept = read_run(tmp_path / "run")
    assert (kept.name, kept.setting("federation.num_rounds")) == ("my run #2", 3)
    ser_fl.train(compose([*words, "resume=true", "federation.num_rounds=4", "run_name=other"]))
    assert read_run(tmp_path / "run").name == "other", "unless another is given"


def test_the_tracker_shows_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ser_fl.runs.folder import RunFolder
    from ser_fl.tracking import tracker

    given: list[str] = []
    monkeypatch.setattr(tracker, "WeightsAndBiases", lambda run, given_, settings: given.append(given_["name"]))
    where = {"backend": "wandb", "mode": "offline", "project": "p", "entity": None, "group": None, "tags": []}
    for name in ("my run #2", None, "x" * 500):
        settings = {"experiment": "debug", "seed": 3, "run_name": name, "tracking": where}
        tracker.open_tracker(settings, RunFolder(tmp_path))
    assert given == ["my run #2", "debug-seed3", "x" * 128]
