"""report.html in headless Chromium: what it tells, what its tables, slider and players do, and who can use it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ser_fl.report.page import write_report
from ser_fl.report.reader import read_run
from ser_fl.runs.records import WORST_CASE, AttackRecord

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Download, Locator, Page

WIDTHS, SCHEMES = (400, 1280), ("light", "dark")


@pytest.fixture(scope="module")
def one(small_runs: list[Path]) -> Path:
    return write_report(small_runs[:1])


@pytest.fixture(scope="module")
def many(small_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(small_runs, tmp_path_factory.mktemp("many") / "report.html")


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; whatever it complains about, or asks the network for, fails the test."""
    complaints: list[str] = []
    pages: list[Page] = []

    def open_page(path: Path, width: int = 1280, scheme: Any = "light") -> Page:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.set_default_timeout(10_000)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def box_of(page: Page, title: str) -> Locator:
    return page.locator(f'.table[aria-label="{title}"]')


def column(box: Locator, number: int) -> list[str]:
    """The texts of a column's cells that are shown."""
    cells = box.locator(f"tbody tr:not([hidden]) > :nth-child({number})")
    return [text.replace("\u00a0", " ").strip() for text in cells.all_inner_texts()]


def saved(page: Page, name: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name, exact=True).click()
    download: Download = waiting.value
    return Path(download.path()).read_bytes().decode()


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_out_of_reach(opened: Callable[..., Page], many: Path, width: int, scheme: str) -> None:
    """The page never scrolls sideways, and what is wider than its box scrolls within it and takes the focus."""
    page = opened(many, width, scheme)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    lost = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) => {
          if (node.closest("svg, audio") || node.classList.contains("skip")) return false;
          const box = node.closest(".table");
          const wide = node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).display !== "inline";
          if (wide && node.clientWidth && !node.matches(".table, select, input")) return true;
          if (node.matches(".table")) return node.tabIndex !== 0 || getComputedStyle(node).overflowX !== "auto";
          return !box && node.getBoundingClientRect().right > innerWidth + 1;
        }).map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert lost == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious(opened: Callable[..., Page], many: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra dev)")
    page = opened(many, width, scheme)
    open_all(page)
    found = axe.Axe().run(page).response["violations"]
    assert [
        (each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")
    ] == []


def test_the_first_column_and_the_head_stay_while_a_table_scrolls(opened: Callable[..., Page], one: Path) -> None:
    page = opened(one, 400)
    open_all(page)
    box = box_of(page, "Attacks: strength and cost")
    first, last = box.locator("tbody tr").first.locator("th").first, box.locator("thead th").last
    before = box.evaluate("box => box.getBoundingClientRect().left")
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; box.scrollTop = 200; }")
    assert abs(first.evaluate("cell => cell.getBoundingClientRect().left") - before) <= 2
    edges = box.evaluate("box => [box.getBoundingClientRect().right, box.getBoundingClientRect().top]")
    right, top = last.evaluate("cell => [cell.getBoundingClientRect().right, cell.getBoundingClientRect().top]")
    assert right <= edges[0] + 1 and abs(top - edges[1]) <= 2


def test_headline_is_what_the_records_say(opened: Callable[..., Page], one: Path, small_runs: list[Path]) -> None:
    run, page = read_run(small_runs[0]), opened(one)
    worst = worst_at(run.attacks, 0.2)
    assert run.test.uar is not None
    sentence = page.locator(".headline").inner_text()
    assert f"{100 * run.test.uar:.1f} %" in sentence and f"leaves {100 * worst.robust_uar:.1f} %" in sentence
    tiles = page.locator(".tiles > div").all_inner_texts()
    assert [tile.split("\n")[0] for tile in tiles] == [
        *("Clean UAR", "Worst case, no randomisation", "Worst case, randomisation"),
        *("Test part shares with training", "Checks that fail"),
    ]
    assert "†" in tiles[2] and "none of 16 recordings" in tiles[3]
    assert "the defended figures are no evidence of robustness" in tiles[4]


def worst_at(records: tuple[AttackRecord, ...], epsilon: float, defence: str = "none") -> AttackRecord:
    (found,) = (
        each
        for each in records
        if (each.attack, each.defence, each.epsilon, each.domain) == (WORST_CASE, defence, epsilon, "logmel")
    )
    return found


def test_runs_are_compared_in_one_table(opened: Callable[..., Page], many: Path, small_runs: list[Path]) -> None:
    box = box_of(opened(many), "All runs")
    assert column(box, 1) == ["Federated\nseed 1", "Federated\nseed 1", "Federated\nseed 2"]
    uars = [100 * (read_run(run).clean_scores("none")[0] or 0) for run in small_runs]
    assert [text.split(" ")[0] for text in column(box, 3)][::2] == [f"{uar:.1f}" for uar in uars]


def test_headings_sort_as_figures_and_as_words(opened: Callable[..., Page], one: Path) -> None:
    page = opened(one)
    open_all(page)
    box = box_of(page, "Attacks: strength and cost")
    heads = [text.replace("\u00a0", " ") for text in box.locator("thead th").all_inner_texts()]
    passes = heads.index("Forward passes") + 1
    button = box.get_by_role("button", name="Forward passes")
    figures = sorted(int(text.replace(",", "")) for text in column(box, passes) if text != "–")
    assert len(set(figures)) > 2 and figures != [int(text.replace(",", "")) for text in column(box, passes)]
    button.focus()
    page.keyboard.press("Enter")
    assert [int(text.replace(",", "")) for text in column(box, passes)] == figures
    assert box.locator("thead th").nth(passes - 1).get_attribute("aria-sort") == "ascending"
    button.click()
    assert [int(text.replace(",", "")) for text in column(box, passes)] == figures[::-1]
    box.get_by_role("button", name="Attack", exact=True).click()
    names = column(box, heads.index("Attack") + 1)
    assert names == sorted(names, key=str.lower) and len(set(names)) > 2
    snr = heads.index("Median SNR (dB)") + 1
    box.get_by_role("button", name="Median SNR").click()
    texts = column(box, snr)
    known = [float(text) for text in texts if text != "–"]
    assert known and texts[len(known) :] == ["–"] * (len(texts) - len(known)), "what is missing comes last"
    assert known == sorted(known)


def test_a_filter_keeps_rows_with_all_its_words(opened: Callable[..., Page], one: Path) -> None:
    page = opened(one)
    open_all(page)
    box = box_of(page, "Attacks: strength and cost")
    whole = len(column(box, 1))
    page.get_by_role("searchbox", name="Filter rows of Attacks: strength and cost").fill("fgsm ε 0.1")
    assert set(column(box, 2)) == {"FGSM"} and 0 < len(column(box, 1)) < whole
    told = page.locator(f".tools output:text('of {whole} rows')")
    assert told.inner_text() == f"{len(column(box, 1))} of {whole} rows"
    page.get_by_role("searchbox", name="Filter rows of Attacks: strength and cost").fill("")
    assert len(column(box, 1)) == whole


def test_downloads_hold_the_rows_that_are_shown(opened: Callable[..., Page], one: Path) -> None:
    page = opened(one)
    open_all(page)
    title = "Attacks: strength and cost"
    page.get_by_role("searchbox", name=f"Filter rows of {title}").fill("fgsm 0.1")
    box = box_of(page, title)
    attacks, passes = column(box, 2), column(box, len(box.locator("thead th").all()) - 1)
    rows = list(csv.DictReader(saved(page, f"CSV of {title}").splitlines()))
    assert [row["Attack"] for row in rows] == attacks and rows[0]["Budget"] == "ε 0.1"
    entries = json.loads(saved(page, f"JSON of {title}"))
    assert [entry["n"] for entry in entries] == [int(row["n"]) for row in rows], "plain figures are numbers"
    assert entries[0]["Median SNR (dB)"] is None and rows[0]["Median SNR (dB)"] == "–"
    latex = saved(page, f"LaTeX of {title}")
    assert latex.startswith("\\begin{tabular}{" + "l" * 8 + "r") and latex.count("\\\\\n") == len(rows) + 1
    assert "$\\varepsilon$ 0.1" in latex and "ε" not in latex
    assert len(passes) == len(rows)


def test_latex_escapes_what_it_would_read(opened: Callable[..., Page], one: Path) -> None:
    made = opened(one).evaluate(r"""toLatex(["a_b\n50 %"], [["C&W {x} \\ ≤ 3 #1 $ ~"]], 1)""")
    assert made.splitlines()[2] == r"\shortstack{a\_b\\50 \%} \\"
    assert made.splitlines()[4] == r"C\&W \{x\} \textbackslash{} $\leq$ 3 \#1 \$ \textasciitilde{} \\"


def test_the_slider_tells_the_figures_of_the_records(
    opened: Callable[..., Page], many: Path, small_runs: list[Path]
) -> None:
    page = opened(many)
    first, second = (read_run(run).attacks for run in small_runs)
    slider, told = page.locator("input[type=range]").first, page.locator(".told").first
    box = box_of(page, "UAR at one budget, features, L∞")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "no attack"
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "L∞ ε 0.05"
    assert column(box, 6)[2] == "not measured here", "the second run has no such record"
    for key, epsilon in (("ArrowRight", 0.1), ("End", 0.2)):
        page.keyboard.press(key)
        bare, other = worst_at(first, epsilon), worst_at(second, epsilon)
        defended = worst_at(first, epsilon, "randomisation")
        expected = [f"{100 * record.robust_uar:.1f}" for record in (bare, defended, other)]
        assert column(box, 3) == [expected[0], f"{expected[1]} †", expected[2]]
        ends = sorted({float(figure) for figure in expected})
        assert (
            told.inner_text()
            == f"L∞ ε {epsilon:g}: UAR " + " to ".join(f"{end:.1f}" for end in ends[:: len(ends) - 1 or 1]) + " %"
        )
    page.locator("select").first.select_option(label="FGSM, 1 step")
    slider.evaluate("slider => { slider.value = 2; slider.dispatchEvent(new Event('input')); }")
    fgsm = [each for each in (*first, *second) if (each.attack, each.epsilon) == ("fgsm", 0.1)]
    assert [text.split(" ")[0] for text in column(box, 3)] == [f"{100 * each.robust_uar:.1f}" for each in fgsm]


def test_over_snr_the_budget_grows_to_the_right(opened: Callable[..., Page], one: Path, small_runs: list[Path]) -> None:
    page = opened(one)
    slider = page.locator("input[type=range]").nth(1)
    told = []
    for place in range(3):
        slider.evaluate("(one, place) => { one.value = place; one.dispatchEvent(new Event('input')); }", place)
        told.append(slider.get_attribute("aria-valuetext"))
    assert told == ["no attack", "SNR 40 dB", "SNR 20 dB"]
    records = [each for each in read_run(small_runs[0]).attacks if each.snr_db == 20.0 and each.attack == "pgd"]
    shown = column(box_of(page, "UAR at one budget, recordings, SNR"), 3)
    assert [text.split(" ")[0] for text in shown] == [f"{100 * each.robust_uar:.1f}" for each in records]


def test_recordings_can_be_heard_and_are_those_that_were_kept(
    opened: Callable[..., Page], one: Path, small_runs: list[Path]
) -> None:
    page, folder = opened(one), small_runs[0] / "adversarial"
    pairs = json.loads((folder / "waveforms.json").read_text())["pairs"]
    players = page.locator("audio")
    assert players.count() == 2 * 3 and len(pairs) == 4
    page.wait_for_function("[...document.querySelectorAll('audio')].every((one) => one.readyState >= 1)")
    for place, pair in enumerate((pairs[0], pairs[2], pairs[1])):
        for name, player in (
            (pair["clean"], players.nth(2 * place)),
            (pair["adversarial"], players.nth(2 * place + 1)),
        ):
            size, rate = (folder / name).stat().st_size, 16000
            assert player.evaluate("one => one.duration") == pytest.approx((size - 44) / 2 / rate, abs=0.01)
            told = player.get_attribute("aria-label") or ""
            assert told.startswith(f"{pair['utterance_id']}, ")
            what = "clean" if name == pair["clean"] else "adversarial"
            assert told.endswith(f"heard as {pair['predicted_' + what]}") or (
                what == "clean" and told.endswith(f"(true: {pair['emotion']})")
            )
    players.first.evaluate("one => { one.muted = true; return one.play(); }")
    page.wait_for_function("document.querySelector('audio').currentTime > 0")
    assert "1 more of 4 pairs" in page.inner_text("main")


def test_panels_are_the_speakers_and_emotions_of_the_run(
    opened: Callable[..., Page], one: Path, small_runs: list[Path]
) -> None:
    page, run = opened(one), read_run(small_runs[0])
    clean = next(each for each in run.attacks if each.attack == "clean" and each.domain == "logmel")
    speakers = box_of(page, "By speaker")
    shown = dict(zip(column(speakers, 1), column(speakers, 3), strict=True))
    assert {name: f"{100 * uar:.1f}" for name, uar in clean.speaker_uar.items()}.items() <= shown.items()
    emotions = box_of(page, "By emotion")
    assert dict(zip(column(emotions, 1), column(emotions, 3), strict=True)) == {
        name: f"{100 * recall:.1f}" for name, recall in clean.emotion_recall.items()
    }
    share = emotions.locator("tbody td:nth-child(3)").first.evaluate("cell => cell.style.getPropertyValue('--share')")
    assert float(share.removesuffix("%")) == float(column(emotions, 3)[0])


def test_everything_is_reached_by_keyboard(opened: Callable[..., Page], many: Path) -> None:
    page = opened(many)
    reached = set()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").is_visible()
    for _ in range(250):
        reached.add(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
        page.keyboard.press("Tab")
    assert {"A.", "SELECT.", "INPUT.", "BUTTON.", "DIV.table", "SUMMARY."} <= reached


def test_names_are_text_and_no_markup(opened: Callable[..., Page], small_runs: list[Path], tmp_path: Path) -> None:
    """A run that is called after a script, in the page, its data and its charts."""
    import shutil

    import yaml

    evil = '</script><img src=x onerror="document.title=1">'
    for name in ("one", "two"):
        shutil.copytree(small_runs[1], tmp_path / name)
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        config["run_name"] = f"{evil}{name}"
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    page = opened(write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "page.html"))
    assert page.locator("img[src=x]").count() == 0 and page.title().startswith("ser_fl: </script>")
    assert f"{evil}one" in page.locator(".legend").first.inner_text()
