"""Flower's simulation answers signals as the local loop does: a commit or an end at once, never a wait for nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flower_grid import summary_of

from ser_fl.api import train
from ser_fl.config.compose import compose
from ser_fl.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.kill]
SETTINGS = (
    "experiment=debug",
    "tracking=none",
    "precision=32-true",
    "federation.num_rounds=40",
    "federation.patience=0",
)
PATIENCE_S = 120
"""Far below the hour that an answer is waited for."""


def simulated(home: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    settings = [
        *SETTINGS,
        "executor=flower",
        "executor.workers=2",
        f"data.cache_dir={home / 'cache'}",
        f"run_dir={run}",
    ]
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "ser_fl", "train", *settings, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_it_goes_on_to_the_bits_of_a_local_run(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = RunFolder(tmp_path / "run")
    process = simulated(tmp_path, run.root)
    assert process.stdout is not None
    next(line for line in process.stdout if "round   3" in line)
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code and "resume=true goes on" in said
    assert 3 <= len(run.read_jsonl(run.rounds)) < 40 and not run.summary.exists()
    said, _ = simulated(tmp_path, run.root, "resume=true").communicate(timeout=5 * PATIENCE_S)
    assert run.summary.exists(), said
    whole = train(compose([*SETTINGS, f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'local'}"]))
    assert [line["round"] for line in run.read_jsonl(run.rounds)] == list(range(1, 41))
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    assert summary_of(run) == summary_of(RunFolder(whole.root))
