"""`ser-fl` as its users meet it: what works end to end, and one clear line for whatever they get wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

import ser_fl
import ser_fl.cli.main
from ser_fl.attacks.attack import AttackSettings
from ser_fl.attacks.threat_model import Box
from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.data.audio import read_audio
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import prepare
from ser_fl.files import write_json
from ser_fl.robustness.sanity_checks.report import read_sanity_report
from ser_fl.runs.environment import describe_environment
from ser_fl.runs.folder import RunFolder

COMMANDS = ("demo", "train", "crossval", "benchmark", "transfer", "report", "predict", "corpus")
SECRETS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_VerySecretIndeed"}
FEW = ("curve_attacks=[]",)
TRAINED = {
    *("config.yaml", "environment.json", "rounds.jsonl", "clients.jsonl", "summary.json"),
    *("model.safetensors", "model.json", "checkpoint", "heard.json", "heard.safetensors", "metrics.csv", "log.txt"),
}
RATE_HZ = 16_000


@dataclass(frozen=True)
class Places:
    """Folders of good and bad input."""

    root: Path
    run: Path
    """A finished training."""
    after_training: frozenset[str]
    """What the run folder held then."""

    def settings(self) -> list[str]:
        """A training of a second on the built-in corpus."""
        return ["experiment=debug", "data.utterances_per_emotion=3", f"data.cache_dir={self.root / 'cache'}"]


def write_wav(path: Path, seed: int) -> None:
    """A quarter of a second of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, RATE_HZ // 4)
    soundfile.write(path, noise.astype(np.float32), RATE_HZ, subtype="PCM_16")


def write_manifest(
    folder: Path, *, emotions: tuple[str, ...] = ("anger", "sadness"), extra: tuple[str, ...] = ()
) -> None:
    """A corpus of two speakers with five clips of each emotion, and whatever files are there already."""
    rows = []
    for seed, (speaker, emotion, take) in enumerate(
        (speaker, emotion, take) for speaker in ("ann", "bob") for emotion in emotions for take in range(5)
    ):
        rows.append((f"audio/{speaker}-{emotion}-{take}.wav", emotion, speaker))
        write_wav(folder / rows[-1][0], seed)
    rows += [(name, emotions[0], "ann") for name in extra]
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "emotion", "speaker"), *rows])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("places")
    run = root / "run"
    empty = Places(root=root, run=run, after_training=frozenset())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        assert main(["train", *empty.settings(), f"run_dir={run}"]) == 0
    (root / "empty").mkdir()
    (root / "text.wav").write_text("this is no audio\n")
    (root / "not.yaml").write_text("- a\n- list\n")
    for name, extra in (("one_class", {"emotions": ("anger",)}), ("unreadable", {"extra": ("audio/broken.wav",)})):
        write_manifest(root / name, **extra)
    (root / "unreadable" / "audio" / "broken.wav").write_bytes(b"RIFF" + bytes(40))
    for name in ("model", "attacks"):
        shutil.copytree(run, root / f"old_{name}")
        (root / f"old_{name}" / f"{name}.json").write_text('{"schema": 99, "records": []}')
    return Places(root=root, run=run, after_training=frozenset(path.name for path in run.iterdir()))


@pytest.fixture(scope="module")
def benchmarked(places: Places) -> Path:
    """A copy of the run with its attacks and its report."""
    run = places.root / "benchmarked"
    shutil.copytree(places.run, run)
    assert main(["benchmark", f"run={run}", *FEW, "attacks=[fgsm,bim]", "epsilons=[0.05]", "steps=2"]) == 0
    assert main(["report", str(run)]) == 0
    return run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative paths such as runs/ end in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def strict(text: str) -> Any:
    """Parse JSON as its standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error that a mistake ends with."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ser-fl: ")
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1, captured.err
    return captured.err


BAD_INPUT: dict[str, tuple[str, list[str]]] = {
    "no such folder": ("train experiment=debug data=emodb data.root=ROOT/none", ["ROOT/none", "data.root"]),
    "a file for a folder": ("train experiment=debug data=emodb data.root=ROOT/text.wav", ["ROOT/text.wav"]),
    "no folder given": ("train experiment=debug data=emodb", ["data.root"]),
    "empty corpus": ("train experiment=debug data=ravdess data.root=ROOT/empty", ["ROOT/empty"]),
    "empty manifest folder": ("train experiment=debug data=manifest data.root=ROOT/empty", ["manifest.csv", "ROOT"]),
    "unreadable file": (
        "train experiment=debug data=manifest data.root=ROOT/unreadable",
        ["audio/broken.wav", "data.on_unreadable=skip"],
    ),
    "one class": (
        "train experiment=debug data=manifest data.root=ROOT/one_class data.cache_dir=ROOT/cache",
        ["one emotion", "anger"],
    ),
    "no texts, before features are computed": (
        "train data=manifest data.root=ROOT/one_class data.cache_dir=ROOT/cache split=text_independent",
        ["none of data=manifest has one", "column `text`", "split=speaker_independent"],
    ),
    "more clients than utterances": (
        "train SETTINGS clients=iid clients.num_clients=1000",
        ["clients.num_clients", "1000", "training utterances"],
    ),
    "more clients than speakers": ("train SETTINGS clients.num_clients=3", ["clients.num_clients", "at most 2"]),
    "unknown experiment": ("train experiment=nemo_f", ["'nemo_f'", "nemo_fl", "nemo_centralised", "debug"]),
    "unknown model": ("train model=crn", ["'crn'", "crnn", "resnet", "vgg15"]),
    "unknown corpus": ("train data=emobd", ["'emobd'", "emodb", "ravdess", "nemo", "manifest", "builtin"]),
    "unknown objective": ("train objective=pdg", ["'pdg'", "pgd", "fgsm", "clean"]),
    "unknown value": ("train data.on_unreadable=skp", ["data.on_unreadable", "skp", "skip", "stop"]),
    "unknown speaker": ("train SETTINGS split=speaker_independent split.test_speakers=[zoe]", ["speaker 'zoe'"]),
    "test speakers of another split": (
        "train SETTINGS split.test_speakers=[zoe]",
        ["split.test_speakers", "split=speaker_independent", "zoe", "within_speaker"],
    ),
    "misspelt key": ("train federation.num_round=3", ["federation.num_round'", "federation.num_rounds"]),
    "misspelt group": ("train modle=crnn", ["'modle'", "model"]),
    "misspelt top key": ("train resum=true", ["'resum'", "resume"]),
    "no setting": ("train debug", ["'debug'", "key=value"]),
    "negative epsilon": ("train objective=pgd objective.epsilon=-0.1", ["objective.epsilon", "-0.1", "0"]),
    "not a number": ("train federation.num_rounds=many", ["federation.num_rounds", "many"]),
    "zero rounds": ("train federation.num_rounds=0", ["federation.num_rounds", "0"]),
    "existing run folder": ("train SETTINGS run_dir=RUN", ["RUN", "resume=true", "run_dir"]),
    "resume of another configuration": (
        "train SETTINGS run_dir=RUN resume=true optimiser.learning_rate=0.5",
        ["RUN", "optimiser"],
    ),
    "no such configuration": ("train --config ROOT/none.yaml", ["ROOT/none.yaml"]),
    "configuration that is none": ("train --config ROOT/not.yaml", ["ROOT/not.yaml"]),
    "misspelt key beside --config": ("train --config RUN/config.yaml optimiser.rate=1", ["optimiser.rate"]),
    "a group beside --config": ("train --config RUN/config.yaml data=nemo", ["data holds", "'nemo'", "data.SETTING="]),
    "a group beside --config of folds": ("crossval --config RUN/config.yaml data=nemo", ["data holds", "'nemo'"]),
    "benchmark of no folder": ("benchmark run=ROOT/none", ["ROOT/none"]),
    "benchmark of a folder that is no run": ("benchmark run=ROOT/empty", ["ROOT/empty", "config.yaml"]),
    "benchmark without a run": ("benchmark attacks=[fgsm]", ["run="]),
    "benchmark with a negative epsilon": ("benchmark run=RUN epsilons=[0.1,-0.1]", ["epsilons", "-0.1"]),
    "benchmark with an unknown attack": ("benchmark run=RUN attacks=[pdg]", ["'pdg'", "pgd", "fgsm", "cw_l2"]),
    "benchmark with an unknown defence": (
        "benchmark run=RUN defences=[randomize]",
        ["'randomize'", "none", "randomisation"],
    ),
    "benchmark without an attack": ("benchmark run=RUN attacks=[]", ["attacks", "name one at least"]),
    "benchmark without a defence": ("benchmark run=RUN defences=[]", ["defences", "name one at least"]),
    "benchmark with a subset of an unknown attack": ("benchmark run=RUN subsets.cwl2=3", ["'cwl2'", "cw_l2"]),
    "benchmark with a misspelt key": ("benchmark run=RUN epsilon=[0.1]", ["'epsilon'", "epsilons"]),
    "benchmark of another schema": ("benchmark run=ROOT/old_model attacks=[fgsm]", ["model.json", "99", "reads 1"]),
    "report of no run": ("report ROOT/empty", ["ROOT/empty", "config.yaml"]),
    "report of another schema": ("report ROOT/old_attacks", ["attacks.json", "99", "ser-fl benchmark"]),
    "predict without audio": ("predict ROOT/text.wav --run RUN", ["ROOT/text.wav"]),
    "predict of no file": ("predict ROOT/none.wav --run RUN", ["ROOT/none.wav", "no such file"]),
    "predict by no run": ("predict ROOT/text.wav --run ROOT/empty", ["ROOT/empty", "model.json"]),
    "predict by another schema": ("predict ROOT/text.wav --run ROOT/old_model", ["model.json", "99"]),
    "check of an unknown corpus": ("corpus check emobd ROOT/empty", ["'emobd'", "emodb", "nemo"]),
    "check without a folder": ("corpus check emodb", ["emodb"]),
}


@pytest.mark.parametrize("mistake", BAD_INPUT)
def test_bad_input_gets_one_line(mistake: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    command, words = BAD_INPUT[mistake]

    def filled(text: str) -> str:
        for name, value in (("SETTINGS", " ".join(places.settings())), ("ROOT", places.root), ("RUN", places.run)):
            text = text.replace(name, str(value))
        return text

    line = told(capsys, *filled(command).split())
    assert [word for word in map(filled, words) if word not in line] == [], line
    assert "Traceback" not in line


def test_refused_training_leaves_no_folder_behind(
    places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "train", "experiment=debug", "data=emodb", f"data.root={places.root / 'none'}")
    assert list(elsewhere.glob("runs/debug/*")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_hardware_is_told_before_anything_is_written(
    places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = told(capsys, "train", *places.settings(), f"run_dir={elsewhere / 'run'}", "executor.accelerator=cuda")
    assert "executor.accelerator=cuda cannot be used here" in line
    assert not (elsewhere / "run").exists()


def test_a_place_that_cannot_be_written_is_named(
    places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "file").write_text("no folder")
    assert str(elsewhere / "file") in told(capsys, "train", *places.settings(), f"run_dir={elsewhere / 'file' / 'run'}")


def test_a_round_that_failed_says_so_without_our_traceback(
    places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = "optimiser.learning_rate=1e30"
    assert main(["train", *places.settings(), f"run_dir={elsewhere / 'run'}", rate, "optimiser=sgd"]) == 1
    said = capsys.readouterr().err
    assert re.match(r"ser-fl: round \d has 0 updates, needs 1:\nclient f01: ", said)
    assert "too large" in said and "Traceback" not in said


def test_a_second_benchmark_adds_to_the_first(benchmarked: Path, tmp_path: Path) -> None:
    """And takes the worst case over both, although it runs one attack only."""
    run = tmp_path / "run"
    shutil.copytree(benchmarked, run)
    before = RunFolder(run).read_attacks()
    assert main(["benchmark", f"run={run}", *FEW, "attacks=[apgd_ce]", "epsilons=[0.05]", "steps=3"]) == 0
    after = RunFolder(run).read_attacks()
    alone = [record for record in before if record.attack not in ("clean", "worst_case")]
    assert [record for record in after if record.attack in ("fgsm", "bim")] == alone
    worst = {record.defence: record for record in after if record.attack == "worst_case"}
    for record in after:
        assert worst[record.defence].robust_uar <= record.robust_uar + 1e-12
    assert [record.attack for record in after if record.defence == "none"] == [
        *("clean", "fgsm", "bim", "apgd_ce", "worst_case"),
    ]
    assert not (run / "attacks.before.json").exists()


def test_a_fresh_benchmark_keeps_the_last_one_aside(
    benchmarked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where its tracking cannot be opened any more, the records are there all the same."""
    run = tmp_path / "run"
    shutil.copytree(benchmarked, run)
    before = (run / "attacks.json").read_bytes()
    text = (run / "config.yaml").read_text().replace("mode: auto", "mode: online")
    (run / "config.yaml").write_text(text.replace("backend: none", "backend: wandb"))
    latest = json.loads((run / "checkpoint" / "latest.json").read_text())
    write_json(run / "checkpoint" / "latest.json", {**latest, "tracking": {"wandb_id": "abc"}})
    monkeypatch.setattr("ser_fl.tracking.wandb_settings._has_wandb_key", lambda: False)
    again = ["fresh=true", "attacks=[fgsm]", "epsilons=[0.1]", "defences=[none]"]
    assert main(["benchmark", f"run={run}", *FEW, *again]) == 0
    assert (run / "attacks.before.json").read_bytes() == before
    assert {record.attack for record in RunFolder(run).read_attacks()} == {"clean", "fgsm"}
    printed = " ".join(capsys.readouterr().out.split())
    assert "attacks not tracked" in printed and "no API key" in printed and "SYNTHETIC" in printed


def test_a_refused_benchmark_leaves_the_last_one(
    benchmarked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ART's C&W L2 on a model without a box, as `frontend.clip=none` trains it."""
    run = tmp_path / "run"
    shutil.copytree(benchmarked, run)
    card = json.loads((run / "model.json").read_text())
    for side in ("lower_F1", "upper_F1"):
        card["standardisation"][side] = [None] * len(card["standardisation"][side])
    write_json(run / "model.json", card)
    before = (run / "attacks.json").read_bytes()
    asked = "attacks=[fgsm,'art:CarliniL2Method']"
    assert "art:CarliniL2Method needs a box" in told(capsys, "benchmark", f"run={run}", asked, "epsilons=auto")
    assert (run / "attacks.json").read_bytes() == before
    assert not (run / "attacks.before.json").exists()


def test_existing_run_is_left_as_it_was(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in places.run.rglob("*") if path.is_file()}
    told(capsys, "train", *places.settings(), "seed=2", f"run_dir={places.run}")
    assert {path: path.read_bytes() for path in places.run.rglob("*") if path.is_file()} == before


def test_unreadable_file_is_skipped_and_named(
    places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = [
        "experiment=debug",
        "data=manifest",
        f"data.root={places.root / 'unreadable'}",
        "federation.num_rounds=1",
    ]
    settings += ["data.on_unreadable=skip", f"data.cache_dir={places.root / 'cache'}", f"run_dir={elsewhere / 'run'}"]
    assert main(["train", *settings]) == 0
    captured = capsys.readouterr()
    assert "broken.wav" in captured.out + captured.err + caplog.text
    assert "Traceback" not in captured.err
    summary = strict((elsewhere / "run" / "summary.json").read_text())
    assert sum(summary["split_sizes"].values()) == 20
    (skipped,) = summary["skipped"]
    assert skipped["id"] == "audio/broken.wav" and skipped["reason"]
    assert summary["synthetic"] is False


def test_flac_that_was_cut_off_is_skipped_too(
    places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = elsewhere / "cut"
    write_manifest(corpus, extra=("audio/cut.flac",))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE_HZ)
    soundfile.write(corpus / "audio" / "cut.flac", noise, RATE_HZ)
    whole = (corpus / "audio" / "cut.flac").read_bytes()
    (corpus / "audio" / "cut.flac").write_bytes(whole[: len(whole) // 3])
    settings = ["experiment=debug", "data=manifest", f"data.root={corpus}", "federation.num_rounds=1"]
    settings += [f"data.cache_dir={elsewhere / 'cache'}", f"run_dir={elsewhere / 'run'}"]
    assert "cut.flac" in told(capsys, "train", *settings)
    code = main(["train", *settings, "data.on_unreadable=skip"])
    assert code == 0, capsys.readouterr().err


def test_run_folder_is_the_contract(places: Places, benchmarked: Path) -> None:
    assert places.after_training == TRAINED
    assert {path.name for path in benchmarked.iterdir()} == {
        *TRAINED,
        *("attacks.json", "attacks", "adversarial", "report.html", "figures"),
    }
    assert {path.suffix for path in (benchmarked / "attacks").rglob("*") if path.is_file()} == {".json"}
    assert list(benchmarked.rglob(".*")) == []  # no temporary file is left
    for path in benchmarked.rglob("*.json"):
        strict(path.read_text(encoding="utf-8"))
    for path in benchmarked.rglob("*.jsonl"):
        assert [strict(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_records_of_a_training_agree(places: Places) -> None:
    run = RunFolder(places.run)
    summary, rounds, clients = run.read_json(run.summary), run.read_jsonl(run.rounds), run.read_jsonl(run.clients)
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert set(rounds[0]) >= {"cohort", "train_loss", "uar", "accuracy", "macro_f1", "seconds", "failures"}
    assert [(entry["round"], entry["client_id"]) for entry in clients] == [
        (entry["round"], client_id) for entry in rounds for client_id in entry["cohort"]
    ]
    assert sum(entry["num_examples"] for entry in clients) == 2 * summary["split_sizes"]["train"]
    test = summary["test"]
    confusion = np.array(test["confusion"])
    assert confusion.shape == (len(summary["classes"]),) * 2 == (7, 7)
    assert confusion.sum() == summary["split_sizes"]["test"]
    recalls = [confusion[i, i] / confusion[i].sum() if confusion[i].sum() else None for i in range(7)]
    assert test["per_class_recall"] == pytest.approx(recalls)
    assert test["uar"] == pytest.approx(np.mean([recall for recall in recalls if recall is not None]))
    assert test["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert set(test["per_speaker_uar"]) == set(rounds[0]["cohort"])
    best = max(rounds, key=lambda entry: (entry["uar"], -entry["round"]))
    assert summary["selected_round"] == best["round"]
    assert summary["synthetic"] is True
    assert summary["split"] == "within_speaker"


def test_benchmark_agrees_with_the_summary(places: Places, benchmarked: Path) -> None:
    content = strict((benchmarked / "attacks.json").read_text())
    test = strict((places.run / "summary.json").read_text())["test"]
    names = [(record["attack"], record["defence"]) for record in content["records"]]
    assert sorted(names) == sorted(
        (attack, defence) for attack in ("clean", "fgsm", "bim", "worst_case") for defence in ("none", "randomisation")
    )
    clean = content["records"][names.index(("clean", "none"))]
    # Not all test utterances lie inside the box of the training ones, so that clipping may turn one of them.
    assert clean["robust_uar"] == pytest.approx(test["uar"], abs=1 / 7 + 1e-9)
    assert clean["num_examples"] == np.sum(test["confusion"])
    assert strict((benchmarked / "adversarial" / "example.json").read_text())["attack"] == "bim"


def test_benchmark_examines_itself(
    places: Places, benchmarked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the file, in the page and on standard output; and not where it is switched off."""
    found = read_sanity_report(RunFolder(benchmarked))
    assert found is not None
    assert "every defence is attacked by one who knows of it" in found.failed  # randomisation, shown to FGSM and BIM
    assert {"epsilon 0 changes nothing", "saved adversarials give the same result"} <= set(found.passed)
    assert found.headline in (benchmarked / "report.html").read_text()
    for setting, said in (("checks_subset=2", True), ("checks=false", False)):
        run = tmp_path / setting
        shutil.copytree(places.run, run)
        capsys.readouterr()
        assert main(["benchmark", f"run={run}", "attacks=[bim]", "epsilons=[0.05]", "steps=2", setting]) == 0
        assert ("checks of the benchmark itself" in capsys.readouterr().out) is said
        assert (read_sanity_report(RunFolder(run)) is not None) is said


def test_the_python_benchmark_of_a_loaded_model_is_the_commands(places: Places, benchmarked: Path) -> None:
    """Its box and classes come with the model; threads stay the caller's."""
    config = compose(config_file=places.run / "config.yaml")
    prepared, model = prepare(config), ser_fl.load(places.run)
    rows = prepared.split.test
    examples = load_examples(prepared.store, rows, model.standardisation)
    settings = [AttackSettings(name="bim", epsilon=5.0, steps=2)]  # so far that the box decides
    utterances = [prepared.store.utterances[row] for row in rows]
    arguments: dict[str, Any] = {
        "ids": [utterance.utterance_id for utterance in utterances],
        "speakers": [utterance.speaker for utterance in utterances],
        "sexes": [utterance.sex for utterance in utterances],
    }
    mine = ser_fl.benchmark(model, examples.features_NFL, examples.labels_N, attacks=settings, **arguments)
    run = benchmarked.with_name("far")
    shutil.copytree(places.run, run)
    torch.set_num_threads(2)
    try:
        far = [*FEW, "attacks=[bim]", "epsilons=[5.0]", "steps=2", "defences=[none]"]
        assert main(["benchmark", f"run={run}", *far]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for own, theirs in zip(mine, RunFolder(run).read_attacks(), strict=True):
        assert replace(own, seconds=0.0) == replace(theirs, seconds=0.0)
    boundless = ser_fl.benchmark(
        model, examples.features_NFL, examples.labels_N, attacks=settings, box=Box.unbounded(), **arguments
    )
    assert boundless[1].max_linf > mine[1].max_linf - 1e-6
    assert replace(boundless[1], seconds=0.0) != replace(mine[1], seconds=0.0)


def test_report_and_tables(benchmarked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", str(benchmarked), "--markdown"]) == 0
    markdown = capsys.readouterr().out
    rules = [line for line in markdown.splitlines() if line.startswith("| :---")]
    assert len(rules) == 2
    assert "FGSM" in markdown and "SYNTHETIC" in markdown
    html = (benchmarked / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in html
    assert not re.search(r"(?:src|href)=[\"']https?:", html)


def test_predict_says_what_the_model_says(places: Places, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [elsewhere / "one.wav", elsewhere / "two.wav"]
    for seed, file in enumerate(files):
        write_wav(file, seed)
    capsys.readouterr()
    assert main(["predict", *map(str, files), "--run", str(places.run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = ser_fl.load(places.run)
    for file, line in zip(files, lines, strict=True):
        with torch.inference_mode():
            clip_T = model.frontend.clip(*read_audio(file))
            shares = (model.from_waveform(clip_T[None]) / model.temperature).softmax(1)[0].tolist()
        printed = {emotion: float(share) for emotion, share in re.findall(r"(\w+) (\d\.\d\d)", line)}
        assert line.startswith(str(file))
        assert printed == {emotion: round(share, 2) for emotion, share in zip(model.classes, shares, strict=True)}
        assert list(printed.values()) == sorted(printed.values(), reverse=True)


def test_config_of_a_run_repeats_it_bit_for_bit(places: Places, elsewhere: Path) -> None:
    assert main(["train", "--config", str(places.run / "config.yaml")]) == 0
    (repeated,) = elsewhere.glob("runs/debug/*-1")  # its own folder, not the repeated run's
    for name in ("model.safetensors", "model.json"):
        assert (repeated / name).read_bytes() == (places.run / name).read_bytes()
    first, second = (strict((run / "summary.json").read_text()) for run in (places.run, repeated))
    assert first == second


def test_another_seed_is_another_run(places: Places, elsewhere: Path) -> None:
    config = ["--config", str(places.run / "config.yaml"), "seed=2", "federation.num_rounds=1"]
    assert main(["train", *config, f"run_dir={elsewhere / 'other'}"]) == 0
    assert (elsewhere / "other" / "model.safetensors").read_bytes() != (places.run / "model.safetensors").read_bytes()
    assert yaml.safe_load((elsewhere / "other" / "config.yaml").read_text())["seed"] == 2


def test_records_hold_no_secret(places: Places) -> None:
    for path in (path for path in places.run.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert [name for name, value in SECRETS.items() if value.encode() in content] == [], path
    environment = strict((places.run / "environment.json").read_text())
    assert {"command", "git_commit", "packages", "seed"} <= set(environment)
    assert environment["seed"] == 1
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert str(Path.home()) not in (places.run / "environment.json").read_text()


@pytest.mark.parametrize("program", ["/somewhere/bin/ser-fl", "/somewhere/ser_fl/__main__.py"])
def test_the_recorded_command_can_be_typed(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "data.root=/private/corpus"])
    assert describe_environment(seed=1, threads=1)["command"] == "ser-fl train data.root=corpus"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["report"], ["predict", "a.wav"], ["corpus"]])
def test_incomplete_command_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: ser-fl" in capsys.readouterr().err


_HELP = """
import sys
from ser_fl.cli.main import main
for command in sys.argv[1:]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, command
heavy = {"torch", "numpy", "art", "wandb", "hydra", "omegaconf", "matplotlib", "lightning", "rich", "pydantic"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ser_fl.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_help_imports_nothing_heavy() -> None:
    done = python("-c", _HELP, "", *COMMANDS, "corpus list", "corpus check", "corpus describe")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert done.stdout.count("usage: ser-fl") == 1 + len(COMMANDS) + 3


def test_help_takes_less_than_half_a_second() -> None:
    """Of processor time, since a busy machine has other reasons to be slow."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python("-m", "ser_fl", "train", "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_version_of_the_module() -> None:
    done = python("-m", "ser_fl", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ser-fl {ser_fl.__version__}\n", "")


def test_process_ends_with_2_and_one_line(places: Places) -> None:
    done = python(
        "-m", "ser_fl", "benchmark", f"run={places.run}", "attacks=[fgsm,pgd]", "steps=2", "defences=[randomize]"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("ser-fl: unknown defence 'randomize'")


OWN_CODE = """
import lightning.pytorch as pl
from torch import nn

class Linear(nn.Module):
    def __init__(self, num_classes, scale):
        super().__init__()
        self.scale, self.head = scale, nn.Linear(64, num_classes)
    def forward(self, features_BFL):
        return self.head(features_BFL.mean(2)) * self.scale

class Watch(pl.Callback):
    def on_fit_start(self, trainer, pl_module):
        print("watched", flush=True)
"""


def test_a_network_and_a_callback_of_ones_own_from_yaml(
    places: Places, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `_target_` in a folder beside the working directory's module; the run's config.yaml repeats it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (elsewhere / "owncode.py").write_text(OWN_CODE)
    (elsewhere / "own" / "experiment").mkdir(parents=True)
    (elsewhere / "own" / "model").mkdir()
    (elsewhere / "own" / "model" / "linear.yaml").write_text("_target_: owncode.Linear\nscale: 2.0\n")
    (elsewhere / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [debug, {override /model: linear}]\nexperiment: mine\n"
        "callbacks:\n  - _target_: owncode.Watch\n"
    )
    settings = ["experiment=mine", *places.settings()[1:], "federation.num_rounds=1"]
    assert main(["train", "--config-dir", "own", *settings, "run_dir=run"]) == 0
    assert "watched" in capsys.readouterr().out
    written = yaml.safe_load((elsewhere / "run" / "config.yaml").read_text())
    assert written["model"] == {"_target_": "owncode.Linear", "scale": 2.0}
    assert main(["train", "--config", "run/config.yaml", "run_dir=again"]) == 0
    assert (elsewhere / "again" / "model.safetensors").read_bytes() == (
        elsewhere / "run" / "model.safetensors"
    ).read_bytes()
    assert "network of its own" in told(capsys, "benchmark", "run=run", "attacks=[fgsm]")


def test_hydra_says_what_it_knows_without_a_run(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings as they would be, where they come from, and completions of what is typed."""
    assert main(["train", "run_dir=exp #2", "--cfg", "job", "experiment=debug", "-p", "split"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "within_speaker"
    assert main(["train", "run_dir=exp #2", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == "exp #2"
    assert main(["train", "--info", "searchpath"]) == 0
    assert "ser-fl://" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "ser-fl train model=crnn_")
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["model=crnn_small", "model=crnn_tiny"]
    assert main(["train", "-sc", "install=bash"]) == 0
    assert "complete" in capsys.readouterr().out
    assert told(capsys, "train", "--cfg", "job", "model=crn").startswith("ser-fl: unknown model 'crn'")
    assert list(elsewhere.iterdir()) == []


def test_a_warning_of_ours_is_a_line_and_that_of_others_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["ser-fl", "predict"])
    monkeypatch.setattr(ser_fl.cli.main, "main", lambda asked: 0)
    assert ser_fl.cli.main.program() == 0
    ours, theirs = str(Path(ser_fl.__file__).parent / "data" / "audio.py"), "/lib/other.py"
    assert warnings.formatwarning("clipped", UserWarning, ours, 3) == "ser-fl: clipped\n"
    assert warnings.formatwarning("clipped", UserWarning, theirs, 3).startswith(f"{theirs}:3: UserWarning: clipped")
