"""Runs that repeat one another: the same experiment with other seeds, or on other folds, put together in one table.

Seeds share their test utterances: a figure is the mean over seeds, and its interval says how far a mean over other
seeds may lie. Folds have test speakers of their own: their confusion matrices are summed, as of one test part, and the
interval says how far UAR on other utterances may lie.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ser_fl.report import wording
from ser_fl.report.four_way import Budget, budget_key, columns_of, record_under, reference_budgets
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords, TestScores
from ser_fl.report.wording import percent, provenance
from ser_fl.runs.records import CLEAN, WORST_CASE, AttackRecord, BaselineRecord

_NAMED = ("split.seed", *(f"split.{part}_{unit}s" for part in ("test", "validation") for unit in ("speaker", "text")))
_FREE = {
    *_NAMED,
    "split.fold",
    "data.root",
    "data.cache_dir",
    "experiment",
    "init_from",
    "run_name",
    "seed",
    "run_dir",
    "resume",
    "profile",
}
_FREE_STAGES = ("tracking.", "executor.", "data.roots")
"""What repetitions may differ in."""
Found = Sequence[AttackRecord | None]
"""A record of each run, in their order; None where one has none."""


@dataclass(frozen=True)
class Replication:
    runs: Sequence[RunRecords]

    @cached_property
    def by_fold(self) -> bool:
        parts = {repr([run.setting(name) for name in (*_NAMED, "split.fold")]) for run in self.runs}
        tested = {frozenset(run.test.per_speaker_uar) for run in self.runs if run.summary.test}
        return max(len(parts), len(tested)) > 1

    @property
    def what(self) -> str:
        return f"{len(self.runs)} {'folds' if self.by_fold else 'seeds'}"

    @cached_property
    def refusal(self) -> str | None:
        """Why these folds cannot be summed; None where they can, and of seeds."""
        if not self.by_fold:
            return None
        names = f"not pooled: {', '.join(run.root.name for run in self.runs)}"
        tested = Counter(speaker for run in self.runs for speaker in run.test.per_speaker_uar)
        twice = [speaker for speaker, count in sorted(tested.items()) if count > 1]
        splits = {repr([run.setting(name) for name in _NAMED]) for run in self.runs}
        # Folds of texts share their speakers, and one split's folds share no utterance.
        if twice and (len(splits) > 1 or len({run.setting("split.fold") for run in self.runs}) < len(self.runs)):
            more = ", ..." if len(twice) > 3 else ""
            return f"{names} test {', '.join(twice[:3])}{more} more than once: give each fold of one split once"
        if len({run.summary.classes for run in self.runs if run.summary.test}) > 1:
            return f"{names} know other emotions each"
        return None

    def figure(self, found: Found) -> tuple[float, float] | None:
        """UAR of one attack over all repetitions, and half the width of its 95 % interval; None where one lacks the
        attack. Over seeds: Student's interval of the mean. Over folds: the binomial spread of the recalls of the summed
        matrix, which for a randomised defence takes every utterance's mean vote for one vote, and so is too wide if
        anything.
        """
        records = [record for record in found if record is not None]
        if len(records) < len(self.runs) or (self.by_fold and not all(record.confusion for record in records)):
            return None
        if not self.by_fold:
            values = [record.robust_uar for record in records]
            return statistics.mean(values), half_width_over_seeds(values)
        from ser_fl.metrics import scores

        return scores(summed(records)).uar, half_width_of_uar(records)

    def attacked(self, columns: Sequence[str], budgets: set[Budget]) -> Iterator[tuple[str, dict[str, Found]]]:
        """By defence: what the runs recorded without attack, under each heading, and in the worst case: in L-infinity,
        and over attackers who know of the defence, where there is one.
        """
        for defence in self.runs[0].defences:
            of_run = [[record for record in run.attacks if record.defence == defence] for run in self.runs]
            found: dict[str, Found] = {
                "Clean": [next((each for each in own if each.attack == CLEAN), None) for own in of_run]
            }
            for column in columns:
                found[column] = [record_under(column, run, defence) for run in self.runs]
            found["Worst case"] = [
                min(
                    (each for each in own if each.attack == WORST_CASE and budget_key(each) in budgets),
                    key=lambda record: (record.norm != "inf", wording.is_grey_box(record), -record.num_examples),
                    default=None,
                )
                for own in of_run
            ]
            yield defence, found


def replications(runs: Sequence[RunRecords]) -> list[Replication]:
    """The given runs, sorted into experiments; those of one run as well."""
    groups: dict[str, list[RunRecords]] = {}
    for run in runs:
        groups.setdefault(repr(_shared(run)), []).append(run)
    found = list[Replication]()
    for group in groups.values():
        begun_from: dict[str, list[RunRecords]] = {}
        for run in group:
            begun_from.setdefault(str(run.setting("init_from")), []).append(run)
        drawn = {repr([run.setting(name) for name in ("seed", "split.fold", *_NAMED)]) for run in group}
        # Each of its own run is a repetition; the same seed from several is a comparison of those.
        found += map(Replication, [group] if len(drawn) == len(group) else begun_from.values())
    return found


def repeated_in(runs: Sequence[RunRecords]) -> list[Replication]:
    """Experiments of several runs that may be put together."""
    return [group for group in replications(runs) if len(group.runs) > 1 and not group.refusal]


def not_pooled(runs: Sequence[RunRecords]) -> list[str]:
    """What looks like folds of one experiment and was not put together, and why: a line each."""
    groups = replications(runs)
    lines = [group.refusal for group in groups if group.refusal]
    for run in (group.runs[0] for group in groups if len(group.runs) == 1):
        same = [group for group in groups if group.runs[0].name == run.name]
        other = max(same, key=lambda group: len(group.runs)).runs[0]
        if other is not run and Replication([run, other]).by_fold:
            mine, theirs = _shared(run), _shared(other)
            names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
            told = ", ".join(names) or "init_from"
            lines.append(f"not pooled: {run.root.name} and {other.root.name} differ in {told}")
    return lines


def _shared(run: RunRecords) -> dict[str, Any]:
    """The settings, by their whole names, that repetitions have in common."""

    def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return {
        name: value
        for name, value in sorted(flat(run.config))
        if name not in _FREE and not name.startswith(_FREE_STAGES)
    } | {"init_from": bool(run.setting("init_from"))}


def origins_in_words(groups: Sequence[Replication]) -> str:
    """The end of a caption, after a blank; nothing where no repetitions were fine-tuned from runs of their own."""
    if all(len({run.setting("init_from") for run in group.runs}) == 1 for group in groups):
        return ""
    return " Fine-tuned repetitions began from different runs (init_from), which counts into their spread."


def replication_table(runs: Sequence[RunRecords]) -> Table | None:
    """Robust UAR in per cent of experiments that were repeated and attacked, or None. Rows: training and defence.
    Columns: clean, each attack at the reference budgets, the worst case.
    """
    repeated = [group for group in repeated_in(runs) if any(run.attacks for run in group.runs)]
    if not repeated:
        return None
    everybody = [run for group in repeated for run in group.runs]
    budgets = reference_budgets(everybody)
    columns = columns_of(everybody, budgets)
    budgets &= {budget_key(record) for run in everybody for record in run.attacked if record.attack != WORST_CASE}
    rows = []
    for label, group in labelled(repeated):
        for defence, found in group.attacked(columns, budgets):
            worst = zip(group.runs, found["Worst case"], strict=True)
            sizes = [run.subset(record) for run, record in worst if record is not None]
            size = f" (n = {max(filter(None, sizes))})" if sizes and all(sizes) else ""
            cells = [_cell(group, records) for records in found.values()]
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
            f"{origins_in_words(repeated)}"
        ),
        num_labels=2,
    )


def spread_table(runs: Sequence[RunRecords]) -> Table | None:
    """Test scores without attack over seeds, in per cent, of finished runs; None where no experiment has two. Folds are
    left out: their test parts differ.
    """
    finished = [run for run in runs if run.summary.test is not None]
    repeated = [group for group in repeated_in(finished) if not group.by_fold]
    if not repeated:
        return None
    rows = []
    for label, group in labelled(repeated):
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
            f"{origins_in_words(repeated)}"
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


def summed(records: Sequence[AttackRecord | TestScores | BaselineRecord]) -> Any:
    """The confusion matrix of all, shape (C, C)."""
    import numpy as np

    return np.sum([np.asarray(record.confusion, dtype=np.float64) for record in records], axis=0)


def half_width_of_uar(records: Sequence[AttackRecord | TestScores | BaselineRecord]) -> float:
    """Half of the 95 % interval of the UAR of a summed confusion matrix over utterances: the recalls' binomial
    variances, averaged over classes. Where recordings hold several utterances it is over recordings: the variance of
    recalls as ratios of what whole recordings hold (Cochran 1977, section 2.11), to first order.
    """
    import numpy as np

    confusion = summed(records)
    support, right = confusion.sum(axis=1), confusion.diagonal()
    present = support > 0
    recall = right[present] / support[present]
    if not any(record.recording_products for record in records):
        variance = (recall * (1 - recall) / support[present]).sum() / present.sum() ** 2
        return 1.96 * math.sqrt(float(variance))
    products = np.zeros((2 * len(support), 2 * len(support)))
    for record in records:
        matrix = np.asarray(record.confusion, dtype=np.float64)
        recognised, held = np.diag(matrix.diagonal()), np.diag(matrix.sum(axis=1))
        alone = np.block([[recognised, recognised], [recognised, held]])  # each utterance its own recording
        products += record.recording_products or alone
    share = np.concatenate([1 / support[present], -recall / support[present]]) / present.sum()
    both = np.flatnonzero(np.tile(present, 2))
    return 1.96 * math.sqrt(max(0.0, float(share @ products[np.ix_(both, both)] @ share)))


def _cell(group: Replication, found: Found) -> str:
    figure, records = group.figure(found), [record for record in found if record is not None]
    if figure is None:
        return MISSING
    uars = [record.robust_uar for record in records]
    spread = "" if group.by_fold else f" (sd {percent(statistics.stdev(uars))})"
    return wording.marked(f"{percent(figure[0])} ± {percent(figure[1])}{spread}", records[0])


def labelled(groups: Sequence[Replication]) -> list[tuple[str, Replication]]:
    """With the labels of their first runs, which differ in what the experiments differ in."""
    labels = wording.labels_of([group.runs[0] for group in groups])
    return [(f"{label}\n{group.what}", group) for label, group in zip(labels, groups, strict=True)]
