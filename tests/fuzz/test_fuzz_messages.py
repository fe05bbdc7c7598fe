"""Messages that no host of ours would send, both ways: each is answered, or refused by name, and nothing of it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from harness import cases_of, check_line, result_or_line
from hypothesis import strategies as st

from ser_fl.calibration import TEMPERATURES, fitted
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import PARTS
from ser_fl.federation.algorithm import GLOBAL, FedAvg
from ser_fl.federation.client import ClientTask
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.enrolment import enrol as enrol_nodes
from ser_fl.federation.flower.nodes import Nodes, told_settings
from ser_fl.federation.flower.serialisation import PROTOCOL, asked_in, put, put_json
from ser_fl.federation.flower.server_app import FlowerExecutor
from ser_fl.federation.server import ClientResults, Server
from ser_fl.runs.records import State

NODE, MELS = 5, 64
SPEAKERS = ("f01", "m01")


def state() -> State:
    return {
        "weight": torch.linspace(-1, 1, 6).reshape(2, 3),
        "running_var": torch.ones(3),
        "num_batches_tracked": torch.tensor(7),
    }


def standardisation() -> Standardisation:
    zeros, ones = torch.zeros(MELS), torch.ones(MELS)
    return Standardisation(zeros, ones, -ones, ones)


@cache
def settings() -> Config:
    """Composed once: that takes longer than what is tried with it."""
    return compose(["experiment=debug", "executor=flower", "tracking=none"])


def speakers_answer() -> RecordDict:
    facts = [{"speaker": name, "sex": name[0], "emotions": {"anger": 7, "fear": 7}, "texts": {}} for name in SPEAKERS]
    return answer({"speakers": facts, "skipped": 0})


def enrol_answer() -> RecordDict:
    records = answer(
        {
            "clients": dict.fromkeys(SPEAKERS, 6),
            "frames": dict.fromkeys(SPEAKERS, 6 * settings().frontend.num_frames),
            "sizes": {"train": dict.fromkeys(SPEAKERS, 6)} | {part: dict.fromkeys(SPEAKERS, 4) for part in PARTS[1:]},
            "digests": dict.fromkeys(SPEAKERS, "0" * 32),
        }
    )
    for name in SPEAKERS:
        ones = torch.ones(MELS, dtype=torch.float64)
        put(records, f"statistics/{name}", {"sum_F": ones, "sum_of_squares_F": 2 * ones, "maximum_F": ones})
    return records


def update_answer() -> RecordDict:
    figures = {"num_examples": 6, "train_loss": 1.5, "seconds": 0.1, "update_norm": 0.2}
    records = answer({"updates": dict.fromkeys(SPEAKERS, figures)})
    for name in SPEAKERS:
        put(records, f"update/{name}", state())
    return records


def scores_answer() -> RecordDict:
    return answer({"confusions": {name: [[2, 0], [1, 1]] for name in SPEAKERS}})


def confidences_answer() -> RecordDict:
    rows = [[2.5, 4.0, 3.0, 3.0]] * len(TEMPERATURES)
    return answer({"confidences": dict.fromkeys(SPEAKERS, rows)})


def answer(content: Mapping[str, Any]) -> RecordDict:
    records = RecordDict()
    put_json(records, content)
    return records


@dataclass
class Scripted:
    """In place of a `Grid`: one node that gives the prepared answers in turn."""

    answers: list[RecordDict]
    arrived: dict[str, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def get_node_ids(self) -> list[int]:
        return [NODE]

    def push_messages(self, questions: Iterable[Message]) -> list[str]:
        for question in questions:
            asked = question.metadata.__dict__["_message_id"] = str(len(self.answers))
            self.arrived[asked] = Message(answering(self.answers.pop(0), question.content), reply_to=question)
        return list(self.arrived)

    def pull_messages(self, asked: Iterable[str]) -> list[Message]:
        return [self.arrived.pop(number) for number in asked]


def answering(records: RecordDict, question: RecordDict) -> RecordDict:
    """With what an answer must repeat of its question, where it is JSON at all."""
    record = records.get("message")
    try:
        content = json.loads(str(record["json"])) if isinstance(record, ConfigRecord) else None
    except (ValueError, RecursionError, KeyError):
        return records
    if not isinstance(content, dict) or "error" in content:
        return records
    changed = {"message": ConfigRecord({"json": json.dumps({**content, "asked": asked_in(question)})})}
    return RecordDict({**dict(records.items()), **changed})


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(
            [0, -1, 1, 2**53 + 1, 2**80, -(2**80), 10**400, 1e308, math.nan, math.inf, "", "7", "\x00", "\n"]
        ),
        st.integers(),
        st.floats(),
        st.text(max_size=30),
        st.just("x" * 30_000),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def mangled_json(draw: st.DrawFn, text: str) -> str:
    """The message of a host, with something in it that should not be."""
    how = draw(st.sampled_from(["value", "value", "value", "drop", "add", "cut", "deep", "other", "protocol"]))
    if how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if how == "deep":
        return "[" * 5000 + "]" * 5000
    if how == "other":
        return json.dumps(draw(values))
    content = json.loads(text)
    if how == "protocol":
        content["protocol"] = draw(values)
        return json.dumps(content)
    node: Any = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return json.dumps(content)
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 2)):
            node = node[key]
            continue
        break
    if how == "value" or isinstance(node, list):
        node[key] = draw(values)
    elif how == "drop":
        del node[key]
    else:
        node[draw(st.text(max_size=12))] = draw(values)
    return json.dumps(content)


@st.composite
def mangled_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of tensors with flipped, missing or other bytes."""
    how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "header", "header", "other"]))
    if how == "other":
        return draw(st.binary(max_size=200))
    place = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:place]
    if how == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=9)) + content[place:]
    length = int.from_bytes(content[:8], "little")
    if how == "header":  # a header that is JSON and lies
        header = draw(mangled_json(content[8 : 8 + length].decode())).encode(errors="replace")
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@st.composite
def mangled(draw: st.DrawFn, honest: RecordDict) -> RecordDict:
    """An honest message with one or two of its records mangled."""
    records = RecordDict(dict(honest.items()))
    for name in draw(st.lists(st.sampled_from(sorted(honest)), min_size=1, max_size=2)):
        how = draw(st.sampled_from(["inside", "inside", "inside", "inside", "drop", "other kind"]))
        record = honest[name]
        if how == "drop":
            records.pop(name, None)
        elif how == "other kind":
            records[name] = draw(st.sampled_from([MetricRecord({"a": 1}), ConfigRecord({"json": 7}), ArrayRecord()]))
        elif isinstance(record, ConfigRecord):
            records[name] = ConfigRecord({"json": draw(mangled_json(str(record["json"])))})
        elif isinstance(record, ArrayRecord):
            (key, array), *_ = record.items()
            stype = draw(st.sampled_from([array.stype] * 6 + ["numpy.ndarray", "pickle", ""]))
            data = draw(mangled_bytes(array.data))
            shape = draw(st.sampled_from([(len(data),), (), (0,), (10**12,)]))
            key = draw(st.sampled_from([key] * 6 + ["other"]))
            records[name] = ArrayRecord({key: Array("uint8", shape, stype, data)})
    return records


def enrolled(answers: list[RecordDict]) -> Nodes:
    nodes = Nodes(Scripted([speakers_answer(), enrol_answer(), *answers]), settings())  # type: ignore[arg-type]
    enrol_nodes(nodes, 1, 1.0)
    return nodes


def check_lines(reason: str) -> None:
    """A node's own words may be of several lines, such as a client's traceback."""
    for line in reason.split("\n"):
        check_line(line)


@cases_of("answers of nodes", quick=40)
def test_answers_of_nodes(explore: Callable[..., None], num_cases: int) -> None:
    """Enrolment, training and scoring go on with finite numbers of the right form, or say who gave none and why."""

    def enrol(case: tuple[RecordDict, RecordDict]) -> None:
        nodes = Nodes(Scripted(list(case)), settings())  # type: ignore[arg-type]
        client_manifest = result_or_line(enrol_nodes, nodes, 1, 1.0)
        if client_manifest is not None:
            assert all(type(name) is str for name in client_manifest.client_ids)
            assert all(not tensor.isnan().any() for tensor in client_manifest.standardisation.state_dict().values())

    def train(records: RecordDict) -> None:
        nodes = enrolled([records])
        tasks = [ClientTask(round=1, client_id=name, state=state(), learning_rate=0.1) for name in SPEAKERS]
        algorithm = FedAvg()
        algorithm.models = {GLOBAL: state()}
        results = ClientResults(round=1, reference=state(), server=Server(algorithm))
        for client_id, outcome in FlowerExecutor(nodes).run(tasks):
            results.take(client_id, outcome)
        assert len(results.records) + len(results.failures) == len(SPEAKERS)
        for failure in results.failures:
            check_lines(failure.error)
        if results.records:
            algorithm.finish(1)
            assert all(torch.isfinite(tensor).all() for tensor in algorithm.models[GLOBAL].values())

    def score(records: RecordDict) -> None:
        nodes = enrolled([records, records])
        scored = FlowerExecutor(nodes).score({GLOBAL: state()}, "test")
        assert {*scored.by_holder, *(failure.client_id for failure in scored.failures)} == set(SPEAKERS)
        for failure in scored.failures:
            check_lines(failure.error)
        assert all(matrix.shape == (2, 2) and matrix.sum() == 4 for matrix in scored.by_holder.values())

    def calibrate(records: RecordDict) -> None:
        nodes = enrolled([records, records])
        told = FlowerExecutor(nodes).confidences({GLOBAL: state()}, "validation")
        assert {*told.by_holder, *(failure.client_id for failure in told.failures)} == set(SPEAKERS)
        fit = fitted(told.by_holder, [failure.client_id for failure in told.failures])
        assert TEMPERATURES[0] <= fit.temperature <= TEMPERATURES[-1] and fit.num_utterances == 4 * len(told.by_holder)

    def try_case(case: tuple[str, Any]) -> None:
        {"enrol": enrol, "train": train, "score": score, "calibrate": calibrate}[case[0]](case[1])

    cases = st.one_of(
        st.tuples(st.just("enrol"), st.tuples(mangled(speakers_answer()), st.just(enrol_answer()))),
        st.tuples(st.just("enrol"), st.tuples(st.just(speakers_answer()), mangled(enrol_answer()))),
        st.tuples(st.just("train"), mangled(update_answer())),
        st.tuples(st.just("train"), mangled(update_answer())),
        st.tuples(st.just("score"), mangled(scores_answer())),
        st.tuples(st.just("calibrate"), mangled(confidences_answer())),
    )
    explore(cases, try_case)


def question(**content: Any) -> RecordDict:
    records = answer({"config": told_settings(settings()), "classes": ["anger", "fear"], **content})
    put(records, "standardisation", standardisation().state_dict())
    put(records, "model", state())
    return records


@cases_of("questions to nodes", quick=20)
def test_questions_to_nodes(explore: Callable[..., None], num_cases: int) -> None:
    """A node answers whatever it is asked: with what it was asked for, or with one line that says why not."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def ask(case: tuple[str, RecordDict]) -> None:
        kind, records = case
        message = Message(records, NODE, kind)
        message.metadata.__dict__["_message_id"] = "1"
        said = app(message, Context(1, NODE, {"speakers": "f01"}, RecordDict(), {})).content
        record = said["message"]
        assert isinstance(record, ConfigRecord)
        content = json.loads(str(record["json"]))
        assert content["protocol"] == PROTOCOL
        if "error" in content:
            check_line(content["error"])

    explore(mangled_questions(), ask)


def mangled_questions() -> st.SearchStrategy[tuple[str, RecordDict]]:
    return st.one_of(
        st.tuples(st.just("query.speakers"), mangled(question())),
        st.tuples(st.just("train"), mangled(question(round=1, learning_rate=0.1, clients=["f01"]))),
        st.tuples(st.just("evaluate"), mangled(question(part="test", attacked=False))),
        st.tuples(st.just("query.confidences"), mangled(question(part="test", temperature=1.5))),
    )


@cases_of("questions to a node with a policy", quick=40)
def test_questions_to_a_node_with_a_policy(explore: Callable[..., None], num_cases: int, tmp_path: Path) -> None:
    """Each is a line of the audit log, answered or not, and what was never enrolled is neither trained nor scored."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    policy, log = tmp_path / "site.policy.yaml", tmp_path / "state" / "audit.jsonl"
    policy.write_text("most_answers_per_hour: 1000000\nmost_audit_mb: 0.1\n")
    policy.chmod(0o600)
    node_config = {"speakers": "f01", "policy": str(policy), "state": str(log.parent)}

    def ask(case: tuple[str, RecordDict]) -> None:
        kind, records = case
        message = Message(records, NODE, kind)
        message.metadata.__dict__["_message_id"] = "1"
        said = app(message, Context(1, NODE, dict(node_config), RecordDict(), {})).content
        content = json.loads(str(said["message"]["json"]))
        line = json.loads(log.read_text().splitlines()[-1])
        assert line["type"] == kind and line["bytes_in"] >= 0
        assert ("error" in content) == (line["why"] is not None) and line["allowed"] in (True, False)
        if kind != "query.speakers":
            assert list(said) == ["message"] and "error" in content, "it has not enrolled"
            check_line(content["error"])

    explore(mangled_questions(), ask)
    assert {path.name for path in log.parent.iterdir()} <= {"policy.json", ".policy.lock", ".audit.lock", *AUDIT_FILES}
    assert sum(path.stat().st_size for path in log.parent.glob("audit*")) < 6e5


AUDIT_FILES = ("audit.jsonl", *(f"audit.jsonl.{number}" for number in range(1, 5)))
