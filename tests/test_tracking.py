"""Tracking: W&B's own offline file is read back, and nothing that goes wrong stops a training."""

from __future__ import annotations

import csv
import importlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import ser_fl.tracking.tracker
import ser_fl.tracking.weights_and_biases
from ser_fl.errors import UserError
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientFailure, ClientRecord, RoundRecord
from ser_fl.runs.redaction import public_config
from ser_fl.tracking import Tracker, open_tracker
from ser_fl.tracking.metric_names import (
    ROUND_COLUMNS,
    attack_metrics,
    curves,
    evaluation_metrics,
    round_metrics,
    summary_metrics,
)
from ser_fl.tracking.wandb_settings import resolve_mode, tags_of, unless_in_environment

WANDB_VARIABLES = (
    *("API_KEY", "MODE", "BASE_URL", "PROJECT", "ENTITY", "RUN_ID", "RUN_GROUP", "DIR", "NAME", "SWEEP_ID"),
    *("TAGS", "NOTES", "JOB_TYPE", "RESUME", "SILENT", "CONSOLE", "_DISABLE_META", "_DISABLE_STATS"),
)
WHERE = {
    **{"backend": "wandb", "mode": "auto", "project": "ser_fl", "entity": None, "group": None, "tags": []},
    **{"per_client": False, "system_metrics": False, "console": False, "num_recordings": 0},
}
"""Settings of a tracker, as by default but for the load of the machine."""

SUMMARY = {
    "classes": ["anger", "fear", "sadness"],
    "split": "within_speaker",
    "selected_round": 2,
    "test": {
        "uar": 0.75,
        "accuracy": 0.7,
        "macro_f1": 0.72,
        "confusion": [[3, 1, 0], [0, 3, 1], [0, 0, 0]],
        "per_class_recall": [0.75, 0.75, None],
        "per_speaker_uar": {"s1": 0.75},
    },
}

CLEAN = AttackRecord(
    attack="clean",
    library="none",
    knowledge="undefended",
    domain="logmel",
    norm="none",
    epsilon=None,
    snr_db=None,
    steps=None,
    step_size=None,
    restarts=None,
    eot_samples=1,
    defence="none",
    clean_uar=0.75,
    robust_uar=0.75,
    attack_success_rate=0.0,
    mean_l2=0.0,
    max_linf=0.0,
    median_snr_db=None,
    num_examples=8,
    forward_passes=8,
    backward_passes=0,
    seconds=0.1,
    seed=1,
)
PGD = replace(CLEAN, attack="pgd", library="ser_fl.PGD", norm="inf", epsilon=0.05, steps=10, robust_uar=0.25)


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no settings of the person who runs the tests, and no file outside the test's folder."""
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent-netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    root = tmp_path / "run"
    root.mkdir()
    return RunFolder(root)


def open_for(run: RunFolder, state: dict[str, Any] | None = None, **settings: Any) -> Tracker:
    return open_tracker(settings_for(**{"project": "test", "group": "study", **settings}), run, state)


def settings_for(**tracking: Any) -> dict[str, Any]:
    config = {"seed": 1, "data": {"name": "nemo", "root": "/home/someone/corpora/nemo"}, "objective": {"name": "pgd"}}
    return {"experiment": "a run", "run_name": None, "tracking": WHERE | tracking, **config}


def round_record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        cohort=("s1", "s2", "s3"),
        train_loss=1.0 / number,
        uar=0.25 * number,
        accuracy=0.5,
        macro_f1=0.4,
        seconds=2.0,
        failures=(ClientFailure(client_id="s3", error="out of memory"),),
        learning_rate=1e-3,
        robust_uar=0.125 if number == 2 else None,
    )


def client_records(number: int) -> list[ClientRecord]:
    return [
        ClientRecord(
            round=number,
            client_id=client_id,
            num_examples=10,
            train_loss=loss / number,
            seconds=1.0,
            update_norm=0.5,
            bytes_down=100,
            bytes_up=100,
        )
        for client_id, loss in (("s1", 3.0), ("s2", 5.0))
    ]


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = proto.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished_records(path: Path) -> list[Any]:
    """All records up to the exit record; wandb's process closes the file a moment after its `finish` returns."""
    for _ in range(100):
        records = list(wandb_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} was never closed")


def offline_runs(run: RunFolder) -> list[list[Any]]:
    """Records of each finished offline run in the folder, oldest first."""
    paths = (run.root / "wandb").glob("offline-run-*/*.wandb")
    # A folder is named by its start, and by a number where two start in one second; a file may be closed late.
    return [finished_records(path) for path in sorted(paths, key=lambda path: path.parent.name)]


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]


def summary_of(records: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            found |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
    return found


def test_an_offline_run_reads_back(run: RunFolder) -> None:
    tracker = open_for(run, per_client=True)
    for number in (1, 2):
        tracker.log_round(round_record(number), client_records(number))
    adaptive = replace(PGD, defence="randomisation", knowledge="adaptive", robust_uar=0.3)
    tracker.log_attacks([CLEAN, PGD, adaptive], {"steps": 10, "run": str(run.root), "speech": ["data.root=/data/x"]})
    tracker.log_summary(SUMMARY)
    tracker.finish()

    (records,) = offline_runs(run)
    started = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.run_id, started.project, started.display_name, started.run_group) == (
        tracker.state["wandb_id"],
        "test",
        "a run-seed1",
        "study",
    )
    assert (started.job_type, [*started.tags]) == ("train", ["a run", "nemo", "pgd"])
    again = [record.run for record in records if record.WhichOneof("record_type") == "run"][-1]
    assert [*again.tags] == ["a run", "nemo", "pgd", "benchmark"]
    changed = [record.config for record in records if record.WhichOneof("record_type") == "config"]
    updates = {item.key: json.loads(item.value_json) for each in changed for item in each.update}
    assert updates["benchmark"] == {"steps": 10}
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["data"] == {"name": "nemo", "root": "nemo"}
    raw = b"".join(record.SerializeToString() for record in records)
    assert b"corpora" not in raw
    assert str(Path.cwd()).encode() not in raw, "nor the program's own path and arguments"
    assert str(run.root).encode() not in raw

    assert socket.gethostname() not in {started.host, again.host}, "nor the machine's name"

    rows = [row for row in history(records) if "val/uar" in row]
    assert [row["round"] for row in rows] == [1, 2]
    assert [row["val/uar"] for row in rows] == [0.25, 0.5]
    assert [row["train/loss"] for row in rows] == [1.0, 0.5]
    assert [row["client/s2/train_loss"] for row in rows] == [5.0, 2.5]
    assert rows[0]["client/s1/num_examples"] == 10
    assert (rows[0]["clients/count"], rows[0]["clients/failures"]) == (3, 1)
    assert "val/robust_uar" not in rows[0]
    assert rows[1]["val/robust_uar"] == 0.125

    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    globs = {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name}
    assert globs == dict.fromkeys(("train/*", "val/*", "clients/*", "client/*"), "round")
    best = {metric.name: (metric.summary.max, metric.summary.min, metric.step_metric) for metric in metrics}
    assert best["val/uar"] == best["val/robust_uar"] == (True, False, "round")
    assert best["train/loss"] == (False, True, "round")

    summary = summary_of(records)
    assert summary["attack/pgd"] == summary["attack_budgets/pgd/eps_0.05/robust_uar"] == 0.25
    assert summary["attack/randomisation/pgd"] == 0.3
    assert summary["attack_budgets/pgd/eps_0.05/randomisation/adaptive/robust_uar"] == 0.3
    assert summary["test/uar"] == 0.75
    assert summary["test/recall/fear"] == 0.75
    assert "test/recall/sadness" not in summary, "a class without utterances has no recall"


def test_tables_read_back(run: RunFolder) -> None:
    tracker = open_for(run)
    tracker.log_attacks([CLEAN, PGD, replace(PGD, epsilon=0.1, robust_uar=0.0)], {})
    tracker.log_summary(SUMMARY)
    tracker.finish()

    def table(pattern: str) -> dict[str, Any]:
        (path,) = (run.root / "wandb").glob(f"offline-run-*/files/media/table/{pattern}")
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    confusion = table("test/confusion_?_*.json")
    assert confusion["columns"] == ["true", "predicted", "count"]
    assert ["anger", "fear", 1] in confusion["data"]
    assert ["fear", "anger", 0] in confusion["data"]
    assert len(confusion["data"]) == 9
    assert table("test/per_class_recall_*.json")["data"] == [["anger", 0.75], ["fear", 0.75], ["sadness", None]]
    attacks = table("attacks_*.json")
    rows = [dict(zip(attacks["columns"], row, strict=True)) for row in attacks["data"]]
    assert [(row["attack"], row["epsilon"], row["robust_uar"]) for row in rows] == [
        ("clean", None, 0.75),
        ("pgd", 0.05, 0.25),
        ("pgd", 0.1, 0.0),
    ]
    curve = table("attack/curves/none_table_*.json")
    assert curve["data"] == [[0.05, "pgd", 0.25], [0.1, "pgd", 0.0]]
    plot = table("test/confusion_plot_table_*.json")
    counts = {(true, predicted): count for true, predicted, count in plot["data"]}
    assert (counts["anger", "anger"], counts["anger", "fear"], counts["fear", "sadness"]) == (3, 1, 1)


def test_a_resumed_run_goes_on_under_the_same_id(run: RunFolder) -> None:
    first = open_for(run)
    first.log_round(round_record(1), [])
    first.finish()
    state = json.loads(json.dumps(first.state))
    second = open_for(run, state, project="ser_fl", group=None)  # as by default
    second.log_round(round_record(2), [])
    second.finish()
    assert second.state == first.state

    runs = offline_runs(run)
    assert len(runs) == 2
    started = [record.run for records in runs for record in records if record.WhichOneof("record_type") == "run"]
    assert {one.run_id for one in started} == {first.state["wandb_id"]}
    assert {(one.project, one.run_group) for one in started} == {("test", "study")}
    assert all(one.resume for one in started)
    assert [row["round"] for records in runs for row in history(records)] == [1, 2]


def test_two_runs_in_one_process_do_not_mix(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        folder.root.mkdir()
    trackers = [open_for(folder) for folder in folders]
    for number, tracker in enumerate(trackers, start=1):
        tracker.log_round(round_record(number), [])
    for tracker in trackers:
        tracker.finish()
    assert trackers[0].state != trackers[1].state
    assert [[row["round"] for row in history(offline_runs(folder)[0])] for folder in folders] == [[1], [2]]


def test_a_killed_run_keeps_its_rounds(run: RunFolder) -> None:
    code = """
import json, os, signal, sys, time
from pathlib import Path
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import RoundRecord
from ser_fl.tracking import open_tracker

tracker = open_tracker(json.loads(sys.argv[2]), RunFolder(Path(sys.argv[1])))
tracker.log_round(RoundRecord(round=1, cohort=(), train_loss=1.0, uar=0.5, accuracy=0.5, macro_f1=0.5, seconds=1.0,
                              learning_rate=0.1), [])
time.sleep(2.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [str(run.root), json.dumps(settings_for(mode="offline"))]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (done.stdout, done.stderr) == ("", ""), "W&B says nothing on the console"
    (path,) = (run.root / "wandb").glob("offline-run-*/*.wandb")
    assert [row["round"] for row in history(list(wandb_records(path)))] == [1]


@pytest.mark.parametrize("state", [None, {"wandb_id": "of-a-checkpoint"}], ids=["new", "resumed"])
def test_under_an_agent_of_a_sweep_the_run_is_the_agents(run: RunFolder, state: dict[str, Any] | None) -> None:
    """In a process of its own, as the agent starts it: W&B reads the agent's variables once."""
    code = """
import json, sys
from pathlib import Path
from ser_fl.runs.folder import RunFolder
from ser_fl.tracking import open_tracker

tracker = open_tracker(json.loads(sys.argv[3]), RunFolder(Path(sys.argv[1])), json.loads(sys.argv[2]))
tracker.finish()
print(json.dumps(tracker.state))
"""
    settings = settings_for(mode="offline", project="ours", entity="us")
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "agents1", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "they"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.root), json.dumps(state), json.dumps(settings)],
        env={**os.environ, **agent},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (json.loads(done.stdout), done.stderr) == ({"wandb_id": "agents1"}, ""), "W&B has nothing to object to"
    (records,) = offline_runs(run)
    started = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.run_id, started.project, started.entity, started.sweep_id) == (
        *("agents1", "theirs", "they"),
        "sweep123",
    )


def use_every_method(tracker: Tracker) -> None:
    tracker.log_round(round_record(1), client_records(1))
    tracker.log_attacks([CLEAN, PGD], {})
    tracker.log_summary(SUMMARY)
    tracker.finish()
    tracker.finish()


def test_a_run_killed_before_its_first_checkpoint_goes_on_in_the_wandb_run_that_it_had_begun(run: RunFolder) -> None:
    """Nobody but the folder knows the id by then; another folder begins another run."""
    begun = open_for(run)
    for _ in range(2):  # in one second, so that the second folder has a number behind the id
        resumed = open_for(run)
        assert resumed.state == begun.state
        resumed.finish()
    begun.finish()
    assert len(list(run.root.glob("wandb/offline-run-*"))) == 3
    other = RunFolder(run.root.with_name("other"))
    other.root.mkdir()
    new = open_for(other)
    new.finish()
    assert new.state != begun.state


def raising(*_: object, **__: object) -> None:
    raise RuntimeError("no\nnetwork")


def own_warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("ser_fl")]


def test_a_failing_start_is_one_warning(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wandb.init", raising)
    tracker = open_for(run, {"wandb_id": "abc"})
    use_every_method(tracker)
    assert len(own_warnings(caplog)) == 1
    assert "RuntimeError: no network" in caplog.text
    assert tracker.state["wandb_id"] == "abc", "a later run may still go on in it"


def test_a_server_out_of_reach_is_one_warning_and_an_offline_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster node with a key and no network."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    init = wandb.init

    def offline_alone(**settings: Any) -> Any:
        return init(**settings) if settings["mode"] == "offline" else raising()

    monkeypatch.setattr("wandb.init", offline_alone)
    tracker = open_for(run, {"wandb_id": "abc"}, mode="auto")
    use_every_method(tracker)
    assert len(own_warnings(caplog)) == 1 and "wandb sync" in caplog.text
    assert len(offline_runs(run)) == 1
    assert tracker.state["wandb_id"] == "abc"


def test_an_unwritable_folder_is_one_warning(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    (run.root / "wandb").write_text("a file where the folder should be")
    use_every_method(open_for(run))
    assert len(own_warnings(caplog)) == 1
    assert not offline_runs(run)


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_failing_call_turns_tracking_off(
    run: RunFolder, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_for(run)
    calls = []

    def fails(*_: object, **__: object) -> None:
        calls.append(method)
        raise ConnectionResetError("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(f"wandb.sdk.wandb_run.Run.{method}", fails)
        use_every_method(tracker)
        tracker.log_round(round_record(2), [])
    assert calls == [method]
    assert len(own_warnings(caplog)) == 1
    assert "ConnectionResetError: connection lost" in caplog.text


class FakeRun:
    """Stands for an online run: notes what it is told."""

    id, url, dir = "abc", "https://wandb.example/run", "wandb/offline-run-x/files"

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.artifacts: list[Any] = []

    def define_metric(self, *_: object, **__: object) -> None: ...
    def log(self, _: object) -> None: ...
    def finish(self) -> None: ...
    def log_artifact(self, artifact: object) -> None:
        self.artifacts.append(artifact)


@pytest.mark.parametrize(("mode", "num_bytes", "expected"), [("online", 9, 1), ("offline", 9, 1), ("online", 99, 0)])
def test_small_weights_are_an_artifact(
    run: RunFolder, mode: str, num_bytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRun()
    monkeypatch.setattr("wandb.init", lambda **_: fake)
    monkeypatch.setattr(ser_fl.tracking.weights_and_biases, "MAX_ARTIFACT_BYTES", 50)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run.weights.write_bytes(b"x" * num_bytes)
    run.model.write_text("{}")
    tracker = open_for(run, mode=mode)
    tracker.log_summary(SUMMARY)
    assert len(fake.artifacts) == expected
    if expected:
        assert sorted(fake.artifacts[0].manifest.entries) == ["model.json", "model.safetensors"]


def mode_asked_for(run: RunFolder, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> str:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **given: asked.update(given) or FakeRun())
    open_for(run, **settings)
    return str(asked["mode"])


def test_auto_is_online_where_a_key_is(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mode_asked_for(run, monkeypatch) == "offline"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert mode_asked_for(run, monkeypatch) == "online"
    assert mode_asked_for(run, monkeypatch, mode="offline") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert mode_asked_for(run, monkeypatch) == "offline", "a key for another server"
    netrc.write_text("not a netrc file")
    assert mode_asked_for(run, monkeypatch) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode_asked_for(run, monkeypatch) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode_asked_for(run, monkeypatch) == "offline"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "wandbb"}, "unknown tracking backend 'wandbb', did you mean 'wandb'"),
        ({"mode": "sometimes"}, "unknown tracking mode 'sometimes'. Known: auto, offline, online"),
        ({"mode": "online"}, "no API key was found: set WANDB_API_KEY"),
    ],
)
def test_the_users_mistakes(run: RunFolder, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_for(run, **settings)


def test_a_wrong_mode_of_the_environment_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"unknown WANDB_MODE 'sometimes'\. Known: disabled, offline, online, shared"):
        open_for(run, mode="auto")


def test_no_tracking_writes_nothing_and_keeps_the_id(run: RunFolder) -> None:
    tracker = open_for(run, {"wandb_id": "abc"}, backend="none")
    use_every_method(tracker)
    assert tracker.state == {"wandb_id": "abc"}
    assert [path.name for path in run.root.iterdir()] == ["metrics.csv"]


def test_tensorboard_reads_back_without_repeated_rounds(run: RunFolder) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = open_for(run, backend="tensorboard")
    for number in (1, 2, 3):
        killed.log_round(round_record(number), client_records(number))
    resumed = open_for(run, killed.state, backend="tensorboard")
    resumed.log_round(round_record(2), client_records(2))
    resumed.log_attacks([PGD], {})
    resumed.log_summary(SUMMARY)
    resumed.finish()
    killed.finish()
    events = accumulator.EventAccumulator(str(run.root / "tensorboard"))
    events.Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["val/uar"] == [(1, 0.25), (2, 0.5)]
    assert scalars["clients/train_loss/median"] == [(1, 4.0), (2, 2.0)]
    assert scalars["attack/pgd"] == [(0, 0.25)]
    assert not [tag for tag in scalars if tag.startswith("client/")]
    assert scalars["test/uar"] == [(2, 0.75)]


def test_tensorboard_without_its_package_names_the_extra(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ser_fl.tracking.tracker, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the extra `tracking`: pip install 'ser-fl\[tracking\]'"):
        open_for(run, backend="tensorboard")


def test_public_config_has_no_secrets_and_no_folders() -> None:
    config = {
        "seed": 1,
        "run_dir": "/scratch/someone/runs/a",
        "data": {"root": "../private/nemo", "cache": Path("/scratch/cache"), "test_speakers": ["MK0", "MP0"]},
        "wandb_api_key": "0" * 40,
        "service": {"token": "t", "url": "https://example.org/a"},
        "folders": ["~/a/b", {"root": None}],
    }
    assert public_config(config) == {
        "seed": 1,
        "run_dir": "a",
        "data": {"root": "nemo", "cache": "cache", "test_speakers": ["MK0", "MP0"]},
        "service": {"url": "https://example.org/a"},
        "folders": ["b", {"root": None}],
    }


def test_attack_keys() -> None:
    waveform = replace(PGD, epsilon=None, snr_db=20.0, domain="waveform", robust_uar=0.5)
    weaker = replace(PGD, steps=1, robust_uar=0.6, attack_success_rate=0.1)
    keys = attack_metrics([replace(CLEAN, defence="randomisation"), PGD, weaker, waveform])
    assert {key: value for key, value in keys.items() if key.endswith("robust_uar")} == {
        "attack_budgets/clean/randomisation/robust_uar": 0.75,
        "attack_budgets/pgd/eps_0.05/robust_uar": 0.25,
        "attack_budgets/waveform/pgd/snr_20_db/robust_uar": 0.5,
    }
    assert keys["attack_budgets/pgd/eps_0.05/attack_success_rate"] == 0.0, "of the same record as the UAR"


def test_summary_figures() -> None:
    assert summary_metrics({**SUMMARY, "selection_score": 0.5}) == {
        "selected_round": 2,
        "selection_score": 0.5,
        "test/uar": 0.75,
        "test/accuracy": 0.7,
        "test/macro_f1": 0.72,
        "test/recall/anger": 0.75,
        "test/recall/fear": 0.75,
    }


def test_importing_tracking_imports_no_tracker() -> None:
    code = "import sys, ser_fl.tracking; print(sorted({'wandb', 'torch', 'tensorboard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("word", "mode"), [("dryrun", "offline"), ("run", "online"), ("offline", "offline"), ("auto", "online")]
)
def test_wandb_mode_may_be_in_the_words_of_before(word: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", word)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode("auto") == mode


def test_a_user_without_a_home_is_tracked_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user of a container, who has no entry
    assert resolve_mode("auto") == "offline"


def test_a_server_that_cannot_be_reached_leaves_an_offline_run(run: RunFolder) -> None:
    """In a process of its own, with W&B's own `init`: what failed online must not hold the id."""
    code = """
import json, sys
from pathlib import Path
import ser_fl.tracking.weights_and_biases as backend
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import RoundRecord
from ser_fl.tracking import open_tracker

backend.INIT_TIMEOUT_S = 1
tracker = open_tracker(json.loads(sys.argv[2]), RunFolder(Path(sys.argv[1])))
print(tracker.sending)
tracker.log_round(RoundRecord(round=1, cohort=(), train_loss=1.0, uar=0.5, accuracy=0.5, macro_f1=0.5, seconds=1.0,
                              learning_rate=0.1), [])
tracker.finish()
"""
    environment = {**os.environ, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment.pop("WANDB_SERVICE", None)  # of the tests' own process
    words = [sys.executable, "-c", code, str(run.root), json.dumps(settings_for(mode="online"))]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert "this run is tracked offline" in done.stderr and "is in use" not in done.stderr
    (folder,) = (run.root / "wandb").glob("offline-run-*")
    assert done.stdout == f"wandb sync {folder}\n"
    (records,) = offline_runs(run)
    assert [(row["round"], row["val/uar"]) for row in history(records)] == [(1, 0.5)]


def test_what_others_log_is_not_wandbs_to_rewrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler of somebody's own, that listens to wandb too, has this machine's folders in the lines of others."""
    monkeypatch.setattr(ser_fl.tracking.weights_and_biases, "_RUNS", {tmp_path})
    for name, is_cut in (("wandb", True), ("wandb.sdk", True), ("ser_fl.api", False), ("wandbox", False)):
        record = logging.LogRecord(name, logging.WARNING, "", 1, "kept in %s/file", (tmp_path,), None)
        assert ser_fl.tracking.weights_and_biases._without_folders(record)
        assert (str(tmp_path) not in record.getMessage()) is is_cut


def begin(run: RunFolder, **tracking: Any) -> None:
    """Begin a run, in a process of its own: W&B reads its variables once."""
    code = """
import json, sys
from pathlib import Path
from ser_fl.runs.folder import RunFolder
from ser_fl.tracking import open_tracker

open_tracker(json.loads(sys.argv[2]), RunFolder(Path(sys.argv[1]))).finish()
"""
    words = [sys.executable, "-c", code, str(run.root), json.dumps(settings_for(**tracking))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def begun(run: RunFolder, **tracking: Any) -> Any:
    """The record of such a run, which is offline."""
    begin(run, **tracking)
    (records,) = offline_runs(run)
    return next(record.run for record in records if record.WhichOneof("record_type") == "run")


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "they",
    "WANDB_RUN_GROUP": "ablation",
    "WANDB_NAME": "a name",
    "WANDB_TAGS": "one, two,one",
    "WANDB_NOTES": "why",
    "WANDB_JOB_TYPE": "sweep",
    "WANDB_RUN_ID": "id7",
    "WANDB_MODE": "dryrun",
}


def test_variables_of_wandb_count_where_a_setting_is_at_its_default(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    found = begun(run)
    assert (found.project, found.entity, found.run_group) == ("theirs", "they", "ablation")
    assert (found.display_name, found.notes, found.job_type, found.run_id) == ("a name", "why", "sweep", "id7")
    assert [*found.tags] == ["a run", "nemo", "pgd", "one", "two"]


def test_settings_count_before_variables_of_wandb(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    found = begun(run, project="ours", entity="us", group="grid", tags=["mine"])
    assert (found.project, found.entity, found.run_group) == ("ours", "us", "grid")
    assert [*found.tags] == ["a run", "nemo", "pgd", "mine", "one", "two"]


def test_wandbs_folder_may_be_elsewhere(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    begin(run)
    assert not (run.root / "wandb").exists()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_variable_turns_our_own_settings_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB__DISABLE_META", "false")
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    assert unless_in_environment(x_disable_meta=True, x_disable_stats=True, console="off", resume="allow") == {
        "x_disable_stats": True,
        "resume": "allow",
    }


def test_what_comes_later_is_added_to_the_same_run(run: RunFolder) -> None:
    """It names neither the run nor its figures again, which the server would take for new ones."""
    tracker = open_for(run)
    tracker.log_round(round_record(1), client_records(1))
    tracker.log_summary(SUMMARY)
    tracker.finish()
    later = open_for(run, tracker.state)
    later.log_attacks([CLEAN, PGD], {})
    later.log_evaluation(
        "ravdess-all", {**SUMMARY["test"], "num_utterances": 9, "calibrated": {"ece": 0.1, "nll": 1.0}}
    )
    later.finish()
    first, second = offline_runs(run)
    runs = [next(record.run for record in each if record.run.run_id) for each in (first, second)]
    assert [one.run_id for one in runs] == [tracker.state["wandb_id"]] * 2 and runs[1].resume
    assert (runs[0].display_name, runs[1].display_name, runs[1].job_type) == ("a run-seed1", "", "")
    assert not {"round", "val/uar"} & {key for row in history(second) for key in row}
    added = summary_of(second)
    assert added["evaluation/ravdess-all/uar"] == 0.75 and added["attack/pgd"] == 0.25
    assert not {key for key in added if key.split("/")[0] in ("val", "train", "test", "clients")}


def test_metrics_csv_has_every_round_once(run: RunFolder) -> None:
    """Also after a kill that cut a row, and a resumption from the round before the last."""
    killed = open_for(run, backend="none")
    for number in (1, 2, 3):
        killed.log_round(round_record(number), client_records(number))
    with (run.root / "metrics.csv").open("a") as file:
        file.write("4,0.2")
    resumed = open_for(run, backend="none")
    resumed.log_round(round_record(3), client_records(3)[:1])
    rows = list(csv.DictReader((run.root / "metrics.csv").open()))
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert [*rows[0]] == ["round", *ROUND_COLUMNS]
    for number, row in enumerate(rows, start=1):
        clients = client_records(number)[: 1 if number == 3 else 2]
        expected = round_metrics(round_record(number), clients)
        assert {name: float(row[name]) for name in ROUND_COLUMNS if row[name]} == pytest.approx(expected)
    assert float(rows[2]["clients/train_loss/max"]) == 1.0, "of s1 alone, 3 / 3"


def test_a_rounds_names_do_not_depend_on_who_took_part() -> None:
    record, clients = replace(round_record(2), server_learning_rate=0.1), client_records(2)
    assert {*round_metrics(record, clients)} == {*ROUND_COLUMNS}
    assert {*round_metrics(record, clients[:1])} == {*ROUND_COLUMNS}
    own = {*round_metrics(record, clients, per_client=True)} - {*ROUND_COLUMNS}
    assert {name.split("/")[1] for name in own} == {"s1", "s2"}


def test_names_of_attacks_do_not_depend_on_the_grid() -> None:
    """The figure is of the budget that most attacks share."""
    worst = replace(PGD, attack="worst_case", robust_uar=0.2)
    grid = [CLEAN, *(replace(PGD, epsilon=eps, robust_uar=uar) for eps, uar in ((0.01, 0.6), (0.05, 0.25), (0.1, 0.0)))]
    l2 = replace(PGD, attack="cw_l2", norm="2", epsilon=5.0, robust_uar=0.1)

    def stable(records: list[AttackRecord]) -> dict[str, float]:
        return {key: value for key, value in attack_metrics(records).items() if key.startswith("attack/")}

    expected = {"attack/epsilon": 0.05, "attack/clean": 0.75, "attack/pgd": 0.25, "attack/worst_case": 0.2}
    assert stable([CLEAN, PGD, worst]) == expected
    assert stable([*grid, worst]) == expected
    assert stable([*grid, worst, l2]) == expected | {"attack/cw_l2": 0.1}
    assert stable([CLEAN]) == {"attack/clean": 0.75}


def test_curves_are_of_attacks_at_several_budgets() -> None:
    adaptive = replace(PGD, defence="randomisation", knowledge="adaptive")
    records = [replace(PGD, epsilon=0.1, robust_uar=0.0), PGD, replace(PGD, attack="fgsm"), adaptive, CLEAN]
    assert curves(records) == {"none": {"pgd": [(0.05, 0.25), (0.1, 0.0)]}}
    assert curves([*records, replace(adaptive, epsilon=0.1)])["randomisation"] == {
        "pgd, adaptive": [(0.05, 0.25), (0.1, 0.25)]
    }


def test_calibration_is_a_figure() -> None:
    before, after = {"nll": 1.5, "ece": 0.3}, {"nll": 1.25, "ece": 0.125}
    calibration = {"temperature": 2.0, "uncalibrated": before, "calibrated": after, "words": []}
    found = summary_metrics({**SUMMARY, "calibration": calibration})
    assert (found["test/temperature"], found["test/ece"], found["test/nll_uncalibrated"]) == (2.0, 0.125, 1.5)
    without = summary_metrics(
        {**SUMMARY, "calibration": {"temperature": 1.0, "uncalibrated": None, "calibrated": None}}
    )
    assert "test/ece" not in without
    figures = {"uar": 0.5, "accuracy": 0.5, "macro_f1": 0.5, "num_utterances": 3, "calibrated": after}
    assert evaluation_metrics("nemo-test", figures)["evaluation/nemo-test/ece"] == 0.125


def test_tags_fit_wandb() -> None:
    assert tags_of({**settings_for(tags=["x" * 99, "nemo"]), "federation": {}}) == ("a run", "nemo", "pgd", "x" * 64)


@pytest.mark.parametrize(("asked", "expected"), [(0, 0), (1, 2), (5, 4)])
def test_recordings_go_only_where_asked_for(
    run: RunFolder, asked: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.adversarial.mkdir()
    for number, name in enumerate(("a-clean", "a-pgd", "b-clean", "b-pgd")):
        soundfile.write(run.adversarial / f"{name}.wav", np.full(160, number / 10, np.float32), 16_000)
    run.report.write_text('<audio src="data:audio/wav;base64,AA">')
    tracker = open_for(run, num_recordings=asked)
    tracker.log_attacks([CLEAN, PGD], {})
    tracker.log_report()
    tracker.finish()
    (records,) = offline_runs(run)
    assert sum(row.get("attack/recordings/count", 0) for row in history(records)) == expected
    assert len(list(run.root.glob("wandb/offline-run-*/files/media/audio/**/*.wav"))) == expected
    kinds = {record.artifact.type for record in records}
    assert ("report" in kinds) is bool(asked)


@pytest.mark.slow
def test_a_training_on_a_node_with_a_key_and_no_network_can_be_sent_later(tmp_path: Path) -> None:
    """The program as it is, and W&B's own library: the printed command names a whole offline run."""
    account = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | account
    words = ["train", "experiment=debug", "tracking=wandb", "data.utterances_per_emotion=3", "run_dir=run"]
    command = [sys.executable, "-m", "ser_fl", *words, f"data.cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "this run is tracked offline" in done.stderr and "Traceback" not in done.stderr
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder.relative_to(tmp_path)}\n" in done.stdout
    (records,) = offline_runs(RunFolder(tmp_path / "run"))
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    rows = [row for row in history(records) if "val/uar" in row]
    assert [row["val/uar"] for row in rows] == pytest.approx([one["uar"] for one in rounds])
    assert summary_of(records)["test/uar"] == json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["uar"]
