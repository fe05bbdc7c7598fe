"""Plain classifiers beside the models that have to beat them: the table, and what is said where there is none."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ser_fl.report import wording
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords, TestScores
from ser_fl.report.replications import half_width_of_uar
from ser_fl.report.wording import percent
from ser_fl.runs.records import Baseline, BaselineRecord
from ser_fl.runs.redaction import public_path

_FEATURES = {"logmel": "log-mel functionals", "opensmile": "eGeMAPS functionals (openSMILE)"}
_CLASSIFIERS = {"svm": "linear SVM", "logistic": "logistic regression"}
_HEADER = ("UAR", "95 % ±", "Accuracy", "Macro F1", "C")
_CAPTION = (
    "Per cent. Baselines: trained in one place on the training and validation parts, C chosen by inner folds of these"
    " that share no speaker (no text, no recording); the same test utterances. 95 % ±: half of the interval over other"
    " recordings of these speakers."
)


def name_of(record: BaselineRecord) -> str:
    """ "linear SVM, log-mel functionals"."""
    return (
        f"{_CLASSIFIERS.get(record.classifier, record.classifier)}, {_FEATURES.get(record.features, record.features)}"
    )


def baseline_table(runs: Sequence[RunRecords]) -> Table | None:
    """Each model on its test utterances, and below it the baselines on the same ones; None where no run has any."""
    shown = [(label, run, run.baseline) for label, run in wording.labelled(runs) if run.baseline]
    if not shown:
        return None
    rows = [
        row
        for label, run, found in shown
        for row in (
            *([(label, "the run's model", *_cells(run.test), MISSING)] if run.test.confusion else []),
            *((label, *row) for row in _rows(found)),
        )
    ]
    return Table(
        title="Beside plain classifiers",
        header=("Training", "Classifier", *_HEADER),
        rows=tuple(rows),
        caption=f"{wording.provenance([run for _, run, _ in shown])} {_CAPTION}",
        num_labels=2,
    )


def own_table(found: Baseline) -> Table:
    """Baselines alone, of settings that nobody trained with yet."""
    name, fold = found.split["name"], found.split["fold"]
    facts = [f"Corpus {found.corpus}{' (SYNTHETIC speech)' if found.synthetic else ''}", f"split {name}"]
    facts += [f"fold {fold}"] if name.endswith("independent") else []
    facts += [found.scaling] if found.scaling else []
    counts = ", ".join(f"{count} {part}" for part, count in found.num_utterances.items())
    return Table(
        title="Plain classifiers",
        header=("Classifier", *_HEADER),
        rows=tuple(_rows(found)),
        caption=f"{'; '.join(facts)}; utterances: {counts}. {_CAPTION}",
    )


def without_baseline(runs: Sequence[RunRecords]) -> list[tuple[RunRecords, str]]:
    """Finished runs tested on speakers that nobody trained on, of which nobody knows what a plain classifier reaches,
    each with the command that tells.
    """
    return [
        (run, f"ser-fl baseline run={shlex.quote(str(Path(public_path(run.root))))}")
        for run in runs
        if run.test.confusion and run.baseline is None and _has_strangers(run)
    ]


def _has_strangers(run: RunRecords) -> bool:
    shared = run.summary.shared or {}
    if isinstance(known := shared.get("speakers"), int) and isinstance(number := shared.get("num_speakers"), int):
        return known < number
    return run.setting("split.name") in ("speaker_independent", "speaker_and_text_independent")


def _rows(found: Baseline) -> Iterator[tuple[str, ...]]:
    for record in found.records:
        yield name_of(record), *_cells(record), f"{record.c:g}"


def _cells(record: TestScores | BaselineRecord) -> tuple[str, ...]:
    return tuple(map(percent, (record.uar, half_width_of_uar([record]), record.accuracy, record.macro_f1)))
