"""Models that come with the package: found by name, checked, never written to, and their figures those on record."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import ser_fl
from ser_fl.cli.main import main
from ser_fl.cli.terminal import console
from ser_fl.cli.zoo import zoo_table
from ser_fl.config.compose import compose
from ser_fl.errors import UserError
from ser_fl.exporting.card import card
from ser_fl.federation.fine_tuning import FirstRun
from ser_fl.report.reader import read_run
from ser_fl.runs import zoo
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import WORST_CASE

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "zoo.py"))
TINY = ("experiment=debug", "data.num_speakers=4", "data.utterances_per_emotion=4", "federation.num_rounds=4")
ATTACKED = "ser-fl benchmark run=RUN attacks=[fgsm,bim] epsilons=[0.05]"
QUICK = ("epsilons=[0.05]", "curve_attacks=[]", "defences=[none]", "checks=false")
SHIPPED = zoo.zoo_names()
FRONT_END_HZ = 16000


def train(folder: Path, *settings: str) -> ser_fl.Run:
    return ser_fl.train(compose([*TINY, "tracking=none", *settings, f"run_dir={folder}"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    """Trained and attacked."""
    made = train(tmp_path_factory.mktemp("run") / "debug")
    assert main(["benchmark", f"run={made.root}", "attacks=[fgsm,bim]", *QUICK]) == 0
    return made


@pytest.fixture
def tiny(run: ser_fl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model, away from the package, and an empty folder to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")
    made: Path = SCRIPT["add"](run.root, "tiny", ATTACKED)
    return made


def card_of(folder: Path, benchmark: str) -> str:
    name = folder.name
    return card(read_run(folder), ser_fl.load(folder), name=name, start=f"zoo:{name}", attacked=benchmark)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def recording(path: Path) -> Path:
    time_T = torch.arange(FRONT_END_HZ) / FRONT_END_HZ
    soundfile.write(path, (0.3 * torch.sin(2 * torch.pi * 200 * time_T)).numpy(), FRONT_END_HZ)
    return path


def test_a_model_is_loaded_by_its_name(run: ser_fl.Run, tiny: Path) -> None:
    for name in ("tiny", "zoo:tiny"):
        model = ser_fl.load(name)
        assert model.classes == run.load().classes
        assert all(map(torch.equal, weights(model), weights(run.load())))
    clip = recording(Path("a.wav"))
    assert ser_fl.predict(clip, "tiny") == ser_fl.predict(clip, run)


def test_a_folder_of_that_name_wins_and_the_prefix_means_the_zoo(tiny: Path) -> None:
    other = train(Path("tiny"), "seed=7")
    assert all(map(torch.equal, weights(ser_fl.load("tiny")), weights(other.load())))
    assert not all(map(torch.equal, weights(ser_fl.load("zoo:tiny")), weights(other.load())))


def test_what_is_written_lies_in_a_copy_and_the_package_stays_as_it_is(
    run: ser_fl.Run, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bytes_of(tiny)
    assert main(["evaluate", "run=tiny"]) == 0
    uar = json.loads((tiny / "summary.json").read_text())["test"]["uar"]
    assert f"UAR {uar:.3f}" in capsys.readouterr().out
    copy = RunFolder(Path("runs/zoo/tiny"))
    assert (copy.on("builtin", "test").root / "evaluation.json").is_file()
    assert main(["benchmark", "run=zoo:tiny", "attacks=[pgd]", "steps=2", *QUICK]) == 0
    assert "pgd" in {record.attack for record in copy.read_attacks()}
    assert main(["report", "tiny"]) == 0 and copy.report.is_file()
    assert main(["baseline", "run=tiny"]) == 0 and copy.baseline.is_file()
    assert bytes_of(tiny) == before
    assert main(["predict", "--run", "tiny", str(recording(Path("a.wav")))]) == 0
    first = FirstRun.of(compose([*TINY, "init_from=zoo:tiny"]), None)
    assert all(map(torch.equal, weights(first.model), weights(run.load())))


def test_a_copy_of_another_model_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = zoo.writable_run("tiny")
    assert folder == Path("runs/zoo/tiny") == zoo.writable_run("zoo:tiny")
    weights_file = folder / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert main(["evaluate", "run=tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs/zoo/tiny/model.safetensors" in line and "remove" in line


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "summary.json", "attacks.json", "card.md"])
def test_a_changed_byte_is_noticed(file: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((tiny / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tiny / file).write_bytes(bytes(content))
    for words in (["zoo"], ["zoo", "tiny"], ["evaluate", "run=tiny"], ["predict", "--run", "zoo:tiny", "a.wav"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert file in line and "zoo:tiny" in line
    with pytest.raises(UserError, match=file):
        ser_fl.load("tiny")
    (tiny / file).unlink()
    with pytest.raises(UserError, match=file):
        ser_fl.load("zoo:tiny")


def test_the_list_says_what_the_records_say(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "width", 200)  # no cell is wrapped
    assert main(["zoo"]) == 0
    printed = capsys.readouterr().out
    uar = json.loads((tiny / "summary.json").read_text())["test"]["uar"]
    (worst,) = (each for each in RunFolder(tiny).read_attacks() if each.attack == WORST_CASE)
    (row,) = zoo_table([tiny]).rows
    assert row[:3] == ("tiny", f"{100 * uar:.1f}", f"{100 * worst.robust_uar:.1f} (ε 0.05)")
    assert "SYNTHETIC" in row[3] and row[4] == "within_speaker"
    assert float(row[6]) == round(sum(map(len, bytes_of(tiny).values())) / 1e6, 1)
    assert all(cell in printed for cell in row)


def test_the_card_has_the_figures_on_record_and_both_commands(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip() == (tiny / "card.md").read_text(encoding="utf-8").rstrip()
    uar = json.loads((tiny / "summary.json").read_text())["test"]["uar"]
    shared = json.loads((tiny / "summary.json").read_text())["shared"]["words"]
    for words in (
        f"| UAR | {100 * uar:.1f} |",
        shared,
        ATTACKED,
        "## Data and licence",
        "## Intended use",
        "## Not for",
    ):
        assert words in printed
    command = json.loads((tiny / "environment.json").read_text())["command"]
    assert f"`{command}`" in printed


def test_a_package_without_models_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    assert main(["zoo"]) == 0
    assert "no trained model" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown model of the zoo"):
        ser_fl.load("zoo:tiny")


def test_an_unknown_model_is_told_with_those_that_there_are(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["zoo", "tinny"], ["evaluate", "run=zoo:tinny"], ["benchmark", "run=zoo:tinny"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "'tinny', did you mean 'tiny'" in line
    assert main(["evaluate", "run=tinny"]) == 2
    assert not Path("runs").exists()


def test_records_that_are_too_large_are_trimmed_and_still_read(
    run: ser_fl.Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCRIPT["add"].__globals__, "LARGEST_ATTACKS", 100)
    folder = SCRIPT["add"](run.root, "small", ATTACKED)
    assert (folder / "attacks.json").stat().st_size < (tiny / "attacks.json").stat().st_size
    whole, trimmed = (RunFolder(each).read_attacks() for each in (tiny, folder))
    assert [each.robust_uar for each in trimmed] == [each.robust_uar for each in whole]
    assert zoo.zoo_names() == ["small", "tiny"]
    monkeypatch.setitem(SCRIPT["add"].__globals__, "LARGEST_WEIGHTS", 100)
    with pytest.raises(UserError, match="at most"):
        SCRIPT["add"](run.root, "large", ATTACKED)
    bare = shutil.copytree(run.root, "bare", ignore=shutil.ignore_patterns("attacks*"))
    with pytest.raises(UserError, match="never attacked"):
        SCRIPT["add"](Path(bare), "bare", ATTACKED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_whole_and_says_what_it_may_be_used_for(name: str) -> None:
    folder = zoo.ZOO / name
    digests = json.loads((folder / zoo.DIGESTS).read_text())
    assert {file.name for file in folder.iterdir()} == {*digests, zoo.DIGESTS}
    assert digests == {file: sha256((folder / file).read_bytes()).hexdigest() for file in digests}
    assert {"config.yaml", "summary.json", "attacks.json", "model.json", "model.safetensors", "card.md"} <= set(digests)
    assert (folder / "model.safetensors").stat().st_size < 8_000_000
    text = (folder / "card.md").read_text(encoding="utf-8")
    assert "NC" in text and "no commercial use" in text
    benchmark = re.search(r"attacked by `(.*?)`", text)
    assert benchmark is not None and text == card_of(folder, benchmark[1]), "figures are those on record"
    for file in ("config.yaml", "environment.json", "card.md"):
        assert not re.search(r"/(work|home|root|tmp)/", (folder / file).read_text(encoding="utf-8"))
    assert ser_fl.load(f"zoo:{name}").classes == tuple(json.loads((folder / "summary.json").read_text())["classes"])
