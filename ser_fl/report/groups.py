"""Whom an attack hits: robust UAR by sex and speaker, robust recall by emotion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ser_fl.report import wording
from ser_fl.report.four_way import budget_key, reference_budgets
from ser_fl.report.labels import labels_of, provenance
from ser_fl.report.markup import Table
from ser_fl.report.runs import RunRecords
from ser_fl.runs.records import AttackRecord


def group_table(runs: Sequence[RunRecords]) -> Table | None:
    """The worst case of each run and defence at the reference budgets, by group; None where no record has groups."""
    budgets = reference_budgets(runs)
    shown = [
        (label, record)
        for label, run in zip(labels_of(runs), runs, strict=True)
        for record in run.attacks
        if record.attack == wording.CLEAN
        or (record.attack == wording.WORST_CASE and (budget_key(record) in budgets or record.norm == "none"))
    ]
    shown = [(label, record) for label, record in shown if record.speaker_uar or record.emotion_recall]
    if not any(record.attack == wording.WORST_CASE for _, record in shown):
        return None
    sexes, speakers, emotions = (
        _names(groups(record) for _, record in shown)
        for groups in (_by_sex, _by_speaker, lambda record: record.emotion_recall)
    )
    rows = [
        (
            label,
            wording.attack_name(record.attack),
            wording.budget(record),
            wording.defence_name(record.defence),
            *(wording.percent(record.sex_uar.get(name)) for name in sexes),
            *(wording.percent(record.speaker_uar.get(name)) for name in speakers),
            *(wording.percent(record.emotion_recall.get(name)) for name in emotions),
        )
        for label, record in shown
    ]
    return Table(
        title="Whom attacks hit",
        header=("Training", "Attack", "Budget", "Test-time defence", *sexes, *speakers, *emotions),
        rows=tuple(rows),
        caption=f"{provenance(runs)} Robust UAR by sex and by speaker, robust recall by emotion, in per cent.",
        num_labels=4,
    )


def _by_sex(record: AttackRecord) -> Mapping[str, float]:
    return record.sex_uar


def _by_speaker(record: AttackRecord) -> Mapping[str, float]:
    return record.speaker_uar


def _names(groups: Iterable[Mapping[str, float]]) -> list[str]:
    return sorted({name for group in groups for name in group})
