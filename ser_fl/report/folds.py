"""Folds put together, attacked or not: every speaker tested once, by a model that has not heard them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ser_fl.files import Figure
from ser_fl.report import wording
from ser_fl.report.baselines import name_of
from ser_fl.report.four_way import columns_of, reference_budgets
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords
from ser_fl.report.replications import Replication, half_width_of_uar, labelled, origins_in_words, repeated_in, summed
from ser_fl.report.wording import interval, percent, provenance

Matrix = tuple[tuple[Figure, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledAttack:
    """One attack and defence over all folds."""

    attack: str
    """With budget and effort; also "Clean" and "Worst case"."""
    defence: str
    robust_uar: float
    half_width: float
    """Of its 95 % interval, as `CrossValidation.half_width`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledBaseline:
    """One plain classifier over all folds."""

    name: str
    """With its features."""
    uar: float
    half_width: float
    """Of its 95 % interval, as `CrossValidation.half_width`."""
    accuracy: float
    confusion: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidation:
    """Figures of the folds' summed confusion matrix, in [0, 1]: what ``crossval.json`` holds."""

    experiment: str
    corpus: str
    """It says so where the speech is synthetic."""
    folds: tuple[Path, ...]
    """The run folders."""
    classes: tuple[str, ...]
    confusion: Matrix
    """Utterances; rows true, columns predicted, in the order of `classes`."""
    uar: float
    half_width: float
    """Of the 95 % interval of `uar` over other recordings of these speakers; NaN with ``federation=local_only``, where
    several models are asked of one utterance, and where recordings are cut on other machines."""
    speaker_interval: tuple[float, float] | None
    """95 % interval of `uar` over other speakers (`ser_fl.metrics.interval_over_speakers`)."""
    accuracy: float
    macro_f1: float
    recall: dict[str, float | None]
    """By emotion; None for one without a test utterance."""
    speaker_uar: dict[str, float | None]
    corpora: dict[str, Any]
    """Of several corpora, what each has alone (`ser_fl.metrics.figures_of_each`); empty of one. `uar`, `accuracy` and
    `macro_f1` are then means over corpora, and have no intervals."""
    fold_uar: tuple[float, ...]
    mean_fold_uar: float
    deviation_fold_uar: float
    """Of the folds (n - 1)."""
    attacks: tuple[PooledAttack, ...]
    """Those that every fold has records of, at the budgets of the report's tables."""
    baselines: tuple[PooledBaseline, ...]
    """Those that every fold has (`ser-fl baseline`)."""

    @classmethod
    def of(cls, group: Replication) -> Self:
        """Of finished folds that test no utterance twice."""
        import numpy as np

        from ser_fl.metrics import figures_of_each, interval_over_speakers, mean_scores, of_each_corpus, scores

        runs, first = group.runs, group.runs[0]
        tests = [run.test for run in runs]
        confusion_CC = summed(tests)
        by_speaker: dict[str, Any] = {}  # in folds of texts a speaker is in several
        for name, matrix in (entry for run in runs for entry in run.test.per_speaker_confusion.items()):
            by_speaker[name] = by_speaker.get(name, 0) + np.asarray(matrix, dtype=np.float64)
        speaker_uar = {name: uar for run in runs for name, uar in run.test.per_speaker_uar.items()}
        is_known = by_speaker.keys() == speaker_uar.keys()
        emotions = {name: own.classes for name, own in first.summary.corpora.items()}
        several = bool(emotions)
        held = of_each_corpus(by_speaker, [*emotions]).values() if several else ()
        figures = mean_scores([np.sum([*own.values()], axis=0) for own in held] or [confusion_CC])
        fold_uar = tuple(
            float(run.test.uar or 0) if several else scores(np.asarray(run.test.confusion, dtype=np.float64)).uar
            for run in runs
        )
        is_known_of_each = first.setting("federation.name") != "local_only" and not (
            first.setting("data.segment_s") and any(not test.recording_products for test in tests)
        )
        budgets = reference_budgets(runs)
        attacked = [
            (heading, defence, figure)
            for defence, found in (group.attacked(columns_of(runs, budgets), budgets) if first.attacks else ())
            for heading, records in found.items()
            if (figure := group.figure(records)) is not None
        ]
        return cls(
            experiment=first.name,
            corpus=first.corpus,
            folds=tuple(run.root for run in runs),
            classes=first.summary.classes,
            confusion=tuple(map(tuple, confusion_CC.tolist())),
            uar=figures.uar,
            half_width=half_width_of_uar(tests) if is_known_of_each and not several else float("nan"),
            speaker_interval=None
            if several or not is_known
            else interval_over_speakers(np.asarray([*by_speaker.values()])),
            accuracy=figures.accuracy,
            macro_f1=figures.macro_f1,
            recall=dict(zip(first.summary.classes, figures.per_class_recall, strict=True)),
            speaker_uar={
                name: scores(by_speaker[name]).uar if is_known else speaker_uar[name] for name in sorted(speaker_uar)
            },
            corpora=figures_of_each(by_speaker, emotions, first.summary.classes) if several else {},
            fold_uar=fold_uar,
            mean_fold_uar=statistics.mean(fold_uar),
            deviation_fold_uar=statistics.stdev(fold_uar),
            attacks=tuple(
                PooledAttack(attack=heading.replace("\n", ", "), defence=defence, robust_uar=uar, half_width=half)
                for heading, defence, (uar, half) in attacked
            ),
            baselines=tuple(_baselines(runs)),
        )


def _baselines(runs: Sequence[RunRecords]) -> Iterator[PooledBaseline]:
    from ser_fl.metrics import scores

    of_runs = [{name_of(one): one for one in run.baseline.records} if run.baseline else {} for run in runs]
    for name in of_runs[0]:
        records = [found[name] for found in of_runs if name in found]
        if len(records) == len(runs):
            confusion_CC = summed(records)
            figures = scores(confusion_CC)
            yield PooledBaseline(
                name=name,
                uar=figures.uar,
                half_width=half_width_of_uar(records),
                accuracy=figures.accuracy,
                confusion=tuple(map(tuple, confusion_CC.tolist())),
            )


def fold_tables(runs: Sequence[RunRecords]) -> list[Table]:
    """Test scores without attack of finished folds put together, a column an experiment, and the summed confusion
    matrix of each; none where nothing was repeated by fold.
    """
    groups = [group for group in repeated_in([run for run in runs if run.test.confusion]) if group.by_fold]
    if not groups:
        return []
    labels, _ = zip(*labelled(groups), strict=True)
    pooled = [CrossValidation.of(group) for group in groups]
    emotions = dict.fromkeys(emotion for one in pooled for emotion in one.recall)
    plain = [{each.name: each for each in one.baselines} for one in pooled]
    speakers = sorted({speaker for one in pooled for speaker in one.speaker_uar})
    corpora = dict.fromkeys(name for one in pooled for name in one.corpora)
    rows = [
        ("UAR, all folds", *map(_figure, pooled)),
        ("95 %, over speakers", *(interval(one.speaker_interval) for one in pooled)),
        *(
            (f"Baseline UAR: {name}", *(_figure(found.get(name)) for found in plain))
            for name in dict.fromkeys(name for found in plain for name in found)
        ),
        *((f"UAR of {name}, over speakers", *(_of_corpus(one, name) for one in pooled)) for name in corpora),
        ("Accuracy", *(percent(one.accuracy) for one in pooled)),
        ("Macro F1", *(percent(one.macro_f1) for one in pooled)),
        ("UAR by fold", *(", ".join(map(percent, one.fold_uar)) for one in pooled)),
        ("Mean and deviation", *(f"{percent(o.mean_fold_uar)}, {percent(o.deviation_fold_uar)}" for o in pooled)),
        ("Test utterances", *(wording.count(sum(map(sum, one.confusion))) for one in pooled)),
        *((f"Recall: {name}", *(percent(one.recall.get(name)) for one in pooled)) for name in emotions),
        *((f"UAR of speaker {name}", *(percent(one.speaker_uar.get(name)) for one in pooled)) for name in speakers),
    ]
    together = Table(
        title="Test scores without attack, over folds",
        header=("", *labels),
        rows=tuple(rows),
        caption=(
            f"{provenance([run for group in groups for run in group.runs])} Per cent, of the summed confusion matrix:"
            " every speaker tested once. ±: half of the 95 % interval over other recordings of these speakers; over"
            f" speakers: these drawn again, whole. Mean and deviation (n - 1): of the folds.{origins_in_words(groups)}"
            + (" UAR, accuracy and macro F1 of several corpora are means over these." if corpora else "")
        ),
    )
    return [together, *(_confusion_table(label, one) for label, one in zip(labels, pooled, strict=True))]


def _figure(found: CrossValidation | PooledBaseline | None) -> str:
    return f"{percent(found.uar)} ± {percent(found.half_width)}" if found else MISSING


def _of_corpus(pooled: CrossValidation, name: str) -> str:
    own = pooled.corpora.get(name)
    return MISSING if own is None else f"{percent(own['uar'])} ({interval(own['speaker_interval'])})"


def _confusion_table(label: str, pooled: CrossValidation) -> Table:
    rows = zip(pooled.classes, pooled.confusion, strict=True)
    return Table(
        title=f"Confusion over folds, {label.replace(chr(10), ', ')}",
        header=("true, predicted", *pooled.classes),
        rows=tuple((name, *(wording.number(count, ",.4g") for count in row)) for name, row in rows),
        caption="Test utterances, summed over folds; rows: true, columns: predicted.",
    )
