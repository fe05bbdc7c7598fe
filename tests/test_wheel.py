"""The wheel: it holds the configurations, and trains outside the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(command: list[str], **settings: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without hatchling from the index where it is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            *isolation,
            "--wheel-dir",
            str(folder),
            str(ROOT),
        ]
    )
    (built,) = folder.glob("ser_fl-*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_every_module_template_and_configuration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ser_fl").rglob("*.py")}
    templates = {f"ser_fl/report/templates/{name}" for name in ("report.html.j2", "table.html.j2", "report.css")}
    settings = {f"ser_fl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {"ser_fl/configs/train.yaml", "ser_fl/configs/experiment/debug.yaml"} <= settings
    models = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ser_fl" / "zoo").rglob("*") if path.is_file()}
    assert modules | templates | settings | models <= names
    assert not [name for name in names if name.startswith(("tests/", "results/", "runs/"))]


@pytest.mark.slow
def test_installed_wheel_trains_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)])
    assert (site / "bin" / "ser-fl").is_file()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    settings = {"cwd": elsewhere, "env": environment}
    where = run([sys.executable, "-c", "import ser_fl; print(ser_fl.__file__)"], **settings)
    assert Path(where.strip()).is_relative_to(site)
    tiny = ["data.utterances_per_emotion=3", "federation.num_rounds=1", f"data.cache_dir={tmp_path / 'cache'}"]
    printed = run([sys.executable, "-m", "ser_fl", "train", "experiment=debug", *tiny], **settings)
    assert "test UAR" in printed
    (summary,) = elsewhere.glob("runs/debug/*/summary.json")
    assert summary.with_name("model.safetensors").is_file()
    (elsewhere / "own" / "experiment").mkdir(parents=True)
    (elsewhere / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [debug]\nexperiment: mine\n"
    )
    own = ["--config-dir", "own", "experiment=mine", *tiny, "run_dir=run"]
    assert "run folder: run" in run([sys.executable, "-m", "ser_fl", "train", *own], **settings)
