"""Test scores without attack of an experiment that was repeated with other seeds: mean, deviation, interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ser_fl.report import wording
from ser_fl.report.labels import labels_of, provenance
from ser_fl.report.markup import Table
from ser_fl.report.replications import half_width_over_seeds, replications
from ser_fl.report.runs import RunRecords

_SCORES = (("UAR", "uar"), ("Accuracy", "accuracy"), ("Macro F1", "macro_f1"))


def spread_table(runs: Sequence[RunRecords]) -> Table | None:
    """Scores on the test part over seeds, in per cent; None where no experiment has two finished ones.

    A run that has not finished is left out. Folds are too: their test parts differ, and so do their scores.
    """
    finished = [run for run in runs if run.test]
    repeated = [group for group in replications(finished) if len(group.runs) > 1 and not group.by_fold]
    if not repeated:
        return None
    rows = []
    for label, group in zip(labels_of([group.runs[0] for group in repeated]), repeated, strict=True):
        for name, key in _SCORES:
            values = [float(run.test[key]) for run in group.runs]
            figures = (statistics.mean(values), statistics.stdev(values), half_width_over_seeds(values))
            each = ", ".join(wording.percent(value) for value in values)
            rows.append((f"{label}\n{group.what}", name, *map(wording.percent, figures), each))
    return Table(
        title="Test scores in per cent over seeds",
        header=("Training", "Score", "Mean", "Deviation", "95 % ±", "Each seed"),
        rows=tuple(rows),
        caption=(
            f"{provenance([run for group in repeated for run in group.runs])} Deviation: of the seeds (n - 1). "
            "95 % ±: half of Student's interval of the mean. Without attack and without test-time defence."
        ),
        num_labels=2,
    )
