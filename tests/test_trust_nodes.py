"""What one lying node of several can do to a run on Flower: nothing but be named, and left out.

Nodes are honest ClientApps in one process (`flower_grid`); lies are told on the way. Each was believed, or ended the
run for everybody, before there was a check of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_grid import InProcessGrid, Tamper
from flwr.app import Message, RecordDict

from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.serialisation import put, put_json, take, take_json
from ser_fl.federation.flower.server_app import serve
from ser_fl.federation.hooks import Hooks
from ser_fl.federation.screening import sketch_of
from ser_fl.report.page import write_report
from ser_fl.report.people import standing_out
from ser_fl.report.reader import read_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import State

SPEAKERS = ("f01", "f02", "m01", "m02")
LIAR = 998
"""The node of m01."""
Lie = Callable[[RecordDict], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trust")


def settings(home: Path, name: str, *changes: str) -> Config:
    base = ("experiment=debug", "tracking=none", "precision=32-true", "executor=flower", "federation.num_rounds=4")
    data = ("data.num_speakers=4", "data.utterances_per_emotion=4", f"data.cache_dir={home / 'cache'}")
    return compose([*base, *data, f"run_dir={home / name}", *changes])


def grid_of(home: Path, tamper: Tamper) -> InProcessGrid:
    cache = str(home / "cache")
    nodes = {1000 - number: {"speakers": name, "cache-dir": cache} for number, name in enumerate(SPEAKERS)}
    return InProcessGrid(app, nodes, tamper)


def lying(kind: str, change: Lie, rounds: tuple[int, ...] = (1, 2, 3, 4)) -> Tamper:
    """The node of m01 answers so."""

    def tamper(question: Message, answer: Message) -> Message | None:
        asked = take_json(question.content)
        is_it = question.metadata.message_type == kind and question.metadata.dst_node_id == LIAR
        if is_it and asked.get("round", 1) in rounds:
            change(answer.content)
        return answer

    return tamper


def run(home: Path, name: str, tamper: Tamper, *changes: str) -> RunFolder:
    return serve(settings(home, name, *changes), grid_of(home, tamper), Hooks())


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.rounds.read_text(encoding="utf-8").splitlines()]


def with_state(make: Callable[[State], State]) -> Lie:
    def change(content: RecordDict) -> None:
        put(content, "update/m01", make(take(content, "update/m01")))

    return change


def with_json(change_it: Callable[[dict[str, Any]], None]) -> Lie:
    def change(content: RecordDict) -> None:
        said = take_json(content)
        change_it(said)
        put_json(content, said)

    return change


def scaled(factor: float) -> Lie:
    return with_state(lambda state: {name: t * factor if t.is_floating_point() else t for name, t in state.items()})


def variance(value: float) -> Lie:
    return with_state(
        lambda state: {name: t * 0 + value if name.endswith("running_var") else t for name, t in state.items()}
    )


UPDATES: dict[str, tuple[Lie, str]] = {
    "x 1e6": (scaled(1e6), r"its update is too large: of norm"),
    "x 1e30": (scaled(1e30), r"its update is too large"),
    "variance -100": (variance(-100.0), r"running_var is a variance below 0: -100"),
    "variance 1e300": (variance(1e30), r"its change of running statistics is too large"),
    "10^9 utterances": (
        with_json(lambda said: said["updates"]["m01"].update(num_examples=10**9)),
        r"it says that it trained on 1000000000 utterances, of \d+",
    ),
    "no tensors": (lambda content: content.__delitem__("update/m01"), r"it has no tensors"),
    "batches uncounted": (
        with_state(lambda state: {n: t * 0 - 1 if n.endswith("tracked") else t for n, t in state.items()}),
        r"num_batches_tracked counts batches, and is -1 after 0",
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_that_cannot_be_is_refused_and_the_node_named(home: Path, name: str) -> None:
    lie, reason = UPDATES[name]
    last = lines(run(home, f"update {name}", lying("train", lie), "federation.num_rounds=1"))[-1]
    (failure,) = last["failures"]
    assert failure["client_id"] == "m01" and failure["offence"] and re.search(reason, failure["error"]), failure


def test_after_three_offences_a_node_is_left_out_of_everything(home: Path) -> None:
    """The others train on, and are scored alone."""
    lie, reason = UPDATES["x 1e6"]
    folder = run(home, "three", lying("train", lie), "federation.num_rounds=4")
    rounds = lines(folder)
    assert [[one["client_id"] for one in line["failures"]] for line in rounds] == [["m01"]] * 3 + [[]]
    assert [len(line["left_out"]) for line in rounds] == [0, 0, 1, 0]
    (left,) = rounds[2]["left_out"]
    assert left["node"] == str(LIAR) and left["names"] == ["m01"] and re.search(reason, left["reason"])
    assert "m01" in rounds[2]["cohort"] and rounds[3]["cohort"] == ["f01", "f02", "m02"]
    summary = folder.read_json(folder.summary)
    assert summary["left_out"] == [left]
    assert "m01" not in summary["test"]["per_speaker_uar"] and "f01" in summary["test"]["per_speaker_uar"]


def test_a_gradient_turned_round_and_ten_times_as_long_is_refused(home: Path) -> None:
    """Once a median of others is known; the model that it started from is in the question."""

    def tamper(question: Message, answer: Message) -> Message | None:
        asked = take_json(question.content)
        if question.metadata.message_type == "train" and question.metadata.dst_node_id == LIAR and asked["round"] > 1:
            sent = take(question.content, "model")
            turn = with_state(
                lambda state: {
                    n: s - 10 * (t - s) if t.is_floating_point() else t for n, t in state.items() for s in [sent[n]]
                }
            )
            turn(answer.content)
        return answer

    rounds = lines(run(home, "turned", tamper, "federation.num_rounds=2"))
    assert [[failure["client_id"] for failure in line["failures"]] for line in rounds] == [[], ["m01"]]
    assert re.search(r"1?\d(\.\d+)? times what is usual", rounds[1]["failures"][0]["error"])


def test_norms_are_measured_here_and_not_believed(home: Path) -> None:
    honest = run(home, "honest", lambda question, answer: answer, "federation.num_rounds=1")
    lie = with_json(lambda said: said["updates"]["m01"].update(update_norm=1e-9))
    other = run(home, "small", lying("train", lie), "federation.num_rounds=1")
    norms = [
        [json.loads(line)["update_norm"] for line in one.clients.read_text().splitlines()] for one in (honest, other)
    ]
    assert norms[0] == norms[1] and min(norms[0]) > 1e-3
    assert honest.weights.read_bytes() == other.weights.read_bytes()


def test_an_old_answer_is_no_answer(home: Path) -> None:
    """As it was, and of another run; the same client's answer to another model is none either."""
    kept: list[RecordDict] = []

    def replayed(question: Message, answer: Message) -> Message | None:
        if question.metadata.message_type == "train" and question.metadata.dst_node_id == LIAR:
            kept.append(answer.content)
            if len(kept) > 1:
                return Message(kept[0], reply_to=question)
        return answer

    rounds = lines(run(home, "replayed", replayed, "federation.num_rounds=2"))
    assert not rounds[0]["failures"] and rounds[1]["failures"][0]["offence"]
    assert "it answers another question: of number 1, asked was 2" in rounds[1]["failures"][0]["error"]


@pytest.mark.parametrize(("key", "value"), [("run", "another"), ("model", "0" * 32), ("kind", "evaluate")])
def test_an_answer_to_another_question_is_no_answer(home: Path, key: str, value: str) -> None:
    lie = with_json(lambda said: said["asked"].update({key: value}))
    (line,) = lines(run(home, f"other {key}", lying("train", lie), "federation.num_rounds=1"))
    assert f"it answers another question: of {key} '{value}'" in line["failures"][0]["error"]


def shift(by: float) -> Lie:
    def change(content: RecordDict) -> None:
        sums, frames = take(content, "statistics/m01"), take_json(content)["frames"]["m01"]
        mean = sums["sum_F"] / frames
        put(
            content,
            "statistics/m01",
            {
                "sum_F": sums["sum_F"] + by * frames,
                "sum_of_squares_F": sums["sum_of_squares_F"] + frames * (2 * by * mean + by**2),
                "maximum_F": sums["maximum_F"] + by,
            },
        )

    return change


def squares(content: RecordDict) -> None:
    sums = take(content, "statistics/m01")
    put(content, "statistics/m01", sums | {"sum_of_squares_F": 0 * sums["sum_F"] + 1})


def many_clients(said: dict[str, Any]) -> None:
    said["clients"]["m01"] = said["sizes"]["train"]["m01"] = 10**9
    said["frames"]["m01"] = 10**11


ENROLMENTS: dict[str, tuple[str, Lie, str]] = {
    "always an error": ("query.speakers", lambda content: put_json(content, {"error": "no disk"}), r"no disk"),
    "an error later": ("query.enrol", lambda content: put_json(content, {"error": "no disk"}), r"no disk"),
    "2,000 emotions": (
        "query.speakers",
        with_json(lambda said: said["speakers"][0].update(emotions={f"e{n}": 1 for n in range(2000)})),
        r"speakers\.0\.emotions: .*at most 100",
    ),
    "10^6 speakers": (
        "query.speakers",
        with_json(
            lambda said: said.update(speakers=[{**said["speakers"][0], "speaker": f"s{n}"} for n in range(20_001)])
        ),
        r"speakers: .*at most 20000",
    ),
    "a speaker twice": (
        "query.speakers",
        with_json(lambda said: said["speakers"].append(said["speakers"][0])),
        r"it names a speaker twice",
    ),
    "another's speaker": (
        "query.speakers",
        with_json(lambda said: said["speakers"].append({**said["speakers"][0], "speaker": "f01"})),
        r"two nodes hold speaker 'f01': each speaker's data must be at one node",
    ),
    "frames 2^53": (
        "query.enrol",
        with_json(lambda said: said["frames"].update(m01=2**53)),
        r"client m01 has 9007199254740992 frames, of \d+ utterances there are \d+",
    ),
    "shifted sums": ("query.enrol", shift(100.0), r"client m01 has sums over features that cannot be: .* can be"),
    "no variance": ("query.enrol", squares, r"client m01 has sums over features that cannot be: a variance below 0"),
    "10^9 utterances": ("query.enrol", with_json(many_clients), r"has 1000000000 training utterances, 1000000 is the"),
    "more than named": (
        "query.enrol",
        with_json(lambda said: said["sizes"]["test"].update(m01=5000)),
        r"of m01 it holds \d+ utterances, it named \d+",
    ),
    "others' clients": (
        "query.enrol",
        with_json(lambda said: said["sizes"]["train"].update(f01=2)),
        r"it answers for speakers that it did not name",
    ),
}


@pytest.mark.parametrize("name", ENROLMENTS)
def test_a_node_that_cannot_be_enrolled_is_named_and_the_others_begin(home: Path, name: str) -> None:
    kind, lie, reason = ENROLMENTS[name]
    one = "federation.num_rounds=1"
    folder = run(home, f"enrolment {name}", lying(kind, lie), one)
    (left,) = folder.read_json(folder.summary)["left_out"]
    assert left["node"] == str(LIAR) and re.search(reason, left["reason"]), left
    assert lines(folder)[0]["cohort"] == ["f01", "f02", "m02"] and not lines(folder)[0]["failures"]


def test_a_node_that_cannot_be_enrolled_ends_the_run_where_nobody_is_left_out(home: Path) -> None:
    kind, lie, _ = ENROLMENTS["always an error"]
    with pytest.raises(UserError, match=f"a node cannot take part: no disk .node {LIAR}"):
        run(home, "refused", lying(kind, lie), "federation.strikes=0")


def test_the_others_begin_as_if_the_liar_had_not_come(home: Path) -> None:
    kind, lie, _ = ENROLMENTS["always an error"]
    without = grid_of(home, lambda question, answer: answer)
    del without.nodes[LIAR]
    alone = serve(settings(home, "three alone", "federation.num_rounds=1"), without, Hooks())
    folder = run(home, "three of four", lying(kind, lie), "federation.num_rounds=1")
    assert folder.weights.read_bytes() == alone.weights.read_bytes()


def perfect(said: dict[str, Any]) -> None:
    said["confusions"] = {
        name: [[10**8 * (row == column) for column in range(len(rows))] for row in range(len(rows))]
        for name, rows in said["confusions"].items()
    }


def test_a_perfect_matrix_of_many_utterances_is_no_figure_and_does_not_end_the_run(home: Path) -> None:
    """A validation and the test: the run ends with the figures of the others."""
    folder = run(home, "perfect", lying("evaluate", with_json(perfect)), "federation.num_rounds=1")
    summary = folder.read_json(folder.summary)
    assert "m01" not in summary["test"]["per_speaker_uar"] and len(summary["test"]["per_speaker_uar"]) == 3
    (left,) = summary["left_out"]
    assert left["node"] == str(LIAR) and "its confusion matrix is of" in left["reason"]


@pytest.mark.slow
def test_strikes_survive_a_resume(home: Path) -> None:
    lie, _ = UPDATES["x 1e6"]
    run(home, "struck", lying("train", lie), "federation.num_rounds=2")
    folder = run(home, "struck", lying("train", lie), "federation.num_rounds=5", "resume=true")
    rounds = lines(folder)
    assert [bool(line["left_out"]) for line in rounds] == [False, False, True, False, False]
    folder = run(home, "struck", lambda question, answer: answer, "federation.num_rounds=6", "resume=true")
    assert "m01" not in lines(folder)[5]["cohort"], "once left out, always"
    assert len(folder.read_json(folder.summary)["left_out"]) == 1


@pytest.mark.slow
def test_nobody_is_left_out_with_strikes_0_and_who_is_late_is_not_blamed(home: Path) -> None:
    lie, _ = UPDATES["no tensors"]
    never = run(home, "never", lying("train", lie), "federation.strikes=0", "federation.num_rounds=3")
    assert not any(line["left_out"] for line in lines(never))

    def late(question: Message, answer: Message) -> Message | None:
        is_it = question.metadata.message_type == "train" and question.metadata.dst_node_id == LIAR
        return None if is_it else answer

    rounds = lines(run(home, "late", late, "executor.deadline_s=0.2", "federation.num_rounds=3"))
    assert [len(line["failures"]) for line in rounds] == [1] * 3
    assert not any(failure["offence"] for line in rounds for failure in line["failures"])
    assert not any(line["left_out"] for line in rounds)


@pytest.mark.slow
def test_where_all_offend_it_is_the_model_and_nobodys_fault(home: Path) -> None:
    def diverged(question: Message, answer: Message) -> Message | None:
        if question.metadata.message_type == "train" and question.metadata.dst_node_id != 1000:
            (name,) = take_json(question.content)["clients"]
            state = take(answer.content, f"update/{name}")
            put(answer.content, f"update/{name}", state | {"output.bias": state["output.bias"] * torch.nan})
        return answer

    rounds = lines(run(home, "diverged", diverged, "federation.num_rounds=3"))
    assert [len(line["failures"]) for line in rounds] == [3] * 3 and not any(line["left_out"] for line in rounds)


@pytest.mark.parametrize("is_same", [True, False])
def test_another_node_takes_over_with_the_same_data_only(
    home: Path, is_same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """m01's node goes after round 1, and one comes that names its speaker: itself, or with half of the utterances."""

    def impostor(question: Message, answer: Message) -> Message | None:
        kind, node = question.metadata.message_type, question.metadata.dst_node_id
        if kind == "train" and take_json(question.content)["round"] == 1 and node == LIAR:
            grid.nodes[7] = grid.nodes.pop(LIAR)
        if node == 7 and kind == "query.enrol" and not is_same:
            with_json(lambda said: said["digests"].update(m01="0" * 32))(answer.content)
        return answer

    grid, config = grid_of(home, impostor), settings(home, f"taken over {is_same}", "federation.num_rounds=2")
    if is_same:
        folder = serve(config, grid, Hooks())
        assert not any(line["failures"] for line in lines(folder))
        assert not folder.read_json(folder.summary)["left_out"]
        return
    with pytest.raises(RoundFailed, match=r"1 of 4 holders of test utterances gave no figures.*\nm01: its node is not"):
        serve(config, grid, Hooks())
    assert "node 7 (m01) is left out: it names speakers of a node that is gone, and of m01 it holds" in caplog.text


@pytest.mark.parametrize("factor", [1, 5])
def test_who_stands_out_is_told_in_the_summary_and_the_report(home: Path, factor: int) -> None:
    """A node whose updates point away, within all bounds: however long they are, nobody else is said to point away."""

    def tamper(question: Message, answer: Message) -> Message | None:
        if question.metadata.message_type == "train" and question.metadata.dst_node_id == LIAR:
            sent = take(question.content, "model")
            with_state(
                lambda state: {
                    n: sent[n] - factor * (t - sent[n]) if t.is_floating_point() and "running" not in n else t
                    for n, t in state.items()
                }
            )(answer.content)
        return answer

    folder = run(home, f"away {factor}", tamper, "federation.num_rounds=2")
    parties = {tuple(party["names"]): party for party in folder.read_json(folder.summary)["parties"]}
    assert parties.keys() == {(name,) for name in SPEAKERS}
    assert not any(line["failures"] for line in lines(folder))
    liar = parties["m01",]
    assert liar["cosine"] < 0 and "its updates point away from those of the others" in " ".join(liar["outlier"])
    assert all(parties[name,]["cosine"] > 0 for name in SPEAKERS if name != "m01")
    assert all(party["rounds"] == 2 and party["share"] == 1.0 for party in parties.values())
    table = standing_out(read_run(folder.root))
    assert table is not None and [row[0] for row in table.rows if "point away" in row[1]] == ["m01"]
    assert "Who stood out" in write_report([folder.root]).read_text(encoding="utf-8")


def test_angles_by_sketches_are_those_of_the_updates() -> None:
    """Against the cosine of whole updates, of directions with a known angle."""
    stream = torch.Generator().manual_seed(0)
    one, other = (torch.randn(100, 200, generator=stream) for _ in range(2))
    zero = {"weight": torch.zeros(100, 200)}
    for share in (-1.0, -0.3, 0.0, 0.5, 0.9, 1.0):
        mixed = share * one + (1 - share**2) ** 0.5 * other
        exact = float(torch.cosine_similarity(one.flatten(), mixed.flatten(), dim=0))
        sketches = [sketch_of({"weight": each}, zero, ["weight"]) for each in (one, mixed)]
        assert float(torch.cosine_similarity(sketches[0], sketches[1], dim=0)) == pytest.approx(exact, abs=0.1)
