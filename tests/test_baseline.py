"""Plain classifiers beside a run: against scikit-learn, opensmile and NumPy on the same arrays."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import ser_fl
from ser_fl.baselines import CLASSIFIERS, REGULARISATIONS, chosen, fitted, scaled
from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.enrolment import enrolled
from ser_fl.data.features import FeatureStore, compute_features
from ser_fl.data.frontend import LogMel
from ser_fl.data.functionals import PERCENTILES, FunctionalsConfig
from ser_fl.data.splits import split_corpus
from ser_fl.report.baselines import baseline_table, without_baseline
from ser_fl.report.folds import CrossValidation, fold_tables
from ser_fl.report.page import write_report
from ser_fl.report.reader import read_run
from ser_fl.report.replications import Replication
from ser_fl.runs.folder import RunFolder

CORPUS = ("experiment=debug", "data.num_speakers=6", "data.utterances_per_emotion=2")
STRANGERS = ("split=speaker_independent", "split.num_test_speakers=2", "split.num_validation_speakers=1")
BY_SPEAKER = ("normalisation=speaker", "enrolment=3")
TINY = ("federation.num_rounds=1", "federation.batch_size=4", "tracking=none")


def store_of(*settings: str, cache_dir: Path | None = None) -> tuple[Any, FeatureStore, Any]:
    config = compose([*CORPUS, *STRANGERS, *settings])
    corpus = open_configured_corpus(config)
    store = compute_features(corpus, FunctionalsConfig("logmel", config.frontend), cache_dir=cache_dir)
    return config, store, split_corpus(corpus.utterances, config.split)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ser_fl.Run]:
    """Two folds of speakers that nobody trained on, each scaled by three own clips."""
    folder = tmp_path_factory.mktemp("folds")
    settings = (*CORPUS, *STRANGERS, *BY_SPEAKER, *TINY)
    return [
        ser_fl.train(compose([*settings, f"split.fold={fold}", f"run_dir={folder / f'fold{fold}'}"]))
        for fold in range(2)
    ]


def copied(run: ser_fl.Run, folder: Path) -> RunFolder:
    shutil.copytree(run.root, folder, ignore=shutil.ignore_patterns("checkpoint", ".lock"))
    return RunFolder(folder)


def test_logmel_functionals_are_numpys_over_the_clip_itself(tmp_path: Path) -> None:
    """Of the clip as it was recorded: repeated to three seconds it has other deviations and percentiles."""
    config, store, _ = store_of("frontend.duration_s=6", cache_dir=tmp_path)
    corpus, frontend = open_configured_corpus(config), LogMel(config.frontend)
    for row in (0, 17):
        waveform_T, rate_hz = corpus.read(corpus.utterances[row])
        assert rate_hz == frontend.sample_rate_hz and len(waveform_T) < frontend.num_samples
        bins_ML = frontend(waveform_T[None])[0].double().numpy()
        change_ML = bins_ML[:, 2:] - bins_ML[:, :-2]
        wanted = [bins_ML.mean(1), bins_ML.std(1), *np.percentile(bins_ML, PERCENTILES, axis=1)]
        wanted += [np.abs(change_ML).mean(1), change_ML.std(1)]
        assert store.features_NFL[row].shape == (len(bins_ML) * 9, 1)
        np.testing.assert_allclose(store.features_NFL[row, :, 0], np.concatenate(wanted), rtol=1e-4, atol=1e-4)


def test_a_clip_is_cut_where_the_model_hears_no_more_and_repeated_only_up_to_a_window() -> None:
    config = compose(list(CORPUS)).frontend
    functionals = FunctionalsConfig("logmel", config).build()
    noise_T = torch.rand(config.num_samples + 5000, generator=torch.Generator().manual_seed(1)) - 0.5
    least = config.window_samples + 2 * config.hop_samples
    long, cut, short, repeated = (
        functionals(functionals.clip(clip_T, config.sample_rate_hz)[None])
        for clip_T in (
            noise_T,
            noise_T[: config.num_samples],
            noise_T[:100],
            noise_T[:100].repeat(99)[:least],
        )
    )
    assert torch.equal(long, cut) and torch.equal(short, repeated)
    assert long.isfinite().all() and short.isfinite().all() and not torch.equal(long, short)


@pytest.mark.parametrize("length_s", [0.02, 1.3])
def test_egemaps_functionals_are_opensmiles_own(length_s: float) -> None:
    opensmile = pytest.importorskip("opensmile")
    config = compose([*CORPUS, "frontend.duration_s=3"]).frontend
    functionals = FunctionalsConfig("opensmile", config).build()
    time_T = np.arange(round(length_s * 16000)) / 16000
    tone_T = (0.3 * np.sin(2 * np.pi * 220 * time_T) * (1 + 0.3 * np.sin(2 * np.pi * 3 * time_T))).astype(np.float32)
    ours = functionals(functionals.clip(torch.from_numpy(tone_T), 16000)[None])[0, :, 0]
    assert ours.shape == (88,) and ours.isfinite().all()
    if length_s > 1:
        smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        np.testing.assert_array_equal(ours.numpy(), smile.process_signal(tone_T, 16000).to_numpy()[0])


def test_pooled_functionals_are_scikit_learns_standard_scaler_of_what_does_not_test() -> None:
    _, store, split = store_of()
    seen = (*split.train, *split.validation)
    raw = [store.features_NFL[list(rows), :, 0].numpy() for rows in (seen, split.test)]
    scaler = StandardScaler().fit(raw[0].astype(np.float64))
    for ours, part in zip(scaled(store, seen, split.test), raw, strict=True):
        np.testing.assert_allclose(ours, scaler.transform(part).clip(-10, 10), atol=2e-3)


def test_enrolment_with_all_clips_is_a_z_score_by_speaker() -> None:
    _, store, split = store_of()
    seen = (*split.train, *split.validation)
    by_speaker = scaled(enrolled(store, split, "all", seed=0)[0], seen, split.test)
    for rows, ours in zip((seen, split.test), by_speaker, strict=True):
        speakers = np.array([store.utterances[row].speaker for row in rows])
        raw = store.features_NFL[list(rows), :, 0].double().numpy()
        for speaker in set(speakers):
            own = raw[speakers == speaker]
            moves = own.std(0) > 1e-3
            wanted = ((own - own.mean(0)) / own.std(0).clip(1e-5)).clip(-10, 10)
            np.testing.assert_allclose(ours[speakers == speaker][:, moves], wanted[:, moves], atol=1e-2)


def made(separable: bool) -> tuple[Any, list[int], list[str]]:
    """Features, classes and speakers: in corners of a triangle, or without any connection to the class."""
    stream = np.random.default_rng(0)
    labels = np.arange(180) % 3
    corners = 5 * np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    noise = stream.normal(size=(180, 2))
    features = 0.1 * noise + corners[labels] if separable else noise
    return features, labels.tolist(), [f"s{row // 30}" for row in range(180)]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_is_separable_is_learnt_and_noise_is_not(name: str) -> None:
    features, labels, speakers = made(separable=True)
    c, inner_uar = chosen(name, features[:90], labels[:90], speakers[:90])
    assert inner_uar == 1
    assert fitted(name, c, features[:90], labels[:90]).predict(features[90:]).tolist() == labels[90:]
    features, labels, speakers = made(separable=False)
    c, inner_uar = chosen(name, features[:90], labels[:90], speakers[:90])
    said = fitted(name, c, features[:90], labels[:90]).predict(features[90:])
    assert max(inner_uar, balanced_accuracy_score(labels[90:], said)) < 0.55, "chance is a third"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_c_is_the_best_of_scikit_learns_own_search_over_speakers(name: str) -> None:
    stream = np.random.default_rng(3)
    labels = stream.integers(3, size=120)
    features = stream.normal(size=(120, 12)) + 0.3 * labels[:, None]
    speakers = [f"s{row % 5}" for row in range(120)]
    shared: dict[str, Any] = {"class_weight": "balanced"}
    uars = {}
    for c in REGULARISATIONS:
        theirs = SVC(C=c, kernel="linear", **shared) if name == "svm" else LogisticRegression(C=c, **shared)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        said = cross_val_predict(theirs, features, labels, groups=speakers, cv=folds)
        uars[c] = balanced_accuracy_score(labels, said)
    c, inner_uar = chosen(name, features, labels.tolist(), speakers)
    assert len({round(uar, 6) for uar in uars.values()}) > 1, "there is something to choose"
    assert inner_uar == pytest.approx(max(uars.values())) == pytest.approx(uars[c])
    assert all(uars[other] < uars[c] for other in REGULARISATIONS if other < c), "of equals the smallest"


def test_inner_folds_share_no_speaker() -> None:
    """Classes that only a speaker's own mark tells cannot be learnt from others."""
    stream = np.random.default_rng(1)
    speakers = [f"s{row // 20}" for row in range(120)]
    marks = np.repeat(np.eye(6), 20, axis=0)
    labels = [row // 20 % 2 for row in range(120)]
    features = 3 * marks + 0.01 * stream.normal(size=(120, 6))
    assert chosen("svm", features, labels, [str(row) for row in range(120)])[1] == 1, "with them it is easy"
    assert chosen("svm", features, labels, speakers)[1] < 0.6


def test_a_run_and_its_baseline_score_the_same_utterances(runs: list[ser_fl.Run], tmp_path: Path) -> None:
    """Those that enrol a stranger are scored by neither; figures are scikit-learn's."""
    run, test = copied(runs[0], tmp_path / "run"), runs[0].test_set()
    found = ser_fl.baseline(run)
    assert found.num_utterances["test"] == len(test.ids) == 2 * (2 * len(test.emotions) - 3)
    assert found.enrolment == 3 and "3 unlabelled clips" in str(found.scaling)
    config = compose(config_file=run.config)
    store = compute_features(open_configured_corpus(config), FunctionalsConfig("logmel", config.frontend))
    split = split_corpus(store.utterances, config.split)
    store, split = enrolled(store, split, 3, seed=config.split.seed)
    seen = tuple(sorted((*split.train, *split.validation)))
    assert [store.utterances[row].utterance_id for row in split.test] == list(test.ids)
    seen_NF, test_NF = scaled(store, seen, split.test)
    labels, speakers = store.labels_N[list(seen)].tolist(), [store.utterances[row].speaker for row in seen]
    for record in found.records:
        assert (record.c, record.inner_uar) == chosen(record.classifier, seen_NF, labels, speakers)
        predicted = fitted(record.classifier, record.c, seen_NF, labels).predict(test_NF).tolist()
        truth = test.labels_N.tolist()
        assert record.uar == pytest.approx(balanced_accuracy_score(truth, predicted))
        assert record.accuracy == pytest.approx(accuracy_score(truth, predicted))
        classes = range(len(test.emotions))
        assert record.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro", labels=classes))
        assert np.array_equal(record.confusion, confusion_matrix(truth, predicted, labels=classes))
        assert np.array_equal(np.sum(list(record.speaker_confusion.values()), axis=0), record.confusion)
        for speaker, uar in record.speaker_uar.items():
            own = [place for place, name in enumerate(test.speakers) if name == speaker]
            assert uar == pytest.approx(balanced_accuracy_score([truth[i] for i in own], [predicted[i] for i in own]))
        assert record.uar_interval is not None and record.uar_interval[0] <= record.uar <= record.uar_interval[1]
        assert set(record.versions) == {"scikit-learn", "numpy", "ser-fl"}
    assert [record.classifier for record in found.records] == list(CLASSIFIERS)
    assert RunFolder(run.root).read_baseline() == found


def test_a_report_shows_the_baseline_or_says_that_there_is_none(
    runs: list[ser_fl.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(runs[0], tmp_path / "a run")
    assert main(["report", "--markdown", str(run.root)]) == 0
    words = "no baseline: `ser-fl baseline run='a run'`"
    assert words in capsys.readouterr().out
    page = write_report([run.root]).read_text(encoding="utf-8")
    assert "no baseline" in page and "Beside plain classifiers" not in page
    assert main(["baseline", f"run={run.root}"]) == 0
    printed = capsys.readouterr().out
    assert "Beside plain classifiers" in printed and "baseline.json" in printed
    assert main(["report", "--markdown", str(run.root)]) == 0
    printed = capsys.readouterr().out
    found = run.read_baseline()
    assert found is not None and "no baseline" not in printed
    for record, name in zip(found.records, ("linear SVM", "logistic regression"), strict=True):
        assert f"{name}, log-mel functionals | {100 * record.uar:.1f} |" in printed
    page = write_report([run.root]).read_text(encoding="utf-8")
    assert "Beside plain classifiers" in page and "no baseline" not in page
    known = replace(read_run(runs[0].root), summary=replace(read_run(runs[0].root).summary, shared=None))
    assert len(without_baseline([known])) == 1, "by its split, where nobody says what it shares"
    assert without_baseline([replace(known, config={**known.config, "split": {"name": "within_speaker"}})]) == []


def test_folds_pool_the_baselines_confusion(runs: list[ser_fl.Run], tmp_path: Path) -> None:
    folds = [copied(run, tmp_path / run.root.name) for run in runs]
    first = ser_fl.baseline(folds[0])
    assert CrossValidation.of(Replication([read_run(fold.root) for fold in folds])).baselines == ()
    second = ser_fl.baseline(folds[1])
    records = [read_run(fold.root) for fold in folds]
    pooled = CrossValidation.of(Replication(records))
    for one, ours, theirs in zip(pooled.baselines, first.records, second.records, strict=True):
        summed = np.array(ours.confusion) + np.array(theirs.confusion)
        assert np.array_equal(one.confusion, summed)
        assert one.uar == pytest.approx(np.mean(summed.diagonal() / summed.sum(1)))
        assert one.accuracy == pytest.approx(summed.trace() / summed.sum())
    rows = dict(row[:2] for row in fold_tables(records)[0].rows)
    assert rows["Baseline UAR: linear SVM, log-mel functionals"].startswith(f"{100 * pooled.baselines[0].uar:.1f} ± ")


def test_crossval_makes_the_baseline_of_every_fold(tmp_path: Path) -> None:
    settings = [*CORPUS, *STRANGERS, *TINY, "split.num_test_speakers=3", f"run_dir={tmp_path / 'all'}"]
    assert main(["crossval", *settings, "baseline=true"]) == 0
    pooled = json.loads((tmp_path / "all" / "crossval.json").read_text())
    assert [one["name"] for one in pooled["baselines"]] == [
        "linear SVM, log-mel functionals",
        "logistic regression, log-mel functionals",
    ]
    assert np.sum(pooled["baselines"][0]["confusion"]) == np.sum(pooled["confusion"])


def test_functionals_of_two_kinds_stand_side_by_side_and_a_second_call_says_the_same(
    runs: list[ser_fl.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("opensmile")
    run = copied(runs[0], tmp_path / "run")
    ser_fl.baseline(run)
    assert not caplog.messages
    both = ser_fl.baseline(run, features="opensmile")
    assert [(one.features, one.classifier) for one in both.records] == [
        (features, name) for features in ("logmel", "opensmile") for name in CLASSIFIERS
    ]
    assert ["research only" in line for line in caplog.messages] == [True]
    assert both.records[2].versions.keys() == {"scikit-learn", "numpy", "ser-fl", "opensmile"}
    again = ser_fl.baseline(run, features="opensmile")
    assert again == both
    table = baseline_table([read_run(run.root)])
    assert table is not None and len(table.rows) == 5 and table.rows[0][1] == "the run's model"
    assert table.rows[3][1] == "linear SVM, eGeMAPS functionals (openSMILE)"


def test_settings_alone_have_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["baseline", *CORPUS, *STRANGERS, *BY_SPEAKER]) == 0
    printed = capsys.readouterr().out
    (file,) = tmp_path.glob("runs/baseline/*/baseline.json")
    content = json.loads(file.read_text())
    assert content["schema"] == 1 and content["normalisation"] == "speaker" and content["synthetic"]
    assert content["split"]["name"] == "speaker_independent" and content["num_utterances"]["test"] == 22
    assert f"{100 * content['records'][0]['uar']:.1f}" in printed and "SYNTHETIC" in printed
    assert printed.index("UAR") < printed.index("Accuracy")
    assert main(["baseline", *CORPUS, *STRANGERS, "run_dir=here"]) == 0
    pooled = json.loads((tmp_path / "here" / "baseline.json").read_text())
    assert pooled["normalisation"] == "pooled" and pooled["enrolment"] is None
    assert pooled["num_utterances"]["test"] == 22 + 2 * 3, "nobody is enrolled"
    unselected = ["selection=last", "split.num_validation_speakers=0"]
    assert main(["baseline", *CORPUS, *STRANGERS, *unselected, "run_dir=last"]) == 0
    last = json.loads((tmp_path / "last" / "baseline.json").read_text())
    assert last["num_utterances"]["validation"] == 0 and last["num_utterances"]["test"] == 28


def test_mistakes_are_told_in_a_line(
    runs: list[ser_fl.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(runs[0], tmp_path / "run")

    def told(*words: str) -> str:
        assert main(["baseline", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "'mel'" in told(f"run={run.root}", "features=mel")
    assert "split=within_speaker" in told(f"run={run.root}", "split=within_speaker")
    assert "data.root=DIR" in told("root=here", *CORPUS)
    assert "config.yaml" in told(f"run={tmp_path}")
    assert f"ser-fl baseline run={run.root}" in told(*CORPUS, f"run_dir={run.root}")
    assert "enrolled by 1 clip" in told(*CORPUS, *STRANGERS, "normalisation=speaker", "enrolment=1")
    assert "enrolment=99" in told(*CORPUS, *STRANGERS, "normalisation=speaker", "enrolment=99")
    assert "share_mean" in told(*CORPUS, *STRANGERS, "normalisation=speaker", "enrolment=none")
    summary = json.loads(run.summary.read_text())
    summary["test"]["confusion"][0][0] += 1
    run.summary.write_text(json.dumps(summary))
    assert "was it changed?" in told(f"run={run.root}")
    assert not run.baseline.exists()


def test_a_corpus_without_speakers_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for row in range(12):
        soundfile.write(tmp_path / f"{row}.wav", np.random.default_rng(row).normal(0, 0.1, 16000), 16000)
        rows.append({"path": f"{row}.wav", "emotion": ("anger", "neutral")[row % 2]})
    with (tmp_path / "m.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("path", "emotion"))
        table.writeheader()
        table.writerows(rows)
    words = ["data=manifest", f"data.root={tmp_path / 'm.csv'}", f"run_dir={tmp_path / 'out'}"]
    for more in ("normalisation=speaker", "split=speaker_independent"):
        assert main(["baseline", *words, more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "speaker" in line


@pytest.mark.parametrize(
    ("module", "features", "way_out"),
    [("sklearn", "logmel", "pip install scikit-learn"), ("opensmile", "opensmile", "pip install 'ser-fl[baseline]'")],
)
def test_what_is_not_installed_is_named_with_its_command(
    module: str,
    features: str,
    way_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["baseline", *CORPUS, f"features={features}", f"run_dir={tmp_path / 'nowhere'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert way_out in line
    assert not (tmp_path / "nowhere").exists()
