"""Records on disk: whole files or none, JSON that any reader parses, and errors that say what is wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from ser_fl.errors import UserError
from ser_fl.files import user_folder, write_bytes, write_json
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientFailure, ClientRecord, RoundRecord

CLIENT_FIELDS = {
    *("round", "client_id", "num_examples", "train_loss", "seconds", "update_norm", "bytes_down", "bytes_up"),
}
ROUND_FIELDS = {"round", "cohort", "train_loss", "uar", "accuracy", "macro_f1", "seconds", "failures"}


def client(number: int, **changes: Any) -> ClientRecord:
    values: dict[str, Any] = {
        "round": number,
        "client_id": "Zoë",
        "num_examples": 7,
        "train_loss": 0.5,
        "seconds": 1.0,
        "update_norm": 2.0,
        "bytes_down": 10,
        "bytes_up": 10,
    }
    return ClientRecord(**(values | changes))


def attack(**changes: Any) -> AttackRecord:
    values: dict[str, Any] = {
        "attack": "pgd",
        "library": "art.ProjectedGradientDescentPyTorch",
        "knowledge": "undefended",
        "domain": "logmel",
        "norm": "inf",
        "epsilon": 0.05,
        "snr_db": None,
        "steps": 50,
        "step_size": 0.0125,
        "restarts": 5,
        "eot_samples": 0,
        "defence": "none",
        "clean_uar": 0.75,
        "robust_uar": 0.25,
        "attack_success_rate": 0.5,
        "mean_l2": 1.5,
        "max_linf": 0.05,
        "median_snr_db": None,
        "num_examples": 4,
        "forward_passes": 100,
        "backward_passes": 50,
        "seconds": 0.1,
        "seed": 1,
        "confusion": ((1.0, 1.0), (1.5, 0.5)),
    }
    return AttackRecord(**(values | changes))


def strict(text: str) -> Any:
    """Parse JSON as its standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_interrupted_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "checkpoint" / "latest.json", b"new")
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_content_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        steps.append("fsync")
        fsync(handle)

    def note_replace(source: Path, target: Path) -> Path:
        steps.append(f"replace by {source.read_bytes().decode()}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_bytes(tmp_path / "a", b"whole")
    assert steps == ["fsync", "replace by whole"]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "summary.json", {})  # temporary files belong to their maker alone
    assert (tmp_path / "new" / "summary.json").stat().st_mode & 0o777 == 0o644


def test_nan_and_infinities_become_null(tmp_path: Path) -> None:
    content = {"a": math.nan, "b": [1.5, (math.inf, -math.inf)], "c": {"d": {"e": math.nan}}, "f": "NaN", "g": None}
    write_json(tmp_path / "x.json", content)
    expected = {"a": None, "b": [1.5, [None, None]], "c": {"d": {"e": None}}, "f": "NaN", "g": None}
    assert strict((tmp_path / "x.json").read_text()) == expected


def test_appended_lines_are_the_contract(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    failed = ClientFailure(client_id="b", error="ValueError: two\nlines")
    first = RoundRecord(
        round=1,
        cohort=("a", "b"),
        train_loss=math.nan,
        uar=0.5,
        accuracy=0.5,
        macro_f1=0.4,
        seconds=1.0,
        learning_rate=0.1,
        failures=(failed,),
    )
    run.append(run.rounds, [first])
    run.append(run.clients, [client(1), client(1, client_id="b")])
    run.append(run.clients, [])
    (line,) = run.rounds.read_text(encoding="utf-8").splitlines()
    assert set(strict(line)) >= ROUND_FIELDS
    assert strict(line)["cohort"] == ["a", "b"]
    assert strict(line)["train_loss"] is None
    told = {"client_id": "b", "error": "ValueError: two\nlines", "stage": "training", "offence": False}
    assert strict(line)["failures"] == [told]
    clients = [strict(line) for line in run.clients.read_text(encoding="utf-8").splitlines()]
    assert [set(entry) for entry in clients] == [CLIENT_FIELDS | {"cosine"}] * 2
    assert [entry["client_id"] for entry in clients] == ["Zoë", "b"]


def test_last_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_jsonl(run.clients) == []
    run.append(run.clients, [client(1), client(2)])
    whole = run.clients.read_bytes()
    second = whole.index(b"\n") + 1
    for length, rounds in ((len(whole), [1, 2]), (len(whole) - 1, [1]), (second + 1, [1]), (second - 1, []), (0, [])):
        run.clients.write_bytes(whole[:length])
        assert [line["round"] for line in run.read_jsonl(run.clients)] == rounds


def test_attack_records_come_back_equal(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    records = [attack(), attack(attack="clean", epsilon=None, steps=None, defence="randomisation")]
    run.write_attacks(records)
    assert run.read_attacks() == records


def test_attacks_file_is_the_contract(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_attacks() == []
    run.write_attacks([attack(robust_uar=math.nan)])
    content = strict(run.attacks.read_text(encoding="utf-8"))
    assert set(content) == {"schema", "speech", "records"}
    assert content["schema"] == 1
    assert content["records"][0]["robust_uar"] is None
    content["records"][0]["of_a_later_version"] = 1
    write_json(run.attacks, content)
    (record,) = run.read_attacks()
    assert record.attack == "pgd" and math.isnan(record.robust_uar)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": 2, "records": []}', ["schema 2", "reads 1", "ser-fl benchmark"]),
        ('{"records": []}', ["schema None", "ser-fl benchmark"]),
        ("[]", ["schema None"]),
        ('{"schema": 1, "rec', ["is not JSON", "by hand"]),
        ("\x00", ["is not JSON"]),
    ],
)
def test_attacks_of_another_schema_are_refused(content: str, words: list[str], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.attacks.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        run.read_attacks()
    assert all(word in str(caught.value) for word in [*words, str(run.attacks)]), caught.value


def test_missing_file_asks_for_the_folder_of_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no summary\.json.*finished run"):
        RunFolder(tmp_path).read_json(RunFolder(tmp_path).summary)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="is not JSON"):
        RunFolder(tmp_path).read_json(RunFolder(tmp_path).summary)


def test_a_user_has_folders_with_and_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder("XDG_CACHE_HOME", ".cache") == tmp_path / ".cache" / "ser_fl"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user of a container, who has no entry
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert user_folder("XDG_CACHE_HOME", ".cache").is_relative_to(tmp_path / "tmp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert user_folder("XDG_CACHE_HOME", ".cache") == tmp_path / "named" / "ser_fl"
