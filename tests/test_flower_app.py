"""The checkout as an app of Flower's: it can be built, and uv can resolve what it needs, as `flwr run .` first does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.flower]


def checkout(folder: Path) -> Path:
    """A copy of what an app needs."""
    for name in ("ser_fl", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(app: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **OFFLINE, "FLWR_HOME": str(app.parent / "home"), "COLUMNS": "500"}
    return subprocess.run([sys.executable, *words], cwd=app, env=environment, capture_output=True, text=True)


def test_an_app_is_built_in_a_folder_whose_name_flower_takes(tmp_path: Path) -> None:
    build = ("-c", "from flwr.cli.app import app; app()", "build")
    refused = run(checkout(tmp_path / "ser_fl"), *build)
    assert refused.returncode != 0 and '"ser_fl" is invalid' in refused.stdout + refused.stderr
    app = checkout(tmp_path / "ser-fl")
    done = run(app, *build)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = app.glob("*.fab")
    with zipfile.ZipFile(built) as fab:
        needed = {"ser_fl/federation/flower/server_app.py", "ser_fl/runs/folder.py", "configs/train.yaml"}
        assert needed <= set(fab.namelist())
        project = tomllib.loads(fab.read("pyproject.toml").decode())
    assert project["tool"]["uv"]["conflicts"], "the link resolves what is in the app"


@pytest.mark.parametrize("declared", [True, False])
def test_uv_resolves_the_extras_because_their_conflicts_are_declared(declared: bool, tmp_path: Path) -> None:
    pytest.importorskip("uv")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    begin, end = text.index("[tool.uv]"), text.index("[project.scripts]")
    (tmp_path / "pyproject.toml").write_text(text if declared else text[:begin] + text[end:], encoding="utf-8")
    done = run(tmp_path, "-m", "uv", "lock", "--dry-run", "--python", sys.executable)
    if any(words in done.stderr.lower() for words in ("failed to fetch", "error sending request", "no internet")):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    if declared:
        assert done.returncode == 0 and "torchattacks" in done.stderr, done.stderr
    else:
        assert "incompatible" in done.stderr, "the declaration is no longer needed"
