"""Clients in worker processes: the bits of serial rounds, and what happens to processes and clients that die."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from ser_fl import train
from ser_fl.config.compose import compose
from ser_fl.config.federation import ExecutorConfig
from ser_fl.config.schema import Config, dump
from ser_fl.data.prepared import prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask, Executor
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.processes import ProcessExecutor, count_workers, pack
from ser_fl.files import from_safetensors, to_safetensors
from ser_fl.models.networks import build_network
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import ClientUpdate, Outcome, State

SMALL = (
    "experiment=debug",
    "tracking=none",
    "data.utterances_per_emotion=2",
    "optimiser.learning_rate=0.01",
    "federation.batch_size=2",
    "clients.by=iid",
    "clients.num_clients=5",
)
TWO_WORKERS = ("executor.name=processes", "executor.workers=2")
ROUNDS = "federation.num_rounds=12"
COHORT = tuple(f"client{k}" for k in range(5))


class Told(pl.Callback):
    """Does to a client what a file of its name in a folder says, once or always, and notes every batch it sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        client: str = trainer.datamodule.client_id  # type: ignore[attr-defined]
        with (self.folder / "seen").open("a") as seen:
            seen.write(f"{client} {len(batch[1])} {os.getpid()}\n")
        file = self.folder / client
        if batch_idx != 1 or not file.exists():
            return
        how, how_often = file.read_text().split()
        if how_often == "once":
            file.unlink()
        if how == "raises":
            raise RuntimeError("microphone unplugged")
        if how == "waits":
            self.wait_for("client3")
        if how == "exits":
            os._exit(3)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

    def wait_for(self, client: str) -> None:
        deadline = time.monotonic() + 60
        while client not in (self.folder / "seen").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)

    def tell(self, client: str, how: str, how_often: str) -> None:
        (self.folder / client).write_text(f"{how} {how_often}")

    def seen(self) -> list[tuple[str, int, int]]:
        lines = [line.split() for line in (self.folder / "seen").read_text().splitlines()]
        return [(client, int(size), int(process)) for client, size, process in lines]

    def forget(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs and features of this file go, and the settings that all of them start from."""
    folder = tmp_path_factory.mktemp("executors")
    config = compose([*SMALL, f"data.cache_dir={folder / 'cache'}"])
    (folder / "base.yaml").write_text(yaml.safe_dump(dump(config)))
    return folder


def settings(home: Path, run_dir: Path | str, *changed: str) -> Config:
    return compose([f"run_dir={home / run_dir}", *changed], config_file=home / "base.yaml")


@pytest.fixture(scope="module")
def clients(home: Path) -> Clients:
    """Five, with a callback that is told by files."""
    (home / "told").mkdir()
    config = settings(home, "-", "objective.name=pgd", "objective.recipe=per_step", "objective.from_round=2")
    return Clients(config, prepare(config), OwnObjects(callbacks=(Told(home / "told"),)))


@pytest.fixture(scope="module")
def processes(clients: Clients) -> Iterator[ProcessExecutor]:
    with closing(ProcessExecutor(clients, 2)) as executor:
        yield executor
    assert workers_of(os.getpid()) == [], "a worker outlived its executor"


@pytest.fixture
def told(clients: Clients) -> Told:
    callback = clients.own.callbacks[0]
    assert isinstance(callback, Told)
    callback.forget()
    return callback


@pytest.fixture(scope="module")
def serially(clients: Clients) -> dict[str, ClientUpdate]:
    """What each client sends in a round in which nothing goes wrong."""
    outcomes = dict(clients.run(tasks(clients)))
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, ClientUpdate)}


def initial_state(clients: Clients, seed: int = 1) -> State:
    return dict(build_network(clients.config.model, len(clients.data.store.classes), seed=seed).state_dict())


def tasks(clients: Clients, number: int = 1, state: State | None = None) -> list[ClientTask]:
    state = state or initial_state(clients)
    return [ClientTask(round=number, client_id=name, state=state, learning_rate=0.01) for name in COHORT]


NO_WORKERS = ("resource_tracker", "ser_fl\0federation", "ser_fl.deployment")


def workers_of(parent: int) -> list[int]:
    """Processes of a parent that run, but for the tracker of multiprocessing's resources, which ends after it, and the
    daemons of other tests.
    """
    children = list[str]()
    for thread in Path(f"/proc/{parent}/task").glob("*/children"):  # each has those that it started
        with suppress(FileNotFoundError, ProcessLookupError):
            children += thread.read_text().split()
    commands = {int(child): command_of(int(child)) for child in children}
    return [child for child, command in commands.items() if command and not any(no in command for no in NO_WORKERS)]


def command_of(process: int) -> str:
    """Empty for a process that has ended, or that has and was not waited for."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def num_updates() -> int:
    """Updates that are alive."""
    gc.collect()
    return sum(type(thing) is ClientUpdate for thing in gc.get_objects())


def wait_until_gone(processes: Sequence[int]) -> None:
    deadline = time.monotonic() + 60
    while any(command_of(process) for process in processes):
        assert time.monotonic() < deadline, "a worker stays"
        time.sleep(0.02)


def assert_same_outcomes(actual: Mapping[str, Outcome], expected: Mapping[str, Outcome]) -> None:
    assert list(actual) == list(expected)
    for name, outcome in actual.items():
        assert_same_update(outcome, expected[name])


def assert_same_update(actual: Outcome, expected: Outcome) -> None:
    """In every bit; only times differ."""
    assert isinstance(actual, ClientUpdate) and isinstance(expected, ClientUpdate), (actual, expected)
    figures = [replace(update, seconds=0, state={}, optimiser_state={}) for update in (actual, expected)]
    assert figures[0] == figures[1]
    for mine, theirs in ((actual.state, expected.state), (actual.optimiser_state, expected.optimiser_state)):
        assert list(mine) == list(theirs)
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype


def run(executor: Executor, given: Sequence[ClientTask]) -> dict[str, Outcome]:
    return dict(executor.run(given))


def test_rounds_of_different_models_give_the_bits_of_serial_ones(
    processes: ProcessExecutor, clients: Clients, serially: dict[str, ClientUpdate]
) -> None:
    """Round 2 is adversarial and starts from another model, round 1 again from the first."""
    assert_same_outcomes(run(processes, tasks(clients)), serially)
    second = tasks(clients, number=2, state=initial_state(clients, seed=2))
    expected = run(clients, second)
    assert_same_outcomes(run(processes, second), expected)
    assert_same_outcomes(run(processes, tasks(clients)), serially)


def test_callbacks_see_every_batch_in_the_workers(
    processes: ProcessExecutor, clients: Clients, told: Told, home: Path
) -> None:
    run(processes, tasks(clients))
    seen = told.seen()
    held = {name: len(indices) for name, indices in clients.data.clients.items()}
    assert {name: sum(size for client, size, _ in seen if client == name) for name in COHORT} == held
    assert sorted({process for *_, process in seen}) == sorted(workers_of(os.getpid()))


def test_a_slow_client_holds_back_the_others_outcomes_and_no_more_than_the_window(
    processes: ProcessExecutor, clients: Clients, told: Told, serially: dict[str, ClientUpdate]
) -> None:
    """The first client's worker waits until the other one trains the fourth; the fifth is not begun before."""
    told.tell("client0", "waits", "always")
    taken: list[str] = []

    def counted() -> Iterator[ClientTask]:
        for task in tasks(clients):
            taken.append(task.client_id)
            yield task

    before = num_updates()
    outcomes = processes.run(counted())
    first = next(outcomes)
    assert num_updates() - before <= processes.window
    assert taken == list(COHORT[: processes.window]) and processes.window == 4
    assert_same_outcomes(dict([first, *outcomes]), serially)


def test_a_client_whose_worker_dies_once_is_trained_by_another(
    processes: ProcessExecutor, clients: Clients, told: Told, serially: dict[str, ClientUpdate]
) -> None:
    run(processes, tasks(clients))
    before = workers_of(os.getpid())
    told.tell("client1", "killed", "once")
    assert_same_outcomes(run(processes, tasks(clients)), serially)
    after = workers_of(os.getpid())
    assert len(before) == len(after) == 2 and len(set(before) & set(after)) == 1
    assert len(processes._workers) == 2, "the new one has the dead one's place, and so its device"


def test_what_a_client_raises_comes_back_as_from_a_serial_round(
    processes: ProcessExecutor, clients: Clients, told: Told, serially: dict[str, ClientUpdate]
) -> None:
    told.tell("client3", "raises", "always")
    before = workers_of(os.getpid())
    outcomes = run(processes, tasks(clients))
    failure = outcomes.pop("client3")
    assert isinstance(failure, str) and failure.endswith("RuntimeError: microphone unplugged\n")
    assert failure == run(clients, tasks(clients))["client3"]
    assert_same_outcomes(outcomes, {name: update for name, update in serially.items() if name != "client3"})
    assert workers_of(os.getpid()) == before, "a client that raises costs no worker"


def test_a_client_whose_workers_die_twice_has_failed_and_the_others_have_not(
    processes: ProcessExecutor, clients: Clients, told: Told, serially: dict[str, ClientUpdate]
) -> None:
    told.tell("client2", "exits", "always")
    outcomes = run(processes, tasks(clients))
    assert list(outcomes) == list(COHORT)
    assert outcomes.pop("client2") == "its worker process died twice: exit code 3, then exit code 3"
    assert_same_outcomes(outcomes, {name: update for name, update in serially.items() if name != "client2"})


@pytest.mark.slow
def test_a_worker_that_dies_between_rounds_costs_nobody_an_attempt(
    processes: ProcessExecutor, clients: Clients, told: Told, serially: dict[str, ClientUpdate]
) -> None:
    run(processes, tasks(clients))
    workers = workers_of(os.getpid())
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    told.tell("client0", "killed", "once")
    assert_same_outcomes(run(processes, tasks(clients)), serially)


@pytest.mark.slow
def test_a_round_that_is_given_up_leaves_nothing_for_the_next(
    processes: ProcessExecutor, clients: Clients, told: Told, serially: dict[str, ClientUpdate]
) -> None:
    outcomes = processes.run(tasks(clients, number=7))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert_same_outcomes(run(processes, tasks(clients)), serially)


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> RunFolder:
    """Serial rounds."""
    return train(settings(home, "undisturbed", ROUNDS))


class KilledAfter(BaseException):
    """Ends a run in this process where it stands, as a signal would."""


def assert_same_run(run: RunFolder, other: RunFolder) -> None:
    """Same bits of the model and of the checkpoint, same records but for times."""
    assert run.weights.read_bytes() == other.weights.read_bytes()
    assert run.read_json(run.summary) == other.read_json(other.summary)
    for mine, theirs in ((run.rounds, other.rounds), (run.clients, other.clients)):
        records = [[{**record, "seconds": 0} for record in run.read_jsonl(file)] for file in (mine, theirs)]
        assert records[0] and records[0] == records[1]
    tensors = [sorted(folder.checkpoint.glob("*.safetensors")) for folder in (run, other)]
    assert [file.name for file in tensors[0]] == [file.name for file in tensors[1]]
    assert all(mine.read_bytes() == theirs.read_bytes() for mine, theirs in zip(*tensors, strict=True))


def end_after_round_1(record: Any) -> None:
    raise KilledAfter


def test_a_run_killed_under_serial_goes_on_in_processes(home: Path, undisturbed: RunFolder) -> None:
    with pytest.raises(KilledAfter):
        train(settings(home, "moved", ROUNDS), on_round=end_after_round_1)
    before = workers_of(os.getpid())
    run = train(settings(home, "moved", ROUNDS, "resume=true", *TWO_WORKERS))
    assert_same_run(run, undisturbed)
    assert workers_of(os.getpid()) == before


def command(home: Path, *changed: str) -> subprocess.Popen[str]:
    """`ser-fl train` as the leader of a process group, as a shell would start it."""
    package = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "ser_fl", "train", *SMALL, f"data.cache_dir={home / 'cache'}", *changed]
    return subprocess.Popen(
        arguments,
        env=environment,
        cwd=package,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_rounds(process: subprocess.Popen[str], run: RunFolder, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(run.read_jsonl(run.rounds)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_end_with_a_parent_that_was_killed_and_the_run_goes_on_serially(
    home: Path, undisturbed: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    process = command(home, ROUNDS, f"run_dir={run.root}", "executor=processes", "executor.workers=2")
    wait_for_rounds(process, run, 1)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until_gone(workers)
    assert_same_run(train(settings(home, run.root, ROUNDS, "resume=true")), undisturbed)


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_its_workers_in_one_line(home: Path, tmp_path: Path) -> None:
    """A terminal sends it to the whole group."""
    run = RunFolder(tmp_path / "run")
    process = command(home, "federation.num_rounds=1000", f"run_dir={run.root}", "executor=processes")
    wait_for_rounds(process, run, 1)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "ser-fl: interrupted; the same command with resume=true goes on"
    assert "Traceback" not in said
    wait_until_gone(workers)


def test_no_worker_outlives_an_exception_in_the_parent(clients: Clients) -> None:
    before = workers_of(os.getpid())
    started: list[int] = []

    def ended_by_the_second() -> Iterator[ClientTask]:
        yield tasks(clients)[0]
        started.extend(set(workers_of(os.getpid())) - set(before))
        raise KilledAfter

    with pytest.raises(KilledAfter), closing(ProcessExecutor(clients, 2)) as executor:
        list(executor.run(ended_by_the_second()))
    assert len(started) == 1
    assert workers_of(os.getpid()) == before


STEPWISE = ("objective.recipe=per_step", "objective.from_round=1", "objective.fraction=1", "objective.steps=1")
FREE = ("objective.name=free", "objective.random_start=false", "objective.replays=2")
ADAM = (
    *("federation.server_optimiser=adam", "federation.server_learning_rate=0.003"),
    *("federation.server_second_momentum=0.99", "federation.server_tau=0.001"),
)
VARIANTS = {
    "plain": (),
    "masks, batches left over": ("augmentation.time_masks=2", "federation.batch_size=3", "federation.local_epochs=2"),
    "per round": ("objective.name=pgd", "objective.from_round=1"),
    "per step": ("objective.name=pgd", "objective.recipe=per_step", "objective.from_round=1"),
    "fast": (*STEPWISE, "objective.name=fast"),
    "free, batches left over": (*STEPWISE, *FREE, "federation.batch_size=3", "federation.local_epochs=2"),
    "local only": ("federation.name=local_only", "federation.server_momentum=0", "federation.keep_optimiser=true"),
    "keeps sgd": ("federation.keep_optimiser=true", "optimiser.name=sgd", "optimiser.momentum=0.9"),
    "cohorts, frozen norm": ("federation.fraction_train=0.6", "federation.freeze_norm_from=2"),
    "Adam at the server": (*ADAM, "model.norm=renorm", "selection.every=2", "federation.weight_average=0.9"),
    "two threads": ("executor.threads=2",),
    "hostile clients left out": ("federation.aggregation={name: flame, noise: 0.1}", "federation.server_momentum=0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("changed", VARIANTS.values(), ids=VARIANTS)
def test_runs_are_the_same_in_any_executor(home: Path, tmp_path: Path, changed: tuple[str, ...]) -> None:
    expected = train(settings(home, tmp_path / "serial", *changed, "federation.num_rounds=3"))
    for workers in (1, 2, 3) if not changed else (2,):
        where = ("executor.name=processes", f"executor.workers={workers}")
        run = train(settings(home, tmp_path / f"{workers}", *changed, *where, "federation.num_rounds=3"))
        assert_same_run(run, expected)


@pytest.mark.slow
def test_a_client_that_always_kills_its_worker_is_a_failure_of_its_rounds(home: Path, tmp_path: Path) -> None:
    told = Told(tmp_path / "told")
    told.folder.mkdir()
    told.tell("client4", "killed", "always")
    run = train(settings(home, tmp_path / "run", *TWO_WORKERS, "federation.num_rounds=1"), callbacks=[told])
    (record,) = run.read_jsonl(run.rounds)
    killed = "killed by SIGKILL, perhaps for want of memory"
    reason = f"its worker process died twice: {killed}, then {killed}"
    assert record["failures"] == [{"client_id": "client4", "error": reason, "stage": "training", "offence": False}]
    assert [entry["client_id"] for entry in run.read_jsonl(run.clients)] == list(COHORT[:4])


class Holding(pl.Callback):
    """Cannot be pickled."""

    def __init__(self) -> None:
        self.lock = Lock()


class Stranger(pl.Callback):
    """Can be pickled, but not unpickled."""

    def __init__(self) -> None:
        self.home = "elsewhere"

    def __setstate__(self, state: object) -> None:
        raise AttributeError("no module of that name here")


def test_a_callback_that_cannot_be_pickled_is_refused_before_anything_is_written(home: Path) -> None:
    class Local(pl.Callback):
        pass

    for callback, named in ((Holding(), "Holding"), (Local(), "Local")):
        with pytest.raises(UserError, match=rf"callback {named} cannot be sent to a worker.*use executor=serial"):
            train(settings(home, "unpickled", *TWO_WORKERS), callbacks=[callback])
    assert not (home / "unpickled").exists()


def test_a_callback_that_saw_a_serial_run_leaves_its_data_behind(clients: Clients, told: Told) -> None:
    """Lightning gives a callback the logging functions of the module that it sees, to which a client's data hang."""
    before = len(pack(clients))
    next(clients.run(tasks(clients)))
    assert len(pack(clients)) == before


@pytest.mark.slow
def test_a_callback_that_cannot_be_unpickled_ends_the_run(home: Path, tmp_path: Path) -> None:
    before = workers_of(os.getpid())
    with pytest.raises(UserError, match=r"cannot build its clients \(AttributeError: no module of that name here\)"):
        train(settings(home, tmp_path / "run", *TWO_WORKERS), callbacks=[Stranger()])
    assert workers_of(os.getpid()) == before


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    (tmp_path / "base.yaml").write_text((home / "base.yaml").read_text())
    script.write_text(
        "from pathlib import Path\n"
        "import ser_fl\n"
        f"changed = ['run_dir={tmp_path / 'run'}', 'executor.name=processes']\n"
        "ser_fl.train(ser_fl.compose(changed, config_file=Path('base.yaml')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a worker process ended before it was ready (exit code 1): a script that trains" in done.stderr


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "cohort", "expected"),
    [("auto", 1, 8, 50, 8), ("auto", 1, 8, 5, 5), ("auto", 3, 8, 50, 2), ("auto", 4, 2, 9, 1), (16, 1, 2, 9, 9)],
)
def test_workers_are_as_many_as_asked_for_or_as_have_cores_and_clients(
    workers: Any, threads: int, cores: int, cohort: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    config = ExecutorConfig(name="processes", workers=workers, threads=threads, accelerator="cpu")
    assert count_workers(config, cohort) == expected


def test_tensors_go_through_bytes_and_come_back() -> None:
    """Values and types, of tensors that share memory too; the memory format is the plain one."""
    stream = torch.Generator().manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3, generator=stream)
    given = {
        "weight": kernel.to(memory_format=torch.channels_last),
        "transposed": torch.randn(5, 7, generator=stream).t(),
        "count": torch.tensor(2**60 + 1),
        "flags": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "wide": torch.randn(3, generator=stream, dtype=torch.float64),
        "half": torch.randn(5, generator=stream).bfloat16(),
        "tied": kernel,
    }
    back = from_safetensors(to_safetensors(given))
    assert list(back) == sorted(given)
    for name, tensor in back.items():
        assert torch.equal(tensor, given[name]) and tensor.dtype == given[name].dtype and tensor.is_contiguous()
