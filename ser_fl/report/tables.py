"""The tables of a report, from records: attacks, whom they hit, test scores, training, time, transfer between models.
Shares are in per cent, UAR first; a dash stands for what was not measured.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ser_fl.report import wording
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import Round, RunRecords
from ser_fl.report.wording import count, interval, number, percent
from ser_fl.runs.records import ProfileRecord, TimeSpent, TransferMatrix

ALL_CLIENTS, ALL_ROUNDS = "= clients", "= rounds"
"""Rows of sums in the table of the time spent."""

Columns = dict[str, Callable[[Any], str]]
"""What to write of a record, by the heading."""

_LABELS: Columns = {
    "Attack": lambda record: wording.attack_name(record.attack),
    "Class that ran": lambda record: record.library,
    "Knowledge": lambda record: wording.marked(record.knowledge, record),
    "Test-time defence": lambda record: wording.defence_name(record.defence),
    "Domain": lambda record: record.domain,
    "Norm": lambda record: wording.norm_name(record.norm),
    "Budget": wording.budget,
}
_FIGURES: Columns = {
    "Steps": lambda record: count(record.steps),
    "Step size": lambda record: number(record.step_size, ".3g"),
    "Restarts": lambda record: count(record.restarts),
    "EOT samples": lambda record: count(record.eot_samples),
    "n": lambda record: count(record.num_examples),
    "Clean UAR": lambda record: wording.scores(record.clean_uar, record.clean_accuracy),
    "Robust UAR": lambda record: wording.scores(record.robust_uar, record.robust_accuracy),
    "Success rate": lambda record: percent(record.attack_success_rate),
    "Mean L2": lambda record: number(record.mean_l2, ".3g"),
    "Median SNR (dB)": lambda record: number(record.median_snr_db, ".1f"),
    "Forward passes": lambda record: count(record.forward_passes),
    "Backward passes": lambda record: count(record.backward_passes),
    "Seconds": lambda record: number(record.seconds, ".1f"),
}
_WHERE_MEASURED: Columns = {
    "Robust UAR, 95 %": lambda record: interval(record.uar_interval),
    "Median smallest ε": lambda record: number(record.median_epsilon, ".3g"),
    "Gap to grey-box": lambda record: percent(record.undefended_gap and record.undefended_gap[0]),
    "Gap, 95 %": lambda record: interval(record.undefended_gap and record.undefended_gap[1:]),
    "Under the masking threshold": lambda record: percent(record.masked_share),
    "Median PESQ": lambda record: number(record.median_pesq, ".2f"),
    "Median STOI": lambda record: number(record.median_stoi, ".3f"),
    "Lost to 16 bits": lambda record: number(record.lost_to_quantisation, ".3g"),
}
"""Columns that stand only where a record has them."""
_TRANSFER: Columns = {
    "Made on": lambda record: record.source,
    "Shown to": lambda record: record.target,
    **{name: _LABELS[name] for name in ("Test-time defence", "Knowledge")},
    **{name: _FIGURES[name] for name in ("n", "Clean UAR")},
    "Carried over": lambda record: percent(record.carried_uar),
    **{name: _FIGURES[name] for name in ("Robust UAR", "Success rate")},
    "Max L∞ there": lambda record: number(record.max_linf, ".3g"),
    "Mean L2 there": _FIGURES["Mean L2"],
    "Max dB": lambda record: number(record.max_db, ".2f"),
    **{name: _FIGURES[name] for name in ("Forward passes", "Backward passes", "Seconds")},
}
"""Four columns of words, then figures."""


def attack_table(runs: Sequence[RunRecords]) -> Table:
    """Every attack record: knowledge, norm, budget, steps, restarts, success rate and cost."""
    records = [record for run in runs for record in run.attacks]
    measured = {name for name, cell in _WHERE_MEASURED.items() if any(cell(record) != MISSING for record in records)}
    columns = _LABELS | _FIGURES | {name: cell for name, cell in _WHERE_MEASURED.items() if name in measured}
    caption = (
        f"{wording.provenance(runs)} UAR / accuracy and success rate in per cent, over the n test utterances attacked. "
        "Success rate: over those that were right when clean. Mean L2: over successful attacks, in the units of the "
        "domain. Passes: utterances that went forward or backward through the model."
    )
    if measured:
        caption += (
            " Intervals: bootstrap over recordings. Median smallest ε: over utterances, of what broke them. Gap to"
            " grey-box: UAR under the same attack by an attacker who does not know of the defence, minus this one."
        )
    return Table(
        title="Attacks: strength and cost",
        header=("Training", *columns),
        rows=tuple(
            (label, *(cell(record) for cell in columns.values()))
            for label, run in wording.labelled(runs)
            for record in run.attacks
        ),
        caption=caption + wording.mark_explained(records) + wording.enrolment_explained(records),
        num_labels=1 + len(_LABELS),
    )


def summary_table(runs: Sequence[RunRecords]) -> Table:
    """Clean scores on the test part, one column a run: UAR, accuracy, macro F1, recalls, UAR by speaker."""

    def recall(emotion: str, run: RunRecords) -> str:
        return percent(dict(zip(run.summary.classes, run.test.per_class_recall, strict=False)).get(emotion))

    def of_speaker(speaker: str, run: RunRecords) -> str:
        return percent(run.test.per_speaker_uar.get(speaker))

    def of_corpus(corpus: str, run: RunRecords) -> str:
        own = run.summary.corpora.get(corpus)
        return MISSING if own is None else f"{percent(own.uar)} ({interval(own.speaker_interval)})"

    emotions = dict.fromkeys(emotion for run in runs for emotion in run.summary.classes)
    speakers = sorted({speaker for run in runs for speaker in run.test.per_speaker_uar})
    corpora = dict.fromkeys(corpus for run in runs for corpus in run.summary.corpora)
    facts: Columns = {
        "UAR": lambda run: percent(run.test.uar),
        **{f"UAR of {corpus} (95 %, over speakers)": partial(of_corpus, corpus) for corpus in corpora},
        "Accuracy": lambda run: percent(run.test.accuracy),
        "Macro F1": lambda run: percent(run.test.macro_f1),
        "Selected round": lambda run: count(run.summary.selected_round),
        "Corpus": lambda run: run.corpus,
        "Split": lambda run: run.split,
        "Clients": lambda run: ", by ".join(
            str(word) for word in (count(run.summary.num_clients), run.setting("clients.by")) if word
        ),
        "Seed": lambda run: str(run.setting("seed")),
        "Test utterances": lambda run: count(run.num_test_utterances),
        **{f"Recall: {emotion}": partial(recall, emotion) for emotion in emotions},
        **{f"UAR of speaker {speaker}": partial(of_speaker, speaker) for speaker in speakers},
    }
    caption = "Scores in per cent, without attack and without test-time defence."
    caption += " UAR, accuracy and macro F1 of several corpora are means over these." if corpora else ""
    return _by_run("Test scores without attack", facts, runs, caption)


def training_table(runs: Sequence[RunRecords]) -> Table:
    """How training went, one column a run: rounds, validation UAR, loss, time, clients left out."""

    def selected(run: RunRecords) -> Round:
        return next((each for each in run.rounds if each.round == run.summary.selected_round), Round(round=0))

    def measured(run: RunRecords, key: str) -> list[float]:
        return [value for entry in run.rounds if (value := getattr(entry, key)) is not None]

    def dropped(run: RunRecords) -> str:
        clients = Counter(name for entry in run.rounds for name, share in entry.shares.items() if not share)
        whose = f", most of them of {clients.most_common(1)[0][0]}" if clients else ""
        return count(clients.total()) + whose

    facts: Columns = {
        "Rounds": lambda run: count(run.rounds[-1].round if run.rounds else 0),
        "Selected round": lambda run: count(run.summary.selected_round),
        "Validation UAR there": lambda run: percent(selected(run).uar),
        "Robust validation UAR there": lambda run: percent(selected(run).robust_uar),
        "Best validation UAR": lambda run: percent(max(measured(run, "uar"), default=None)),
        "Last training loss": lambda run: number(next(reversed(measured(run, "train_loss")), None), ".3f"),
        "Minutes": lambda run: number(sum(measured(run, "seconds")) / 60, ".1f"),
        "Clients left out": lambda run: count(sum(len(entry.failures) for entry in run.rounds)),
        "Updates dropped": dropped,
        "Stopped": lambda run: str(run.summary.stopped or MISSING),
    }
    caption = "UAR in per cent, on the validation part. Clients left out: over all rounds. Updates dropped: those that "
    caption += "the aggregation gave no share in the model of their round."
    return _by_run("Training", facts, runs, caption)


def _by_run(title: str, facts: Columns, runs: Sequence[RunRecords], caption: str) -> Table:
    return Table(
        title=title,
        header=("", *wording.labels_of(runs)),
        rows=tuple((name, *map(cell, runs)) for name, cell in facts.items()),
        caption=f"{wording.provenance(runs)} {caption}",
    )


def profile_table(profile: ProfileRecord) -> Table:
    """Where the time of the rounds went: a row a part, first and later rounds, and milliseconds a client-round."""

    def parts(span: TimeSpent) -> dict[str, float]:
        """Seconds of parts and sums, from top to bottom."""
        return {**span.clients, ALL_CLIENTS: sum(span.clients.values()), **span.server, ALL_ROUNDS: span.seconds}

    spans: dict[str, TimeSpent] = {}
    for span in filter(None, (profile.first, profile.later)):
        one = span.first_round == span.last_round
        spans[f"round {span.first_round}" if one else f"rounds {span.first_round}–{span.last_round}"] = span
    *_, (last_name, last) = spans.items()
    side_by_side = profile.executor != "serial"

    def row(part: str) -> Iterator[str]:
        yield part
        for span in spans.values():
            seconds, of_clients = parts(span), side_by_side and part in (*span.clients, ALL_CLIENTS)
            whole = seconds[ALL_CLIENTS] if of_clients else span.seconds
            yield from (f"{seconds[part]:.2f}", f"{100 * seconds[part] / whole if whole else 0.0:.1f}")
        yield f"{1000 * parts(last)[part] / max(1, last.client_rounds):.1f}"

    client_rounds = ", ".join(f"{span.client_rounds} in {name}" for name, span in spans.items())
    shares_of = (
        "Clients trained side by side: their seconds are worker-seconds, several of which pass in one second of a"
        " round, and their shares are of these; the server's shares are of the rounds' wall time."
        if side_by_side
        else "Shares are of the rounds' wall time."
    )
    return Table(
        title="Where the time of the rounds went",
        header=("part", *(head for name in spans for head in (f"{name}, s", "%")), "ms a client-round"),
        rows=tuple(tuple(row(part)) for part in parts(last)),
        caption=(
            f"Client-rounds: {client_rounds}; the last column is of {last_name}. {shares_of} Forward, backward,"
            " optimiser: of training steps; attack: adversarial utterances, with the passes they take; trainer: what is"
            " around these, with callbacks and metrics; client and other: the rest of a client and of a round; waiting:"
            " for worker processes."
        ),
    )


def uars_of(matrix: TransferMatrix) -> dict[str, list[list[float]]]:
    """By defence: a row for each source, with the robust UAR of each target."""
    cells = {(record.defence, record.source, record.target): record.robust_uar for record in matrix.records}
    return {
        defence: [[cells[defence, source, target] for target in matrix.models] for source in matrix.models]
        for defence in dict.fromkeys(record.defence for record in matrix.records)
    }


def transfer_tables(matrix: TransferMatrix) -> list[Table]:
    """Robust UAR of what an attack made on one model did to another: a table for every defence."""
    white_box = {(record.defence, record.source): record for record in matrix.records if record.source == record.target}
    return [
        Table(
            title=f"{attack_of(matrix)} from one model to another, {wording.defence_name(defence)}",
            header=("Made on", *(f"shown to {target}" for target in matrix.models)),
            rows=(
                ("nothing (clean)", *(percent(white_box[defence, target].clean_uar) for target in matrix.models)),
                *((source, *map(percent, row)) for source, row in zip(matrix.models, uars, strict=True)),
            ),
            caption=f"UAR in per cent; where both are one model it is the white-box figure. {_conditions(matrix)}",
        )
        for defence, uars in uars_of(matrix).items()
    ]


def pair_table(matrix: TransferMatrix) -> Table:
    """All that was measured of a transfer, a row for each source, target and defence."""
    caption = (
        f"{_conditions(matrix)} UAR / accuracy in per cent, over the n utterances that are test utterances of both."
        " Carried over: UAR on the source's clean utterances, which its box has clipped. Max L∞ and mean L2 (over"
        " successful attacks) are in the target's units, max dB is of raw log-mel. Passes and seconds: of the attack on"
        " the source, spent once for all its targets."
    )
    return Table(
        title=f"{attack_of(matrix)} from one model to another: all that was measured",
        header=tuple(_TRANSFER),
        rows=tuple(tuple(cell(record) for cell in _TRANSFER.values()) for record in matrix.records),
        caption=caption + wording.mark_explained(matrix.records),
        num_labels=4,
    )


def attack_of(matrix: TransferMatrix) -> str:
    """The attack and its budget: "PGD ε 0.05"."""
    return f"{wording.attack_name(matrix.records[0].attack)} {wording.budget(matrix.records[0])}"


def _conditions(matrix: TransferMatrix) -> str:
    """What epsilon means, and what came of it in the units of the targets."""
    changes = [record.max_linf for record in matrix.records]
    least, largest = (number(change, ".3g") for change in (min(changes), max(changes)))
    synthetic = " SYNTHETIC speech is no evidence about real speech." if matrix.synthetic else ""
    speech = f" {wording.speech(matrix.speech)}" if matrix.speech else ""
    return (
        "Epsilon is in the standardised units of the model that the attack was made on; in the units of those that it"
        f" was shown to, the largest change is {least if least == largest else f'{least} to {largest}'}."
        f"{synthetic}{speech}"
    )
