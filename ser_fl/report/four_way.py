"""The four-way table: {federated, federated + adversarial training} x {no randomisation, randomisation}."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ser_fl.report import wording
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords
from ser_fl.report.run_labels import labelled, provenance, training_epsilon
from ser_fl.runs.records import AttackRecord

_ORDER = ("fgsm", "bim", "pgd_paper", "pgd", "cw_l2", "cw_linf", "deepfool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One attack of one strength: records of different rows that may be compared."""

    attack: str
    knowledge: str
    domain: str
    norm: str
    budget: str
    effort: str
    subset: int | None
    """Number of utterances where the attack saw only some of the test part; None where it saw all."""

    @property
    def heading(self) -> str:
        lines = [
            wording.attack_name(self.attack),
            self.budget.replace("ε", wording.norm_name(self.norm)),
            self.effort.replace(", ", "\n"),
        ]
        if self.domain != "logmel":
            lines.append(self.domain)
        if self.knowledge != "undefended":
            lines.append(self.knowledge)
        if self.subset is not None:
            lines.append(f"n = {self.subset}")
        return "\n".join(line for line in lines if line)

    @classmethod
    def of(cls, run: RunRecords, record: AttackRecord) -> Self:
        """The column that a record of a run stands in."""
        return cls(
            attack=record.attack,
            knowledge=record.knowledge,
            domain=record.domain,
            norm=record.norm,
            budget=wording.budget(record),
            effort=wording.effort(record),
            subset=run.subset(record),
        )

    def record_of(self, run: RunRecords, defence: str) -> AttackRecord | None:
        """What a run recorded of this attack under a defence, last."""
        here = [record for record in run.attacked if record.defence == defence and Column.of(run, record) == self]
        return here[-1] if here else None


def four_way(runs: Sequence[RunRecords]) -> Table:
    """UAR and accuracy in per cent of every run under every test-time defence (rows) and attack (columns).

    Columns: the clean score, one column per attack at the budgets `reference_budgets` picks, and the worst case. The
    worst case is the record that takes it per utterance where there is one, otherwise the lowest UAR of a single
    attack, written "≤ x", since the worst case per utterance is at most that.
    """
    budgets = reference_budgets(runs)
    columns = columns_of(runs, budgets)
    header = ("Training", "Test-time defence", "Clean", *(column.heading for column in columns), "Worst case")
    rows = [
        (
            label,
            wording.defence_name(defence),
            wording.scores(*run.clean_scores(defence)),
            *(_cell(column.record_of(run, defence)) for column in columns),
            _worst_cell(run, defence, budgets),
        )
        for label, run in labelled(runs)
        for defence in run.defences
    ]
    return Table(
        title="Robust UAR in per cent: training × test-time defence",
        header=header,
        rows=tuple(rows),
        caption=f"{provenance(runs)} {_reading(runs, columns)}",
        num_labels=2,
    )


def reference_budgets(runs: Sequence[RunRecords]) -> set[tuple[str, str, str]]:
    """Budgets (domain, norm, budget) that the four-way table shows, out of those that were measured.

    Of each domain and norm: the epsilons that the runs were trained with, where they were measured; otherwise the one
    that most records share, the larger where two are shared alike. A sweep over epsilon is for the figures.
    """
    trained = {f"ε {epsilon:.3g}" for run in runs if (epsilon := training_epsilon(run)) is not None}
    groups: dict[tuple[str, str], Counter[str]] = {}
    sizes: dict[str, float] = {}
    for record in (record for run in runs for record in run.attacked):
        key = budget_key(record)
        groups.setdefault(key[:2], Counter())[key[2]] += 1
        # A lower SNR is the larger budget.
        sizes[key[2]] = record.epsilon if record.epsilon is not None else -(record.snr_db or 0.0)
    chosen = set()
    for (domain, norm), counts in groups.items():
        common = max(counts, key=lambda budget: (counts[budget], sizes[budget]))
        chosen |= {(domain, norm, budget) for budget in (trained & set(counts)) or {common}}
    return chosen


def columns_of(runs: Sequence[RunRecords], budgets: set[tuple[str, str, str]]) -> list[Column]:
    """Every attack of some runs at some budgets, in the order of the tables; worst cases are none."""
    columns = dict.fromkeys(
        Column.of(run, record)
        for run in runs
        for record in run.attacked
        if record.attack != wording.WORST_CASE and budget_key(record) in budgets
    )
    return sorted(columns, key=_rank)


def budget_key(record: AttackRecord) -> tuple[str, str, str]:
    """Domain, norm and budget of a record: what must agree for attacks to be compared."""
    return record.domain, record.norm, wording.budget(record)


def _rank(column: Column) -> tuple[bool, bool, int, str, str]:
    """Order of columns: log-mel before waveform, attacks on the undefended model first, then by strength."""
    place = _ORDER.index(column.attack) if column.attack in _ORDER else len(_ORDER)
    return column.domain != "logmel", column.knowledge != "undefended", place, column.attack, column.budget


def _cell(record: AttackRecord | None) -> str:
    if record is None or math.isnan(record.robust_uar):
        return MISSING
    return wording.marked(wording.scores(record.robust_uar, record.robust_accuracy), record)


def _worst_cell(run: RunRecords, defence: str, budgets: set[tuple[str, str, str]]) -> str:
    records = [record for record in run.attacked if record.defence == defence and budget_key(record) in budgets]
    threats = {(record.domain, record.norm) for record in records if record.norm != "none"}
    first = min(threats, key=lambda threat: (threat[0] != "logmel", threat[1] != "inf"), default=None)
    measured = [
        record
        for record in records
        if not math.isnan(record.robust_uar) and (record.norm == "none" or (record.domain, record.norm) == first)
    ]
    # A subset's UAR is another figure than the test part's: it counts only where there is nothing else, or where it
    # alone is a worst case over attackers who know of the defence.
    aware = [record for record in measured if record.attack == wording.WORST_CASE and not wording.is_grey_box(record)]
    if aware and all(run.subset(record) for record in aware):
        return f"{_cell(aware[0])} (n = {aware[0].num_examples})"
    measured = [record for record in measured if run.subset(record) is None] or measured
    if not measured:
        return MISSING
    worst = min(measured, key=lambda record: (record.robust_uar, record.attack != wording.WORST_CASE))
    return _cell(worst) if worst.attack == wording.WORST_CASE else f"≤ {_cell(worst)}"


def _reading(runs: Sequence[RunRecords], columns: Sequence[Column]) -> str:
    """What a reader must know before quoting a figure of the table."""
    records = [record for run in runs for record in run.attacked]
    if not records:
        return "No attack was recorded yet."
    sentences = [
        "UAR / accuracy. Under each attack its norm and budget ε, for log-mel features in standardised log-mel units;"
        " true labels were given to every attack, but to those called unlabelled."
    ]
    if any(wording.is_grey_box(record) for record in records):
        sentences.append(
            f"{wording.GREY_BOX} Grey-box: the attack was made on the model without its test-time defence, by an"
            " attacker who does not know of it; a high figure here is no evidence of robustness."
        )
        if not any(record.knowledge == "adaptive" for record in records):
            sentences.append("No adaptive attack, the only one a defence may be judged by, was run.")
    if any(column.subset is not None for column in columns):
        sentences.append(
            "n: measured on that many test utterances only (the clean UAR on the same ones is in the table of attacks)."
        )
    sentences.append("Worst case: over the attacks, per utterance; ≤ where only the strongest single attack is known.")
    if len({budget_key(record) for record in records}) > len({(c.domain, c.norm, c.budget) for c in columns}):
        sentences.append("Other budgets are in the table of attacks.")
    return " ".join(sentences)
