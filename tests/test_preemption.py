"""Signals to a training: the round in flight is committed, the exit code says how to go on, and no bit is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from ser_fl.api import train
from ser_fl.cli.main import TRY_AGAIN, main
from ser_fl.config.compose import compose
from ser_fl.federation.hooks import Hooks
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import LEFT_TO_THE_PARENT, Preemption, Stopped

PACKAGE = Path(__file__).parent.parent
SMALL = (
    "experiment=debug",
    "data.utterances_per_emotion=2",
    "federation.batch_size=4",
    "federation.num_rounds=25",
)
PROCESSES = ("executor=processes", "executor.workers=2")


def answered(preemption: Preemption, *numbers: signal.Signals, in_round: bool) -> tuple[str, int]:
    """By which signal a run of two rounds is stopped when these come at its start, and how many rounds it finishes."""
    finished = 0
    try:
        with preemption.listening():
            for _ in range(2):
                with preemption.round() if in_round else nullcontext():
                    for number in numbers:
                        os.kill(os.getpid(), number)
                    finished += 1
    except Stopped as stopped:
        return stopped.signal.name, finished
    return "none", finished


def test_outside_a_round_a_signal_is_answered_at_once() -> None:
    assert answered(Preemption(), signal.SIGUSR1, in_round=False) == ("SIGUSR1", 0)


def test_within_a_round_it_waits_for_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    assert answered(Preemption(), signal.SIGTERM, in_round=True) == ("SIGTERM", 1)
    said = capfd.readouterr().err
    assert said == "ser-fl: SIGTERM: the round is finished if it ends within 20 s; a second signal stops at once\n"


def test_a_second_signal_does_not_wait() -> None:
    assert answered(Preemption(), signal.SIGUSR1, signal.SIGTERM, in_round=True) == ("SIGTERM", 0)


def test_a_round_that_outlasts_the_grace_is_given_up() -> None:
    preemption = Preemption({signal.SIGUSR1: 0.05})

    def endless_round() -> None:
        with preemption.listening(), preemption.round():
            os.kill(os.getpid(), signal.SIGUSR1)
            while True:
                signal.pause()

    with pytest.raises(Stopped, match="stopped by SIGUSR1"):
        endless_round()


def test_afterwards_signals_are_whose_they_were() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with Preemption().listening():
        assert [signal.getsignal(number) for number in numbers] != before
    answered(Preemption(), signal.SIGUSR1, in_round=True)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preemption")


@pytest.fixture(scope="module")
def whole(home: Path) -> RunFolder:
    """The run that nobody disturbed."""
    return train(compose([*SMALL, f"data.cache_dir={home / 'cache'}", f"run_dir={home / 'whole'}"]))


class Signaller(pl.Callback):
    """Sends this process a signal in the middle of the second client's epoch."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.fits = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fits += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.fits == 2 and batch_idx == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_a_signal_within_a_trainer_is_not_the_trainers(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Lightning's own answer to SIGTERM ends the fit, and with it the process, before the round is committed."""
    config = compose([*SMALL, f"data.cache_dir={home / 'cache'}", f"run_dir={tmp_path / 'run'}"])
    signaller, preemption = Signaller(number), Preemption()
    with pytest.raises(Stopped, match=number.name), preemption.listening():
        train(config, callbacks=[signaller], hooks=Hooks(preemption=preemption))
    assert signaller.fits == 2
    (only,) = RunFolder(tmp_path / "run").read_jsonl(tmp_path / "run" / "rounds.jsonl")
    assert only["failures"] == []
    assert committed_rounds(RunFolder(tmp_path / "run")) == 1


def committed_rounds(run: RunFolder) -> int:
    latest = run.checkpoint / "latest.json"
    return int(json.loads(latest.read_text())["round"]) if latest.exists() else 0


@contextmanager
def training(home: Path, run: RunFolder, *changed: str) -> Iterator[subprocess.Popen[str]]:
    """A real `ser-fl train`, in a process group of its own, that has committed a round more than before."""
    settings = [*SMALL, f"data.cache_dir={home / 'cache'}", f"run_dir={run.root}", "resume=true", *changed]
    reached = committed_rounds(run)
    process = subprocess.Popen(
        [sys.executable, "-m", "ser_fl", "train", *settings],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while process.poll() is None and committed_rounds(run) <= reached:
            assert time.monotonic() < deadline, "no round was committed"
            time.sleep(0.005)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in records]


def assert_same_run(run: RunFolder, other: RunFolder) -> None:
    assert run.weights.read_bytes() == other.weights.read_bytes()
    assert run.read_json(run.summary) == other.read_json(other.summary)
    for file in (run.rounds, run.clients):
        assert without_times(run.read_jsonl(file)) == without_times(run.read_jsonl(other.root / file.name))


def go_on(home: Path, run: RunFolder, *changed: str) -> None:
    settings = [*SMALL, f"data.cache_dir={home / 'cache'}", f"run_dir={run.root}", "resume=true", *changed]
    assert main(["train", *settings]) == 0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    found = list[int]()
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):  # each has those that it started
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, thread.read_text().split())
    return found


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number"),
    [("trainer", signal.SIGUSR1), ("trainer", signal.SIGTERM), ("loop", signal.SIGTERM)],
    ids=["trainer, USR1", "trainer, TERM", "loop, TERM"],
)
def test_a_signal_ends_in_a_checkpoint_and_75(
    home: Path, tmp_path: Path, whole: RunFolder, engine: str, number: signal.Signals
) -> None:
    """With Lightning's Trainer too, whose own SIGTERM would end the process without a word."""
    run = RunFolder(tmp_path / "run")
    with training(home, run, f"executor.engine={engine}") as process:
        process.send_signal(number)
        printed, said = process.communicate(timeout=600)
    assert process.returncode == TRY_AGAIN, said
    assert said.splitlines()[-1] == f"ser-fl: stopped by {number.name}; the same command with resume=true goes on"
    done = committed_rounds(run)
    assert 1 <= done < 25
    # The round in flight was told of too, and nothing was begun after it.
    rounds = run.read_jsonl(run.rounds)
    assert len(rounds) == done == printed.count("validation UAR")
    assert [record["failures"] for record in rounds] == [[]] * done
    go_on(home, run)
    assert_same_run(run, whole)


class Disturbed(pl.Callback):
    """Sends the process that a client trains in every signal of a job, in the middle of its epoch."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            for number in LEFT_TO_THE_PARENT:
                os.kill(os.getpid(), number)


@pytest.mark.kill
@pytest.mark.slow
def test_workers_leave_signals_to_their_parent(home: Path, tmp_path: Path) -> None:
    changed = (*PROCESSES, "federation.num_rounds=2", f"data.cache_dir={home / 'cache'}")
    run = train(compose([*SMALL, *changed, f"run_dir={tmp_path / 'run'}"]), callbacks=[Disturbed()])
    assert [record["failures"] for record in run.read_jsonl(run.rounds)] == [[], []]
    whole = train(
        compose([*SMALL, *changed, "executor=serial", "executor.workers=auto", f"run_dir={tmp_path / 'whole'}"])
    )
    assert_same_run(run, whole)


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=["TERM", "USR1", "USR2"])
def test_a_signal_to_the_whole_group_takes_no_worker_with_it(
    home: Path, tmp_path: Path, whole: RunFolder, number: signal.Signals
) -> None:
    """As SLURM sends it to a job's processes. SIGUSR2 has nobody to answer it and ends the parent, and so the rest."""
    run = RunFolder(tmp_path / "run")
    with training(home, run, *PROCESSES) as process:
        started = children(process.pid)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=600)
    assert len(started) >= 2
    assert process.returncode == (-number if number == signal.SIGUSR2 else TRY_AGAIN), said
    assert "is tried again" not in said
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in started):
        assert time.monotonic() < deadline, "a process outlived the run"
        time.sleep(0.05)
    assert all(record["failures"] == [] for record in run.read_jsonl(run.rounds))
    go_on(home, run)
    assert_same_run(run, whole)


@pytest.mark.kill
@pytest.mark.slow
def test_two_signals_and_ctrl_c_leave_at_once(home: Path, tmp_path: Path, whole: RunFolder) -> None:
    """Whatever is in flight; each time the run goes on from its last commit."""
    run = RunFolder(tmp_path / "run")
    for numbers, code in (((signal.SIGUSR1, signal.SIGTERM), TRY_AGAIN), ((signal.SIGINT,), 130)):
        with training(home, run, "executor.engine=trainer") as process:
            for number in numbers:
                process.send_signal(number)
            _, said = process.communicate(timeout=600)
        assert process.returncode == code, said
        assert said.splitlines()[-1].endswith("the same command with resume=true goes on")
    go_on(home, run)
    assert_same_run(run, whole)
