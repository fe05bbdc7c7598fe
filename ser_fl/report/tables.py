"""The tables of a report, from the records of runs: attacks, whom they hit, test scores, training.

Shares are in per cent, UAR first; a dash stands for what was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ser_fl.report import wording
from ser_fl.report.four_way import budget_key, four_way, reference_budgets
from ser_fl.report.labels import labels_of, provenance
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.runs import Round, RunRecords
from ser_fl.runs.records import AttackRecord

__all__ = ["attack_table", "four_way", "group_table", "summary_table", "training_table"]

_ATTACK_COLUMNS: tuple[tuple[str, Callable[[AttackRecord], str]], ...] = (
    ("Attack", lambda record: wording.attack_name(record.attack)),
    ("Class that ran", lambda record: record.library),
    ("Knowledge", lambda record: record.knowledge + (f" {wording.GREY_BOX}" if wording.is_grey_box(record) else "")),
    ("Test-time defence", lambda record: wording.defence_name(record.defence)),
    ("Domain", lambda record: record.domain),
    ("Norm", lambda record: wording.norm_name(record.norm)),
    ("Budget", wording.budget),
    ("Steps", lambda record: wording.count(record.steps)),
    ("Step size", lambda record: wording.number(record.step_size, ".3g")),
    ("Restarts", lambda record: wording.count(record.restarts)),
    ("EOT samples", lambda record: wording.count(record.eot_samples)),
    ("n", lambda record: wording.count(record.num_examples)),
    ("Clean UAR", lambda record: wording.percent(record.clean_uar)),
    ("Robust UAR", lambda record: wording.percent(record.robust_uar)),
    ("Clean accuracy", lambda record: wording.percent(record.clean_accuracy)),
    ("Robust accuracy", lambda record: wording.percent(record.robust_accuracy)),
    ("Success rate", lambda record: wording.percent(record.attack_success_rate)),
    ("Mean L2", lambda record: wording.number(record.mean_l2, ".3g")),
    ("Median SNR (dB)", lambda record: wording.number(record.median_snr_db, ".1f")),
    ("Forward passes", lambda record: wording.count(record.forward_passes)),
    ("Backward passes", lambda record: wording.count(record.backward_passes)),
    ("Seconds", lambda record: wording.number(record.seconds, ".1f")),
)
_ATTACK_LABELS = 7
"""Columns of words among those."""
_WHERE_MEASURED: tuple[tuple[str, Callable[[AttackRecord], str]], ...] = (
    ("Robust UAR, 95 %", lambda record: wording.interval(record.uar_interval)),
    ("Median smallest ε", lambda record: wording.number(record.median_epsilon, ".3g")),
    ("Gap to grey-box", lambda record: wording.percent(record.undefended_gap and record.undefended_gap[0])),
    ("Gap, 95 %", lambda record: wording.interval(record.undefended_gap and record.undefended_gap[1:])),
    ("Under the masking threshold", lambda record: wording.percent(record.masked_share)),
    ("Median PESQ", lambda record: wording.number(record.median_pesq, ".2f")),
    ("Median STOI", lambda record: wording.number(record.median_stoi, ".3f")),
    ("Lost to 16 bits", lambda record: wording.number(record.lost_to_quantisation, ".3g")),
)
"""Columns that stand only where a record has them."""


def attack_table(runs: Sequence[RunRecords]) -> Table:
    """Every attack record: knowledge, norm, budget, steps, restarts, success rate and cost."""
    records = [record for run in runs for record in run.attacks]
    measured = [(name, cell) for name, cell in _WHERE_MEASURED if any(cell(record) != MISSING for record in records)]
    columns = (*_ATTACK_COLUMNS, *measured)
    rows = [
        (label, *(cell(record) for _, cell in columns))
        for label, run in zip(labels_of(runs), runs, strict=True)
        for record in run.attacks
    ]
    caption = (
        f"{provenance(runs)} UAR, accuracy and success rate in per cent. n: test utterances attacked, which all figures"
        " are over. Success rate: over the utterances that were right when clean. Mean L2: over successful attacks, in"
        " the units of the domain. Passes: utterances that went forward or backward through the model."
    )
    if measured:
        caption += (
            " Intervals: bootstrap over utterances. Median smallest ε: over utterances, of what broke them. Gap to"
            " grey-box: UAR under the same attack by an attacker who does not know of the defence, minus this one."
        )
    if any(wording.is_grey_box(record) for record in records):
        caption += f" {wording.GREY_BOX} Grey-box: the attacker does not know of the test-time defence."
    return Table(
        title="Attacks: strength and cost",
        header=("Training", *(name for name, _ in columns)),
        rows=tuple(rows),
        caption=caption,
        num_labels=1 + _ATTACK_LABELS,
    )


def group_table(runs: Sequence[RunRecords]) -> Table | None:
    """Whom an attack hits: robust UAR by sex and speaker, robust recall by emotion; None where no record has groups.

    Of each run and defence, without attack and in the worst case at the reference budgets.
    """
    budgets = reference_budgets(runs)
    shown = [
        (label, record)
        for label, run in zip(labels_of(runs), runs, strict=True)
        for record in run.attacks
        if record.attack == wording.CLEAN
        or (record.attack == wording.WORST_CASE and (budget_key(record) in budgets or record.norm == "none"))
        if record.speaker_uar or record.emotion_recall
    ]
    if not any(record.attack == wording.WORST_CASE for _, record in shown):
        return None
    kinds = ("sex_uar", "speaker_uar", "emotion_recall")
    groups = [
        (kind, name) for kind in kinds for name in sorted({n for _, record in shown for n in getattr(record, kind)})
    ]
    rows = [
        (
            label,
            wording.attack_name(record.attack),
            wording.budget(record),
            wording.defence_name(record.defence),
            *(wording.percent(getattr(record, kind).get(name)) for kind, name in groups),
        )
        for label, record in shown
    ]
    return Table(
        title="Whom attacks hit",
        header=("Training", "Attack", "Budget", "Test-time defence", *(name for _, name in groups)),
        rows=tuple(rows),
        caption=f"{provenance(runs)} Robust UAR by sex and by speaker, robust recall by emotion, in per cent.",
        num_labels=4,
    )


def summary_table(runs: Sequence[RunRecords]) -> Table:
    """Clean scores on the test part, one column a run: UAR, accuracy, macro F1, recalls, UAR by speaker."""
    emotions = list(dict.fromkeys(emotion for run in runs for emotion in run.classes))
    speakers = sorted({speaker for run in runs for speaker in run.test.per_speaker_uar})
    facts: list[tuple[str, Callable[[RunRecords], str]]] = [
        ("UAR", lambda run: wording.percent(run.test.uar)),
        ("Accuracy", lambda run: wording.percent(run.test.accuracy)),
        ("Macro F1", lambda run: wording.percent(run.test.macro_f1)),
        ("Selected round", lambda run: wording.count(run.summary.selected_round)),
        ("Corpus", lambda run: run.corpus),
        ("Split", lambda run: run.split),
        ("Clients", _clients),
        ("Seed", lambda run: str(run.setting("seed"))),
        ("Test utterances", lambda run: wording.count(run.num_test_utterances)),
    ]
    rows = [(name, *(cell(run) for run in runs)) for name, cell in facts]
    rows += [
        (f"Recall: {emotion}", *(wording.percent(_recalls(run).get(emotion)) for run in runs)) for emotion in emotions
    ]
    rows += [
        (f"UAR of speaker {name}", *(wording.percent(run.test.per_speaker_uar.get(name)) for run in runs))
        for name in speakers
    ]
    return Table(
        title="Test scores without attack",
        header=("", *labels_of(runs)),
        rows=tuple(rows),
        caption=f"{provenance(runs)} Scores in per cent, without attack and without test-time defence.",
    )


def training_table(runs: Sequence[RunRecords]) -> Table:
    """How training went, one column a run: rounds, validation UAR, loss, time, clients left out."""
    facts: list[tuple[str, Callable[[RunRecords], str]]] = [
        ("Rounds", lambda run: wording.count(len(run.rounds))),
        ("Selected round", lambda run: wording.count(run.summary.selected_round)),
        ("Validation UAR there", lambda run: wording.percent(_selected(run).uar)),
        ("Robust validation UAR there", lambda run: wording.percent(_selected(run).robust_uar)),
        ("Best validation UAR", lambda run: wording.percent(max(_measured(run, "uar"), default=None))),
        ("Last training loss", lambda run: wording.number(next(reversed(_measured(run, "train_loss")), None), ".3f")),
        ("Minutes", lambda run: wording.number(sum(_measured(run, "seconds")) / 60, ".1f")),
        ("Clients left out", lambda run: wording.count(sum(len(entry.failures) for entry in run.rounds))),
        ("Stopped", lambda run: str(run.summary.stopped or MISSING)),
    ]
    return Table(
        title="Training",
        header=("", *labels_of(runs)),
        rows=tuple((name, *(cell(run) for run in runs)) for name, cell in facts),
        caption=f"{provenance(runs)} UAR in per cent, on the validation part. Clients left out: over all rounds.",
    )


def _selected(run: RunRecords) -> Round:
    """The selected round; one without figures where there is none."""
    selected = run.summary.selected_round
    return next((entry for entry in run.rounds if entry.round == selected), Round(round=0))


def _measured(run: RunRecords, key: str) -> list[float]:
    return [value for entry in run.rounds if (value := getattr(entry, key)) is not None]


def _recalls(run: RunRecords) -> Mapping[str, float | None]:
    return dict(zip(run.classes, run.test.per_class_recall, strict=False))


def _clients(run: RunRecords) -> str:
    count = wording.count(run.summary.num_clients)
    by = run.setting("clients.by")
    return f"{count}, by {by}" if by else count
