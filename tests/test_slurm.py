"""The batch script for SLURM, run by bash: no cluster is here, and a script of the test's stands in for `scontrol`.

What SLURM itself would do is done by the test: it sets the job's id, sends the signal that the time is nearly up to the
batch shell alone (`--signal=B:USR1@120`), and starts the job again under the same id.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ser_fl import train
from ser_fl.cli.main import TRY_AGAIN
from ser_fl.config.compose import compose
from ser_fl.runs.folder import RunFolder

PACKAGE = Path(__file__).parent.parent
SCRIPT = PACKAGE / "scripts" / "slurm_train.sh"
SMALL = ("experiment=debug", "data.utterances_per_emotion=2", "federation.batch_size=4", "federation.num_rounds=25")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment of a job: `ser-fl` of this checkout, and an `scontrol` that writes down how it is called."""
    programs = tmp_path / "bin"
    write_program(programs / "scontrol", f'echo "$@" >> {tmp_path / "scontrol.log"}')
    write_program(programs / "ser-fl", f'exec {sys.executable} -m ser_fl "$@"')
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(PACKAGE),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "1234",
    }


@contextmanager
def started(folder: Path, environment: dict[str, str], *settings: str) -> Iterator[subprocess.Popen[str]]:
    """The script as a job; nothing of it is left afterwards."""
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *settings],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def requeues(folder: Path) -> list[str]:
    log = folder / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def test_the_script_is_bash_and_asks_slurm_for_the_signal() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    text = SCRIPT.read_text()
    for option in ("--requeue", "--signal=B:USR1@120", "--open-mode=append", "--nodes=1", "--ntasks=1"):
        assert f"#SBATCH {option}\n" in text
    assert f'[ "$code" -eq {TRY_AGAIN} ]' in text
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize("code", [0, 1, 2, TRY_AGAIN, 130])
def test_the_exit_code_is_the_trainings_and_only_one_is_queued_again(
    cluster: dict[str, str], tmp_path: Path, code: int
) -> None:
    """A program that notes its arguments stands in for the training here."""
    write_program(tmp_path / "bin" / "ser-fl", f'printf "%s\\n" "$@" > {tmp_path / "arguments"}; exit {code}')
    with started(tmp_path, cluster, "data.root=/a folder", "run_dir=mine") as process:
        process.communicate(timeout=60)
    assert process.returncode == code
    assert requeues(tmp_path) == (["requeue 1234"] if code == TRY_AGAIN else [])
    given = (tmp_path / "arguments").read_text().splitlines()
    assert given[:4] == ["train", "executor=processes", "executor.accelerator=auto", "run_dir=runs/slurm-1234"]
    assert given[4:] == ["data.root=/a folder", "run_dir=mine", "resume=true"]


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_a_signal_is_handed_on_and_its_answer_waited_for(
    cluster: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """Twice: `wait` returns early each time. The stand-in for the training ends with how many signals it had."""
    name = number.name.removeprefix("SIG")
    write_program(
        tmp_path / "bin" / "ser-fl",
        f"had=0; trap 'had=$((had + 1)); touch had$had' {name}; touch ready; "
        "while [ $had -lt 2 ]; do sleep 0.05; done; sleep 0.2; exit $((40 + had))",
    )
    with started(tmp_path, cluster) as process:
        for file in ("ready", "had1"):
            deadline = time.monotonic() + 60
            while not (tmp_path / file).exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 42


@pytest.mark.kill
@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_on_in_the_next(cluster: dict[str, str], tmp_path: Path) -> None:
    """The signal goes to the shell alone; two jobs of one id give the run of one."""
    settings = [*SMALL, f"data.cache_dir={tmp_path / 'cache'}", "executor.workers=2"]
    run = RunFolder(tmp_path / "runs" / "slurm-1234")
    with started(tmp_path, cluster, *settings) as process:
        deadline = time.monotonic() + 300
        while not (run.checkpoint / "latest.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        first, said = process.communicate(timeout=300)
    assert process.returncode == TRY_AGAIN, said
    assert requeues(tmp_path) == ["requeue 1234"]
    done = json.loads((run.checkpoint / "latest.json").read_text())["round"]
    assert 1 <= done < 25

    with started(tmp_path, cluster, *settings) as process:
        second, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert requeues(tmp_path) == ["requeue 1234"]
    rounds = [int(number) for number in re.findall(r"round +(\d+)  validation", first + second)]
    assert rounds == list(range(1, 26))
    whole = train(compose([*SMALL, f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'whole'}"]))
    assert run.weights.read_bytes() == whole.weights.read_bytes()
