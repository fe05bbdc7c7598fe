"""A run that was killed and resumed against the run that never was: the same bits, and no work done twice."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn

from ser_fl import train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump
from ser_fl.data.prepared import prepare
from ser_fl.errors import UserError
from ser_fl.federation.algorithm import Algorithm, FedAdam, FedAvg, FedAvgM, LocalOnly
from ser_fl.federation.checkpoint import checkpoint_key, go_on_from, load_checkpoint, newest_run, save_checkpoint
from ser_fl.federation.server import RoundAverage, Server
from ser_fl.metrics import Scores
from ser_fl.runs.folder import RunFolder

SMALL = (
    "experiment=debug",
    "tracking=none",
    "data.utterances_per_emotion=2",
    "federation.batch_size=4",
    "optimiser.learning_rate=0.01",
)
NUM_CLIENTS = 2


class Killed(BaseException):
    """Ends a run in this process where it stands, as a signal would."""


class Watcher(pl.Callback):
    """Counts the client-rounds that are begun, and ends the run in the middle of one of them."""

    def __init__(self, killed_in: int | None = None) -> None:
        self.fits = 0
        self.killed_in = killed_in

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fits += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.fits == self.killed_in and batch_idx == 1:
            raise Killed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs and features of this file go, and the settings that all of them start from."""
    folder = tmp_path_factory.mktemp("resume")
    config = compose([*SMALL, f"data.cache_dir={folder / 'cache'}"])
    (folder / "base.yaml").write_text(yaml.safe_dump(dump(config)))
    return folder


def settings(home: Path, run_dir: Path | str, *changed: str) -> Config:
    return compose([f"run_dir={home / run_dir}", *changed], config_file=home / "base.yaml")


@pytest.fixture(scope="module")
def finished(home: Path) -> tuple[Config, RunFolder]:
    """Two rounds that nobody disturbed."""
    config = settings(home, "finished")
    return config, train(config)


@pytest.fixture
def copied(home: Path, finished: tuple[Config, RunFolder], tmp_path: Path) -> tuple[Config, RunFolder]:
    """The finished run once more, to be spoilt."""
    folder = tmp_path / "copied"
    shutil.copytree(finished[1].root, folder)
    return settings(home, folder, "resume=true"), RunFolder(folder)


def server_of(
    algorithm: Algorithm, number: int, client_ids: Sequence[str] = ("a",), network: nn.Module | None = None
) -> Server:
    """So many rounds of a server with an algorithm, in which nothing was trained."""
    network = network or nn.Linear(3, 2)
    algorithm.start(network, client_ids)
    return Server(
        algorithm,
        round=number,
        best={owner: dict(state) for owner, state in algorithm.models.items()},
        best_round=number,
        best_score=0.5,
    )


def interrupt(config: Config, killed_in: int) -> None:
    with pytest.raises(Killed):
        train(config, callbacks=[Watcher(killed_in)])


def committed_rounds(run: RunFolder) -> int:
    latest = run.checkpoint / "latest.json"
    return int(json.loads(latest.read_text())["round"]) if latest.exists() else 0


def assert_same_run(run: RunFolder, other: RunFolder) -> None:
    """Same bits of the model and of the checkpoint, same records but for times, no round twice."""
    assert run.weights.read_bytes() == other.weights.read_bytes()
    assert run.read_json(run.summary) == other.read_json(other.summary)
    assert run.read_json(run.model) == other.read_json(other.model)
    for file in (run.rounds, run.clients):
        mine, theirs = run.read_jsonl(file), other.read_jsonl(other.root / file.name)
        assert [{**record, "seconds": 0} for record in mine] == [{**record, "seconds": 0} for record in theirs]
        assert file.read_text().endswith("\n")
    numbers = [record["round"] for record in run.read_jsonl(run.rounds)]
    assert numbers == list(range(1, len(numbers) + 1))
    tensors = [sorted(folder.checkpoint.glob("*.safetensors")) for folder in (run, other)]
    assert [file.name for file in tensors[0]] == [file.name for file in tensors[1]]
    assert all(mine.read_bytes() == theirs.read_bytes() for mine, theirs in zip(*tensors, strict=True))


def command(home: Path, run_dir: Path, *changed: str) -> list[str]:
    cache = f"data.cache_dir={home / 'cache'}"
    return [sys.executable, "-m", "ser_fl", "train", *SMALL, cache, f"run_dir={run_dir}", "resume=true", *changed]


def run_until(arguments: list[str], is_time: Callable[[], bool]) -> int:
    """Start a command and `kill -9` it when it is time; its exit code, -9 where the signal was in time."""
    package = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, cwd=package, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while process.poll() is None and not is_time():
            assert time.monotonic() < deadline, "the command neither ended nor got anywhere"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    return process.wait()


def test_kill_9_then_resume_gives_the_bits_of_the_run_that_was_never_killed(home: Path, tmp_path: Path) -> None:
    changed = ("federation.num_rounds=6", "objective=pgd")
    run = RunFolder(tmp_path / "killed")
    code = run_until(command(home, run.root, *changed), lambda: committed_rounds(run) >= 1)
    assert code == -signal.SIGKILL
    done = committed_rounds(run)
    assert 1 <= done < 6
    base = [*SMALL, *changed, f"data.cache_dir={home / 'cache'}"]
    watcher = Watcher()
    train(compose([*base, f"run_dir={run.root}", "resume=true"]), callbacks=[watcher])
    assert watcher.fits == NUM_CLIENTS * (6 - done)
    assert_same_run(run, train(compose([*base, f"run_dir={tmp_path / 'whole'}"])))


class SoonAfterCommit:
    """It is time some seconds after a round beyond `reached` was committed."""

    def __init__(self, run: RunFolder, reached: int, delay_s: float) -> None:
        self.run = run
        self.reached = reached
        self.delay_s = delay_s
        self.time = math.inf

    def __call__(self) -> bool:
        if self.time == math.inf and committed_rounds(self.run) > self.reached:
            self.time = time.monotonic() + self.delay_s
        return time.monotonic() >= self.time


@pytest.mark.slow
def test_kill_9_at_random_moments_until_the_run_ends(home: Path, tmp_path: Path) -> None:
    """Three kills, each within half a second of the first commit of its attempt; then the run may end."""
    changed = ("federation.num_rounds=30",)
    run = RunFolder(tmp_path / "killed")
    chance = random.Random(4)
    codes, reached = [], 0
    for delay_s in (chance.uniform(0, 0.5), chance.uniform(0, 0.5), chance.uniform(0, 0.5), math.inf):
        codes.append(run_until(command(home, run.root, *changed), SoonAfterCommit(run, reached, delay_s)))
        assert committed_rounds(run) > reached, "it started over"
        reached = committed_rounds(run)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert_same_run(run, train(settings(home, tmp_path / "whole", *changed)))


TRADES = (
    *("objective.name=trades", "objective.recipe=per_step", "objective.from_round=1", "objective.random_start=true"),
    *("objective.fraction=1.0", "objective.beta=3.0"),
)
ADAM = (
    *("federation.server_optimiser=adam", "federation.server_learning_rate=0.003"),
    *("federation.server_second_momentum=0.99", "federation.server_tau=0.001"),
)


@pytest.mark.parametrize(
    "changed",
    [
        (),
        ("federation.keep_optimiser=true",),
        ("federation.server_momentum=0", "federation.freeze_norm_from=2"),
        (
            "federation.name=local_only",
            "federation.server_momentum=0",
            "federation.keep_optimiser=true",
            "optimiser.name=sgd",
            "optimiser.momentum=0.9",
        ),
        ("objective.name=pgd", "objective.recipe=per_step", "objective.from_round=1"),
        (*ADAM, "model.norm=renorm", "selection.every=2"),
        (*TRADES, "objective.warm_up_rounds=3", "federation.weight_average=0.9"),
        ("selection.by=robust", "selection.robust_every=2", "model.norm=group", "federation.fraction_train=0.5"),
    ],
    ids=[
        *("plain", "keeps optimiser", "no momentum, frozen norm", "local only", "adversarial", "Adam at the server"),
        *("trades, averaged over rounds", "robust selection"),
    ],
)
def test_interrupted_within_a_client_and_resumed(home: Path, tmp_path: Path, changed: tuple[str, ...]) -> None:
    """Ended in the second batch of the last client of three rounds, so that two are committed."""
    changed = (*changed, "federation.num_rounds=3")
    whole, watcher = Watcher(), Watcher()
    expected = train(settings(home, tmp_path / "whole", *changed), callbacks=[whole])
    interrupt(settings(home, tmp_path / "cut", *changed), killed_in=whole.fits)
    run = train(settings(home, tmp_path / "cut", *changed, "resume=true"), callbacks=[watcher])
    assert watcher.fits == whole.fits / 3
    assert_same_run(run, expected)


def kill_at_write(at: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run at one of its writes, counted from 1, or at the first of a file, before the content is on disk."""
    written = 0
    flush = os.fsync

    def fsync(handle: int) -> None:
        nonlocal written
        written += 1
        if at == written or (isinstance(at, str) and at in Path(f"/proc/self/fd/{handle}").readlink().name):
            raise Killed
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def check_killed_at_write(
    number: int, home: Path, folder: Path, finished: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Kill at a write and resume; False where the run ended before that write."""
    with monkeypatch.context() as patch:
        kill_at_write(number, patch)
        try:
            train(settings(home, folder))
        except Killed:
            pass
        else:
            return False
    run, watcher = RunFolder(folder), Watcher()
    done = committed_rounds(run)
    train(settings(home, folder, "resume=true"), callbacks=[watcher])
    assert watcher.fits == NUM_CLIENTS * (2 - done)
    assert_same_run(run, finished[1])
    return True


@pytest.mark.parametrize("number", [2, 4, 5, 7, 12])
def test_killed_between_two_writes(
    home: Path, tmp_path: Path, finished: tuple[Config, RunFolder], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before config.yaml, between a round's two records, between its records and its checkpoint, before the summary."""
    assert check_killed_at_write(number, home, tmp_path / "run", finished, monkeypatch)


def test_what_a_run_left_before_its_first_commit_is_not_taken_up(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as round 1 was to be committed, resumed with another rate, interrupted, resumed: as if it had had that
    rate from the start. Round 1 stays the best: no other scores higher than 1."""
    changed = ("optimiser.learning_rate=0.02", "federation.num_rounds=3")
    monkeypatch.setattr(
        "ser_fl.federation.rounds.scores_of",
        lambda scored, config: Scores(uar=1.0, accuracy=1.0, macro_f1=1.0, per_class_recall=(1.0,) * 7),
    )
    with monkeypatch.context() as patch:
        kill_at_write("latest.json", patch)
        with pytest.raises(Killed):
            train(settings(home, tmp_path / "cut"))
    left = {file.name for file in (tmp_path / "cut" / "checkpoint").iterdir()}
    assert "best-00001.safetensors" in left and "latest.json" not in left
    interrupt(settings(home, tmp_path / "cut", *changed, "resume=true"), killed_in=5)
    run = train(settings(home, tmp_path / "cut", *changed, "resume=true"))
    assert run.read_json(run.summary)["selected_round"] == 1
    assert_same_run(run, train(settings(home, tmp_path / "whole", *changed)))


def test_leftovers_of_killed_writes_go_with_the_next_commit(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in (".latest.json.ab12cd34", ".round-00001.safetensors.x", "round-00007.safetensors"):
        (folder / name).write_bytes(b"half")
    save_checkpoint(folder, server_of(FedAvg(), 8), {})
    assert {file.name for file in folder.iterdir()} == {
        "latest.json",
        "round-00008.safetensors",
        "best-00008.safetensors",
    }


def test_data_that_changed_under_a_run_are_refused(copied: tuple[Config, RunFolder]) -> None:
    _, run = copied
    latest = run.checkpoint / "latest.json"
    content = json.loads(latest.read_text())
    content["data_digest"] = "of other data"
    latest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was trained on other data than builtin holds now: start a new run"):
        train(copied[0])


def test_the_digest_of_the_data_tells_them_apart(home: Path) -> None:
    """Another split, other clients, other utterances; the same settings give the same one."""
    base = ("split.test_fraction=0.3",)
    changes = (
        (),
        ("split.seed=3",),
        ("clients.by=iid",),
        ("data.utterances_per_emotion=3",),
        ("frontend.log_offset=1e-6",),
    )
    digests = [prepare(settings(home, "-", *base, *changed)).client_manifest().digest for changed in changes]
    assert len(set(digests)) == len(changes)
    assert prepare(settings(home, "-", *base)).client_manifest().digest == digests[0]


@pytest.mark.slow
def test_killed_at_any_write(
    home: Path, tmp_path: Path, finished: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 1
    while check_killed_at_write(number, home, tmp_path / f"run {number}", finished, monkeypatch):
        number += 1
    # Two files at the start, two records and two checkpoint files or more a round, three files at the end.
    assert number > 2 + 2 * 4 + 3


def test_records_after_the_checkpoint_are_cut_back(
    home: Path, tmp_path: Path, finished: tuple[Config, RunFolder]
) -> None:
    """A kill between records and checkpoint leaves a round that does not count, here also half a line of the next."""
    config = settings(home, tmp_path / "cut", "resume=true")
    interrupt(config, killed_in=3)
    run = RunFolder(tmp_path / "cut")
    for file in (run.rounds, run.clients):
        last = file.read_text().splitlines()[-1].replace('"round": 1', '"round": 2')
        with file.open("a") as appended:
            appended.write(f"{last}\n{last[:40]}")
    train(config)
    assert_same_run(run, finished[1])


def test_records_that_are_shorter_than_at_the_checkpoint_stay_as_they_are(copied: tuple[Config, RunFolder]) -> None:
    config, run = copied
    kept = run.clients.read_bytes()[:-20]
    run.clients.write_bytes(kept)
    train(config)
    assert run.clients.read_bytes() == kept


def test_resuming_a_finished_run_trains_nobody(
    copied: tuple[Config, RunFolder], finished: tuple[Config, RunFolder]
) -> None:
    config, run = copied
    watcher = Watcher()
    train(config, callbacks=[watcher])
    assert watcher.fits == 0
    assert_same_run(run, finished[1])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("seed=2", "seed"),
        ("optimiser.learning_rate=0.02", "optimiser"),
        ("federation.num_rounds=1", r"federation\.num_rounds"),
        ("federation.local_epochs=7", r"federation\.local_epochs"),
        ("data.num_speakers=3", "data"),
        ("executor.threads=2", "executor"),
        ("executor.accelerator=auto", "executor"),
    ],
)
def test_other_settings_are_refused_by_name(
    home: Path, copied: tuple[Config, RunFolder], changed: str, named: str
) -> None:
    _, run = copied
    before = {file: file.read_bytes() for file in run.root.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=f"another {named}.*: resume with the same settings"):
        train(settings(home, run.root, "resume=true", changed))
    assert {file: file.read_bytes() for file in run.root.rglob("*") if file.is_file()} == before


SIX = ("data.num_speakers=3", "federation.fraction_train=0.7", "federation.keep_optimiser=true")
"""Cohorts that are drawn, optimisers that are kept."""


@pytest.mark.parametrize(
    "changed",
    [
        ("optimiser.schedule=cosine", "optimiser.decay_rounds=6"),
        ("federation=federated_adam",),
        ("objective=pgd", "objective.from_round=4", "federation.weight_average=0.5"),
    ],
    ids=["scheduled", "adam", "adversarial, averaged"],
)
def test_a_run_that_was_done_goes_on_to_more_rounds_with_the_bits_of_one_run(
    tmp_path: Path, changed: tuple[str, ...]
) -> None:
    def config(run: str, rounds: int, *more: str) -> Config:
        small = (*SMALL, *SIX, *changed, f"data.cache_dir={tmp_path}", f"run_dir={tmp_path / run}")
        return compose([*small, f"federation.num_rounds={rounds}", *more])

    whole, run = train(config("whole", 6)), train(config("grown", 4))
    watcher = Watcher()
    grown = train(config("grown", 6, "resume=true"), callbacks=[watcher])
    assert watcher.fits == 2 * len(run.read_jsonl(run.rounds)[0]["cohort"]), "two rounds, and none again"
    assert_same_run(whole, grown)
    assert grown.heard.read_bytes() == whole.heard.read_bytes()
    assert compose([], config_file=grown.config).federation.num_rounds == 6
    with pytest.raises(UserError, match=r"another federation\.num_rounds: .*may grow"):
        train(config("grown", 5, "resume=true"))


def test_the_newest_run_is_taken_up_for_more_rounds(
    home: Path, copied: tuple[Config, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = copied
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/debug/2026-03-01_09-00-00-1")
    folder.parent.mkdir(parents=True)
    shutil.move(run.root, folder)
    for rounds, found in ((1, None), (2, folder), (9, folder)):
        config = compose([f"federation.num_rounds={rounds}", "run_dir=null"], config_file=home / "base.yaml")
        assert newest_run(config) == found


def test_records_of_a_model_that_is_no_more_are_put_aside(
    copied: tuple[Config, RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    config, run = copied
    run.attacks.write_text("of two rounds")
    train(config)
    assert run.attacks.read_text() == "of two rounds" and "before.json" not in caplog.text, "the same model"
    run.weights.write_bytes(run.weights.read_bytes()[:-1] + b"x")
    elsewhere = run.evaluations / "ravdess-all" / "predictions.csv"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text("of two rounds")
    train(config)
    assert not run.attacks.exists() and not elsewhere.exists()
    assert elsewhere.with_name("predictions.before.csv").read_text() == "of two rounds"
    assert (run.root / "attacks.before.json").read_text() == "of two rounds"
    assert "attacks.before.json" in caplog.text


def test_a_setting_that_is_newer_than_a_checkpoint_had_its_default(copied: tuple[Config, RunFolder]) -> None:
    config, run = copied
    latest = run.checkpoint / "latest.json"
    content = json.loads(latest.read_text())
    del content["config"]["class_balance"], content["config"]["federation"]["local_batches"]
    latest.write_text(json.dumps(content))
    train(config)
    with pytest.raises(UserError, match="another class_balance"):
        train(replace(config, class_balance="loss"))


def test_settings_that_change_no_bit_may_change(home: Path, copied: tuple[Config, RunFolder], tmp_path: Path) -> None:
    """The same run elsewhere, under another name, with another tracker, its clients in processes."""
    _, run = copied
    free = ("experiment=renamed", "tracking.project=other", f"data.cache_dir={tmp_path}")
    free += ("executor.name=processes", "executor.workers=3")
    config = settings(home, run.root, "resume=true", *free)
    checkpoint = load_checkpoint(run.checkpoint, checkpoint_key(config))
    assert checkpoint is not None and checkpoint.committed.round == 2


@pytest.mark.parametrize("kind", ["round-*", "best-*"])
@pytest.mark.parametrize("share", [0.0, 0.99])
def test_a_truncated_checkpoint_is_the_users_to_know(copied: tuple[Config, RunFolder], kind: str, share: float) -> None:
    config, run = copied
    (file,) = run.checkpoint.glob(f"{kind}.safetensors")
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(UserError, match=r"checkpoint in .* cannot be read"):
        train(config)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema": 99}', b"\xff\xfe\x00"])
def test_a_spoilt_latest_json_is_the_users_to_know(copied: tuple[Config, RunFolder], content: bytes) -> None:
    config, run = copied
    (run.checkpoint / "latest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read|schema 99"):
        train(config)


def test_a_checkpoint_with_a_setting_that_is_no_more_is_refused(copied: tuple[Config, RunFolder]) -> None:
    config, run = copied
    latest = run.checkpoint / "latest.json"
    content = json.loads(latest.read_text())
    content["config"]["telepathy"] = {"range_m": 3}
    latest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="telepathy"):
        train(config)


def test_a_checkpoint_keeps_the_order_of_clients(tmp_path: Path) -> None:
    """With local_only the model that is saved is the first client's, after a resume too."""
    names = [f"client{k}" for k in (2, 0, 1)]
    server = server_of(LocalOnly(), 1, names)
    for number, (name, state) in enumerate(server.algorithm.models.items()):
        state["weight"] = torch.full((2, 3), float(number))
        server.best[name] = dict(state)
    save_checkpoint(tmp_path, server, {})
    loaded, again = load_checkpoint(tmp_path, {}), server_of(LocalOnly(), 0, names)
    assert loaded is not None
    go_on_from(loaded, again, tuple(names))
    assert again.round == 1 and list(again.best) == list(again.algorithm.models) == names
    for models in (again.best, again.algorithm.models):
        assert [float(state["weight"].mean()) for state in models.values()] == [0.0, 1.0, 2.0]


def test_without_resume_a_run_folder_that_holds_a_run_is_refused(home: Path, copied: tuple[Config, RunFolder]) -> None:
    _, run = copied
    before = run.rounds.read_bytes()
    with pytest.raises(UserError, match="holds a run already: add resume=true"):
        train(settings(home, run.root))
    assert run.rounds.read_bytes() == before


def test_resume_in_an_empty_folder_starts_a_run(home: Path, tmp_path: Path, finished: tuple[Config, RunFolder]) -> None:
    """So that one command does for the first start and for every other."""
    assert_same_run(train(settings(home, tmp_path / "new", "resume=true")), finished[1])


def test_resume_without_a_folder_takes_the_newest_run_of_the_experiment_and_seed(
    home: Path, tmp_path: Path, finished: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    newest = tmp_path / "runs" / "debug" / "2026-03-01_09-00-00-1"
    interrupt(settings(home, newest), killed_in=3)
    for older in ("2026-02-28_23-59-59-1", "2025-12-31_10-00-00-1"):
        shutil.copytree(finished[1].root, newest.with_name(older))
    newest.with_name("2026-03-02_09-00-00-2").mkdir()  # of another seed
    train(settings(home, newest.with_name("2026-03-03_09-00-00-1"), "optimiser.learning_rate=0.02"))
    watcher = Watcher()
    run = train(settings(home, "-", "run_dir=null", "resume=true"), callbacks=[watcher])
    assert run.root.resolve() == newest
    assert watcher.fits == NUM_CLIENTS
    assert_same_run(run, finished[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": "two"}, "cannot be read .*round"),
        ({"round": -1}, "cannot be read .*round"),
        ({"lengths": {"rounds.jsonl": -5}}, r"cannot be read .*lengths\.`rounds\.jsonl`"),
        ({"lengths": [1]}, "cannot be read .*lengths"),
        ({"best_score": "high"}, "cannot be read .*best_score"),
        ({"files": {}}, "."),
        ({"schema": "x" * 5000}, "has schema 'xxx.{,400}$"),
    ],
)
def test_a_checkpoint_that_was_changed_is_told_in_a_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_checkpoint(tmp_path, server_of(FedAvg(), 1), {})
    latest = tmp_path / "latest.json"
    assert load_checkpoint(tmp_path, {}) is not None
    latest.write_text(json.dumps(json.loads(latest.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path, {})
    latest.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path, {})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: server_of(FedAdam(0.1), 0), "carried/exp_avg_sq/bias"),
        (lambda: server_of(FedAvg(), 0), "carried/exp_avg/bias, expected nothing"),
        (lambda: server_of(FedAvgM(0.5), 0, network=nn.Linear(4, 2)), "weight, expected .2, 4."),
        (lambda: server_of(LocalOnly(), 0), "best model of other clients"),
    ],
)
def test_a_checkpoint_of_another_algorithm_or_network_is_refused_by_name(
    tmp_path: Path, other: Callable[[], Server], named: str
) -> None:
    save_checkpoint(tmp_path, server_of(FedAvgM(0.5), 3), {})
    loaded = load_checkpoint(tmp_path, {})
    assert loaded is not None
    go_on_from(loaded, server_of(FedAvgM(0.1), 0), ("a",))
    with pytest.raises(UserError, match=f"does not fit this run .*{named}"):
        go_on_from(loaded, other(), ("a",))


def test_a_checkpoint_keeps_all_that_the_server_has_to_itself(tmp_path: Path) -> None:
    """What an algorithm of one's own carries, the average over rounds with its count, and the clients' optimisers."""

    class Counting(FedAvgM):
        rounds = 0

        def state_dict(self) -> dict[str, torch.Tensor]:
            return super().state_dict() | {"rounds": torch.tensor(self.rounds)}

        def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
            super().load_state_dict(state)
            self.rounds = int(state["rounds"])

    saved, again = server_of(Counting(0.5), 3), server_of(Counting(0.5), 0)
    for server in (saved, again):
        server.average = RoundAverage(0.5, dict(server.algorithm.models["global"]))
    algorithm = saved.algorithm
    assert isinstance(algorithm, Counting) and saved.average is not None
    algorithm.rounds = 7
    algorithm.carried["exp_avg"]["bias"] = torch.tensor([1.0, 2.0])
    saved.average.add({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    saved.optimiser_states["a"] = {"0.exp_avg": torch.full((2, 3), 4.0)}
    save_checkpoint(tmp_path, saved, {})
    loaded = load_checkpoint(tmp_path, {})
    assert loaded is not None
    go_on_from(loaded, again, ("a",))
    expected, found = saved.state_dict(), again.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert isinstance(again.algorithm, Counting) and again.algorithm.rounds == 7
    assert again.average is not None and again.average.num_rounds == 1
    with pytest.raises(UserError, match="optimiser of an unknown client 'a'"):
        go_on_from(loaded, server_of(Counting(0.5), 0), ("b",))
