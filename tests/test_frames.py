"""Runs and records in a notebook: data frames, tables, progress."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import ser_fl
from ser_fl.errors import UserError
from ser_fl.runs import frames
from ser_fl.runs.frames import html_table

pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra notebook)")

QUICK: dict[str, Any] = {
    **{"attacks": ["pgd"], "epsilons": [0.1], "steps": 2, "restarts": 1, "max_examples": 8, "checks_subset": 4},
    **{"curve_epsilons": [], "curve_attacks": [], "defences": ["none"]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    folder = tmp_path_factory.mktemp("run") / "debug"
    return ser_fl.train(ser_fl.compose(["experiment=debug", "tracking=none", f"run_dir={folder}"]))


class Cells(HTMLParser):
    """Text of the cells of tables, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_rounds_are_a_path_and_a_frame(run: ser_fl.Run) -> None:
    assert run.rounds == run.root / "rounds.jsonl"
    frame = run.rounds()
    lines = [json.loads(line) for line in run.rounds.read_text().splitlines()]
    assert frame.index.name == "round" and list(frame.index) == [line["round"] for line in lines]
    assert list(frame["train_loss"]) == [line["train_loss"] for line in lines]
    with run.rounds.open("a") as file:
        file.write('{"round": 9')  # cut off by a kill
    assert run.rounds().equals(frame)
    with pytest.raises(UserError, match="folder of a run"):
        ser_fl.Run(Path("nowhere")).rounds()


def test_records_are_a_frame_and_a_table(run: ser_fl.Run) -> None:
    records = ser_fl.benchmark(run, **QUICK)
    frame = records.to_frame()
    assert len(frame) == len(records) and list(frame["robust_uar"]) == [record.robust_uar for record in records]
    head, *rows = Cells(records._repr_html_()).rows
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert row[head.index("robust UAR")].startswith(f"{record.robust_uar:.3f}") and record.attack in row[0]
    assert "SYNTHETIC" in records._repr_html_()


def test_run_shows_its_figures(run: ser_fl.Run, tmp_path: Path) -> None:
    cells = dict(row for row in Cells(run._repr_html_()).rows if len(row) == 2)
    metrics = run.metrics()
    assert cells["UAR"] == f"{metrics.uar:.3f}" and cells["accuracy"] == f"{metrics.accuracy:.3f}"
    assert {f"recall of {emotion}" for emotion in metrics.recall} < cells.keys()
    assert "has not finished" in ser_fl.Run(tmp_path)._repr_html_()


def test_tables_are_escaped() -> None:
    page = html_table("<b>", ["<i>"], [["<script>", 0.12345, None]], "<u>")
    assert not any(tag in page for tag in ("<b>", "<i>", "<script>", "<u>"))
    assert Cells(page).rows[1] == ["<script>", "0.123", "–<u>"]


def test_missing_pandas_is_told_in_a_line(run: ser_fl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'ser-fl\[notebook\]'"):
        run.rounds()


def test_progress_is_shown_in_notebooks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(frames.NotebookProgress, "__call__", lambda self, name, done, total: told.append((done, total)))

    def train(name: str) -> None:
        ser_fl.train(ser_fl.compose(["experiment=debug", "tracking=none", f"run_dir={tmp_path / name}"]))

    train("plain")
    assert told == []
    monkeypatch.setattr("ser_fl.api.in_notebook", lambda: True)
    train("notebook")
    assert [done for done, _ in told] == list(range(1, told[0][1] + 1))
