"""Report: tables against numbers worked out by hand, plots against their records, the page on its own."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import wave
from base64 import b64decode
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import yaml
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from rich.console import Console

from ser_fl.errors import UserError
from ser_fl.files import record_of, write_json
from ser_fl.report import wording
from ser_fl.report.audio import PAGE_BYTES, audio_pairs, decibels
from ser_fl.report.charts import budget_charts, round_charts
from ser_fl.report.checks import meaning
from ser_fl.report.figures import (
    confusion_matrix,
    loss_over_rounds,
    robust_uar_curve,
    speaker_bars,
    spectrogram_pair,
    uar_over_rounds,
)
from ser_fl.report.four_way import four_way
from ser_fl.report.headline import comparison_table, headline
from ser_fl.report.markup import Table, print_table, to_markdown
from ser_fl.report.page import write_report
from ser_fl.report.panels import draw_figures
from ser_fl.report.people import confusion_tables, group_tables
from ser_fl.report.reader import Example, Round, RunRecords, read_run
from ser_fl.report.tables import attack_table, summary_table, training_table
from ser_fl.report.wording import labels_of
from ser_fl.robustness.sanity_checks.report import Doubt, SanityReport, write_sanity_report
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, RoundRecord

SETTINGS = dict(matplotlib.rcParams)
CLASSES = ["anger", "neutral", "sadness"]
CONFUSION = [[8, 1, 1], [0, 6, 4], [2, 0, 8]]
EXAMPLE = {
    "utterance_id": "a.wav",
    "attack": "pgd",
    "epsilon": 0.05,
    "emotion": "anger",
    "predicted_clean": "anger",
    "predicted_adversarial": "sadness",
    "clean": [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]],
    "adversarial": [[0.05, 1.05, 1.95, 3.0], [1.0, 0.95, 1.0, 1.05]],
    "hop_s": 0.5,
}


def record(attack: str, robust_uar: float, **changes: Any) -> AttackRecord:
    """An attack record of 30 utterances, of which 22 are right when clean (recalls 0.8, 0.6, 0.8)."""
    values: dict[str, Any] = {
        "attack": attack,
        "library": "art.ProjectedGradientDescentPyTorch",
        "knowledge": "undefended",
        "domain": "logmel",
        "norm": "inf",
        "epsilon": 0.05,
        "snr_db": None,
        "steps": 10,
        "step_size": 0.0125,
        "restarts": 1,
        "eot_samples": 1,
        "defence": "none",
        "clean_uar": 22 / 30,
        "robust_uar": robust_uar,
        "attack_success_rate": 0.5,
        "mean_l2": 2.25,
        "max_linf": 0.05,
        "median_snr_db": None,
        "num_examples": 30,
        "forward_passes": 12_000,
        "backward_passes": 9_000,
        "seconds": 1.25,
        "seed": 1,
        "confusion": CONFUSION,
    }
    return AttackRecord(**(values | changes))


def clean(robust_uar: float, defence: str = "none") -> AttackRecord:
    return record("clean", robust_uar, norm="none", epsilon=None, steps=None, restarts=None, defence=defence)


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "experiment": "exp",
        "seed": 1,
        "data": {"name": "nemo"},
        "split": {"name": "within_speaker"},
        "clients": {"by": "speaker"},
        "model": {"name": "crnn"},
        "objective": {"name": "clean"},
        "federation": {"name": "federated", "num_rounds": 3},
    }
    return base | changes


PGD_TRAINING = {"name": "pgd", "epsilon": 0.05, "recipe": "per_step"}


def make_run(
    root: Path,
    settings: Mapping[str, Any] | None = None,
    attacks: list[AttackRecord] | None = None,
    *,
    finished: bool = True,
    example: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    run = RunFolder(root)
    run.config.write_text(yaml.safe_dump(dict(settings or config())))
    write_json(run.environment, {"command": ["ser-fl", "train", "data.root=a b"], "git_commit": "0123abc"})
    if finished:
        run.append(run.rounds, [_round(1, 0.5, None), _round(2, 0.75, 0.25), _round(3, 0.7, float("nan"))])
        scores = {"uar": 22 / 30, "accuracy": 22 / 30, "macro_f1": 0.7, "confusion": CONFUSION}
        scores |= {"per_class_recall": [0.8, 0.6, None], "per_speaker_uar": {"MK0": 0.65, "JP1": 0.8}}
        summary = {"classes": CLASSES, "split": "within_speaker", "selected_round": 2, "num_clients": 9}
        write_json(run.summary, summary | {"stopped": "plateau", "test": scores | dict(test or {})})
    if attacks is not None:
        run.write_attacks(attacks)
    if example is not None:
        write_json(run.spectrograms, example)
    return root


def _round(number: int, uar: float, robust_uar: float | None) -> RoundRecord:
    return RoundRecord(
        round=number,
        cohort=("MK0",),
        train_loss=1 / number,
        uar=uar,
        accuracy=uar,
        macro_f1=uar,
        seconds=60.0,
        learning_rate=0.1,
        robust_uar=robust_uar,
    )


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


FOUR_WAY = [
    clean(22 / 30),
    clean(0.7, "randomisation"),
    record("pgd", 0.1, restarts=5, steps=50),
    record("fgsm", 0.4, steps=1),
    record("cw_l2", 0.0, norm="2", epsilon=2.5, num_examples=12),
    record("pgd", 0.3, restarts=5, steps=50, defence="randomisation"),
    record("fgsm", 0.5, steps=1, defence="randomisation"),
]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_run(tmp_path_factory.mktemp("report") / "run", None, FOUR_WAY, example=EXAMPLE)
    write_report([root])
    return root


class Page(HTMLParser):
    """Tags, text and whatever a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words += data.replace("\u00a0", " ")


def test_four_way_cells_equal_the_records_in_per_cent(tmp_path: Path) -> None:
    plain = read_run(make_run(tmp_path / "fl", config(), FOUR_WAY))
    trained = [clean(0.6), record("fgsm", 0.5, steps=1), record("pgd", 0.45, restarts=5, steps=50)]
    hardened = read_run(make_run(tmp_path / "pgd", config(objective=PGD_TRAINING), trained))
    table = four_way([plain, hardened])
    assert table.header == (
        "Training",
        "Test-time defence",
        "Clean",
        "FGSM\nL∞ 0.05\n1 step",
        "PGD\nL∞ 0.05\n50 steps\n5 restarts",
        "C&W L2\nL2 2.5\n10 steps\nn = 12",
        "Worst case",
    )
    adversarial = "Federated + adversarial training\nPGD ε 0.05 per step"
    assert table.rows == (
        ("Federated", "no randomisation", "73.3", "40.0", "10.0", "0.0", "≤ 10.0"),
        ("Federated", "randomisation", "70.0", "50.0 †", "30.0 †", "–", "≤ 30.0 †"),
        (adversarial, "no randomisation", "60.0", "50.0", "45.0", "–", "≤ 45.0"),
    )
    for words in ("Corpus nemo; split within_speaker; seed 1.", "no evidence of robustness", "No adaptive attack"):
        assert words in table.caption
    assert "SYNTHETIC" not in table.caption


def test_worst_case_record_counts_only_where_no_single_attack_is_lower(tmp_path: Path) -> None:
    worst = record("worst_case", 0.08, steps=None)
    grey = record("worst_case", 0.25, steps=None, defence="randomisation")
    adaptive = record("pgd", 0.12, knowledge="adaptive", eot_samples=20, defence="randomisation")
    table = four_way([read_run(make_run(tmp_path / "run", None, [*FOUR_WAY, worst, grey, adaptive]))])
    assert [row[-1] for row in table.rows] == ["8.0", "≤ 12.0"]
    assert "PGD\nL∞ 0.05\n10 steps\nEOT 20\nadaptive" in table.header
    assert "No adaptive attack" not in table.caption


def test_four_way_shows_the_training_budget_of_a_sweep(tmp_path: Path) -> None:
    sweep = [record("pgd", 0.6 - 4 * epsilon, epsilon=epsilon) for epsilon in (0.02, 0.05, 0.1)]
    trained = read_run(make_run(tmp_path / "trained", config(objective=PGD_TRAINING), sweep))
    assert four_way([trained]).rows[0][3:] == ("40.0", "≤ 40.0")
    assert "Other budgets" in four_way([trained]).caption
    common = read_run(make_run(tmp_path / "clean", None, [*sweep, record("fgsm", 0.55, epsilon=0.02, steps=1)]))
    assert four_way([common]).header[3:5] == ("FGSM\nL∞ 0.02\n1 step", "PGD\nL∞ 0.02\n10 steps")
    waveform = [record("pgd", 0.5, domain="waveform", norm="2", epsilon=None, snr_db=30.0)]
    heard = read_run(make_run(tmp_path / "waveform", None, waveform))
    assert four_way([heard]).header[3] == "PGD\nSNR 30 dB\n10 steps\nwaveform"


def test_run_without_attacks_has_its_clean_row(tmp_path: Path) -> None:
    table = four_way([read_run(make_run(tmp_path / "run"))])
    assert table.rows == (("Federated", "no randomisation", "73.3 / 73.3", "–"),)
    assert "No attack was recorded" in table.caption


def test_runs_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    seeds = [read_run(make_run(tmp_path / f"s{seed}", config(seed=seed))) for seed in (1, 2)]
    assert labels_of(seeds) == ["Federated\nseed 1", "Federated\nseed 2"]
    twins = [read_run(make_run(tmp_path / name, config(federation={"name": "centralised"}))) for name in ("a", "b")]
    assert labels_of(twins) == ["Centralised\na", "Centralised\nb"]
    named = read_run(make_run(tmp_path / "named", config(run_name="my run #2")))
    assert named.name == "my run #2"
    assert labels_of([seeds[0], named]) == ["Federated", "Federated\nmy run #2"]
    tuned = read_run(make_run(tmp_path / "tuned", config(init_from="place:nemo-12ab")))
    assert labels_of([seeds[0], tuned]) == ["Federated", "Federated\nfine-tuned"]


def test_attack_table_gives_strength_and_cost(tmp_path: Path) -> None:
    table = attack_table([read_run(make_run(tmp_path / "run", None, FOUR_WAY))])
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert rows[2] == {
        "Training": "Federated",
        "Attack": "PGD",
        "Class that ran": "art.ProjectedGradientDescentPyTorch",
        "Knowledge": "undefended",
        "Test-time defence": "no randomisation",
        "Domain": "logmel",
        "Norm": "L∞",
        "Budget": "ε 0.05",
        "Steps": "50",
        "Step size": "0.0125",
        "Restarts": "5",
        "EOT samples": "1",
        "n": "30",
        "Clean UAR": "73.3",
        "Robust UAR": "10.0",
        "Success rate": "50.0",
        "Mean L2": "2.25",
        "Median SNR (dB)": "–",
        "Forward passes": "12,000",
        "Backward passes": "9,000",
        "Seconds": "1.2",
    }
    assert (rows[0]["Norm"], rows[0]["Budget"], rows[5]["Knowledge"]) == ("–", "–", "undefended †")


def test_summary_and_training_tables(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "run")), read_run(make_run(tmp_path / "young", finished=False))]
    summary = {name: cells for name, *cells in summary_table(runs).rows}
    assert summary["UAR"] == ["73.3", "–"]
    assert summary["Macro F1"] == ["70.0", "–"]
    assert summary["Clients"] == ["9, by speaker", "–, by speaker"]
    assert summary["Test utterances"] == ["30", "–"]
    assert summary["Recall: sadness"] == ["–", "–"]
    assert summary["UAR of speaker JP1"] == ["80.0", "–"]
    training = {name: cells for name, *cells in training_table(runs).rows}
    assert training["Rounds"] == ["3", "0"]
    assert training["Validation UAR there"] == ["75.0", "–"]
    assert training["Robust validation UAR there"] == ["25.0", "–"]
    assert training["Last training loss"] == ["0.333", "–"]
    assert training["Minutes"] == ["3.0", "0.0"]


def test_attacks_without_labels_say_so() -> None:
    assert wording.attack_name("pgd") == "PGD"
    assert wording.attack_name("pgd_unlabelled") == "PGD, unlabelled"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True])
def test_what_is_no_figure_is_a_dash(value: object) -> None:
    assert (wording.percent(value), wording.number(value, ".2f"), wording.count(value)) == ("–", "–", "–")


def test_undefined_scores_are_dashes_everywhere(tmp_path: Path) -> None:
    nothing = float("nan")
    broken = record("pgd", nothing, clean_uar=nothing, attack_success_rate=nothing, mean_l2=nothing)
    root = make_run(tmp_path / "run", None, [broken], test={"uar": nothing, "per_speaker_uar": {"MK0": nothing}})
    run = read_run(root)
    assert four_way([run]).rows[0][2:] == ("–", "–", "–")
    assert dict(zip(attack_table([run]).header, attack_table([run]).rows[0], strict=True))["Robust UAR"] == "–"
    assert "nan" not in Page(write_report([root]).read_text()).words.split()


NASTY = Table(
    title="A | B",
    header=("name", "x"),
    rows=(("<script>alert(1)</script>|_a_\n[b](c)", "1"), ("C&W *hot* &lt; within_speaker", "2")),
    caption="[red]10 < 20[/red]",
)


def test_markdown_escapes_markup_and_keeps_words_readable() -> None:
    lines = to_markdown(NASTY).splitlines()
    assert lines[0] == r"**A \| B**"
    assert lines[2:4] == ["| name | x |", "| :--- | ---: |"]
    assert lines[4] == r"| \<script>alert(1)\</script>\|\_a\_<br>\[b\](c) | 1 |"
    assert lines[5] == r"| C&W \*hot\* \&lt; within_speaker | 2 |"
    assert lines[7] == r"\[red\]10 \< 20\[/red\]"


def shown_as_html(table: Table) -> str:
    templates = Environment(loader=PackageLoader("ser_fl.report"), autoescape=True)
    return str(templates.from_string("{% from 'table.html.j2' import show %}{{ show(table) }}").render(table=table))


def test_html_escapes_everything() -> None:
    page = Page(shown_as_html(NASTY))
    assert set(page.tags) == {"div", "table", "caption", "strong", "thead", "tr", "th", "tbody", "td", "br", "p"}
    assert "<script>alert(1)</script>|_a_" in page.words


def test_terminal_shows_every_figure(tmp_path: Path) -> None:
    table = four_way([read_run(make_run(tmp_path / "run", config(objective=PGD_TRAINING), FOUR_WAY))])
    screen = io.StringIO()
    print_table(table, Console(file=screen, width=80))
    assert max(map(len, screen.getvalue().splitlines())) <= 80
    narrow = io.StringIO()
    print_table(table, Console(file=narrow, width=30))
    for shown in (screen.getvalue(), narrow.getvalue()):
        words = shown.split()
        assert all(words.count(figure) >= 1 for figure in ("73.3", "40.0", "10.0", "0.0", "70.0", "50.0", "30.0"))
        assert words.count("†") >= 3
    print_table(NASTY, Console(file=screen, width=80))
    assert "[red]10 < 20[/red]" in screen.getvalue()


def test_the_demos_table_fits_80_columns_with_accuracy_beside_uar(tmp_path: Path) -> None:
    """Two runs, two defences, four attacks, one of them on a subset, and the worst case."""
    attacks = [
        record(
            name, 0.5, epsilon=epsilon, norm=norm, defence=defence, robust_accuracy=0.25, clean_accuracy=0.75, **more
        )
        for defence in ("none", "randomisation")
        for name, epsilon, norm, more in (
            ("clean", None, "none", {"steps": None}),
            ("fgsm", 0.05, "inf", {"steps": 1}),
            ("bim", 0.05, "inf", {}),
            ("pgd", 0.05, "inf", {}),
            ("cw_l2", 5.46, "2", {"num_examples": 14}),
            ("worst_case", 0.05, "inf", {"steps": None}),
        )
    ]
    settings = config(data={"name": "builtin"})
    runs = [make_run(tmp_path / "fl", settings, attacks)]
    runs.append(make_run(tmp_path / "pgd", settings | {"objective": PGD_TRAINING}, attacks))
    screen = io.StringIO()
    print_table(four_way([read_run(run) for run in runs]), Console(file=screen, width=80))
    assert max(map(len, screen.getvalue().splitlines())) <= 80
    assert screen.getvalue().split().count("50.0/25.0") == 4 * 6


def test_page_needs_nothing_but_itself(full_run: Path) -> None:
    text = RunFolder(full_run).report.read_text(encoding="utf-8")
    page = Page(text)
    inside = [source for source in page.sources if source.startswith("#")]
    assert len(page.sources) - len(inside) == page.tags.count("img") == 1
    assert all(source.startswith("data:image/png;base64,") for source in set(page.sources) - set(inside))
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert all(f'id="{source[1:]}"' in text for source in inside)
    assert "http" not in text
    assert "url(" not in text
    for words in ("Corpus nemo", "anger, neutral, sadness", "0123abc", "ser-fl train 'data.root=a b'", "≤ 10.0"):
        assert words in page.words
    assert "recordings were kept" in page.words.partition("Not there yet")[2]
    assert "No attack was recorded" not in page.words
    assert "SYNTHETIC" not in page.words


def test_single_run_leaves_its_figures_as_png(full_run: Path) -> None:
    figures = sorted(RunFolder(full_run).figures.iterdir())
    assert [path.stem for path in figures] == [
        "confusion",
        "robust_uar_logmel_linf",
        "speakers",
        "spectrogram_1",
        "training",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in figures)


def test_several_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    names = {"experiment": "<b>loud</b>", "data": {"name": "builtin"}}
    runs = [make_run(tmp_path / name, config(seed=seed, **names)) for seed, name in enumerate(("one", "two & three"))]
    page_path = write_report([*runs, runs[1]], tmp_path / "out" / "both.html")
    assert dict(matplotlib.rcParams) == SETTINGS
    page = Page(page_path.read_text(encoding="utf-8"))
    assert page_path == tmp_path / "out" / "both.html"
    assert not RunFolder(runs[0]).figures.exists()
    each = page.words.partition("Each run\n")[2]
    assert 0 < each.index("Federated, seed 0") < each.index("Where this comes from") < each.index("Federated, seed 1")
    assert "b" not in page.tags
    assert "<b>loud</b>" in page.words
    assert "SYNTHETIC speech" in page.words
    assert f"ser-fl benchmark run='{runs[1].name}'" in page.words, "the page may be published: no absolute folder"
    assert str(tmp_path) not in page_path.read_text(encoding="utf-8")


def test_page_says_what_the_benchmark_doubts(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", None, FOUR_WAY)
    write_report([root])
    assert "Can these figures be believed?" not in Page((root / "report.html").read_text(encoding="utf-8")).words
    doubts = (
        Doubt(check="many steps beat one", words="FGSM leaves 0.3 <b>& more</b>."),
        Doubt(check="clean UAR is plausible", words="It is 0.95.", severity="hint"),
    )
    found = SanityReport(doubts=doubts, passed=("attacks beat noise",), not_checked={"UAR falls": "one budget"})
    write_sanity_report(RunFolder(root), found)
    write_report([root])
    text = (root / "report.html").read_text(encoding="utf-8")
    words = Page(text).words
    assert "Can these figures be believed?" in words and found.headline in words
    assert "fails: many steps beat one. FGSM leaves 0.3 <b>& more</b>." in words and "<b>" not in text
    assert words.count("What that means: the iterated attack is too weak") == 1
    assert "hint: clean UAR is plausible. It is 0.95." in words
    assert "Passed: attacks beat noise." in words and "Not checked: UAR falls (one budget)." in words


def kept(root: Path, name: str, samples: int, *, spike: int = 0, rate: int = 8000) -> str:
    """A WAV file of silence with one full-scale sample, beside the list of pairs."""
    content = np.zeros(samples, dtype="<i2")
    content[spike] = 32767
    path = RunFolder(root).adversarial / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, samples, "NONE", ""))
        file.writeframes(content.tobytes())
    return name


def listed(root: Path, *pairs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    write_json(RunFolder(root).adversarial / "waveforms.json", {"pairs": list(pairs)})
    return list(pairs)


def test_the_page_carries_different_attacks_first_and_says_what_it_left_out(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", None, FOUR_WAY)
    pairs = [
        {
            "utterance_id": f"<{key}>",
            "clean": kept(root, f"{key}.clean.wav", 900),
            "adversarial": kept(root, f"{key}.pgd.snr_db_{level}.wav", 900, spike=500),
            "attack": "pgd",
            "snr_db": float(level),
        }
        for level in (40, 20)
        for key in ("a", "b")
    ]
    listed(root, *pairs, {**pairs[0], "adversarial": "gone.wav"})
    (shown,), notes = audio_pairs([read_run(root)])
    assert [pair.title for pair in shown] == ["<a>", "<a>", "<b>"]
    assert [pair.adversarial_words for pair in shown[:2]] == [
        "adversarial (PGD, SNR 40.0 dB)",
        "adversarial (PGD, SNR 20.0 dB)",
    ]
    assert b64decode(shown[0].adversarial) == (RunFolder(root).adversarial / pairs[0]["adversarial"]).read_bytes()
    assert notes == ["Federated: 1 more of 4 pairs in adversarial/ would make this page too large"]
    page = Page(write_report([root]).read_text(encoding="utf-8"))
    assert page.tags.count("audio") == 6 and notes[0] in page.words and "<a>" in page.words
    assert "recordings were kept" not in page.words


def test_audio_stays_within_its_bytes(tmp_path: Path) -> None:
    roots = [make_run(tmp_path / name, config(run_name=name), FOUR_WAY) for name in ("one", "two")]
    for root in roots:
        names = {key: kept(root, f"{key}.wav", PAGE_BYTES // 5) for key in ("clean", "adversarial")}
        listed(root, {"utterance_id": "a", "attack": "pgd", "snr_db": None, **names})
    shown, notes = audio_pairs([read_run(root) for root in roots])
    assert [len(pairs) for pairs in shown] == [1, 0]
    assert notes == ["Federated, two: 1 more of 1 pairs in adversarial/ would make this page too large"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": "../model.wav"}, "which is no file beside it"),
        ({"clean": 5}, "must hold text as clean, got 5"),
        ({"clean": "text.wav"}, "cannot be read"),
    ],
)
def test_a_list_of_recordings_that_was_changed_is_told(
    tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    root = make_run(tmp_path / "run", None, FOUR_WAY)
    pair = {"utterance_id": "a", "clean": kept(root, "c.wav", 900), "adversarial": kept(root, "a.wav", 900)}
    listed(root, {**pair, **changes})
    (RunFolder(root).adversarial / "text.wav").write_text("no audio")
    with pytest.raises(UserError, match=message):
        write_report([root])
    assert not RunFolder(root).report.exists()


def test_what_is_added_is_seen_where_it_was_added() -> None:
    rate, tone = 8000, np.sin(2 * np.pi * 1000 * np.arange(4096) / 8000)
    power = decibels(tone)
    assert power.shape == (257, 29)
    assert set(power.argmax(axis=0)) == {1000 * 512 // rate}
    assert decibels(np.zeros(100)).max() == pytest.approx(-100.0)


def test_the_headline_names_the_attacker_the_split_and_the_failed_checks(tmp_path: Path) -> None:
    shared = {"words": "shared with training: none of 9 speakers, all of 4 texts"}
    attacks = [
        *FOUR_WAY,
        record("worst_case", 0.05, steps=None, restarts=None),
        record("pgd", 0.125, defence="randomisation", knowledge="adaptive", eot_samples=4, num_examples=12),
        record("worst_case", 0.1, defence="randomisation", knowledge="adaptive+undefended", num_examples=12),
    ]
    root = make_run(tmp_path / "run", None, attacks)
    summary = RunFolder(root).summary
    write_json(summary, {**json.loads(summary.read_text()), "shared": shared})
    found = SanityReport(doubts=(Doubt(check="attacks beat noise", words="x"),), passed=("a", "b"), not_checked={})
    write_sanity_report(RunFolder(root), found)
    said = headline([read_run(root)])
    assert said.sentence == (
        "Federated recognises 73.3 % of the emotions without attack (UAR; chance 33.3 %); the strongest attacker"
        " leaves 5.0 %."
    )
    _, bare, defended, split, checks = said.tiles
    assert (bare.figure, bare.is_alarm) == ("5.0 %", False)
    assert bare.words == "worst of 2 at L∞ 0.05; strongest alone: PGD, 50 steps, 5 restarts (10.0)"
    assert (defended.figure, defended.words) == ("10.0 %", "PGD, 10 steps, EOT 4, adaptive at L∞ 0.05")
    assert split.words == "none of 9 speakers, all of 4 texts"
    assert (checks.figure, checks.is_alarm) == ("1", True)
    assert checks.words == f"attacks beat noise: {meaning('attacks beat noise')}"


def test_many_runs_have_a_range_and_a_row_each(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / str(seed), config(seed=seed), [clean(0.7), record("pgd", 0.1 * seed)]))
        for seed in (1, 2)
    ]
    assert "2 runs recognise 73.3 % of the emotions" in headline(runs).sentence
    assert "leaves 10.0 to 20.0 %" in headline(runs).sentence
    table = comparison_table(runs)
    row = dict(zip(table.header, table.rows[1], strict=True))
    assert (
        row["Run"] == "Federated\nseed 2" and row["Worst case"] == "≤ 20.0" and row["Checks that fail"] == "not checked"
    )
    assert row["By which attacker"] == "PGD, L∞ 0.05, 10 steps"
    # Recalls 0.8, 0.6, 0.8 of 10 each: 1.96 * sqrt((0.16 + 0.24 + 0.16) / 10) / 3
    assert row["95 % ±"] == "15.5"
    for number, run in enumerate(runs):
        words = f"shared with training: none of {number + 3} speakers, all of 4 texts"
        write_json(
            run.root / "summary.json",
            {**json.loads((run.root / "summary.json").read_text()), "shared": {"words": words}},
        )
    both = headline([*map(read_run, (run.root for run in runs)), read_run(make_run(tmp_path / "third"))])
    assert both.sentence.endswith("leaves 10.0 to 20.0 % of the 2 that were attacked.")
    assert both.tiles[0].words == "30 utterances, 3 emotions"
    split = "split within_speaker; what it shares was not recorded"
    assert both.tiles[2].words == f"none of the speakers, all of the texts / {split}"
    assert headline([read_run(make_run(tmp_path / "begun", finished=False))]).sentence.startswith(
        "The training has not"
    )
    assert "nobody attacked" in headline([read_run(make_run(tmp_path / "bare"))]).sentence


def test_chart_data_are_the_records_and_plain_json(tmp_path: Path) -> None:
    attacks = [
        clean(0.7),
        *(record("pgd", 0.3 - epsilon, epsilon=epsilon, uar_interval=(0.1, 0.2)) for epsilon in (0.2, 0.1)),
        record("fgsm", float("nan"), epsilon=0.1),
        record("worst_case", 0.05, epsilon=0.2),
        record("pgd", 0.5, domain="waveform", norm="2", epsilon=None, snr_db=40.0),
        record("pgd", 0.4, domain="waveform", norm="2", epsilon=None, snr_db=60.0),
    ]
    run = read_run(make_run(tmp_path / "run", None, attacks))
    over_epsilon, over_snr = json.loads(json.dumps(budget_charts([run]), allow_nan=False))
    assert [budget["words"] for budget in over_epsilon["budgets"]] == ["no attack", "L∞ ε 0.1", "L∞ ε 0.2"]
    assert [budget["value"] for budget in over_snr["budgets"]] == [None, 60.0, 40.0], "a lower SNR is the larger budget"
    strongest, pgd = over_epsilon["series"]
    told = {point["budget"]: (point["uar"], point["by"]) for point in strongest["points"]}
    assert told[None] == (0.7, "") and told[0.2] == (0.05, "PGD, 10 steps at L∞ 0.2")
    assert told[0.1][0] == pytest.approx(0.2), "the lowest single attack, where no worst case is known"
    assert pgd["attack"] == "PGD, 10 steps" and pgd["points"][1]["interval"] == [0.1, 0.2]
    uars, losses = json.loads(json.dumps(round_charts([run]), allow_nan=False))
    assert [one["points"] for one in uars["series"]] == [[[1, 0.5], [2, 0.75], [3, 0.7]], [[2, 0.25]]]
    assert uars["series"][0]["star"] == [2, 0.75] and losses["series"][0]["points"][0] == [1, 1.0]


def test_page_of_an_unfinished_run_names_the_commands(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", finished=False)
    path = write_report([root])
    words = Page(path.read_text(encoding="utf-8")).words
    assert path == root / "report.html"
    assert "ser-fl train --config run/config.yaml run_dir=run resume=true" in words
    assert "ser-fl benchmark run=run" in words
    assert not [left for left in root.iterdir() if left.name.startswith(".")]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "is not a run folder"),
        ("config.yaml", "a: [", "is not YAML"),
        ("config.yaml", "- a", "must hold a mapping"),
        ("summary.json", "{", "is not JSON"),
        ("summary.json", '{"test": 5}', "must hold a mapping as test, got 5"),
        ("summary.json", '{"classes": "anger"}', "must hold a list as classes, got 'anger'"),
        ("summary.json", '{"test": {"confusion": 5}}', r"must hold a list as test\.confusion, got 5"),
        ("summary.json", '{"test": {"confusion": [[1], 2]}}', r"must hold a list as test\.confusion\.1, got 2"),
        ("summary.json", '{"test": {"per_class_recall": {}}}', r"a list as test\.per_class_recall, got {}"),
        ("summary.json", '{"test": {"per_speaker_uar": []}}', r"a mapping as test\.per_speaker_uar, got \[\]"),
        ("rounds.jsonl", "{\n", "not JSON"),
        ("rounds.jsonl", "5\n", "must hold a mapping, got 5"),
        ("attacks.json", '{"schema": 2, "records": []}', "schema 2"),
        ("attacks.json", '{"schema": 1, "records": [{"attack": "pgd"}]}', "incomplete record"),
        ("attacks.json", '{"schema": 1, "records": [], "checks": {"doubts": [1]}}', "incomplete checks"),
        ("adversarial/example.json", '{"clean": []}', "lacks attack"),
    ],
)
def test_bad_folders_get_one_clear_line(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    path = make_run(tmp_path / "run", None, FOUR_WAY, example=EXAMPLE) / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        write_report([tmp_path / "run"])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "report.html").exists()


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run folder"):
        write_report([])
    with pytest.raises(UserError, match="is not a run folder"):
        write_report([tmp_path / "nowhere"])


def test_curve_equals_its_records() -> None:
    grey = [record("pgd", uar, epsilon=epsilon, defence="randomisation") for epsilon, uar in ((0.1, 0.2), (0.02, 0.6))]
    subset = record("fgsm", 0.5, num_examples=10, clean_uar=0.9)
    ax = robust_uar_curve(Figure().subplots(), [*grey, subset], num_classes=4, clean_uar=0.7, num_test=30)
    pgd, fgsm, star, chance = ax.get_lines()
    assert (xs(pgd), ys(pgd)) == ([0.0, 0.02, 0.1], [22 / 30, 0.6, 0.2])
    assert (pgd.get_linestyle(), pgd.get_label()) == ("--", "PGD, 10 steps, grey-box")
    assert (ys(fgsm), fgsm.get_linestyle()) == ([0.9, 0.5], "-")
    assert fgsm.get_label() == "FGSM, 10 steps, n = 10"
    assert (xs(star), ys(star)) == ([0.0], [0.7])
    assert (set(ys(chance)), chance.get_label()) == ({0.25}, "chance (1/4)")
    assert ax.get_xlabel() == "epsilon (standardised log-mel units)"
    assert ax.get_ylim() == (0, 1)
    assert pgd.get_color() != fgsm.get_color()


def test_queries_of_the_bare_model_are_grey_for_a_defence_and_a_transfer_is_not() -> None:
    asked = {"defence": "randomisation", "eot_samples": 0}
    assert wording.is_grey_box(record("square", 0.5, knowledge="score", **asked))
    assert not wording.is_grey_box(record("square", 0.5, knowledge="score", **{**asked, "eot_samples": 4}))
    assert not wording.is_grey_box(record("square", 0.5, knowledge="score", **{**asked, "defence": "none"}))
    assert not wording.is_grey_box(record("pgd", 0.5, knowledge="transfer", **asked))


def test_curve_over_snr_falls_to_the_right_and_shades_intervals() -> None:
    changes = {"domain": "waveform", "norm": "2", "epsilon": None}
    records = [
        record("pgd", uar, snr_db=level, uar_interval=(uar - 0.1, uar + 0.2), **changes)
        for level, uar in ((20.0, 0.2), (60.0, 0.6), (0.0, 0.1))
    ]
    ax = robust_uar_curve(Figure().subplots(), records, num_classes=4, clean_uar=0.7)
    pgd, clean, _ = ax.get_lines()
    assert (xs(pgd), ys(pgd)) == ([0.0, 20.0, 60.0], [0.1, 0.2, 0.6])
    assert ax.xaxis_inverted() and ax.get_xlabel() == "SNR (dB)"
    assert (set(ys(clean)), clean.get_label()) == ({0.7}, "clean")
    (shade,) = ax.collections
    corners = {(float(x), round(float(y), 6)) for x, y in shade.get_paths()[0].vertices}
    assert {(60.0, 0.5), (60.0, 0.8), (0.0, 0.0), (0.0, 0.3)} <= corners


def test_domains_norms_and_units_have_figures_of_their_own(tmp_path: Path) -> None:
    records = [
        *(record("pgd", 0.3, epsilon=epsilon) for epsilon in (0.1, 0.2)),
        *(record("pgd", 0.3, domain="waveform", norm="2", epsilon=None, snr_db=level) for level in (60.0, 20.0)),
        *(record("pgd", 0.3, domain="waveform", epsilon=epsilon) for epsilon in (0.01, 0.02)),
        record("psychoacoustic", 0.3, domain="waveform", norm="masking", epsilon=None),
    ]
    drawn = draw_figures([read_run(make_run(tmp_path / "run", None, records))])
    assert {name for name in drawn if name.startswith("robust")} == {
        *("robust_uar_logmel_linf", "robust_uar_waveform_l2_snr", "robust_uar_waveform_linf"),
    }


def test_training_curves_equal_the_rounds() -> None:
    rounds = [
        Round(round=1, uar=0.5, train_loss=1.0),
        Round(round=2, uar=0.75, train_loss=0.5, robust_uar=0.25),
        Round(round=3, train_loss=0.25),
    ]
    upper, lower = Figure().subplots(2)
    uar, robust, star = uar_over_rounds(upper, rounds, label="run", selected_round=2).get_lines()
    assert (xs(uar), ys(uar)) == ([1, 2], [0.5, 0.75])
    assert (xs(robust), ys(robust)) == ([2], [0.25])
    assert (xs(star), ys(star), star.get_marker()) == ([2], [0.75], "*")
    (loss,) = loss_over_rounds(lower, rounds, label="run").get_lines()
    assert ys(loss) == [1.0, 0.5, 0.25]


def test_few_scored_rounds_among_many_are_seen_and_a_star_may_stand_on_robust_uar() -> None:
    rounds = [Round(round=number) for number in range(1, 101)]
    rounds[49], rounds[59] = Round(round=50, uar=0.5), Round(round=60, robust_uar=0.25)
    uar, _, star = uar_over_rounds(Figure().subplots(), rounds, label="run", selected_round=60).get_lines()
    assert (xs(uar), ys(uar), uar.get_marker()) == ([50], [0.5], ".")
    assert (xs(star), ys(star), star.get_marker()) == ([60], [0.25], "*")


@pytest.mark.parametrize("draw", [uar_over_rounds, loss_over_rounds])
def test_one_round_is_seen_and_rounds_are_whole(draw: Callable[..., Axes]) -> None:
    ax = draw(Figure().subplots(), [Round(round=1, uar=0.5, train_loss=1.0)], label="run")
    (line,) = ax.get_lines()
    assert (xs(line), line.get_marker()) == ([1], ".")
    low, high = ax.get_xlim()
    assert (low, high) == (0.5, 1.5)
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]
    rounds = [Round(round=number, uar=0.5, train_loss=1.0) for number in range(1, 101)]
    draw(ax, rounds, label="long")
    assert ax.get_lines()[1].get_marker() == "", "a hundred dots would be a thick line"
    low, high = ax.get_xlim()
    assert low < 1 < 100 < high
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_confusion_matrix_colours_shares_and_writes_counts() -> None:
    ax = confusion_matrix(Figure().subplots(), [[3, 1, 0], [0, 2, 2], [0, 0, 0]], CLASSES)
    expected = [[0.75, 0.25, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()), expected)
    assert [text.get_text() for text in ax.texts] == ["3", "1", "0", "0", "2", "2", "0", "0", "0"]
    assert [text.get_position() for text in ax.texts][1] == (1, 0)
    expectation = confusion_matrix(Figure().subplots(), [[2.5, 0.5], [0.0, 3.0]], ["a", "b"])
    assert expectation.texts[0].get_text() == "2.5"


def test_speakers_are_sorted_and_the_unscored_left_out() -> None:
    ax = speaker_bars(Figure().subplots(), {"MK0": 0.65, "AB2": None, "JP1": 0.5}, overall_uar=0.6)
    assert [bar.get_bbox().height for bar in ax.patches if isinstance(bar, Rectangle)] == [0.5, 0.65]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["JP1", "MK0"]
    assert set(ys(ax.get_lines()[0])) == {0.6}


def test_spectrogram_pair_shows_the_difference_in_seconds() -> None:
    clean_ax, adversarial_ax, difference_ax = spectrogram_pair(Figure().subplots(3), record_of(Example, EXAMPLE))
    np.testing.assert_array_equal(np.asarray(clean_ax.images[0].get_array()), EXAMPLE["clean"])
    expected = [[0.05, 0.05, -0.05, 0.0], [0.0, -0.05, 0.0, 0.05]]
    np.testing.assert_allclose(np.asarray(difference_ax.images[0].get_array()), expected, atol=1e-12)
    assert clean_ax.images[0].get_clim() == adversarial_ax.images[0].get_clim() == (0.0, 3.0)
    np.testing.assert_allclose(difference_ax.images[0].get_clim(), (-0.05, 0.05))
    assert difference_ax.images[0].get_extent()[1] == 2.0
    assert clean_ax.get_title() == "clean: heard as anger (true: anger)"
    bars = [ax.images[0].colorbar for ax in (clean_ax, adversarial_ax, difference_ax)]
    assert [" ".join(bar.ax.get_ylabel().split()) for bar in bars if bar] == [
        "log-mel magnitude (natural log)",
        "log-mel magnitude (natural log)",
        "difference (natural log)",
    ]
    assert adversarial_ax.get_title() == "adversarial (PGD, ε 0.05): heard as sadness"


def test_importing_the_report_loads_neither_torch_nor_matplotlib() -> None:
    modules = "wording markup reader tables figures panels page"
    code = f"import importlib, sys; [importlib.import_module('ser_fl.report.' + name) for name in {modules.split()!r}]"
    code += "; print([name for name in ('torch', 'matplotlib', 'rich', 'art', 'wandb') if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_report_is_the_same_each_time_and_needs_neither_torch_nor_pyplot(full_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code = (
        "import sys; from pathlib import Path; from ser_fl.report.page import write_report;"
        f"write_report([Path({str(full_run)!r})], Path({str(page)!r}));"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]
    assert page.read_bytes() == RunFolder(full_run).report.read_bytes()


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", config(extra={"a": 1}), FOUR_WAY)
    run = RunFolder(root)
    write_json(run.attacks, {"schema": 1, "records": [{**run.read_json(run.attacks)["records"][0], "new": 1}]})
    write_json(run.summary, {**run.read_json(run.summary), "new": {"deep": []}})
    records: RunRecords = read_run(root)
    assert records.attacks[0].attack == "clean"
    assert records.clean_scores("none") == (22 / 30, None)


def test_groups_are_those_of_the_clean_score_and_the_worst_case(tmp_path: Path) -> None:
    groups = {"sex_uar": {"f": 0.25, "m": 0.5}, "speaker_uar": {"ann": 0.25, "bob": 0.5}}
    records = [
        record("clean", 0.7, epsilon=None, norm="none", sex_uar={"f": 0.8, "m": 0.6}, emotion_recall={"anger": 0.9}),
        record("pgd", 0.3, sex_uar={"f": 0.1, "m": 0.1}, speaker_uar={"ann": 0.1}),
        record("worst_case", 0.2, emotion_recall={"anger": 0.125, "neutral": 0.5}, **groups),
        record("worst_case", 0.1, epsilon=0.4, emotion_recall={"anger": 0.0}),
    ]
    own = {"per_speaker_confusion": {"ann": CONFUSION}}
    people, emotions = group_tables(read_run(make_run(tmp_path / "run", None, records, test=own)))
    assert people.header == ("Speaker", "Utterances", "clean", "worst case\nL∞ 0.05")
    assert people.rows == (
        ("ann", "30", "–", "25.0"),
        ("all female", "–", "80.0", "25.0"),
        ("all male", "–", "60.0", "50.0"),
        ("bob", "–", "–", "50.0"),
    )
    assert emotions.rows == (("anger", "10", "90.0", "12.5"), ("neutral", "10", "–", "50.0"))


def test_groups_without_an_attack_are_those_of_the_test(tmp_path: Path) -> None:
    people, emotions = group_tables(read_run(make_run(tmp_path / "old", None, FOUR_WAY)))
    assert people.rows == (("JP1", "–", "80.0"), ("MK0", "–", "65.0"))
    assert emotions.rows == (("anger", "10", "80.0"), ("neutral", "10", "60.0"), ("sadness", "10", "–"))
    assert group_tables(read_run(make_run(tmp_path / "begun", finished=False))) == []


def test_confusions_count_utterances_and_share_the_true_ones(tmp_path: Path) -> None:
    attacks = [record("fgsm", 0.4), record("pgd", 0.1, confusion=[[1, 9, 0]] * 3), record("bim", 0.05, num_examples=3)]
    (clean, shares), (worst, _) = confusion_tables(read_run(make_run(tmp_path / "run", None, attacks)))
    assert clean.title == "Without attack, UAR 73.3 %" and worst.title == "PGD ε 0.05, UAR 10.0 %"
    assert clean.rows == (("anger", "8", "1", "1"), ("neutral", "0", "6", "4"), ("sadness", "2", "0", "8"))
    assert shares == [[0.8, 0.1, 0.1], [0.0, 0.6, 0.4], [0.2, 0.0, 0.8]]
    assert worst.rows[0] == ("anger", "1", "9", "0")


def test_the_attack_table_shows_what_was_measured_and_no_empty_columns(tmp_path: Path) -> None:
    assert "Robust UAR, 95 %" not in attack_table([read_run(make_run(tmp_path / "old", None, FOUR_WAY))]).header
    adaptive = record(
        "pgd", 0.2, knowledge="adaptive", uar_interval=(0.125, 0.3), undefended_gap=(0.2, 0.1, 0.25), eot_samples=16
    )
    table = attack_table([read_run(make_run(tmp_path / "new", None, [adaptive]))])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["Robust UAR, 95 %"] == "12.5 to 30.0"
    assert (row["Gap to grey-box"], row["Gap, 95 %"]) == ("20.0", "10.0 to 25.0")
    assert "Median PESQ" not in row


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "summary.json",
            '{"classes": ["a", "b"], "test": {"confusion": [[1, 2]]}}',
            r"2 rows of 2 counts as test\.conf",
        ),
        ("summary.json", '{"test": {"confusion": [[1, "2"], [3, 4]]}}', r"number as test\.confusion\.0\.1, got '2'"),
        ("summary.json", '{"test": {"uar": "high"}}', r"must hold a number as test\.uar, got 'high'"),
        ("summary.json", '{"selected_round": [1]}', r"must hold a whole number as selected_round, got \[1\]"),
        ("summary.json", '{"test": ' + "[" * 5000, "is not JSON .nested too deeply"),
        ("summary.json", '{"experiment": "\\ud800"}', "is not JSON"),
        ("rounds.jsonl", '{"round": 1, "uar": {}}\n', "must hold a number as uar, got {}"),
        ("rounds.jsonl", "[" * 5000 + "\n", "nested too deeply"),
        ("config.yaml", "a: &a [*a]", "holds itself"),
        ("config.yaml", "a: 0x" + "f" * 5000, "is not YAML"),
        ("attacks.json", '{"schema": 1, "records": {}}', "must hold a list as records, got {}"),
        ("adversarial/example.json", json.dumps({**EXAMPLE, "clean": [[1.0]]}), "two spectrograms of one shape"),
    ],
)
def test_odd_values_get_one_clear_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    path = make_run(tmp_path / "run", None, FOUR_WAY, example=EXAMPLE) / file
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        read_run(tmp_path / "run")
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 2000


def test_labels_are_text_and_no_formulas(tmp_path: Path) -> None:
    """Between two dollar signs matplotlib looks for mathematics."""
    root = make_run(tmp_path / "run", None, FOUR_WAY, test={"uar": 0.5, "per_speaker_uar": {r"$\x$": 0.5}})
    assert draw_figures([read_run(root)])["speakers"]


def test_accuracy_stands_beside_uar_where_it_is_known(tmp_path: Path) -> None:
    attacks = [clean(0.7), record("pgd", 0.25, clean_accuracy=0.75, robust_accuracy=0.5)]
    attacks[0] = dataclasses.replace(attacks[0], robust_accuracy=0.75)
    run = read_run(make_run(tmp_path / "run", None, attacks))
    assert four_way([run]).rows[0][2:4] == ("70.0 / 75.0", "25.0 / 50.0")
    row = dict(zip(attack_table([run]).header, attack_table([run]).rows[1], strict=True))
    assert (row["Clean UAR"], row["Robust UAR"]) == ("73.3 / 75.0", "25.0 / 50.0")
