"""A training outlives its standard output; what only prints says when its words were lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "ser_fl"]
TRAIN = [*PROGRAM, "train", "experiment=debug", "federation.num_rounds=3", "tracking=none"]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line of bash, with the exit code of its first program."""
    return subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def corpus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`ser-fl corpus`, redirected, on no terminal of any width."""
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run([*PROGRAM, "corpus", *arguments], capture_output=True, env=inherited | environment)


@pytest.mark.parametrize("output", ["| head -1", "> /dev/full", ">&-", "2>&- | head -1", "> /dev/full 2>/dev/full"])
def test_a_training_ends_whole_whatever_becomes_of_its_output(output: str, tmp_path: Path) -> None:
    done = shell(f"{' '.join(TRAIN)} run_dir={tmp_path}/run {output}")
    assert done.returncode == 0
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "summary.json").exists()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "reason"), [("| head -1", "Broken pipe"), ("> /dev/full", "No space left on device")]
)
def test_a_training_says_in_one_line_that_its_output_was_lost(output: str, reason: str, tmp_path: Path) -> None:
    done = shell(f"{' '.join(TRAIN)} run_dir={tmp_path}/run {output}")
    assert done.stderr.splitlines() == [f"ser-fl: not all of standard output was written: {reason}"]


def test_a_full_output_is_an_error_of_what_only_prints() -> None:
    done = shell(f"{' '.join(PROGRAM)} corpus list > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "ser-fl: not all of standard output was written: No space left on device\n"


def test_a_reader_that_has_read_enough_is_none() -> None:
    done = shell(f"{' '.join(PROGRAM)} corpus list | head -1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_any_encoding_of_the_output_will_do(encoding: str) -> None:
    whole = corpus("list").stdout.decode()
    done = corpus("list", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding) == whole.encode(encoding, "replace").decode(encoding)


def test_redirected_tables_are_not_cut_at_80_columns() -> None:
    lines = corpus("describe", "builtin").stdout.decode().splitlines()
    rows = [line for line in lines if line.startswith("│ anger")]
    assert len(rows) == 1 and "…" not in rows[0]
    assert len(rows[0]) > 80


def test_redirected_progress_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ser_fl.cli import terminal

    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", 0.0)
    with terminal.bars() as shown:
        shown.features(20, 100)
        shown.attacks("pgd", 3, 9)
    assert capsys.readouterr().out == "features: 20 of 100\npgd: 3 of 9\n"


def as_somebody(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A training as a user without rights, whose home is what the environment says."""
    words = ["unshare", "--user", "--map-user=12345", "--map-group=12345", *TRAIN, f"run_dir={tmp_path}/run"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("XDG_") and name != "HOME"}
    return subprocess.run(words, capture_output=True, text=True, env=clean | environment, timeout=120)


@pytest.mark.parametrize("home", ["read_only", "file", "none"])
def test_a_home_that_cannot_be_written_costs_no_training(home: str, tmp_path: Path) -> None:
    (tmp_path / "read_only").mkdir(mode=0o555)
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o777)
    places = {"read_only": tmp_path / "read_only", "file": tmp_path / "file"}
    environment = {"HOME": str(places[home])} if home in places else {}
    done = as_somebody(tmp_path, TMPDIR=str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    told = [line for line in done.stderr.splitlines() if "matplotlib" not in line.lower()]
    assert len(told) == (0 if home == "none" else 1)
    assert all("features are kept in" in line and "data.cache_dir=DIR" in line for line in told)


def test_a_working_directory_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone; rmdir {tmp_path}/gone; PYTHONPATH={Path(__file__).parents[1]} {' '.join(TRAIN)}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "ser-fl: the working directory is gone: change to one that is there"
    assert "Traceback" not in done.stderr
