"""Runs that repeat one another: the same experiment with other seeds, or on other folds, put together in one table.

Seeds share their test utterances: a figure is the mean over seeds, and its interval says how far a mean over other
seeds may lie. Folds have test speakers of their own: their confusion matrices are summed, as of one test part, and the
interval says how far UAR on other utterances may lie.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ser_fl.report import wording
from ser_fl.report.four_way import budget_key, columns_of, record_under, reference_budgets
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords
from ser_fl.report.wording import percent, provenance
from ser_fl.runs.records import CLEAN, WORST_CASE, AttackRecord

_FREE = {"seed", "run_dir", "resume", "tracking", "executor", "profile", "experiment"}
"""Settings in which repetitions may differ; and of the split its part, of the data their place."""
_PART = ("seed", "fold", "test_speakers", "validation_speakers")
_PLACE = ("root", "cache_dir")


@dataclass(frozen=True)
class Replication:
    runs: Sequence[RunRecords]

    @cached_property
    def by_fold(self) -> bool:
        return len({repr([run.setting(f"split.{name}") for name in _PART]) for run in self.runs}) > 1

    @property
    def what(self) -> str:
        return f"{len(self.runs)} {'folds' if self.by_fold else 'seeds'}"

    def figure(self, records: Sequence[AttackRecord]) -> tuple[float, float] | None:
        """UAR of one attack over all repetitions, and half the width of its 95 % interval; None where one lacks the
        attack. Over seeds: Student's interval of the mean. Over folds: the binomial spread of the recalls of the summed
        matrix, which for a randomised defence takes every utterance's mean vote for one vote, and so is too wide if
        anything.
        """
        if len(records) < len(self.runs) or (self.by_fold and not all(record.confusion for record in records)):
            return None
        if not self.by_fold:
            values = [record.robust_uar for record in records]
            return statistics.mean(values), half_width_over_seeds(values)
        import numpy as np

        from ser_fl.metrics import scores

        summed = np.sum([np.asarray(record.confusion, dtype=np.float64) for record in records], axis=0)
        return scores(summed).uar, half_width_of_uar(summed)


def replications(runs: Sequence[RunRecords]) -> list[Replication]:
    """The given runs, sorted into experiments; those of one run as well."""
    groups: dict[str, list[RunRecords]] = {}
    for run in runs:
        shared = {name: value for name, value in run.config.items() if name not in _FREE}
        for part, free in (("split", _PART), ("data", _PLACE)):
            settings = shared.pop(part, None)
            if isinstance(settings, Mapping):
                shared[part] = {name: value for name, value in settings.items() if name not in free}
        groups.setdefault(repr(shared), []).append(run)
    return [Replication(group) for group in groups.values()]


def replication_table(runs: Sequence[RunRecords]) -> Table | None:
    """Robust UAR in per cent of experiments that were repeated and attacked, or None. Rows: training and defence.
    Columns: clean, each attack at the reference budgets, the worst case.
    """
    repeated = [group for group in replications(runs) if len(group.runs) > 1 and any(run.attacks for run in group.runs)]
    if not repeated:
        return None
    everybody = [run for group in repeated for run in group.runs]
    budgets = reference_budgets(everybody)
    columns = columns_of(everybody, budgets)
    budgets &= {budget_key(record) for run in everybody for record in run.attacked if record.attack != WORST_CASE}
    rows = []
    for label, group in _labelled(repeated):
        for defence in group.runs[0].defences:
            clean = [next(_of(run, CLEAN, defence), None) for run in group.runs]
            under = [[record_under(column, run, defence) for run in group.runs] for column in columns]
            worst = [
                # In L-infinity, and over attackers who know of the defence, where there is one.
                min(
                    (record for record in _of(run, WORST_CASE, defence) if budget_key(record) in budgets),
                    key=lambda record: (record.norm != "inf", wording.is_grey_box(record), -record.num_examples),
                    default=None,
                )
                for run in group.runs
            ]
            sizes = [run.subset(record) for run, record in zip(group.runs, worst, strict=True) if record is not None]
            size = f" (n = {max(filter(None, sizes))})" if sizes and all(sizes) else ""
            cells = [_cell(group, records) for records in (clean, *under, worst)]
            rows.append((label, wording.defence_name(defence), *cells[:-1], cells[-1] + size))
    whats = " / ".join(dict.fromkeys(group.what for group in repeated))
    return Table(
        title=f"Robust UAR in per cent over {whats}",
        header=("Training", "Test-time defence", "Clean", *columns, "Worst case"),
        rows=tuple(rows),
        caption=(
            f"{provenance(everybody)} Each figure with half of its 95 % interval: of the mean over seeds (Student's t),"
            " or, over folds, of the UAR of the summed confusion matrix; sd: deviation of the seeds (n - 1)."
            f"{wording.mark_explained(record for run in everybody for record in run.attacked)}"
        ),
        num_labels=2,
    )


def spread_table(runs: Sequence[RunRecords]) -> Table | None:
    """Test scores without attack over seeds, in per cent, of finished runs; None where no experiment has two. Folds are
    left out: their test parts differ.
    """
    finished = [run for run in runs if run.summary.test is not None]
    repeated = [group for group in replications(finished) if len(group.runs) > 1 and not group.by_fold]
    if not repeated:
        return None
    rows = []
    for label, group in _labelled(repeated):
        for name, key in (("UAR", "uar"), ("Accuracy", "accuracy"), ("Macro F1", "macro_f1")):
            scores = [getattr(run.test, key) for run in group.runs]
            values = [math.nan if score is None else score for score in scores]
            figures = (statistics.mean(values), statistics.stdev(values), half_width_over_seeds(values))
            rows.append((label, name, *map(percent, figures), ", ".join(map(percent, values))))
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


def half_width_over_seeds(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of a mean; a bootstrap of three or five runs would be far too narrow.

    >>> round(half_width_over_seeds([0.1, 0.2, 0.3]), 4)
    0.2484
    """
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def half_width_of_uar(confusion: Any) -> float:
    """Half of the 95 % interval of UAR over utterances: the recalls' binomial variances, averaged over classes."""
    support, right = confusion.sum(axis=1), confusion.diagonal()
    present = support > 0
    recall = right[present] / support[present]
    variance = (recall * (1 - recall) / support[present]).sum() / present.sum() ** 2
    return 1.96 * math.sqrt(float(variance))


def _of(run: RunRecords, attack: str, defence: str) -> Iterator[AttackRecord]:
    return (record for record in run.attacks if (record.attack, record.defence) == (attack, defence))


def _cell(group: Replication, found: Sequence[AttackRecord | None]) -> str:
    records = [record for record in found if record is not None]
    figure = group.figure(records)
    if figure is None:
        return MISSING
    uars = [record.robust_uar for record in records]
    spread = "" if group.by_fold else f" (sd {percent(statistics.stdev(uars))})"
    return wording.marked(f"{percent(figure[0])} ± {percent(figure[1])}{spread}", records[0])


def _labelled(groups: Sequence[Replication]) -> list[tuple[str, Replication]]:
    """With the labels of their first runs, which differ in what the experiments differ in."""
    labels = wording.labels_of([group.runs[0] for group in groups])
    return [(f"{label}\n{group.what}", group) for label, group in zip(labels, groups, strict=True)]
