"""Doubts that the figures of a benchmark raise by themselves: nothing is run, and torch is not loaded. Figures disagree
where they differ by more than half a point of UAR, and by more than one utterance can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from ser_fl.robustness.sanity_checks.comparisons import (
    FALLS,
    MANY_STEPS,
    NOISE,
    QUERIES,
    WHITE_BOX,
    at,
    attacks_beat_noise,
    attacks_in,
    doubt_of,
    falls_with_the_budget,
    groups,
    is_grey_box,
    is_noise,
    knows,
    leeway,
    many_steps_beat_one,
    strength,
    threat,
    white_box_beats_black_box,
)
from ser_fl.robustness.sanity_checks.report import ROUNDING, Doubt, NotChecked, SanityReport
from ser_fl.runs.records import NO_DEFENCE, AttackRecord

IMPLAUSIBLE_UAR = 0.9
"""Clean; far above what is published on speakers that were not trained on."""

EPSILON_0 = "at epsilon 0 the scores are the clean ones"
BELOW_CLEAN = "an attack does not raise UAR"
EXPECTATION = "every defence is attacked by one who knows of it"
SUCCESS = "passes buy successes"
PLAUSIBLE = "clean UAR is plausible"


def check_records(records: Sequence[AttackRecord]) -> SanityReport:
    """All checks that need no model, of one model's records, as `ser_fl.benchmark` returns them."""
    return SanityReport.of(RECORD_CHECKS, records)


def epsilon_0_is_clean(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """Without a budget, every score must be the clean one, exactly."""
    idle = [record for record in attacks_in(records, worst_cases=True) if record.epsilon == 0]
    if not idle:
        raise NotChecked("no attack was recorded at epsilon 0")
    for record in idle:
        moved = record.attack_success_rate > 0 or record.max_linf > 0
        if moved or abs(record.robust_uar - record.clean_uar) > ROUNDING:
            words = (
                f"{record.attack} at epsilon 0 gives UAR {record.robust_uar:.3f}, moved {record.max_linf:.3g} at most "
                f"and broke {record.attack_success_rate:.1%}, where the clean UAR is {record.clean_uar:.3f}: clean and "
                "attacked utterances are not prepared or scored alike, so look for a second clipping or a random model."
            )
            yield doubt_of(EPSILON_0, record, words)


def attacks_do_not_help(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """No attack may raise UAR above the clean one; noise, which does not try to lower it, hints only."""
    attacks = attacks_in(records, worst_cases=True)
    if not attacks:
        raise NotChecked("no attack was recorded")
    for record in attacks:
        if record.robust_uar - record.clean_uar > leeway(record):
            words = (
                f"{record.attack} {at(record)} raises UAR on the defence {record.defence} from {record.clean_uar:.3f} "
                f"to {record.robust_uar:.3f}: the attack helps the model, so check the sign of its loss and its labels."
            )
            yield doubt_of(BELOW_CLEAN, record, words, hint=is_noise(record))


def defences_are_attacked_adaptively(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """A defence is judged by an attacker who knows of it, in expectation over its draws (Athalye et al. 2018)."""
    shown = [record for record in attacks_in(records) if record.defence != NO_DEFENCE and not is_noise(record)]
    if not shown:
        raise NotChecked("no test-time defence was shown to an attack")
    for attacks in groups(shown, lambda record: record.defence):
        if any("adaptive" in knows(record) and record.eot_samples > 0 for record in attacks):
            continue
        lowest = min(attacks, key=lambda record: record.robust_uar)
        words = (
            f"No attack on the defence {lowest.defence} differentiated it in expectation over its draws: UAR "
            f"{lowest.robust_uar:.3f} under {lowest.attack} {at(lowest)} is what an attacker leaves who does not know "
            "of the defence, and is no evidence of robustness; add an adaptive attack with EOT samples."
        )
        yield doubt_of(EXPECTATION, lowest, words)


def passes_buy_successes(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """An attack that asked the model and broke nothing may not work at all. An iterated one fails where another attack
    broke something with no more to spend; else it is a hint. A defence that it does not know of says nothing of the
    attack.
    """
    paid = [
        record
        for record in attacks_in(records)
        if record.forward_passes + record.backward_passes > 0
        and record.epsilon != 0
        and not is_noise(record)
        and not is_grey_box(record)
    ]
    if not paid:
        raise NotChecked("no attack was recorded that asked the model it was shown to")
    left = []
    for record in (record for record in paid if record.attack_success_rate == 0 and record.clean_uar > 0):
        other = _success_with_no_more(record, paid)
        if other is None or record.steps == 1 or knows(record) & QUERIES:
            left.append(record)
            continue
        words = (
            f"{record.attack} {at(record)} sent {record.forward_passes} utterances forward and "
            f"{record.backward_passes} backward through the model and broke none, where {other.attack} {at(other)} "
            f"broke {other.attack_success_rate:.1%} (defence {record.defence}): the attack does not work on this "
            "model, so do not report it."
        )
        yield doubt_of(SUCCESS, record, words)
    for group in groups(left, lambda record: threat(record)[:3]):
        largest = max(group, key=lambda record: strength(record) or 0.0)
        names = ", ".join(dict.fromkeys(record.attack for record in group))
        words = (
            f"Up to a budget {at(largest)}, {names} asked the model and broke no utterance (defence "
            f"{largest.defence}): either they cannot or they do not work, so try them at a larger budget, where they "
            "must succeed."
        )
        yield doubt_of(SUCCESS, largest, words, hint=True)


def _success_with_no_more(record: AttackRecord, others: Sequence[AttackRecord]) -> AttackRecord | None:
    """The most successful attack of the same threat that had no more to spend. None where none broke anything, or too
    little to be no accident: on the same utterances one of them, on others as many as lead to 5 expected here.
    """

    def is_no_accident(other: AttackRecord) -> bool:
        expected = other.attack_success_rate * other.clean_uar * record.num_examples
        return expected > 1 + ROUNDING if other.num_examples == record.num_examples else expected >= 5

    able = [
        other
        for other in others
        if is_no_accident(other)
        and threat(other)[:3] == threat(record)[:3]
        and (other.epsilon is None) == (record.epsilon is None)
        and (strength(other) or 0.0) <= (strength(record) or 0.0)
    ]
    return max(able, key=lambda other: other.attack_success_rate, default=None)


def clean_uar_is_plausible(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """A clean UAR above 0.9 hints at a leak: speakers, sentences or takes of the test part that were trained on."""
    if not records:
        raise NotChecked("nothing was recorded")
    best = max(records, key=lambda record: record.clean_uar)
    if best.clean_uar > IMPLAUSIBLE_UAR:
        words = (
            f"The clean UAR is {best.clean_uar:.3f} (defence {best.defence}), which speech emotions of unknown "
            "speakers hardly allow: check that no speaker, sentence or take of the test part was trained on, unless "
            "the speech is synthetic."
        )
        yield Doubt(check=PLAUSIBLE, words=words, severity="hint", defence=best.defence)


RECORD_CHECKS: Mapping[str, Callable[[Sequence[AttackRecord]], Iterator[Doubt]]] = MappingProxyType(
    {
        EPSILON_0: epsilon_0_is_clean,
        BELOW_CLEAN: attacks_do_not_help,
        FALLS: falls_with_the_budget,
        MANY_STEPS: many_steps_beat_one,
        WHITE_BOX: white_box_beats_black_box,
        NOISE: attacks_beat_noise,
        EXPECTATION: defences_are_attacked_adaptively,
        SUCCESS: passes_buy_successes,
        PLAUSIBLE: clean_uar_is_plausible,
    }
)
