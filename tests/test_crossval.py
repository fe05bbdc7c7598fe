"""Folds put together: against scikit-learn, SciPy and the same folds trained one by one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

import ser_fl
from ser_fl.cli.main import main
from ser_fl.config.schema import Config
from ser_fl.federation.hooks import Hooks
from ser_fl.metrics import confusion_matrix, interval_over_speakers, scores
from ser_fl.report.folds import CrossValidation, fold_tables
from ser_fl.report.reader import RunRecords, Summary, TestScores, run_folders
from ser_fl.report.replications import Replication, not_pooled, replications
from ser_fl.runs.folder import RunFolder

SMALL = ("experiment=debug", "data.num_speakers=4", "data.utterances_per_emotion=2", "federation.batch_size=4")
FOLDS = ("split=speaker_independent", "split.num_test_speakers=2")


@dataclass(frozen=True)
class Tested:
    """What a fold's model said of its test utterances."""

    speakers: list[str]
    labels: list[int]
    predictions: list[int]

    def matrix(self, speaker: str | None = None) -> Any:
        rows = [row for row, name in enumerate(self.speakers) if speaker in (None, name)]
        return confusion_matrix([self.labels[row] for row in rows], [self.predictions[row] for row in rows], 3)


def fold(name: str, speakers: tuple[str, ...], *, seed: int = 1, **settings: Any) -> tuple[RunRecords, Tested]:
    """A finished run without attacks that tests some speakers, and what it said."""
    stream = np.random.default_rng(sum(map(ord, name)))
    labels = stream.integers(3, size=40)
    tested = Tested(
        list(stream.choice(speakers, 40)), labels.tolist(), np.where(stream.random(40) < 0.6, labels, 0).tolist()
    )
    matrices = {speaker: tested.matrix(speaker).tolist() for speaker in dict.fromkeys(tested.speakers)}
    figures = scores(tested.matrix())
    test = TestScores(
        uar=figures.uar,
        confusion=tested.matrix().tolist(),
        per_class_recall=figures.per_class_recall,
        per_speaker_uar={speaker: scores(np.array(matrix)).uar for speaker, matrix in matrices.items()},
        per_speaker_confusion=matrices,
    )
    split = {"name": "speaker_independent", "seed": 0, "fold": 0, **settings.pop("split", {})}
    config = {"experiment": "e", "seed": seed, "split": split, "federation": {"name": "federated"}, **settings}
    summary = Summary(classes=("a", "b", "c"), test=test)
    return RunRecords(root=Path(name), config=config, environment={}, summary=summary, rounds=(), attacks=()), tested


def three_folds() -> list[tuple[RunRecords, Tested]]:
    parts = (("A", "B"), ("C", "D"), ("E",))
    return [fold(f"fold{k}", speakers, split={"fold": k}) for k, speakers in enumerate(parts)]


def test_folds_are_scored_as_one_test_part() -> None:
    """UAR, recall and confusion are scikit-learn's of all predictions, and UAR by speaker too."""
    runs, tested = zip(*three_folds(), strict=True)
    (group,) = replications(runs)
    pooled = CrossValidation.of(group)
    labels, predictions, speakers = (
        np.concatenate([getattr(one, name) for one in tested]) for name in ("labels", "predictions", "speakers")
    )
    assert np.array_equal(pooled.confusion, sklearn_metrics.confusion_matrix(labels, predictions))
    assert pooled.uar == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predictions))
    assert pooled.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions))
    recalls = sklearn_metrics.recall_score(labels, predictions, average=None)
    assert list(pooled.recall.values()) == pytest.approx(list(recalls))
    for speaker, uar in pooled.speaker_uar.items():
        theirs = speakers == speaker
        assert uar == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels[theirs], predictions[theirs]))
    assert set(pooled.speaker_uar) == set("ABCDE")
    by_fold = [sklearn_metrics.balanced_accuracy_score(one.labels, one.predictions) for one in tested]
    assert pooled.mean_fold_uar == pytest.approx(np.mean(by_fold))
    assert pooled.deviation_fold_uar == pytest.approx(np.std(by_fold, ddof=1))
    table, confusion = fold_tables(runs)
    assert table.rows[0][1] == f"{100 * pooled.uar:.1f} ± {100 * pooled.half_width:.1f}"
    assert [row[1:] for row in confusion.rows] == [tuple(f"{n:g}" for n in row) for row in pooled.confusion]


def test_the_interval_over_speakers_is_scipys_bootstrap_of_whole_speakers() -> None:
    stream = np.random.default_rng(5)
    matrices = np.array([np.diag(stream.integers(2, 12, 3)) + stream.integers(0, 6, (3, 3)) for _ in range(9)])

    def uar(speakers: Any) -> float:
        return scores(matrices[np.asarray(speakers)].sum(axis=0).astype(float)).uar

    theirs = stats.bootstrap(
        (np.arange(9),), uar, vectorized=False, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval_over_speakers(matrices) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert theirs.high - theirs.low > 0.05, "it has something to find"


def test_speakers_that_are_alike_leave_no_doubt_and_one_alone_says_nothing() -> None:
    """A class that one speaker of two lacks is left out of the draws without the other: recalls 1 and 0, or 1."""
    matrix = np.array([[3.0, 1.0], [2.0, 2.0]])
    assert interval_over_speakers(np.array([matrix] * 4)) == pytest.approx((0.625, 0.625))
    assert interval_over_speakers(matrix[None]) is None
    lacking = np.array([[[2.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    assert interval_over_speakers(lacking) == pytest.approx((0.5, 1.0))


def test_a_speaker_in_several_folds_of_texts_is_scored_once() -> None:
    """Folds of one split share no utterance, whoever speaks: UAR by speaker is of the summed matrices."""
    made = [fold(f"text{k}", ("A", "B"), split={"name": "text_independent", "fold": k}) for k in range(2)]
    (group,) = replications([run for run, _ in made])
    assert group.refusal is None and group.what == "2 folds"
    summed = sum(tested.matrix("A") for _, tested in made)
    assert CrossValidation.of(group).speaker_uar["A"] == pytest.approx(scores(summed).uar)


def test_what_would_test_an_utterance_twice_is_not_pooled() -> None:
    """A fold of two seeds; and other draws of a split, which share speakers."""
    runs = [run for run, _ in three_folds()]
    again = fold("again", ("A", "B"), seed=2, split={"fold": 0})[0]
    (line,) = not_pooled([*runs, again])
    assert line == ("not pooled: fold0, fold1, fold2, again test A, B more than once: give each fold of one split once")
    assert fold_tables([*runs, again]) == []
    drawn = [fold(f"draw{seed}", ("A",), split={"name": "within_speaker", "seed": seed})[0] for seed in range(2)]
    assert "draw0, draw1 test A more than once" in not_pooled(drawn)[0]
    assert not_pooled(runs) == []


def test_a_fold_of_other_settings_is_not_pooled_and_the_setting_is_named() -> None:
    runs = [run for run, _ in three_folds()]
    odd = fold("odd", ("F",), split={"fold": 3}, federation={"name": "federated", "num_rounds": 7})[0]
    assert not_pooled([*runs, odd]) == ["not pooled: odd and fold0 differ in federation.num_rounds"]
    assert fold_tables([*runs, odd])[0].rows[4][1].count(",") == 2, "the others are"
    others = replace(runs[1], summary=replace(runs[1].summary, classes=("a", "b", "z")))
    assert not_pooled([runs[0], others]) == ["not pooled: fold0, fold1 know other emotions each"]


def test_a_run_without_matrices_by_speaker_has_no_interval_over_them() -> None:
    """As of an earlier version; its UAR by speaker is the one on record."""
    runs = [run for run, _ in three_folds()]
    test = replace(runs[1].test, per_speaker_confusion={})
    runs[1] = replace(runs[1], summary=replace(runs[1].summary, test=test))
    pooled = CrossValidation.of(Replication(runs))
    assert pooled.speaker_interval is None
    assert pooled.speaker_uar["C"] == test.per_speaker_uar["C"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return (*SMALL, *FOLDS, f"data.cache_dir={tmp_path_factory.mktemp('cache')}")


@pytest.fixture(scope="module")
def crossed(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of four speakers, by the command."""
    folder = tmp_path_factory.mktemp("crossed") / "cv"
    assert main(["crossval", *settings, f"run_dir={folder}"]) == 0
    return folder


def test_every_fold_is_the_run_that_train_makes_of_it(crossed: Path, settings: tuple[str, ...], tmp_path: Path) -> None:
    for number in range(2):
        alone = ser_fl.train(ser_fl.compose([*settings, f"split.fold={number}", f"run_dir={tmp_path / str(number)}"]))
        assert RunFolder(crossed / f"fold{number}").weights.read_bytes() == alone.weights.read_bytes()


def test_the_record_is_scikit_learns_of_all_predictions(crossed: Path) -> None:
    """Every utterance of the corpus once; predictions are those of `ser_fl.evaluate`."""
    said = [one for number in range(2) for one in ser_fl.evaluate(crossed / f"fold{number}").utterances]
    assert len({one.utterance_id for one in said}) == len(said) == 4 * 7 * 2
    record = json.loads((crossed / "crossval.json").read_text())
    emotions, predicted = [one.emotion for one in said], [one.predicted for one in said]
    wanted = sklearn_metrics.confusion_matrix(emotions, predicted, labels=record["classes"])
    assert np.array_equal(record["confusion"], wanted)
    assert record["uar"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(emotions, predicted))
    low, high = record["speaker_interval"]
    assert low <= record["uar"] <= high
    assert record["folds"] == ["fold0", "fold1"] and record["attacks"] == []
    assert f"| UAR, all folds | {100 * record['uar']:.1f} ±" in (crossed / "crossval.md").read_text()


def test_report_pools_folds_that_nobody_attacked(crossed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(crossed / f"fold{number}") for number in range(2)]
    assert main(["report", "--markdown", *folders]) == 0
    printed = capsys.readouterr().out
    assert (crossed / "crossval.md").read_text().split("\n\n")[1] in printed
    assert main(["report", *folders, "--output", str(crossed / "page.html")]) == 0
    assert "Test scores without attack, over folds" in (crossed / "page.html").read_text()


@pytest.mark.parametrize("given", [".", "*", "crossval.json"])
def test_report_takes_the_folder_for_its_folds(
    crossed: Path, given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also as a shell spells it out, an earlier page among it; each fold counts once."""
    cv = Path(shutil.copytree(crossed, tmp_path / "cv"))
    for _ in range(2):
        named = [str(path) for path in sorted(cv.glob(given))] if given == "*" else [str(cv / given)]
        capsys.readouterr()
        assert main(["report", *named]) == 0
        assert str(cv / "report.html") in capsys.readouterr().out
    assert main(["report", "--markdown", *named]) == 0
    assert (cv / "crossval.md").read_text().split("\n\n")[1] in capsys.readouterr().out
    assert not (cv / "fold0" / "report.html").exists()
    (cv / "notes.txt").write_text("mine")
    assert main(["report", str(cv / "fold0"), str(cv / "notes.txt")]) == 2
    assert "notes.txt is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["evaluate", "run=RUNS"], ["benchmark", "run=RUNS", "attacks=[fgsm]"], ["predict", "--run", "RUNS", "a.wav"]],
)
def test_who_gives_the_folder_for_a_run_is_told_of_the_runs_in_it(
    words: list[str], crossed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("RUNS", str(crossed)) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"take one of the 2 runs in it, such as {crossed / 'fold0'}")


def test_folders_come_in_the_order_of_their_numbers_and_once(tmp_path: Path) -> None:
    for name in ("fold10", "fold2", "fold1", "figures"):
        (tmp_path / name).mkdir()
    for name in ("fold10", "fold2", "fold1"):
        (tmp_path / name / "config.yaml").write_text("seed: 1")
    assert [run.name for run in run_folders([tmp_path])] == ["fold1", "fold2", "fold10"]
    given = [tmp_path / "fold2", tmp_path, tmp_path / "figures" / ".." / "fold2"]
    assert [run.name for run in run_folders(given)] == ["fold2", "fold1", "fold10"]


def test_the_config_of_a_fold_repeats_all_of_them(crossed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    assert main(["crossval", "--config", str(crossed / "fold1" / "config.yaml"), f"run_dir={folder}"]) == 0
    for number in range(2):
        again, first = (RunFolder(place / f"fold{number}").weights for place in (folder, crossed))
        assert again.read_bytes() == first.read_bytes()


def test_a_killed_command_goes_on_where_it_was(crossed: Path, settings: tuple[str, ...], tmp_path: Path) -> None:
    """Killed after the first round of the second fold: the first is left as it is, the second gets the same bits."""
    config = ser_fl.compose([*settings, f"run_dir={tmp_path / 'cv'}"])
    trained: list[int] = []

    def killed(fold: Config) -> RunFolder:
        def on_round(record: Any) -> None:
            if fold.split.fold == 1:
                raise KeyboardInterrupt

        return ser_fl.train(fold, hooks=Hooks(on_round=on_round))

    def told(fold: Config) -> RunFolder:
        trained.append(fold.split.fold)
        return ser_fl.train(fold)

    with pytest.raises(KeyboardInterrupt):
        ser_fl.crossval(config, train_fold=killed)
    assert not (tmp_path / "cv" / "crossval.json").exists()
    before = RunFolder(tmp_path / "cv" / "fold0").summary.stat().st_mtime_ns
    found = ser_fl.crossval(replace(config, resume=True), train_fold=told)
    assert trained == [1]
    assert RunFolder(found.folds[0]).summary.stat().st_mtime_ns == before
    for number, run in enumerate(found.folds):
        assert RunFolder(run).weights.read_bytes() == RunFolder(crossed / f"fold{number}").weights.read_bytes()
        assert len(RunFolder(run).read_jsonl(RunFolder(run).rounds)) == 2
    mine, theirs = (json.loads((place / "crossval.json").read_text()) for place in (tmp_path / "cv", crossed))
    assert mine == theirs
    more = replace(config, resume=True, federation=replace(config.federation, num_rounds=3))
    assert ser_fl.crossval(more, train_fold=told).folds == found.folds
    assert trained == [1, 0, 1], "both go on to more rounds"


def test_settings_of_the_benchmark_attack_every_fold(
    crossed: Path, settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("attacks=[fgsm]", "epsilons=[0.05]", "curve_attacks=[]", "checks=false", "defences=[none]")
    assert main(["crossval", *settings, f"run_dir={crossed}", "resume=true", *few]) == 0
    printed = capsys.readouterr().out
    assert "Robust UAR in per cent over 2 folds" in printed and "round   1" not in printed
    record = json.loads((crossed / "crossval.json").read_text())
    (fgsm,) = [one for one in record["attacks"] if "FGSM" in one["attack"]]
    attacks = [json.loads((crossed / f"fold{number}" / "attacks.json").read_text()) for number in range(2)]
    matrices = [one["confusion"] for each in attacks for one in each["records"] if one["attack"] == "fgsm"]
    assert fgsm["robust_uar"] == pytest.approx(scores(np.sum(matrices, axis=0)).uar)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "split=within_speaker has no folds: take split=speaker_independent"),
        (("split=speaker_independent", "split.test_speakers=[f01]"), "split.test_speakers has no folds"),
        ((*FOLDS, "split.fold=1"), "all folds are trained, got split.fold=1"),
        (("split=speaker_independent", "split.num_test_speakers=4"), "there must be two folds at least, got 1"),
        ((*FOLDS, "resume=true"), "say which folds go on: run_dir=DIR"),
        ((*FOLDS, "atacks=[pgd]"), "unknown setting 'atacks'"),
        (("split=speaker_independent", "split.num_test_speakers=3"), "leaves no train utterances"),
        ((*FOLDS, "split.validation_speakers=[m02]"), "'m02' is named for test and for validation"),  # in the last one
    ],
)
def test_what_cannot_be_cross_validated_is_told_before_anything_is_trained(
    given: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["crossval", *SMALL, *given, *([] if "resume=true" in given else ["run_dir=cv"])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())
