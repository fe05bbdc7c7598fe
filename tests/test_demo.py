"""`ser-fl demo` as a whole: its page holds what its records say."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from ser_fl.cli.demo import run_demo
from ser_fl.robustness.sanity_checks.report import read_sanity_report
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

RUNS = {"demo_fl": "Federated", "demo_fl_pgd": "Federated + adversarial training"}
DEFENCES = {"none": "no randomisation", "randomisation": "randomisation"}
ATTACKS = {"FGSM": "fgsm", "BIM": "bim", "PGD": "pgd", "C&W L2": "cw_l2", "Worst case": "worst_case"}
TINY = (
    "data.num_speakers=2",
    "data.utterances_per_emotion=3",
    "frontend.duration_s=1.0",
    "model.channels=[8,8,8]",
    "model.hidden=8",
    "federation.num_rounds=2",
)


class Tables(HTMLParser):
    """Every table of a page as rows of cell texts, by its caption."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._inside = True
        elif tag == "br" and self._inside:
            self.tables[-1][-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1][-1] += data


def record_of(records: list[AttackRecord], attack: str, defence: str, knowledge: str) -> AttackRecord:
    """The record at the demo's main budget: 0.05, for norm "2" the same strength; of a worst case the one over the
    utterances of all attacks, which are those of the adaptive one.
    """
    found = [record for record in records if (record.attack, record.defence) == (attack, defence)]
    if attack == "worst_case":
        return min((record for record in found if record.epsilon == 0.05), key=lambda record: record.num_examples)
    known = [record for record in found if record.knowledge == knowledge]
    return next(record for record in known if attack in ("clean", "cw_l2") or record.epsilon == 0.05)


@pytest.mark.slow
def test_demo_shows_both_trainings_and_both_defences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run_demo(tmp_path / "demo", (*TINY, f"data.cache_dir={tmp_path / 'cache'}"))
    assert page == tmp_path / "demo" / "report.html"
    printed = capsys.readouterr().out
    assert str(page) in printed
    assert "synthetic" in printed.lower()
    html = page.read_text(encoding="utf-8").replace("\xa0", " ")
    assert "SYNTHETIC" in html
    assert 'src="http' not in html and "<link" not in html, "the page needs no network"
    parser = Tables()
    parser.feed(html)
    header, *rows = next(table for table in parser.tables if any("FGSM" in cell for cell in table[0]))
    columns = {
        f"{cell.split()[0]} adaptive" if "adaptive" in cell else cell.split("\n")[0]: index
        for index, cell in enumerate(header)
    }
    assert set(columns) >= {"Clean", *ATTACKS, "PGD adaptive"}
    for run in RUNS:
        found = read_sanity_report(RunFolder(tmp_path / "demo" / run))
        assert found is not None and not [doubt.check for doubt in found.doubts if "knows of it" in doubt.check]
    by_label = {(row[0].split("\n")[0], row[1]): row for row in rows}
    assert set(by_label) == {(training, defence) for training in RUNS.values() for defence in DEFENCES.values()}
    for run, training in RUNS.items():
        records = RunFolder(tmp_path / "demo" / run).read_attacks()
        for defence, words in DEFENCES.items():
            row = by_label[training, words]
            for column, attack in {"Clean": "clean", **ATTACKS}.items():
                expected = record_of(records, attack, defence, "undefended").robust_uar
                assert float(row[columns[column]].split()[0]) == pytest.approx(100 * expected, abs=0.051), column
            adaptive = row[columns["PGD adaptive"]]
            if defence == "none":
                assert adaptive == "–"
            else:
                expected = record_of(records, "pgd", defence, "adaptive").robust_uar
                assert float(adaptive.split()[0]) == pytest.approx(100 * expected, abs=0.051)
