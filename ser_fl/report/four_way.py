"""The four-way table: {federated, federated + adversarial training} x {no randomisation, randomisation}."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ser_fl.report import wording
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords
from ser_fl.runs.records import WORST_CASE, AttackRecord

_ORDER = ("fgsm", "bim", "pgd_paper", "pgd", "cw_l2", "cw_linf", "deepfool")

Budget = tuple[str, str, str]
"""Domain, norm and budget of a record: what must agree for attacks to be compared."""


def four_way(runs: Sequence[RunRecords]) -> Table:
    """UAR and accuracy in per cent of every run under every test-time defence (rows) and attack (columns).

    Columns: the clean score, one per attack at the budgets of `reference_budgets`, and the worst case: the record that
    takes it per utterance, otherwise the lowest UAR of a single attack, written "≤ x", an upper bound.
    """
    budgets = reference_budgets(runs)
    columns = columns_of(runs, budgets)
    rows = [
        (
            label,
            wording.defence_name(defence),
            wording.scores(*run.clean_scores(defence)),
            *(_cell(record_under(column, run, defence)) for column in columns),
            worst_in_words(run, worst_under(run, defence, budgets)),
        )
        for label, run in wording.labelled(runs)
        for defence in run.defences
    ]
    return Table(
        title="Robust UAR in per cent: training × test-time defence",
        header=("Training", "Test-time defence", "Clean", *columns, "Worst case"),
        rows=tuple(rows),
        caption=f"{wording.provenance(runs)} {_reading(runs, budgets)}",
        num_labels=2,
    )


def budget_key(record: AttackRecord) -> Budget:
    return record.domain, record.norm, wording.budget(record)


def reference_budgets(runs: Sequence[RunRecords]) -> set[Budget]:
    """Budgets that the four-way table shows, out of those that were measured: of each domain and norm the epsilons that
    the runs were trained with; else the one that most records share, the larger where two are shared alike.
    """
    trained = {f"ε {epsilon:.3g}" for run in runs if (epsilon := wording.training_epsilon(run)) is not None}
    groups: dict[tuple[str, str], Counter[str]] = {}
    sizes: dict[str, float] = {}
    for record in (record for run in runs for record in run.attacked):
        domain, norm, budget = budget_key(record)
        groups.setdefault((domain, norm), Counter())[budget] += 1
        # A lower SNR is the larger budget.
        sizes[budget] = record.epsilon if record.epsilon is not None else -(record.snr_db or 0.0)
    chosen = set()
    for (domain, norm), counts in groups.items():
        common = max(counts, key=lambda budget: (counts[budget], sizes[budget]))
        chosen |= {(domain, norm, budget) for budget in (trained & set(counts)) or {common}}
    return chosen


def columns_of(runs: Sequence[RunRecords], budgets: set[Budget]) -> list[str]:
    """Headings of every attack of some runs at some budgets, worst cases apart: log-mel before waveform, attacks on the
    undefended model first, then by strength.
    """
    firsts: dict[str, AttackRecord] = {}
    for run, record in _shown(runs, budgets):
        if record.attack != WORST_CASE:  # but where enrolment was attacked too
            firsts.setdefault(_heading(run, record), record)

    def rank(heading: str) -> tuple[bool, bool, int, str, str]:
        record = firsts[heading]
        place = _ORDER.index(record.attack) if record.attack in _ORDER else len(_ORDER)
        unusual = record.domain != "logmel", record.knowledge != "undefended"
        return *unusual, place, record.attack, wording.budget(record)

    return sorted(firsts, key=rank)


def record_under(column: str, run: RunRecords, defence: str) -> AttackRecord | None:
    """What a run recorded under a heading and a defence, last."""
    here = [record for record in run.attacked if record.defence == defence and _heading(run, record) == column]
    return here[-1] if here else None


def _heading(run: RunRecords, record: AttackRecord) -> str:
    """One attack of one strength: records of different rows that may be compared have it in common."""
    subset = run.subset(record)
    lines = (
        wording.attack_name(record.attack),
        wording.budget(record).replace("ε", wording.norm_name(record.norm)),
        wording.effort(record).replace(", ", "\n"),
        "" if record.domain == "logmel" else record.domain,
        "" if record.knowledge == "undefended" else record.knowledge,
        "" if subset is None else f"n = {subset}",
    )
    return "\n".join(line for line in lines if line)


def _shown(runs: Sequence[RunRecords], budgets: set[Budget]) -> Iterator[tuple[RunRecords, AttackRecord]]:
    return ((run, record) for run in runs for record in run.attacked if budget_key(record) in budgets)


def _cell(record: AttackRecord | None) -> str:
    if record is None or math.isnan(record.robust_uar):
        return MISSING
    return wording.marked(wording.scores(record.robust_uar, record.robust_accuracy), record)


def worst_under(run: RunRecords, defence: str, budgets: set[Budget]) -> AttackRecord | None:
    """The worst that a run recorded under a defence at some budgets, of one domain and norm, with clean enrolment: a
    worst case over attacks, or a single attack that is lower and so an upper bound; None where nothing was measured.
    """
    records = [record for _, record in _shown([run], budgets) if record.defence == defence and not record.enrolment]
    threats = [(record.domain, record.norm) for record in records if record.norm != "none"]
    first = min(threats, key=lambda threat: (threat[0] != "logmel", threat[1] != "inf"), default=None)
    measured = [
        record
        for record in records
        if not math.isnan(record.robust_uar) and (record.norm == "none" or (record.domain, record.norm) == first)
    ]
    # A subset's UAR is another figure than the test part's: it counts only where there is nothing else, or where it
    # alone is a worst case over attackers who know of the defence.
    aware = [record for record in measured if record.attack == WORST_CASE and not wording.is_grey_box(record)]
    if aware and all(run.subset(record) for record in aware):
        return aware[0]
    measured = [record for record in measured if run.subset(record) is None] or measured
    return min(measured, key=lambda record: (record.robust_uar, record.attack != WORST_CASE), default=None)


def worst_in_words(run: RunRecords, worst: AttackRecord | None) -> str:
    """Its scores, "≤" before those of a single attack, and of how many utterances where those of whoever knows of the
    defence are not all.
    """
    if worst is None or worst.attack != WORST_CASE:
        return MISSING if worst is None else f"≤ {_cell(worst)}"
    size = "" if wording.is_grey_box(worst) or run.subset(worst) is None else f" (n = {worst.num_examples})"
    return f"{_cell(worst)}{size}"


def _reading(runs: Sequence[RunRecords], budgets: set[Budget]) -> str:
    """What a reader must know before quoting a figure of the table."""
    records = [record for run in runs for record in run.attacked]
    if not records:
        return "No attack was recorded yet."
    shown = [(run, record) for run, record in _shown(runs, budgets) if record.attack != WORST_CASE]
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
    if any(run.subset(record) is not None for run, record in shown):
        sentences.append(
            "n: measured on that many test utterances only (the clean UAR on the same ones is in the table of attacks)."
        )
    sentences.append("Worst case: over the attacks, per utterance; ≤ where only the strongest single attack is known.")
    if explained := wording.enrolment_explained(records):
        sentences.append(f"The last column is of clean enrolment.{explained}")
    if {budget_key(record) for record in records} > {budget_key(record) for _, record in shown}:
        sentences.append("Other budgets are in the table of attacks.")
    return " ".join(sentences)
