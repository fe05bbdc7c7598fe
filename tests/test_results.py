"""What lies in results/: little, and enough for the tables that are made of it."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "keep_results.py"))
MOST_BYTES = 12_000_000


def a_round(number: int, **known: Any) -> dict[str, Any]:
    return {"round": number, "uar": None, "robust_uar": None, "seconds": 0.5, "failures": [], **known}


def lines(rounds: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in rounds)


def test_results_are_small() -> None:
    sizes = {path: path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= MOST_BYTES, max(sizes, key=lambda path: sizes[path])


def test_no_file_is_kept_that_the_script_would_leave_out() -> None:
    left_out = {"clients.jsonl", "predictions.csv", "heard.json", "heard.safetensors", "report.html"}
    assert not [path for path in (ROOT / "results").rglob("*") if path.name in left_out]


def test_of_many_rounds_those_are_kept_that_tell_something_and_all_of_their_time() -> None:
    rounds = [a_round(number) for number in range(1, 2001)]
    rounds[499].update(uar=0.4)
    rounds[599].update(robust_uar=0.2)
    rounds[699].update(failures=[{"client_id": "a"}])
    kept = [json.loads(line) for line in SCRIPT["thin"](lines(rounds)).splitlines()]
    assert [entry["round"] for entry in kept] == [1, 500, 600, 700, 2000]
    assert [entry["seconds"] for entry in kept] == [0.5, 249.5, 50.0, 50.0, 650.0]
    assert {key: kept[1][key] for key in ("uar", "failures")} == {"uar": 0.4, "failures": []}
    assert SCRIPT["thin"](lines(kept)) == lines(kept), "a second time changes nothing"


def test_of_few_rounds_all_are_kept() -> None:
    rounds = lines([a_round(number) for number in range(1, 1000)])
    assert SCRIPT["thin"](rounds) == rounds


@pytest.mark.parametrize("weights", [False, True])
def test_weights_are_kept_where_they_are_asked_for_and_audio_never(weights: bool, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "run" / "evaluations" / "nemo-all"
    (run / "adversarial").mkdir(parents=True)
    other.mkdir(parents=True)
    names = ("summary.json", "config.yaml", "model.safetensors", "model.json", "clients.jsonl", "adversarial/a.wav")
    for file in (*(run / name for name in names), other / "evaluation.json", other / "predictions.csv"):
        file.write_text("1")
    SCRIPT["main"]([run], tmp_path / "results", weights=weights)
    kept = {path.relative_to(tmp_path / "results" / "run").as_posix() for path in (tmp_path / "results").rglob("*.*")}
    always = {"summary.json", "config.yaml", "evaluations/nemo-all/evaluation.json"}
    assert kept == always | ({"model.safetensors", "model.json"} if weights else set())
