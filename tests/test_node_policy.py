"""A node's policy: each limit is enforced on the node, before anything is computed, and every question is written down.

The node is the ClientApp as it is deployed, called in this process; a server that does as it likes asks it.
"""

import importlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache as remembered
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flower_grid import InProcessGrid
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.config.policy import DEFAULT, Policy, read_policy
from ser_fl.config.schema import Config
from ser_fl.data.frontend import Standardisation
from ser_fl.data.prepared import Host, open_partition
from ser_fl.data.splits import SpeakerFacts, settle_split
from ser_fl.deployment.keys import KeyFolder, make_keys
from ser_fl.errors import UserError
from ser_fl.federation.flower import client_app
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.nodes import told_settings
from ser_fl.federation.flower.serialisation import put, put_json, take, take_json
from ser_fl.federation.flower.server_app import serve
from ser_fl.federation.hooks import Hooks
from ser_fl.models.networks import build_network
from ser_fl.runs.audit import AuditLog

pytestmark = pytest.mark.flower

BASE = (
    "experiment=debug",
    "tracking=none",
    "executor=flower",
    "precision=32-true",
    "data.num_speakers=2",
    "data.utterances_per_emotion=8",
)
SMALL = {"least_utterances": 5, "least_scored": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy") / "cache"


class Node:
    """One node with a policy; `ask` is what a server asks, with settings and contents of its choice."""

    def __init__(self, folder: Path, cache: Path, **policy: Any) -> None:
        self.file, self.state = folder / "site.policy.yaml", folder / "state"
        folder.mkdir(exist_ok=True)
        self.allow(**policy)
        self.config = {"policy": str(self.file), "state": str(self.state), "cache-dir": str(cache)}

    def allow(self, **policy: Any) -> None:
        self.file.write_text(yaml.safe_dump(policy or {"schema": 1}))
        self.file.chmod(0o600)

    def ask(self, kind: str, *changes: str, config: Config | None = None, **content: Any) -> tuple[dict[str, Any], Any]:
        config = config or settings(*changes)
        records = RecordDict()
        model = content.pop("model", None)
        told = {"config": told_settings(config), "classes": CLASSES, **content}
        told["config"]["executor"] |= content.pop("executor", {})
        put_json(records, told)
        if model is not None:
            put(records, "model", model)
            zeros, ones = torch.zeros(64), torch.ones(64)
            put(records, "standardisation", Standardisation(zeros, ones, -ones, ones).state_dict())
        return self.send(kind, records)

    def send(self, kind: str, records: RecordDict) -> tuple[dict[str, Any], Any]:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        message = Message(records, 1, kind)
        message.metadata.__dict__["_message_id"] = "1"
        answer = app(message, Context(1, 1, self.config, RecordDict(), {})).content
        return take_json(answer), answer

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "audit.jsonl").read_text().splitlines()]


CLASSES = ["anger", "disgust", "fear", "guilt", "happiness", "sadness", "surprise"]


@remembered
def settings(*changes: str) -> Config:
    return compose([*BASE, *changes])


def weights(config: Config) -> dict[str, torch.Tensor]:
    return build_network(config.model, len(CLASSES), seed=0, frontend=config.frontend).state_dict()


def test_what_keys_writes_is_the_defaults(tmp_path: Path) -> None:
    make_keys(tmp_path, nodes=["site0"])
    file = KeyFolder(tmp_path).policy("site0")
    assert read_policy(file) == Policy() and file.stat().st_mode & 0o777 == 0o600
    assert set(yaml.safe_load(DEFAULT)) == {each.name for each in fields(Policy)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("least_utterance: 3", "unknown setting 'least_utterance', did you mean 'least_utterances'"),
        ("least_utterances: 0", "least_utterances"),
        ("least_utterances: many", "least_utterances"),
        ("models: [crnn, own]", "models"),
        ("app: any\nmost_rounds: 3", "app: any lets code of others run, which most_rounds does not bind"),
        ("most_rounds: 3\nmost_rounds: 4", "most_rounds is given twice"),
        ("schema: 2", "schema"),
        ("- app", "must hold settings"),
        ("app: [", "is no YAML"),
        ("", "must hold settings"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_keys(tmp_path, nodes=["site0"])
    KeyFolder(tmp_path).policy("site0").write_text(text)
    assert main(["federation", "node", str(tmp_path), "site0", "--link", "localhost:9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "site0.policy.yaml" in line


def test_a_policy_is_missing_or_writable_by_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_keys(tmp_path, nodes=["site0"])
    file = KeyFolder(tmp_path).policy("site0")
    for mode in (0o602, 0o620):
        file.chmod(mode)
        with pytest.raises(UserError, match="chmod 600"):
            read_policy(file)
    file.unlink()
    node = ["federation", "node", str(tmp_path), "site0", "--link", "localhost:9"]
    assert main(node) == 2
    assert "keys DIR --policies site0" in capsys.readouterr().err
    assert main(["federation", "keys", str(tmp_path), "--policies", "site0"]) == 0
    assert read_policy(file) == Policy()
    assert main(["federation", "keys", str(tmp_path), "--policies", "site0"]) == 2
    assert "never written over" in capsys.readouterr().err
    assert main([*node, "--install-dependencies"]) == 2
    assert "app: installed" in capsys.readouterr().err


NO_SUCH = {"round": 1, "learning_rate": 0.1, "clients": ["f01"]}


@pytest.mark.parametrize(
    ("policy", "changes", "content", "said"),
    [
        ({"front_ends": ["ge2e"]}, (), {}, "front_ends: 'log_mel'"),
        ({"splits": ["published"]}, (), {}, "splits: 'within_speaker'"),
        ({"models": ["vgg15"]}, (), {}, "models: 'crnn'"),
        ({"most_parameters": 1000}, (), {}, r"most_parameters: \d+, of 1000"),
        ({}, ("model.hidden=1000000000",), {}, r"most_parameters: \d+, of 50000000"),
        ({"most_rounds": 3}, ("federation.num_rounds=4",), {}, "most_rounds: 4, of 3"),
        ({"most_rounds": 3}, (), {"round": 4}, "most_rounds: 4, of 3"),
        ({}, ("federation.local_epochs=101",), {}, "most_local_epochs: 101, of 100"),
        ({}, (), {"executor": {"threads": 10**6}}, "most_threads: 1000000, of 4"),
        ({"most_message_mb": 0.001}, (), {}, "a message of 0.0 MB, of 0.001 MB"),
        ({"most_answers_per_hour": 0}, (), {}, "0 answers in this hour"),
        ({"least_noise": 1.0}, (), {}, "asks for noise"),
    ],
)
def test_each_limit_is_kept_on_the_node_before_anything_is_computed(
    tmp_path: Path,
    cache: Path,
    policy: dict[str, Any],
    changes: tuple[str, ...],
    content: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_app, "open_node_corpus", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr(client_app, "_open_share", lambda *_: pytest.fail("it was computed"))
    changes = ("federation.num_rounds=2", *changes)
    for kind in ("query.speakers", "query.enrol", "train", "evaluate", "query.confidences"):
        node = Node(tmp_path / kind, cache, **SMALL | policy)
        answer, _ = node.ask(kind, *changes, **NO_SUCH | content)
        assert set(answer) == {"error"} and re.search(said, answer["error"]), answer
        (line,) = node.log()
        assert line["allowed"] is False and line["type"] == kind and "the policy of this node" in line["why"]


def test_a_model_that_comes_may_have_no_more_parameters_than_the_policy_says(tmp_path: Path, cache: Path) -> None:
    node = Node(tmp_path, cache, **SMALL, most_parameters=300_000)
    assert "error" not in node.ask("query.enrol")[0]
    answer, _ = node.ask("train", **NO_SUCH, model={"weight": torch.zeros(300_001)})
    assert "most_parameters: 300001, of 300000" in answer["error"]


def test_clients_below_the_minimum_stay_home(tmp_path: Path, cache: Path) -> None:
    """Oracle: what the partition without a policy holds."""
    config = settings("data.num_speakers=3", "clients=speaker")
    whole = open_partition(Host(cache_dir=str(cache)).config_of(told_settings(config)), Host(), CLASSES)
    counts = {client: len(held) for client, held in whole.clients.items()}
    least = max(counts.values()) + 1
    node = Node(tmp_path, cache, least_utterances=least, least_scored=1)
    said, records = node.ask("query.enrol", "data.num_speakers=3")
    assert said["clients"] == {} and said["frames"] == {} and said["sizes"]["train"] == {}
    assert list(records) == ["message"], "no sums"
    assert set(said["sizes"]["test"]) == set(counts)
    answer, _ = node.ask("train", "data.num_speakers=3", **NO_SUCH, model=weights(config))
    assert "no such client has enrolled here: 'f01'" in answer["error"]
    speakers = [whole.store.utterances[row].speaker for row in whole.split.test]
    most = max(map(speakers.count, counts))
    scoring = Node(tmp_path / "scored", cache, least_utterances=1, least_scored=most + 1)
    assert scoring.ask("query.enrol", "data.num_speakers=3")[0]["sizes"]["test"] == {}


def test_statistics_are_told_once_a_corpus_also_after_a_restart(tmp_path: Path, cache: Path) -> None:
    node = Node(tmp_path, cache, **SMALL)
    first, records = node.ask("query.enrol")
    assert set(first["clients"]) == set(first["frames"]) == {"f01", "m01"}
    again, same = node.ask("query.enrol")
    assert again == first and "statistics/f01" in records
    for name in ("statistics/f01", "statistics/m01"):
        assert all(
            torch.equal(a, b) for a, b in zip(take(records, name).values(), take(same, name).values(), strict=True)
        )
    for other in ("split.seed=9", "split.test_fraction=0.3", "frontend.duration_s=0.8", "frontend.num_mels=32",
                  "normalisation=speaker", "clients.num_clients=1", "data.channel=mean"):  # fmt: skip
        answer, records = node.ask("query.enrol", other)
        assert "most_views is 1" in answer.get("error", ""), other
        assert list(records) == ["message"], other
        for kind in ("train", "evaluate", "query.confidences"):
            answer, _ = node.ask(kind, other, **NO_SUCH, part="test", attacked=False, temperature=None)
            assert "it has not enrolled with these settings" in answer["error"], (kind, other)
    assert [line["allowed"] for line in node.log()] == [True, True] + 28 * [False]


def test_more_views_open_no_more_sums(tmp_path: Path, cache: Path) -> None:
    node = Node(tmp_path, cache, **SMALL, most_views=3)
    assert "error" not in node.ask("query.enrol")[0]
    assert "statistics: once" in node.ask("query.enrol", "split.seed=9")[0]["error"]
    assert "error" not in node.ask("query.enrol", "split.seed=9", "normalisation=speaker")[0]
    assert (
        "statistics: once"
        in node.ask("query.enrol", "normalisation=speaker", "normalisation.share_mean=true")[0]["error"]
    )
    never = Node(tmp_path / "never", cache, **SMALL, statistics="never")
    assert "statistics: never" in never.ask("query.enrol")[0]["error"]
    assert "error" not in never.ask("query.enrol", "normalisation=speaker")[0]


def test_sums_over_changed_recordings_are_not_told_beside_those_told_before(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, cache, **SMALL)
    first, told = node.ask("query.enrol")
    node.config["speakers"] = "f01"
    answer, _ = node.ask("query.enrol")
    assert "other recordings than it has answered for" in answer["error"]
    del node.config["speakers"]
    of = client_app.FeatureStatistics.of
    monkeypatch.setattr(client_app.FeatureStatistics, "of", lambda features: of(features + 1))
    again, same = node.ask("query.enrol")
    assert again == first
    assert torch.equal(take(told, "statistics/f01")["sum_F"], take(same, "statistics/f01")["sum_F"])


def test_a_state_that_cannot_be_read_refuses_all(tmp_path: Path, cache: Path) -> None:
    node = Node(tmp_path, cache, **SMALL)
    node.ask("query.enrol")
    (node.state / "policy.json").write_text('{"schema": 1, "views": 3}')
    assert "policy.json of its state folder cannot be read" in node.ask("query.enrol")[0]["error"]
    node.file.write_text("most_rounds: -1")
    assert "most_rounds" in node.ask("query.speakers")[0]["error"]
    assert node.log()[-1]["allowed"] is False


def test_answers_are_counted_by_the_hour(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path, cache, **SMALL, most_answers_per_hour=2)
    asked: Callable[[], bool] = lambda: "error" not in node.ask("query.speakers")[0]  # noqa: E731
    monkeypatch.setattr(time, "time", lambda: 7200.0)
    assert [asked() for _ in range(3)] == [True, True, False]
    monkeypatch.setattr(time, "time", lambda: 10800.0)
    assert asked()


def test_memory_is_limited_while_an_answer_is_made(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: Any) -> Any:
        return {}, {"x": {"y": torch.ones(100_000_000)}}

    node = Node(tmp_path, cache, **SMALL, most_memory_gb=0.1)
    monkeypatch.setattr(client_app, "facts_of", greedy)
    answer, _ = node.ask("query.speakers")
    assert "error" in answer and ("allocate" in answer["error"] or "Memory" in answer["error"]), answer
    torch.ones(100_000_000)  # and not afterwards


def test_a_run_at_nodes_with_a_policy_is_that_without(tmp_path: Path, cache: Path) -> None:
    """Of clients that all have enough; each question is a line of the audit log, without any path or data."""
    changes = ("federation.num_rounds=2", f"data.cache_dir={cache}", "executor.num_nodes=2")
    nodes = [Node(tmp_path / name, cache, **SMALL) for name in ("f01", "m01")]
    hosts = {number: node.config | {"speakers": node.file.parent.name} for number, node in enumerate(nodes, 1)}
    bare = {number: {"cache-dir": str(cache), "speakers": node["speakers"]} for number, node in hosts.items()}
    guarded = serve(settings(*changes, f"run_dir={tmp_path / 'guarded'}"), InProcessGrid(app, hosts), Hooks())
    free = serve(settings(*changes, f"run_dir={tmp_path / 'free'}"), InProcessGrid(app, bare), Hooks())
    assert guarded.weights.read_bytes() == free.weights.read_bytes()
    lines = nodes[0].log()
    kinds = [line["type"] for line in lines]
    assert kinds[:2] == ["query.speakers", "query.enrol"] and kinds.count("train") == 2
    assert all(line["allowed"] and line["why"] is None and line["bytes_out"] > 0 for line in lines)
    trained = next(line for line in lines if line["type"] == "train")
    assert trained["asked"] == {
        "round": 1,
        "clients": ["f01"],
        "frontend.name": "seconds3",
        "split.name": "within_speaker",
        "model.name": "crnn",
        "clients.name": "speaker",
        "normalisation.name": "pooled",
    }
    assert str(tmp_path) not in (nodes[0].state / "audit.jsonl").read_text()


def test_the_audit_log_is_whole_and_bounded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", most_mb=0.001)
    for number in range(200):
        log.add(number=number, text="ä\n" * 5000, many=list(range(1000)), nan=float("nan"), huge=10**400)
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert [file.name for file in files] == ["audit.jsonl", *(f"audit.jsonl.{n}" for n in range(1, 5))]
    assert all(file.stat().st_size < 2000 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    numbers = [json.loads(line)["number"] for file in reversed([files[0], *files[1:]]) for line in file.open()]
    assert 199 in numbers and len(numbers) == len(set(numbers)) >= 5
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"cut')
    AuditLog(tmp_path / "audit.jsonl").add(number=200)
    cut, last = (tmp_path / "audit.jsonl").read_text().splitlines()[-2:]
    assert cut == '{"cut' and json.loads(last)["number"] == 200


def test_what_is_not_logged_is_not_answered(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/audit.jsonl")

    node = Node(tmp_path, cache, **SMALL)
    monkeypatch.setattr(AuditLog, "add", full)
    answer, records = node.ask("query.enrol")
    assert answer == {"error": "its audit log cannot be written: No space left on device"} and len(records) == 1


def test_a_dry_run_tells_what_would_be_told_and_sends_nothing(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the answers of the node itself."""
    keys = tmp_path / "keys"
    make_keys(keys, nodes=["site0"])
    KeyFolder(keys).policy("site0").write_text("least_utterances: 5\nleast_scored: 1\n")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it calls somebody"))
    line = ["federation", "node", str(keys), "site0", "--cache", str(cache), "--dry-run"]
    assert main([*line, *BASE]) == 0
    said = capsys.readouterr().out
    node = Node(tmp_path / "node", cache, **SMALL)
    told = [SpeakerFacts(**facts) for facts in node.ask("query.speakers")[0]["speakers"]]
    config = replace(settings(), split=settle_split(told, settings().split))
    enrolled, records = node.ask("query.enrol", config=config)
    for speaker, digest in enrolled["digests"].items():
        assert f"speaker {speaker}: " in said and digest in said
    sums = take(records, "statistics/f01")["sum_F"]
    assert f"over {enrolled['frames']['f01']} frames" in said and f"{sums.min():.6g} to {sums.max():.6g}" in said
    assert "least_utterances: 5" in said and "statistics: once" in said
    assert not (keys / "state" / "site0" / "audit.jsonl").exists() and not list(keys.rglob("policy.json"))
    KeyFolder(keys).policy("site0").write_text("least_utterances: 1000\n")
    assert main([*line, *BASE]) == 0
    assert "client f01 stays home" in capsys.readouterr().out
    KeyFolder(keys).policy("site0").write_text("models: [vgg15]\n")
    assert main([*line, *BASE]) == 2
    assert "models: 'crnn'" in capsys.readouterr().err


@pytest.fixture
def leak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module("leak")


@pytest.mark.parametrize("num_frames", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_curious_server_gets_no_recording_back_by_enrolment(leak: Any, num_frames: int) -> None:
    """The same attacker gets every frame of a node without a policy, and none of one with that of `keys`. A policy that
    has the minimum alone leaves sets that differ in one utterance, which is why sums are told once.
    """
    assert num_frames <= leak.NUM_FRAMES
    ways = ((leak.ONE, None), (leak.MANY, leak.exchanged()))
    for split, other in ways:
        free = leak.measure(None, split, other, num_frames)
        assert free["frames_recovered"] == num_frames and free["largest_error"] < 1e-5 and free["refused"] == 0
        kept = leak.measure(DEFAULT, split, other, num_frames)
        assert kept["frames_recovered"] == 0
    assert kept["refused"] == 2 * num_frames - 1, "one view of many is told of"
    many = leak.measure(DEFAULT.replace("most_views: 1", "most_views: 99"), *ways[1], num_frames)
    assert many["frames_recovered"] == 0 and many["refused"] == 2 * num_frames - 1
