"""What a report says first: how much is recognised, what the worst attacker leaves of it, what the split shares with
training, and which checks failed; of one run in a sentence, of many in one table.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ser_fl.report import wording
from ser_fl.report.checks import meaning
from ser_fl.report.four_way import budget_key, reference_budgets, worst_in_words, worst_under
from ser_fl.report.markup import MISSING, Table
from ser_fl.report.reader import RunRecords
from ser_fl.report.replications import half_width_of_uar
from ser_fl.report.wording import percent
from ser_fl.runs.records import CLEAN, NO_DEFENCE, WORST_CASE, AttackRecord

_OF_HOW_MANY = re.compile(r" of \d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One figure of the headline."""

    name: str
    figure: str
    words: str
    is_alarm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    sentence: str
    tiles: tuple[Tile, ...]


def headline(runs: Sequence[RunRecords]) -> Headline:
    """Of one run, or of the range over several."""
    budgets = reference_budgets(runs)
    worst = [found for run in runs for each in run.defences if (found := _known_worst(run, each, budgets))]
    bare = [(run, record) for run, record in worst if record.defence == NO_DEFENCE]
    clean = [run.test.uar for run in runs if run.test.uar is not None]
    chance = [1 / len(run.summary.classes) for run in runs if run.summary.classes]
    which = f"{len(runs)} runs recognise"
    if len(runs) == 1:
        which = f"{wording.labels_of(runs)[0].replace(chr(10), ', ')} recognises"
    sentence = "The training has not finished: nothing is known yet."
    if clean:
        luck = f"; chance {_range(chance)} %" if chance else ""
        what = f"{_range(clean)} % of the emotions without attack (UAR{luck})"
        sentence = f"{which} {what}; nobody attacked, so how much of that an attacker leaves is not known."
        if bare:
            of = (
                ""
                if len(bare) == len(runs)
                else f" of the {len(bare)} that {'was' if len(bare) == 1 else 'were'} attacked"
            )
            left = _range([record.robust_uar for _, record in bare])
            sentence = f"{which} {what}; the strongest attacker leaves {left} %{of}."
    return Headline(sentence=sentence, tiles=tuple(_tiles(runs, clean, worst)))


def comparison_table(runs: Sequence[RunRecords]) -> Table:
    """A row for each run and test-time defence: clean, worst case and who caused it, split, checks."""
    budgets = reference_budgets(runs)
    rows = []
    for label, run in wording.labelled(runs):
        for defence in run.defences:
            uar, accuracy = run.clean_scores(defence)
            record = worst_under(run, defence, budgets)
            rows.append(
                (
                    label,
                    wording.defence_name(defence),
                    wording.scores(uar, accuracy),
                    _half_width(run, defence),
                    worst_in_words(run, record),
                    attacker_in_words(run, record) if record else MISSING,
                    _failed(run),
                    _shared(run),
                    run.corpus,
                    str(run.setting("seed")),
                )
            )
    return Table(
        title="All runs",
        header=(
            *("Run", "Test-time defence", "Clean UAR", "95 % ±", "Worst case", "By which attacker"),
            *("Checks that fail", "Test shares with training", "Corpus", "Seed"),
        ),
        rows=tuple(rows),
        caption=(
            "UAR / accuracy in per cent. 95 % ±: half of the interval over other recordings of these speakers. Worst"
            " case: over the attacks at the budget of the tables below, per utterance; ≤: an upper bound, of the"
            f" strongest single attack.{wording.mark_explained(record for run in runs for record in run.attacked)}"
        ),
        num_labels=2,
    )


def _tiles(
    runs: Sequence[RunRecords], clean: Sequence[float], worst: Sequence[tuple[RunRecords, AttackRecord]]
) -> Iterator[Tile]:
    sizes = {
        "utterances": [run.num_test_utterances for run in runs if run.num_test_utterances],
        "emotions": [len(run.summary.classes) for run in runs if run.summary.classes],
    }
    words = ", ".join(f"{_span(map(str, sorted(each)))} {what}" for what, each in sizes.items() if each)
    yield Tile(name="Clean UAR", figure=f"{_range(clean)} %" if clean else MISSING, words=words)
    for defence in dict.fromkeys(record.defence for _, record in worst):
        own = [(run, record) for run, record in worst if record.defence == defence]
        run, lowest = min(own, key=lambda one: one[1].robust_uar)
        grey = wording.is_grey_box(lowest)
        words = attacker_in_words(run, lowest)
        words += "; the attacker does not know of the defence, so this is no evidence of robustness" if grey else ""
        figure = wording.marked(f"{_range([record.robust_uar for _, record in own])} %", lowest)
        yield Tile(name=f"Worst case, {wording.defence_name(defence)}", figure=figure, words=words, is_alarm=grey)
    shared = dict.fromkeys(map(_shared, runs))
    if len(shared) > 1:
        shared = dict.fromkeys(_OF_HOW_MANY.sub(" of the", words) for words in shared)
    yield Tile(name="Test part shares with training", figure="", words=" / ".join(shared))
    checked = [run.sanity_report for run in runs if run.sanity_report]
    failed = dict.fromkeys(check for found in checked for check in found.failed)
    passed = sum(len(found.passed) for found in checked)
    words = f"{passed} passed" if checked else "the benchmark was not asked to examine itself"
    if failed:
        words = "; ".join(f"{check}: {meaning(check)}" for check in failed)
    yield Tile(
        name="Checks that fail", figure=str(len(failed)) if checked else MISSING, words=words, is_alarm=bool(failed)
    )


def _known_worst(
    run: RunRecords, defence: str, budgets: set[tuple[str, str, str]]
) -> tuple[RunRecords, AttackRecord] | None:
    record = worst_under(run, defence, budgets)
    return (run, record) if record else None


def _range(shares: Sequence[float]) -> str:
    return _span(map(percent, sorted(shares)))


def _span(sorted_words: Iterable[str]) -> str:
    """The first and the last: "2.0 to 5.0"."""
    words = list(sorted_words)
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def attacker_in_words(run: RunRecords, worst: AttackRecord) -> str:
    """The attack behind a worst case: of one over several attacks the strongest alone."""
    norm = wording.budget(worst).replace("ε", wording.norm_name(worst.norm))
    if worst.attack != WORST_CASE:
        return ", ".join(filter(None, (wording.attack_name(worst.attack), norm, wording.effort(worst))))
    same = [
        record
        for record in run.attacked
        if not record.is_worst_case and not record.enrolment and record.defence == worst.defence
        if budget_key(record) == budget_key(worst) and record.num_examples <= worst.num_examples
        if wording.is_grey_box(record) <= wording.is_grey_box(worst)
    ]
    if not same:
        return f"all at {norm}"
    most = max(record.num_examples for record in same)
    alone = min((record for record in same if record.num_examples == most), key=lambda record: record.robust_uar)
    knows = "" if alone.knowledge == "undefended" else alone.knowledge
    words = ", ".join(filter(None, (wording.attack_name(alone.attack), wording.effort(alone), knows)))
    if len(same) == 1:
        return f"{words} at {norm}"
    return f"worst of {len(same)} at {norm}; strongest alone: {words} ({percent(alone.robust_uar)})"


def _half_width(run: RunRecords, defence: str) -> str:
    if run.setting("federation.name") == "local_only":  # several models are asked of one utterance
        return MISSING
    clean = [record for record in run.attacks if record.attack == CLEAN and record.defence == defence]
    measured = max(clean, key=lambda record: record.num_examples, default=None)
    of = measured or (run.test if defence == NO_DEFENCE else None)
    return percent(half_width_of_uar([of])) if of is not None and of.confusion else MISSING


def _shared(run: RunRecords) -> str:
    words = (run.summary.shared or {}).get("words")
    return (
        str(words).removeprefix("shared with training: ")
        if words
        else f"split {run.split}; what it shares was not recorded"
    )


def _failed(run: RunRecords) -> str:
    found = run.sanity_report
    if found is None:
        return "not checked"
    return "\n".join(found.failed) or f"none of {len(found.passed) + len(found.hinted)}"
