"""Rounds on Flower, in one process: the same bits as locally, and nothing that a node does passes unseen.

The SuperLink is a stand-in here (`flower_grid`); the real one is in test_flower_deployed.py.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_grid import InProcessGrid, Tamper, as_they_are, summary_of
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from torch import Tensor

from ser_fl.api import train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump
from ser_fl.data.prepared import Host, prepare
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.checkpoint import checkpoint_key, load_checkpoint
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.flower import submission
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.serialisation import PROTOCOL, WireError, put, put_json, take, take_json
from ser_fl.federation.flower.server_app import serve
from ser_fl.federation.flower.submission import error_line, error_told_by
from ser_fl.federation.hooks import Hooks
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import ClientUpdate, RoundRecord, State

SPEAKERS = ("f01", "f02", "m01", "m02")
BASE = (
    "experiment=debug",
    "tracking=none",
    "precision=32-true",
    "data.num_speakers=4",
    "data.utterances_per_emotion=4",
    "federation.num_rounds=3",
)


ONE_ROUND = "federation.num_rounds=1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flower")


def settings(home: Path, name: str, *changes: str) -> Config:
    return compose([*BASE, f"data.cache_dir={home / 'cache'}", f"run_dir={home / name}", *changes])


def hosts(home: Path, *groups: str) -> dict[int, dict[str, Any]]:
    """Node configurations: each group of speakers, separated by commas, at a node of its own."""
    cache = str(home / "cache")
    return {1000 - number: {"speakers": group, "cache-dir": cache} for number, group in enumerate(groups)}


def on_flower(config: Config, nodes: dict[int, dict[str, Any]], tamper: Tamper = as_they_are) -> RunFolder:
    return serve(config, InProcessGrid(app, nodes, tamper), Hooks())


def untimed(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert untimed(one.rounds) == untimed(other.rounds)
    assert untimed(one.clients) == untimed(other.clients)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert summary_of(one) == summary_of(other)
    assert one.read_json(one.model) == other.read_json(other.model)


ONE_EACH = ("split=speaker_independent", "split.num_test_speakers=1", "split.num_validation_speakers=1", "split.fold=2")


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ONE_EACH,
        (*ONE_EACH, "normalisation=speaker", "enrolment=3"),
        (*ONE_EACH, "normalisation=speaker", "normalisation.share_mean=true"),
        ("split=text_independent", "split.fold=1"),
        ("federation.fraction_train=0.5", "federation.keep_optimiser=true", "optimiser.name=adam"),
        ("objective=pgd", "objective.steps=2", "selection.robust_every=2", "selection.by=robust", "selection.steps=2"),
        ("clients.num_clients=3", "federation.weight_average=0.9", "augmentation=light"),
        ("federation.aggregation=dnc", "federation.aggregation.cells=100", "federation=federated_adam"),
        ("federation.aggregation=fltrust", "federation.aggregation.root=m01", "federation.fraction_train=0.5"),
    ],
    ids=[
        "plain",
        "speaker independent",
        "scaled by speaker",
        "scaled by speaker, mean told",
        "text independent",
        "half a cohort, kept optimisers",
        "adversarial",
        "capped, averaged",
        "divide and conquer, Adam",
        "a trusted root",
    ],
)
def test_the_same_bits_as_on_one_machine(home: Path, changes: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    """Four speakers at three nodes, whose answers come in the wrong order."""
    name = request.node.callspec.id
    local = train(settings(home, f"{name} local", *changes))
    nodes = hosts(home, "m02,f01", "f02", "m01")
    other = on_flower(settings(home, f"{name} flower", "executor=flower", "executor.num_nodes=3", *changes), nodes)
    assert_same_run(local, other)


def test_a_run_may_go_on_elsewhere(home: Path) -> None:
    """Begun on one machine, carried on at three nodes: the same checkpoint, data digest and bits."""
    whole = train(settings(home, "whole"))
    begun = settings(home, "moved", "federation.num_rounds=1")
    train(begun)
    latest = RunFolder(Path(str(begun.run_dir))).checkpoint / "latest.json"
    content = json.loads(latest.read_text(encoding="utf-8"))
    content["config"]["federation"]["num_rounds"] = 3  # as if the first run had been cut short
    latest.write_text(json.dumps(content), encoding="utf-8")
    moved = on_flower(settings(home, "moved", "executor=flower", "resume=true"), hosts(home, *SPEAKERS))
    assert_same_run(whole, moved)


def only(speaker: str, change: Callable[[RecordDict], None], kind: str = "train", number: int = 2) -> Tamper:
    """Changes what one speaker's node answers, in one round."""

    def tamper(question: Message, answer: Message) -> Message | None:
        asked = take_json(question.content)
        is_it = question.metadata.message_type == kind and asked.get("round", number) == number
        if is_it and speaker in json.dumps(take_json(answer.content)):
            change(answer.content)
        return answer

    return tamper


def replace_state(speaker: str, make: Callable[[State], State]) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        put(content, f"update/{speaker}", make(take(content, f"update/{speaker}")))

    return change


def replace_tensor(speaker: str, make: Callable[[Tensor], Tensor]) -> Callable[[RecordDict], None]:
    return replace_state(speaker, lambda state: state | {"output.bias": make(state["output.bias"])})


def replace_bytes(speaker: str, data: bytes, stype: str = "safetensors") -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[f"update/{speaker}"] = ArrayRecord({"state": Array("uint8", (len(data),), stype, data)})

    return change


def replace_figure(speaker: str, **figures: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        said = take_json(content)
        said["updates"][speaker] |= figures
        put_json(content, said)

    return change


class Planted:
    """Leaves a mark where somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def npy_of(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def tensor_file(entry: dict[str, Any], content: bytes = b"") -> bytes:
    """As safetensors writes them, whatever the header says."""
    header = json.dumps({"output.bias": entry}).encode()
    return len(header).to_bytes(8, "little") + header + content


LYING = tensor_file({"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]})
HALF = tensor_file({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"\0" * 4)
STRANGE = tensor_file({"dtype": "F128", "shape": [0], "data_offsets": [0, 0]})
NO_HEADER = (1 << 62).to_bytes(8, "little") + b"{}"


def rename(content: RecordDict) -> None:
    record = content.pop("update/m01")
    assert isinstance(record, ArrayRecord)
    content["update/m01"] = ArrayRecord({"other": record["state"]})


HOSTILE: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "NaN": (replace_tensor("m01", lambda bias: bias * float("nan")), r"output\.bias is not finite"),
    "infinite": (replace_tensor("m01", lambda bias: bias + float("inf")), r"output\.bias is not finite"),
    "another shape": (
        replace_tensor("m01", lambda bias: bias[None]),
        r"it has \(1, \d+\) .* for output\.bias, expected",
    ),
    "oversized": (
        replace_tensor("m01", lambda bias: bias.repeat(100_000)),
        r"its tensors take \d+ bytes, expected \d+ at",
    ),
    "another type": (
        replace_tensor("m01", lambda bias: bias.double()),
        r"torch\.float64 for output\.bias, expected .*float32",
    ),
    "a shape that lies": (replace_bytes("m01", LYING), r"its tensors are damaged: SafetensorError"),
    "half of it": (replace_bytes("m01", HALF), r"its tensors are damaged: SafetensorError"),
    "a type of its own": (replace_bytes("m01", STRANGE), r"its tensors are damaged: SafetensorError"),
    "an endless header": (replace_bytes("m01", NO_HEADER), r"its tensors are damaged: SafetensorError"),
    "no tensor": (replace_bytes("m01", b"not a tensor at all"), r"its tensors are damaged"),
    "nothing": (replace_bytes("m01", b""), r"its tensors are damaged"),
    "another name": (rename, r"it has arrays named \['other'\]"),
    "too heavy": (replace_figure("m01", num_examples=10_000), r"it says that it trained on 10000 utterances, of \d+"),
    "no utterance": (replace_figure("m01", num_examples=0), r"it trained on no utterance \(num_examples=0\)"),
    "a loss of NaN": (replace_figure("m01", train_loss=float("nan")), r"its train_loss is nan"),
    "more than was asked": (replace_figure("m01", path="/etc"), r"its answer cannot be used: .*path"),
    "not its own words": (lambda content: put_json(content, {"hello": 1}), r"its answer cannot be used"),
    "no message": (lambda content: content.pop("message"), r"its answer cannot be used: it has no message"),
    "another entry": (
        replace_state("m01", lambda state: {key: state[key] for key in state if key != "output.bias"}),
        r"it has nothing for output\.bias, expected \(\d",
    ),
    "another version": (
        lambda content: put_json(content, {**take_json(content), "protocol": PROTOCOL + 1}),
        rf"it speaks version {PROTOCOL + 1}, expected {PROTOCOL}",
    ),
    "no tensors": (lambda content: content.pop("update/m01"), r"it has no tensors named 'update/m01'"),
}


@pytest.fixture(scope="module")
def without_m01(home: Path) -> RunFolder:
    """What a run is in which one client's update is lost in round 2, by whatever reason: a node that says an error."""

    def lost(content: RecordDict) -> None:
        put_json(content, {"error": "lost"})

    config = settings(home, "without m01", "executor=flower")
    return on_flower(config, hosts(home, *SPEAKERS), only("m01", lost))


@pytest.mark.parametrize("name", HOSTILE)
def test_an_update_that_cannot_be_used_is_refused_and_named(home: Path, without_m01: RunFolder, name: str) -> None:
    """The others are averaged as if it had not come, and the record says who and why."""
    change, reason = HOSTILE[name]
    config = settings(home, f"hostile {name}", "executor=flower")
    run = on_flower(config, hosts(home, *SPEAKERS), only("m01", change))
    (failure,) = untimed(run.rounds)[1].pop("failures")
    assert failure["client_id"] == "m01" and failure["stage"] == "training"
    assert re.search(reason, failure["error"]), failure["error"]
    assert run.weights.read_bytes() == without_m01.weights.read_bytes()
    assert [len(line["failures"]) for line in untimed(run.rounds)] == [0, 1, 0]


def test_what_is_refused_is_never_unpickled(home: Path, without_m01: RunFolder, tmp_path: Path) -> None:
    """In a node's tensors and, the other way round, in those that a node is sent."""
    mark = tmp_path / "unpickled"
    planted = npy_of(np.array([Planted(mark)], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):  # a true pickle, that would do it
        np.load(io.BytesIO(planted), allow_pickle=False)
    config = settings(home, "planted", "executor=flower")
    for stype, reason in (
        ("numpy.ndarray", "its tensors are serialised as 'numpy.ndarray'"),
        ("safetensors", "its tensors are damaged"),
    ):
        tamper = only("m01", replace_bytes("m01", planted, stype))
        run = on_flower(replace(config, run_dir=f"{config.run_dir} {stype}"), hosts(home, *SPEAKERS), tamper)
        assert reason in untimed(run.rounds)[1]["failures"][0]["error"]
        assert run.weights.read_bytes() == without_m01.weights.read_bytes()
    raw = pickle.dumps(Planted(mark))
    with pytest.raises(WireError, match="its tensors are damaged"):
        take(RecordDict({"x": ArrayRecord({"state": Array("uint8", (len(raw),), "safetensors", raw)})}), "x")
    assert not mark.exists()
    np.load(io.BytesIO(planted), allow_pickle=True)
    assert mark.exists()


def test_a_straggler_is_dropped_and_counted(home: Path, without_m01: RunFolder) -> None:
    """It answers rounds 1 and 3; in round 2 the deadline passes."""

    def silent(question: Message, answer: Message) -> Message | None:
        is_it = question.metadata.message_type == "train" and "m01" in json.dumps(take_json(answer.content))
        return None if is_it and take_json(question.content)["round"] == 2 else answer

    config = settings(home, "straggler", "executor=flower", "executor.deadline_s=0.3")
    run = on_flower(config, hosts(home, *SPEAKERS), silent)
    failures = [line["failures"] for line in untimed(run.rounds)]
    error = "no answer within 0.3 s (executor.deadline_s)"
    assert failures == [[], [{"client_id": "m01", "error": error, "stage": "training", "offence": False}], []]
    assert run.weights.read_bytes() == without_m01.weights.read_bytes()


def test_a_node_that_is_gone_is_not_waited_for_and_joins_again_under_another_number(
    home: Path, without_m01: RunFolder
) -> None:
    """Gone while round 2 trains; back for its validation with a number that nobody knew."""
    grid = InProcessGrid(app, hosts(home, *SPEAKERS))

    def on_round(record: RoundRecord) -> None:
        if record.round == 1:
            grid.nodes = {number: node for number, node in grid.nodes.items() if node["speakers"] != "m01"}

    def come_back(question: Message, answer: Message) -> Message | None:
        if question.metadata.message_type == "train" and take_json(question.content)["round"] == 2:
            grid.nodes[7] = {"speakers": "m01", "cache-dir": str(home / "cache")}
        return answer

    grid.tamper = come_back
    run = serve(settings(home, "rejoined", "executor=flower"), grid, Hooks(on_round=on_round))
    failures = [line["failures"] for line in untimed(run.rounds)]
    assert failures == [
        [],
        [{"client_id": "m01", "error": "its node is not connected", "stage": "training", "offence": False}],
        [],
    ]
    assert run.weights.read_bytes() == without_m01.weights.read_bytes()
    assert 7 in {message.metadata.dst_node_id for message in grid.asked if message.metadata.message_type == "train"}


def test_too_few_updates_stop_the_run_with_what_they_said(home: Path) -> None:
    def broken(question: Message, answer: Message) -> Message | None:
        is_training = question.metadata.message_type == "train"
        return Message(Error(2, "out of memory"), reply_to=question) if is_training else answer

    config = settings(home, "too few", "executor=flower", "federation.min_clients=2")
    with pytest.raises(RoundFailed, match=r"round 1 has 0 updates, needs 2:\n.*Flower says out of memory"):
        on_flower(config, hosts(home, *SPEAKERS), broken)
    again = settings(home, "too few", "executor=flower", "federation.min_clients=2", "resume=true")
    assert on_flower(again, hosts(home, *SPEAKERS)).summary.exists()


def test_validation_that_misses_a_holder_selects_nothing(home: Path) -> None:
    """Asked twice; then the round is on record with who is missing."""
    asked: list[int] = []

    def mute(question: Message, answer: Message) -> Message | None:
        is_validation = take_json(question.content).get("part") == "validation"
        if is_validation and "m01" in take_json(answer.content).get("confusions", {}):
            asked.append(1)
            if len(asked) in (2, 3):  # of round 2: round 1 was answered at once
                return Message(Error(5, "Node Unavailable"), reply_to=question)
        return answer

    run = on_flower(settings(home, "mute", "executor=flower"), hosts(home, *SPEAKERS), mute)
    failures = [line["failures"] for line in untimed(run.rounds)]
    assert [len(of_round) for of_round in failures] == [0, 1, 0]
    assert failures[1][0] == {
        "client_id": "m01",
        "error": "Flower says Node Unavailable (code 5)",
        "stage": "validation",
        "offence": False,
    }
    assert run.read_json(run.summary)["selected_round"] in (1, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda matrix: matrix[:-1], r"its confusion matrix is not of \d+ classes"),
        (lambda matrix: [[value + 1 for value in row] for row in matrix], r"is of \d+ utterances, it has \d+"),
        (lambda matrix: [[-1 for _ in row] for row in matrix], r"cannot be used: confusions\.m01"),
        (lambda matrix: [["1" for _ in row] for row in matrix], r"cannot be used: confusions\.m01"),
    ],
    ids=["a class less", "more utterances", "negative", "words"],
)
def test_figures_that_cannot_be_are_no_figures(
    home: Path, change: Callable[[list[list[int]]], Any], reason: str, request: pytest.FixtureRequest
) -> None:
    def lie(question: Message, answer: Message) -> Message | None:
        said = take_json(answer.content)
        if "m01" in said.get("confusions", {}):
            said["confusions"]["m01"] = change(said["confusions"]["m01"])
            put_json(answer.content, said)
        return answer

    name, one = f"lie {request.node.callspec.id}", "federation.num_rounds=1"
    config = settings(home, name, "executor=flower", one, "federation.strikes=0")
    with pytest.raises(RoundFailed, match=rf"1 of 4 holders of test.*resume=true(.|\n)*m01: .*{reason}"):
        on_flower(config, hosts(home, *SPEAKERS), lie)
    run = RunFolder(Path(str(config.run_dir)))
    assert untimed(run.rounds)[0]["failures"][0]["client_id"] == "m01" and not run.summary.exists()


@pytest.fixture(scope="module")
def unsure(home: Path) -> Any:
    """How a run is calibrated whose m01 says nothing of its validation utterances."""

    def mute(question: Message, answer: Message) -> Message | None:
        asked, said = take_json(question.content), take_json(answer.content)
        if "m01" in said.get("confidences", {}) and asked["part"] == "validation":
            return Message(Error(5, "Node Unavailable"), reply_to=question)
        return answer

    run = on_flower(settings(home, "unsure", "executor=flower", ONE_ROUND), hosts(home, *SPEAKERS), mute)
    return run.read_json(run.summary)["calibration"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[:-1], r"its sums are not 81 rows of 4"),
        (lambda rows: [[0.0]] * len(rows), r"its sums are not 81 rows of 4"),
        (lambda rows: [[nll, count + 1, sure, 0.0] for nll, count, sure, _ in rows], r"its sums are not of \d+ utt"),
        (lambda rows: [[nll, count, sure, count + 1] for nll, count, sure, _ in rows], r"its sums are not of \d+ utt"),
        (lambda rows: [[float("nan"), *others] for _, *others in rows], r"cannot be used: confidences\.m01"),
        (lambda rows: [[-1.0, *others] for _, *others in rows], r"cannot be used: confidences\.m01"),
        (lambda rows: None, r"cannot be used: confidences\.m01"),
    ],
    ids=["a row less", "no sums", "more utterances", "more right", "NaN", "negative", "nothing"],
)
def test_sums_that_cannot_be_do_not_move_the_temperature(
    home: Path,
    change: Callable[[list[list[float]]], Any],
    reason: str,
    unsure: Any,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """It is that of the others, and the record says so."""

    def lie(question: Message, answer: Message) -> Message | None:
        said = take_json(answer.content)
        if "m01" in said.get("confidences", {}) and take_json(question.content)["part"] == "validation":
            said["confidences"]["m01"] = change(said["confidences"]["m01"])
            put_json(answer.content, said)
        return answer

    config = settings(home, f"unsure {request.node.callspec.id}", "executor=flower", ONE_ROUND)
    run = on_flower(config, hosts(home, *SPEAKERS), lie)
    said = run.read_json(run.summary)["calibration"]
    assert said == unsure and said["calibrated"] is not None
    assert said["words"][0] == "without the validation utterances of 1 speakers, first m01"
    assert any(re.search(rf"no validation figures of m01: .*{reason}", line) for line in caplog.messages)


@pytest.mark.parametrize(
    ("groups", "changes", "message"),
    [
        (("f01,m01", "m01"), (), "two nodes hold speaker 'm01': each speaker's data must be at one node"),
        (
            ("f01", "m01"),
            ("executor.num_nodes=3", "executor.wait_s=0.1"),
            "asks for 3 nodes, 2 are connected after 0.1 s",
        ),
        (("f01", "nobody"), (), r"a node cannot take part: UserError: unknown speaker 'nobody'"),
        (("f01", "m01"), ("federation.min_clients=5",), "federation.min_clients must be at most 2"),
        (("f01", "m01"), ("clients.num_clients=3",), r"clients.num_clients must be at most 2 \(one a speaker\), got 3"),
        (("f01",), ("split.test_fraction=0",), "leaves no test utterances"),
    ],
)
def test_a_federation_that_makes_no_experiment(
    home: Path, groups: tuple[str, ...], changes: tuple[str, ...], message: str
) -> None:
    config = settings(home, "none", "executor=flower", "federation.strikes=0", *changes)
    with pytest.raises(UserError, match=message) as caught:
        on_flower(config, hosts(home, *groups))
    assert "\n" not in str(caught.value)
    assert not Path(str(config.run_dir)).exists(), "nothing is left of what never began"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("clients=iid",), r"clients\.by must be speaker or session with executor=flower, got iid"),
        (("federation=centralised",), "executor=flower goes with federation=federated, got federation=centralised"),
        (("executor.superlink=nowhere",), r"executor\.superlink must be HOST:PORT, got 'nowhere'"),
        (("executor.workers=0",), r"executor\.workers must be auto or a whole number"),
    ],
)
def test_settings_that_do_not_go_with_flower(home: Path, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(home, "-", "executor=flower", *changes)


def test_neither_side_tells_the_other_of_its_folders(home: Path, tmp_path: Path) -> None:
    """Nothing of the server's folders in a question, nothing of a node's in an answer, errors included."""
    answers: list[str] = []

    def listen(question: Message, answer: Message) -> Message | None:
        answers.append(repr(answer.content))
        return answer

    secret = home / "secret run"
    grid = InProcessGrid(app, hosts(home, *SPEAKERS), listen)
    serve(settings(home, secret.name, "executor=flower"), grid, Hooks())
    for said in [*answers, *(repr(question.content) for question in grid.asked)]:
        assert str(home) not in said and secret.name not in said
    broken = settings(home, "-", "executor=flower", "data=nemo", "data.root=/server/only")
    nodes = {1: {"data-root": str(tmp_path / "recordings of patients")}}
    with pytest.raises(UserError, match="a node cannot take part") as caught:
        on_flower(broken, nodes)
    assert str(tmp_path) not in str(caught.value) and "/server/only" not in str(caught.value)


def test_a_client_that_fails_does_not_tell_where_its_data_lie(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback is in the server's record, without the folders."""

    update = Clients.update

    def broken(clients: Clients, task: ClientTask) -> ClientUpdate:
        if task.client_id == "m01":
            raise RuntimeError(f"cannot read {home}/cache/features/x.npy")
        return update(clients, task)

    monkeypatch.setattr(Clients, "update", broken)
    answers: list[str] = []

    def listen(question: Message, answer: Message) -> Message | None:
        answers.append(repr(answer.content))
        return answer

    config = settings(home, "told", "executor=flower", "federation.num_rounds=1")
    run = on_flower(config, hosts(home, *SPEAKERS), listen)
    assert any("cannot read" in said for said in answers)
    assert not any(str(home) in said for said in answers), "it is cut before it is sent"
    (failure,) = untimed(run.rounds)[0]["failures"]
    assert "RuntimeError: cannot read" in failure["error"] and "features/x.npy" in failure["error"]
    assert str(home) not in failure["error"] and str(Path(__file__).parent) not in failure["error"]


def test_sums_over_features_stay_where_nobody_needs_them(home: Path) -> None:
    sent = dict[str, list[str]]()

    for name, changes in {"pooled": (), "speaker": ("normalisation=speaker",)}.items():

        def listen(question: Message, answer: Message, name: str = name) -> Message:
            sent.setdefault(name, []).extend(key for key in answer.content if key.startswith("statistics/"))
            return answer

        config = settings(home, f"sums_{name}", "executor=flower", "federation.num_rounds=1", *changes)
        on_flower(config, hosts(home, "f01,f02", "m01,m02"), listen)
    assert sorted(sent["pooled"]) == [f"statistics/{speaker}" for speaker in ("f01", "f02", "m01", "m02")]
    assert sent["speaker"] == []


def test_a_server_cannot_point_a_node_at_a_folder(home: Path, tmp_path: Path) -> None:
    """Whatever settings it sends, a node reads what it was started with."""
    host = Host("/of/the/node", "/cache/of/the/node")
    sent = {"data": {"name": "nemo", "root": "/etc", "cache_dir": "/root"}}
    whole = dump(settings(home, "-"))
    whole["data"] |= sent["data"]
    config = host.config_of(whole)
    assert config.data.root == "/of/the/node" and config.data.cache_dir == "/cache/of/the/node"
    with pytest.raises(UserError, match="this host names no folder of it: give --data"):
        Host().config_of(whole)


def test_the_digest_of_the_data_does_not_depend_on_where_they_are(home: Path) -> None:
    local = prepare(settings(home, "-")).client_manifest()
    config = settings(home, "digest", "executor=flower", "federation.num_rounds=1")
    run = on_flower(config, hosts(home, "f01,f02", "m01,m02"))
    checkpoint = load_checkpoint(run.checkpoint, checkpoint_key(config))
    assert checkpoint is not None and checkpoint.committed.data_digest == local.digest


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such\n  speaker"), "ser-fl: no such speaker"),
        (
            RoundFailed("round 1 has 0 updates:\na: x\nb: y"),
            "ser-fl: the run has failed: round 1 has 0 updates: a: x; b: y",
        ),
        (RoundFailed("gone"), "ser-fl: the run has failed: gone"),
    ],
)
def test_errors_cross_as_a_line_of_the_log(error: UserError | RoundFailed, line: str) -> None:
    assert error_line(error) == line
    told = error_told_by(f"{line}\n")
    assert type(told) is type(error) and str(told) in line
    assert error_told_by(f"INFO {line}") is None


def test_tensors_cross_as_they_are() -> None:
    state = {
        "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).t(),
        "count": torch.tensor(7),
        "sums": torch.arange(5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
    }
    state["tied"] = state["weight"]
    records = RecordDict()
    put(records, "state", state)
    back = take(records, "state", like=state)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in state.items())
    back["weight"].zero_()
    assert state["weight"].abs().sum() > 0, "a copy"
    with pytest.raises(WireError, match=r"half is of type torch\.float16, which does not cross"):
        put(records, "other", {"half": torch.zeros(1, dtype=torch.float16)})


@pytest.mark.parametrize("other", [torch.zeros(1, 3), torch.zeros(4), torch.zeros(3, dtype=torch.float64)])
def test_tensors_of_another_form_than_agreed_on_are_refused(other: Tensor) -> None:
    records = RecordDict()
    put(records, "sums", {"sum": other})
    with pytest.raises(WireError, match=r"it has \(.* for sum, expected \(3,\) torch\.float32"):
        take(records, "sums", like={"sum": torch.zeros(3)})


def test_a_run_is_not_given_to_another_machine_in_the_clear(home: Path) -> None:
    changes = ("executor=flower", "executor.superlink=link.example.org:9092")
    with pytest.raises(
        UserError, match=r"executor\.superlink=link\.example\.org:9092 needs executor\.root_certificates"
    ):
        train(settings(home, "clear", *changes))


def test_a_server_without_clients_of_its_own_can_be_profiled(home: Path) -> None:
    config = settings(home, "profiled", "executor=flower", "profile=true", "federation.num_rounds=2")
    run = on_flower(config, hosts(home, *SPEAKERS))
    plain = on_flower(settings(home, "plain", "executor=flower", "federation.num_rounds=2"), hosts(home, *SPEAKERS))
    assert run.profile.exists() and run.weights.read_bytes() == plain.weights.read_bytes()


def test_a_link_is_told_where_on_its_machine_the_first_run_lies(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is told where the run folder is to be: a relative folder is one of where the command was given."""
    sent: list[dict[str, Any]] = []

    class Link:
        def __init__(self, home: Path) -> None: ...

        def call(self, *arguments: str) -> dict[str, Any]:
            sent.append(json.loads(tomllib.loads(Path(arguments[-1]).read_text())["config"]))
            return {"run-id": 1}

        def follow(self, run_id: str) -> tuple[str, None]:
            return "finished:completed", None

    monkeypatch.setattr(submission, "_Flower", Link)
    monkeypatch.chdir(tmp_path)
    link = ("executor=flower", "executor.superlink=localhost:1")
    submission.submit(settings(home, "run", *link, "init_from=runs/first"))
    submission.submit(settings(home, "run", *link))
    assert [one["init_from"] for one in sent] == [str(tmp_path / "runs/first"), None]
