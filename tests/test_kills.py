"""Runs killed with `kill -9` at random moments, by `scripts/kill_runs.py`; twenty of each are in results/kills/."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.mark.slow
@pytest.mark.kill
def test_a_run_killed_with_its_workers_loses_nothing(tmp_path: Path) -> None:
    """With worker processes; tracked; after the last round."""
    from kills.local import kills

    made = list(kills(tmp_path, seed=2, numbers=(1, 2, 3)))
    assert [kill.problems for kill in made] == [[], [], []]
    assert {kill.exit_codes for kill in made} == {(-signal.SIGKILL, 0)}
    assert made[2].committed == 6


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.flower
def test_a_run_whose_link_is_killed_loses_nothing_while_its_nodes_stay_up(tmp_path: Path) -> None:
    """The submitter says that the link is gone, and how to go on."""
    from kills.federation import kills

    made = list(kills(tmp_path, seed=2, numbers=(1, 2, 3)))
    assert [kill.problems for kill in made] == [[], [], []]
    for kill in made:
        if kill.during != "start":
            assert kill.exit_codes[0] == 1
            assert "does not answer any more" in kill.said and "resume=true goes on with RUN" in kill.said
    assert made[2].committed == 6


def test_moments_are_anywhere_in_a_run_and_some_behind_its_last_round() -> None:
    from kills.moments import Timeline, chance_of

    timeline = Timeline((10.0, 12.0, 14.0, 16.0, 18.0, 20.0), 20.25, 21.0)
    moments = [timeline.moment(number, chance_of("local", 1, number)) for number in range(400)]
    assert moments == [timeline.moment(number, chance_of("local", 1, number)) for number in range(400)]
    begins = (0.0, *timeline.commits)
    seconds = [begins[moment.after_round] + moment.delay_s for moment in moments]
    assert all(20 <= second <= 20.25 for second in seconds[3::8])
    assert all(20 <= second <= 21 for second in seconds[7::8]) and max(seconds[7::8]) > 20.5
    others = [second for number, second in enumerate(seconds) if number % 4 != 3]
    assert min(others) < 1 and max(others) > 20 and 9 < sum(others) / len(others) < 12
    assert {moment.after_round for moment in moments} == set(range(7))
    assert all(0 <= moment.delay_s <= 10 for moment in moments)


@pytest.fixture
def kill() -> Any:
    from kills.moments import Kill

    return Kill(
        number=0,
        executor="serial",
        tracking="wandb",
        seconds=1.5,
        during="round 3",
        committed=2,
        exit_codes=(-9, 0),
        rounds_afterwards=(3, 4, 5, 6),
        lost=(),
        wandb_ids=("abc",),
        cost_s=4.0,
    )


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"lost": ("model.safetensors",)}, "model.safetensors differs"),
        ({"left_over": (".x",)}, ".x is left over"),
        ({"exit_codes": (-9, 2)}, "exit code 2 when it went on"),
        ({"rounds_afterwards": (2, 3, 4, 5, 6)}, "rounds [2, 3, 4, 5, 6] were made after 2 had been committed"),
        ({"rounds_afterwards": (4, 5, 6)}, "rounds [4, 5, 6] were made after 2 had been committed"),
        ({"wandb_ids": ("abc", "def")}, "2 W&B runs"),
        ({"wandb_ids": ()}, "0 W&B runs"),
    ],
)
def test_what_is_lost_is_seen(kill: Any, changed: dict[str, Any], problem: str) -> None:
    assert kill.problems == []
    assert replace(kill, **changed).problems == [problem]


def test_runs_are_compared_by_all_they_leave_but_seconds(tmp_path: Path) -> None:
    from kills.subject import differences, left_over

    from ser_fl.runs.folder import RunFolder

    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    whole.checkpoint.mkdir(parents=True)
    contents = {
        "rounds.jsonl": '{"round": 1, "seconds": 1}\n',
        "clients.jsonl": '{"round": 1, "client_id": "a", "seconds": 1}\n',
        "summary.json": "{}",
        "model.safetensors": "weights",
        "model.json": "{}",
        "checkpoint/latest.json": '{"round": 1, "files": {"current": "round-1", "best": "best-1"}}',
        "checkpoint/round-1": "all",
        "checkpoint/best-1": "best",
    }
    for name, content in contents.items():
        (whole.root / name).write_text(content)
    shutil.copytree(whole.root, run.root)
    run.rounds.write_text('{"round": 1, "seconds": 2}\n')
    assert differences(run, whole) == left_over(run, whole) == ()
    for name in set(contents) - {"checkpoint/latest.json"}:
        content = contents[name].replace('"round": 1', '"round": 2') if ".jsonl" in name else f"{contents[name]} "
        (run.root / name).write_text(content)
        assert differences(run, whole) == (Path(name).name,)
        (run.root / name).write_text(contents[name])
    run.rounds.write_text(2 * contents["rounds.jsonl"])
    assert differences(run, whole) == ("rounds.jsonl",)
    run.summary.unlink()
    (run.root / ".summary.json.x").touch()
    assert differences(run, whole) == ("rounds.jsonl", "summary.json")
    assert left_over(run, whole) == (".summary.json.x",)


def test_moments_on_record_are_not_made_again(kill: Any, tmp_path: Path) -> None:
    from kills.book import Book

    file = tmp_path / "kills.json"
    for number in (4, 0):
        Book(file, "local", 1).add(replace(kill, number=number, cost_s=float(number)))
    Book(file, "local", 1).add(replace(kill, number=1, lost=("model.safetensors",)))
    book = Book(file, "local", 1)
    assert book.made == {0, 1, 4} and book.num_spoilt == 1
    content = json.loads(file.read_text())
    assert [entry["number"] for entry in content["kills"]] == [0, 1, 4]
    assert content["result"] == {"kills": 3, "lost": 1, "with_problems": 1, "median_cost_s": 4.0}
    with pytest.raises(SystemExit, match="of another seed or other settings"):
        Book(file, "local", 2)
