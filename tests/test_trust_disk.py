"""A full disk, a folder that nobody may write to, two writers, a clock that goes back: one line, and nothing is lost.

Limits are the system's own: small file systems where mounting is allowed, the process's limit of a file's size
everywhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from test_features import SMALL, NoiseCorpus, files, ids
from test_resume import assert_same_run, committed_rounds

from ser_fl import train
from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.data.features import compute_features
from ser_fl.errors import UserError
from ser_fl.federation.checkpoint import new_folders
from ser_fl.files import write_bytes
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import LOCK, claimed
from ser_fl.runs.records import ClientRecord

BASE = ("experiment=debug", "tracking=none", "data.utterances_per_emotion=2", "federation.num_rounds=3")
RECORD = ClientRecord(
    round=1,
    client_id="ann",
    num_examples=1,
    train_loss=0.5,
    seconds=1.0,
    update_norm=1.0,
    bytes_down=1,
    bytes_up=1,
)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond it: the system refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def command(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ser_fl", "train", *BASE, f"data.cache_dir={home / 'cache'}", *words]


def errors_in(said: str) -> str:
    """Without the warning that the small corpus has emotions which the training part lacks."""
    return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("the training part lacks"))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    said = errors_in(done.stderr)
    assert done.returncode == 2, done.stderr
    assert said.startswith("ser-fl: ") and said.count("\n") == 1, done.stderr
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def whole(home: Path) -> RunFolder:
    """Three rounds that nobody disturbed."""
    return train(compose([*BASE, f"data.cache_dir={home / 'cache'}", f"run_dir={home / 'whole'}"]))


def test_a_write_that_finds_no_room_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_bytes(path, b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large") as refused:
        write_bytes(path, bytes(5000))
    assert refused.value.filename == str(path)
    assert content_of(tmp_path) == {"summary.json": b"old"}


@pytest.mark.parametrize("before", [None, b'{"round": 1}\n'])
def test_a_line_that_finds_no_room_is_not_half_there(before: bytes | None, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    if before is not None:
        run.clients.write_bytes(before)
    with file_size_limit(100), pytest.raises(OSError, match="File too large") as refused:
        run.append(run.clients, [RECORD, RECORD])
    assert refused.value.filename == str(run.clients)
    assert content_of(tmp_path) == ({} if before is None else {"clients.jsonl": before})
    run.append(run.clients, [RECORD])
    assert run.read_jsonl(run.clients)[-1]["client_id"] == "ann"


def test_features_that_find_no_room_are_refused_before_they_are_made(tmp_path: Path) -> None:
    corpus = NoiseCorpus(ids(5))
    with file_size_limit(1000), pytest.raises(OSError, match="File too large") as refused:
        compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert str(refused.value.filename).endswith(".npy") and "/." not in str(refused.value.filename)
    assert content_of(tmp_path) == {} and corpus.num_read == 0
    compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert len(files(tmp_path)) == 1


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from ser_fl.cli.main import main
sys.exit(main())
"""


def limited(num_bytes: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of ours in a process whose files cannot grow beyond a size."""
    start = words.index("ser_fl") + 1
    whole = [sys.executable, "-c", LIMITED, str(num_bytes), *words[start:]]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_a_run_without_room_for_its_checkpoint_stops_and_goes_on(home: Path, whole: RunFolder, tmp_path: Path) -> None:
    """Nothing of a round is kept whose checkpoint is not; with room again the bits are those of the whole run."""
    smallest = min(file.stat().st_size for file in whole.checkpoint.glob("*.safetensors"))
    run = RunFolder(tmp_path / "run")
    line = one_line(limited(smallest - 1, command(home, f"run_dir={run.root}")))
    assert "File too large" in line and "round-00001.safetensors" in line and "resume=true goes on" in line
    assert not list(run.root.rglob(".*")), "neither temporary files nor the lock"
    train(compose([*BASE, f"data.cache_dir={home / 'cache'}", f"run_dir={run.root}", "resume=true"]))
    assert_same_run(run, whole)


MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && eval "$1"'


def may_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


mounting = pytest.mark.skipif(not may_mount(), reason="mounting a small file system needs root and unshare")


def on_small_disk(size: str, place: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A shell script in a mount namespace of its own, with a file system of this size at a place."""
    place.mkdir(exist_ok=True)
    words = ["unshare", "-m", "sh", "-ec", MOUNT, "sh", size, str(place), script]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)


@mounting
@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle_of_a_run(home: Path, whole: RunFolder, tmp_path: Path) -> None:
    """Room for some rounds' checkpoint, taken away while it trains: the last round counts, and the run goes on."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    largest = sum(file.stat().st_size for file in whole.checkpoint.iterdir())
    train_it = " ".join(f"'{word}'" for word in command(home, f"run_dir={disk / 'run'}"))
    script = f"""
        ({train_it} >{tmp_path}/out 2>{tmp_path}/err && echo 0 >{tmp_path}/code || echo $? >{tmp_path}/code) &
        until [ -e {disk}/run/checkpoint/latest.json ]; do sleep 0.02; done
        dd if=/dev/zero of={disk}/ballast bs=4k 2>/dev/null || true
        wait
        rm -f {disk}/ballast
        cp -a {disk}/run {kept}
    """
    done = on_small_disk(str(4 * largest), disk, script)
    assert done.returncode == 0, done.stderr
    code, error = int((tmp_path / "code").read_text()), errors_in((tmp_path / "err").read_text())
    run = RunFolder(kept)
    if code == 0:
        pytest.skip("the run had ended before the disk was full")
    assert code == 2 and "No space left on device" in error and error.count("\n") == 1, error
    assert 1 <= committed_rounds(run) < 3
    assert not list(kept.rglob(".*"))
    train(compose([*BASE, f"data.cache_dir={home / 'cache'}", f"run_dir={kept}", "resume=true"]))
    assert_same_run(run, whole)


@mounting
@pytest.mark.slow
def test_a_full_disk_for_features_is_one_line_and_no_crash(tmp_path: Path) -> None:
    """Mapped memory on a full disk ends a process by SIGBUS, without a word."""
    disk = tmp_path / "disk"
    words = [
        sys.executable,
        "-m",
        "ser_fl",
        "train",
        *BASE,
        f"data.cache_dir={disk / 'cache'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    quoted = " ".join(f"'{word}'" for word in words)
    done = on_small_disk("64k", disk, f"code=0; {quoted} || code=$?; find {disk} -type f >{tmp_path}/left; exit $code")
    assert "No space left on device" in one_line(done) and ".npy" in done.stderr
    assert (tmp_path / "left").read_text() == ""
    assert not (tmp_path / "run").exists()


@mounting
@pytest.mark.slow
def test_a_read_only_folder_is_one_line_and_stays_as_it_is(whole: RunFolder, home: Path, tmp_path: Path) -> None:
    """For going on, for a new run, for a benchmark and for a report."""
    disk = tmp_path / "disk"
    words = command(home, f"run_dir={disk / 'run'}")
    python = f"'{sys.executable}' -m ser_fl"
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
        cp -a '{whole.root}' {disk}/run
        mount -o remount,ro {disk}
        for command in "{quoted} resume=true" "{quoted.replace("/run'", "/new'")}" \
            "{python} benchmark run={disk}/run" "{python} report {disk}/run"; do
            eval "$command" >/dev/null 2>>{tmp_path}/err && echo 0 >>{tmp_path}/codes || echo $? >>{tmp_path}/codes
        done
        cp -a {disk}/run {tmp_path}/after
    """
    done = on_small_disk("16m", disk, script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "codes").read_text().split() == ["2"] * 4
    lines = (tmp_path / "err").read_text().splitlines()
    assert len(lines) == 4 and all("Read-only file system" in line for line in lines), lines
    assert content_of(tmp_path / "after") == content_of(whole.root)


HOLD = """
import sys
from pathlib import Path
from ser_fl.runs.lock import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@contextmanager
def claimed_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the folder, until its input ends."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.communicate()


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with claimed_elsewhere(folder):
        with pytest.raises(UserError, match="is being written by another process"), claimed(folder):
            pass
        assert (folder / LOCK).exists(), "who is refused takes nothing away"
    assert not folder.exists() and not folder.parent.exists(), "nothing came of it"
    with claimed(folder):
        (folder / "config.yaml").write_text("kept")
    assert content_of(tmp_path) == {"runs/a/config.yaml": b"kept"}


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with claimed(tmp_path):
        pass
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError), claimed(tmp_path, new=True):
        pass


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with claimed_elsewhere(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        with claimed(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


COUNT = """
import sys, time
from pathlib import Path
from ser_fl.runs.lock import claimed
from ser_fl.errors import UserError
folder, done = Path(sys.argv[1]), 0
file = folder / "count"
while done < 200:
    try:
        with claimed(folder):
            file.write_text(str(int(file.read_text() if file.exists() else "0") + 1))
        done += 1
    except UserError:
        time.sleep(0.0005)
"""


def test_claims_that_come_and_go_never_meet(tmp_path: Path) -> None:
    """Three processes count in one file, which loses counts wherever two do it at once.

    The lock's file is removed each time: nobody may hold one that has no name any more.
    """
    words = [sys.executable, "-c", COUNT, str(tmp_path / "run")]
    workers = [subprocess.Popen(words) for _ in range(3)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 3
    assert content_of(tmp_path) == {"run/count": b"600"}


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path):
        pass
    assert "has no locks (Function not implemented)" in caplog.text


@pytest.mark.parametrize("kind", ["train", "resume", "benchmark"])
def test_every_command_that_writes_a_run_asks_for_it(
    kind: str, whole: RunFolder, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if kind != "train":
        shutil.copytree(whole.root, folder)
    words = ["train", *BASE, f"data.cache_dir={home / 'cache'}", f"run_dir={folder}"]
    words += ["resume=true"] if kind == "resume" else []
    words = ["benchmark", f"run={folder}"] if kind == "benchmark" else words
    with claimed_elsewhere(folder):
        before = content_of(folder)
        capsys.readouterr()
        assert main(words) == 2
        line = capsys.readouterr().err
        assert f"{folder} is being written by another process" in line and line.count("\n") == 1
        assert content_of(folder) == before


def test_a_benchmark_of_what_is_no_run_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        assert main(["benchmark", f"run={tmp_path / name}"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


NOW = datetime(2026, 3, 1, 9, 0, 0)


def names(seed: int, now: datetime, count: int = 1) -> list[str]:
    return [folder.name for folder in islice(new_folders(compose(["experiment=debug", f"seed={seed}"]), now), count)]


def test_names_of_runs_sort_in_the_order_they_were_made_in_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour on, set back by a day, the same second again: each run sorts behind those before."""
    monkeypatch.chdir(tmp_path)
    order = [NOW, NOW + timedelta(hours=1), *[NOW - timedelta(days=1)] * 12, NOW + timedelta(hours=2)]
    made = []
    for now in order:
        (name,) = names(1, now)
        (tmp_path / "runs" / "debug" / name).mkdir(parents=True)
        made.append(name)
    assert len(set(made)) == len(order)
    assert made[:3] == ["2026-03-01_09-00-00-1", "2026-03-01_10-00-00-1", "2026-03-01_10-00-00.2-1"]
    assert made[-2:] == ["2026-03-01_10-00-00.13-1", "2026-03-01_11-00-00-1"]
    assert names(2, NOW, 3) == [f"2026-03-01_09-00-00{count}-2" for count in ("", ".2", ".3")]


def clock_at(moment: datetime) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return moment

    return Clock


def test_resume_takes_the_run_that_was_made_last_though_the_clock_went_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in one second and a day back: three runs, and the last one is gone on with."""
    monkeypatch.chdir(tmp_path)
    made: list[Path] = []
    for now in (NOW, NOW, NOW - timedelta(days=1)):
        monkeypatch.setattr("ser_fl.federation.checkpoint.datetime", clock_at(now))
        config = compose([*BASE, f"data.cache_dir={home / 'cache'}", "federation.num_rounds=1"])
        made.append(train(config).root)
    assert [folder.name for folder in made] == [f"2026-03-01_09-00-00{count}-1" for count in ("", ".2", ".3")]
    again = train(compose([*BASE, f"data.cache_dir={home / 'cache'}", "federation.num_rounds=1", "resume=true"]))
    assert again.root == made[-1]


def test_durations_do_not_come_from_the_clock_that_can_be_set(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at it finds it a day further back."""
    day = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 86400 * next(day))
    run = train(compose([*BASE, f"data.cache_dir={home / 'cache'}", f"run_dir={tmp_path / 'run'}", "profile=true"]))
    for file in (run.rounds, run.clients):
        assert all(0 < line["seconds"] < 3600 for line in run.read_jsonl(file))
    assert json.loads(run.profile.read_text())["first"]["seconds"] > 0


@pytest.mark.parametrize(("hours", "swept"), [(2, True), (0.5, False), (-0.5, False), (-48, True)])
def test_leftovers_from_before_the_clock_was_set_are_swept_too(hours: float, swept: bool, tmp_path: Path) -> None:
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    (file,) = files(tmp_path)
    file.unlink()
    left = file.with_name(f".{file.name}.left")
    left.write_bytes(b"rows")
    os.utime(left, (time.time() - 3600 * hours,) * 2)
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    assert left.exists() != swept


def test_what_somebody_is_writing_is_not_swept_though_the_clock_jumped(tmp_path: Path) -> None:
    """A computation that began, as the clock says, two hours ago, and is still at it."""
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    (file,) = files(tmp_path)
    kept = file.read_bytes()
    file.unlink()
    written = file.with_name(f".{file.name}.busy")
    with written.open("wb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        os.utime(written, (time.time() - 7200,) * 2)
        compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
        assert written.exists()
    assert file.read_bytes() == kept


def test_a_computation_holds_its_file(tmp_path: Path) -> None:
    """So that the test above is about what happens: while features are made, their file cannot be locked."""
    refused: list[bool] = []

    def look(done: int, total: int) -> None:
        (temporary,) = (path for path in (tmp_path / "features").iterdir() if path.name.startswith("."))
        with temporary.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(True)

    store = compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path, progress=look)
    assert refused == [True]
    assert np.isfinite(store.features_NFL.numpy()).all()
