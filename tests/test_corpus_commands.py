"""`ser-fl corpus` on a terminal of 80 columns: nothing is torn apart, and what labels mean is shown."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from ser_fl.cli.corpus import check_corpus, describe_corpus, list_corpora
from ser_fl.data.corpora import CORPORA
from ser_fl.errors import UserError


class Screen:
    """A console of some width, and what was printed on it."""

    def __init__(self, width: int = 80) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=width)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    @property
    def words(self) -> str:
        return " ".join(self.file.getvalue().split())


def write_corpus(root: Path, codes: tuple[str, ...], channels: int = 1) -> Path:
    """A manifest of two clips of each code."""
    rows = ["path,emotion,speaker"]
    generator = np.random.default_rng(0)
    for code in codes:
        for number in range(2):
            rows.append(f"{code}{number}.wav,{code},s{number}")
            samples = generator.uniform(-0.5, 0.5, (900 + len(rows), channels))
            soundfile.write(root / f"{code}{number}.wav", samples, 16000)
    (root / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


@pytest.mark.parametrize("width", [80, 48, 200])
def test_list_breaks_between_words_and_keeps_addresses_whole(width: int) -> None:
    screen = Screen(width)
    list_corpora(screen.console)
    for info in CORPORA.values():
        assert f"{info.name}: {info.title}" in screen.lines
        if info.url:
            assert f"  {info.url}" in screen.lines
        for code, word in info.label_map.items():
            shown = code if code == word else f"{code}→{word}"
            assert any(shown in line for line in screen.lines), shown
    too_long = [line for line in screen.lines if len(line) > width and len(line.split()) > 1]
    assert too_long == []
    assert any("synthetic" in line for line in screen.lines)


def test_list_shows_the_codes_of_demos() -> None:
    screen = Screen()
    list_corpora(screen.console)
    for pair in ("col→guilt", "dis→disgust", "gio→happiness", "pau→fear", "rab→anger", "sor→surprise", "tri→sadness"):
        assert any(pair in line for line in screen.lines), pair
    assert "where all are codes of DEMoS" in screen.words


@pytest.mark.parametrize("command", [check_corpus, describe_corpus])
def test_labels_in_force_are_shown(tmp_path: Path, command: object) -> None:
    assert callable(command)
    screen = Screen()
    command(screen.console, "manifest", str(write_corpus(tmp_path, ("rab", "TRI", "neu"))), "first")
    assert "labels (in the corpus→here): neu→neutral, rab→anger, tri→sadness" in screen.lines


def test_labels_that_stay_as_they_are_stand_alone(tmp_path: Path) -> None:
    screen = Screen()
    check_corpus(screen.console, "manifest", str(write_corpus(tmp_path, ("rab", "menace"))), "first")
    assert "labels (in the corpus→here): menace, rab" in screen.lines
    assert screen.lines[-1] == "4 utterances read, 0 findings"


def test_check_says_what_was_not_published(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 400)
    soundfile.write(tmp_path / "03a01Fa.wav", samples, 16000)
    screen = Screen()
    check_corpus(screen.console, "emodb", str(tmp_path), "first")
    assert "not published for EmoDB, so not compared: counts by speaker and emotion" in screen.words


def test_rates_that_cannot_be_resampled_are_found(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, ("anger", "fear"))
    soundfile.write(root / "anger0.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 400), 44_101)
    screen = Screen(200)
    check_corpus(screen.console, "manifest", str(root), "first")
    assert [line for line in screen.lines if line.startswith("unreadable")] == [
        "unreadable: anger0.wav: 44101 Hz cannot be resampled to 16000 Hz; convert the recording to a usual rate first"
    ]


def test_second_channel_of_mono_files_is_one_line(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, ("anger", "fear"))
    for command in (check_corpus, describe_corpus):
        with pytest.raises(UserError, match=r"one channel, no second; take the first .*--channel first") as raised:
            command(Screen().console, "manifest", str(root), "second")
        assert "\n" not in str(raised.value)
    soundfile.write(root / "anger0.wav", np.random.default_rng(1).uniform(-0.5, 0.5, (400, 2)), 16000)
    screen = Screen()
    check_corpus(screen.console, "manifest", str(root), "second")
    assert [line for line in screen.lines if line.startswith("unreadable")] == [
        "unreadable: 3 files: it has one channel, no second; take the first (data.channel=first, --channel first): "
        "anger1.wav, fear0.wav, fear1.wav"
    ]
    described = Screen()
    describe_corpus(described.console, "manifest", str(root), "second")
    assert described.lines[-1].startswith("3 files cannot be used")


@pytest.mark.parametrize(("action", "command"), [("check", check_corpus), ("describe", describe_corpus)])
def test_messages_name_what_was_typed(tmp_path: Path, action: str, command: object) -> None:
    assert callable(command)
    with pytest.raises(UserError, match=rf"say where nEMO lies: ser-fl corpus {action} nemo ROOT"):
        command(Screen().console, "nemo", None, "first")
    with pytest.raises(UserError, match=r"no such folder: .*gone; set ROOT to the folder of nEMO$"):
        command(Screen().console, "nemo", str(tmp_path / "gone"), "first")
