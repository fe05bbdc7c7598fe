"""One of several nodes lies or attacks: what it costs the others, under the mean and under rules that withstand it.

    python scripts/hostile_node.py run RESULTS [--rounds 8] [--only NAME ...] [--rules NAME ...]
    python scripts/hostile_node.py table RESULTS

Nodes are unmodified ClientApps in this process; the last one's answers are changed on the way, as a registered node of
somebody else's making could. A case is a file in RESULTS, and cases that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, RecordDict

from ser_fl.config.compose import compose
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.serialisation import put, put_json, take, take_json
from ser_fl.federation.flower.server_app import serve
from ser_fl.federation.hooks import Hooks
from ser_fl.runs.records import State

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
InProcessGrid = import_module("flower_grid").InProcessGrid
NODES = ("f01,m04", "f02,m01", "f03,m02", "f04,m03", "f05,m05")
LIAR = 1000 - len(NODES) + 1
RULES = ("weighted_mean", "median", "trimmed_mean", "norm_bounding")
Lie = Callable[[RecordDict, RecordDict], RecordDict | None]
"""Changes an answer in place, given the question; or gives another answer."""


def updates(make: Callable[[State, State], State]) -> Lie:
    """(received, trained) -> what is sent in place of it, for every client of the node."""

    def lie(asked: RecordDict, answer: RecordDict) -> None:
        sent = take(asked, "model")
        for name in [name for name in answer if name.startswith("update/")]:
            put(answer, name, make(sent, take(answer, name)))

    return lie


def moved(factor: float) -> Lie:
    """The update, so many times as long."""
    return updates(
        lambda sent, own: {
            name: sent[name] + factor * (tensor - sent[name]) if tensor.is_floating_point() else tensor
            for name, tensor in own.items()
        }
    )


def parameters_moved(factor: float) -> Lie:
    """So with parameters alone: running statistics stay honest."""
    return updates(
        lambda sent, own: {
            name: sent[name] + factor * (tensor - sent[name])
            if tensor.is_floating_point() and "running" not in name
            else tensor
            for name, tensor in own.items()
        }
    )


def filled(ending: str, value: float) -> Lie:
    return updates(
        lambda sent, own: {
            name: torch.full_like(tensor, value) if tensor.is_floating_point() and name.endswith(ending) else tensor
            for name, tensor in own.items()
        }
    )


def said(change: Callable[[dict[str, Any]], None]) -> Lie:
    def lie(asked: RecordDict, answer: RecordDict) -> None:
        content = take_json(answer)
        change(content)
        put_json(answer, content)

    return lie


def of_each(key: str, **figures: Any) -> Lie:
    def change(content: dict[str, Any]) -> None:
        for entry in content[key].values():
            entry.update(figures)

    return said(change)


def perfect(content: dict[str, Any]) -> None:
    for rows in content["confusions"].values():
        for place, row in enumerate(rows):
            row[:] = [10**8 * (column == place) for column in range(len(row))]


def plausible(content: dict[str, Any]) -> None:
    """Everything right, of as many utterances as it has."""
    for rows in content["confusions"].values():
        for place, row in enumerate(rows):
            row[:] = [sum(row) * (column == place) for column in range(len(row))]


def shifted(by: float) -> Lie:
    def lie(asked: RecordDict, answer: RecordDict) -> None:
        for client, frames in take_json(answer)["frames"].items():
            sums = take(answer, f"statistics/{client}")
            mean = sums["sum_F"] / frames
            squares = sums["sum_of_squares_F"] + frames * (2 * by * mean + by**2)
            moved = {"sum_F": sums["sum_F"] + by * frames, "sum_of_squares_F": squares}
            put(answer, f"statistics/{client}", moved | {"maximum_F": sums["maximum_F"] + by})

    return lie


def old() -> Lie:
    """What it sent in round 1, for ever."""
    kept = list[RecordDict]()

    def lie(asked: RecordDict, answer: RecordDict) -> RecordDict:
        kept.append(answer)
        return kept[0]

    return lie


CASES: dict[str, tuple[str, Callable[[], Lie]]] = {
    "honest": ("none", lambda: said(lambda content: None)),
    "update x 1e6": ("train", lambda: moved(1e6)),
    "update x 1e30": ("train", lambda: moved(1e30)),
    "gradient x -10": ("train", lambda: moved(-10.0)),
    "gradient x -5": ("train", lambda: parameters_moved(-5.0)),
    "gradient x -1": ("train", lambda: parameters_moved(-1.0)),
    "zero weights": ("train", lambda: filled("", 0.0)),
    "variance -100": ("train", lambda: filled("running_var", -100.0)),
    "variance 1e30": ("train", lambda: filled("running_var", 1e30)),
    "10^9 utterances": ("train", lambda: of_each("updates", num_examples=10**9)),
    "an old update": ("train", old),
    "a perfect matrix of 6e8": ("evaluate", lambda: said(perfect)),
    "a perfect matrix of its own": ("evaluate", lambda: said(plausible)),
    "sums shifted by 1000": ("query.enrol", lambda: shifted(1000.0)),
    "sums shifted by 5": ("query.enrol", lambda: shifted(5.0)),
    "frames 2^53": ("query.enrol", lambda: said(lambda c: c["frames"].update(dict.fromkeys(c["frames"], 2**53)))),
    "2,000 emotions": (
        "query.speakers",
        lambda: said(lambda c: c["speakers"][0].update(emotions={f"e{n}": 1 for n in range(2000)})),
    ),
    "another's speaker": (
        "query.speakers",
        lambda: said(lambda c: c["speakers"].append({**c["speakers"][0], "speaker": "f01"})),
    ),
    "always an error": ("query.speakers", lambda: lambda asked, answer: put_json(answer, {"error": "no"})),
}


def conduct(name: str, rule: str, rounds: int, folder: Path) -> dict[str, Any]:
    """One run, and what became of it."""
    kind, make = CASES[name]
    lie = make()

    def tamper(question: Message, answer: Message) -> Message | None:
        if question.metadata.message_type != kind or question.metadata.dst_node_id != LIAR or answer.has_error():
            return answer
        other = lie(question.content, answer.content)
        return answer if other is None else Message(other, reply_to=question)

    nodes = {1000 - place: {"speakers": held, "cache-dir": str(folder / "cache")} for place, held in enumerate(NODES)}
    settings = [
        *("experiment=debug", "tracking=none", "precision=32-true", "executor=flower", "data.num_speakers=10"),
        *("data.utterances_per_emotion=12", "optimiser.learning_rate=0.01", f"federation.num_rounds={rounds}"),
        *(f"federation.aggregation={rule}", f"data.cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}"),
    ]
    started = time.monotonic()
    try:
        run = serve(compose(settings), InProcessGrid(app, nodes, tamper), Hooks())
    except (UserError, RoundFailed) as error:
        return {"case": name, "rule": rule, "uar": None, "error": str(error)[:300]}
    summary = run.read_json(run.summary)
    speakers = NODES[-1].split(",")
    honest = [uar for speaker, uar in summary["test"]["per_speaker_uar"].items() if speaker not in speakers]
    outliers = {party["names"][0]: party["outlier"] for party in summary["parties"] if party["outlier"]}
    return {
        "case": name,
        "rule": rule,
        "uar": sum(honest) / len(honest),
        "left_out": [[left["node"], left["reason"]] for left in summary["left_out"]],
        "outliers": outliers,
        "seconds": round(time.monotonic() - started, 1),
    }


def table(results: Path) -> str:
    """Markdown: UAR of the honest nodes' test utterances, mean over speakers, and what was done about the liar."""
    found = {(one["case"], one["rule"]): one for one in map(json.loads, map(Path.read_text, results.glob("*.json")))}
    lines = [
        f"| the last of {len(NODES)} nodes | {' | '.join(RULES)} | named |",
        f"| :--- |{' ---: |' * len(RULES)} :--- |",
    ]
    for name in CASES:
        own = [found.get((name, rule)) for rule in RULES]
        cells = [
            "" if one is None else "the run ends" if one["uar"] is None else f"{100 * one['uar']:.1f}" for one in own
        ]
        said = sorted({_named(one) for one in own if one is not None})
        lines.append(f"| {name} | {' | '.join(cells)} | {'; '.join(said)} |")
    return "\n".join(lines)


def _named(one: dict[str, Any]) -> str:
    out = {node for node, _ in one.get("left_out", [])}
    if out:
        return "left out" if out == {str(LIAR)} else f"OTHERS LEFT OUT: {sorted(out)}"
    liars, outliers = {*NODES[-1].split(",")}, one.get("outliers", {}).keys()
    others = f", and {len(honest)} others" if (honest := outliers - liars) else ""
    return ("stands out" if liars & outliers else "no") + others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("results", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--rules", nargs="*", default=list(RULES))
    given = parser.parse_args()
    if given.what == "run":
        given.results.mkdir(parents=True, exist_ok=True)
        for name in given.only:
            for rule in given.rules:
                file = given.results / f"{name.replace(' ', '_').replace('^', '')}-{rule}.json"
                if file.exists():
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    outcome = conduct(name, rule, given.rounds, Path(folder))
                file.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
                print(name, rule, outcome["uar"], flush=True)
    print(table(given.results))


if __name__ == "__main__":
    main()
