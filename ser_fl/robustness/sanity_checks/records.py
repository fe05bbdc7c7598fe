"""Doubts that the figures of a benchmark raise by themselves: nothing is run, and torch is not loaded.

Two figures disagree where they differ by more than half a point of UAR, and by more than one utterance can.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, Doubt, NotChecked, Outcome, SanityReport, Severity, at
from ser_fl.runs.records import AttackRecord

CLEAN = "clean"
WORST_CASE = "worst_case"
NO_DEFENCE = "none"
GRADIENT = frozenset({"undefended", "adaptive"})
"""Knowledge of an attacker who differentiates the model itself."""
QUERIES = frozenset({"score", "decision"})
IMPLAUSIBLE_UAR = 0.9
"""Clean; far above what is published on speakers that were not trained on."""
_ROUNDING = 1e-9

_Item = TypeVar("_Item")

EPSILON_0 = "at epsilon 0 the scores are the clean ones"
BELOW_CLEAN = "an attack does not raise UAR"
FALLS = "UAR falls as the budget grows"
MANY_STEPS = "many steps beat one"
WHITE_BOX = "the white box beats the black box"
NOISE = "attacks beat noise"
EXPECTATION = "every defence is attacked by one who knows of it"
SUCCESS = "passes buy successes"
PLAUSIBLE = "clean UAR is plausible"


def doubts_of_records(records: Sequence[AttackRecord]) -> list[Doubt]:
    """Every doubt that the records alone raise, in the order of `RECORD_CHECKS`."""
    return list(check_records(records).doubts)


def check_records(records: Sequence[AttackRecord]) -> SanityReport:
    """All checks that need no model.

    Args:
        records: of one model, as `ser_fl.benchmark` returns them.
    """
    return SanityReport.of({name: check(records) for name, check in RECORD_CHECKS.items()})


def epsilon_0_is_clean(records: Sequence[AttackRecord]) -> Outcome:
    """Without a budget, every score must be the clean one, exactly."""
    idle = [record for record in _attacks(records) + _worst_cases(records) if record.epsilon == 0]
    if not idle:
        return NotChecked("no attack was recorded at epsilon 0")
    return [
        _doubt(
            EPSILON_0,
            record,
            f"{record.attack} at epsilon 0 gives UAR {record.robust_uar:.3f}, moved {record.max_linf:.3g} at most and "
            f"broke {record.attack_success_rate:.1%}, where the clean UAR is {record.clean_uar:.3f}: clean and "
            "attacked utterances are not prepared or scored alike, so look for a second clipping or a random model.",
        )
        for record in idle
        if abs(record.robust_uar - record.clean_uar) > _ROUNDING
        or record.attack_success_rate > 0
        or record.max_linf > 0
    ]


def attacks_do_not_help(records: Sequence[AttackRecord]) -> Outcome:
    """No attack may raise UAR above the clean one; noise, which does not try to lower it, hints only."""
    attacks = _attacks(records) + _worst_cases(records)
    if not attacks:
        return NotChecked("no attack was recorded")
    return [
        _doubt(
            BELOW_CLEAN,
            record,
            f"{record.attack} {at(record)} raises UAR on the defence {record.defence} from {record.clean_uar:.3f} to "
            f"{record.robust_uar:.3f}: the attack helps the model, so check the sign of its loss and its labels.",
            "hint" if _is_noise(record) else "fails",
        )
        for record in attacks
        if record.robust_uar - record.clean_uar > _slack(record)
    ]


def falls_with_the_budget(records: Sequence[AttackRecord]) -> Outcome:
    """A larger budget holds a smaller one, so that an attack that searches it well cannot do worse.

    A single step can, since it always goes to the edge, and so can one that is shown to a defence that it does not
    know of: those hint only. An attack that went on where it was at the smaller budget cannot by its making.
    """
    pairs, compared = [], False
    tried = _attacks(records)
    if not any(record.swept for record in tried):
        tried += _worst_cases(records)
    curves = _groups(
        (record for record in tried if _strength(record) is not None and not record.swept),
        lambda record: (
            *(record.attack, record.knowledge, record.domain, record.norm, record.defence, record.num_examples),
            *(record.seed, record.device),
            *(record.steps, record.restarts, record.eot_samples, record.epsilon is None),
        ),
    )
    for curve in curves:
        lowest, *rest = sorted(curve, key=lambda record: _strength(record) or 0.0)
        compared |= bool(rest)
        for record in rest:
            pairs.append(_Pair(weak=lowest, strong=record))
            lowest = min(lowest, record, key=lambda tried: tried.robust_uar)
    if not compared:
        return NotChecked("no attack was recorded at two budgets, each by itself (sweep=false)")
    return [
        _doubt(
            FALLS,
            pair.strong,
            f"{pair.strong.attack} leaves UAR {pair.strong.robust_uar:.3f} {at(pair.strong)} and only "
            f"{pair.weak.robust_uar:.3f} {at(pair.weak)}, which is less to spend (defence {pair.strong.defence}): the "
            "attack does not search its ball, so give it more steps, restarts or a larger step size.",
            "hint" if pair.strong.steps == 1 or _is_noise(pair.strong) or _is_grey_box(pair.strong) else "fails",
        )
        for pair in _worst_pairs(pairs)
    ]


def many_steps_beat_one(records: Sequence[AttackRecord]) -> Outcome:
    """The strongest iterated attack of a threat breaks at least what a single step does.

    Predictions to a defence that it does not know of, it may not (a single step transfers better): that hints only.
    """
    pairs = []
    tried = (record for record in _attacks(records) if set(record.knowledge.split("+")) <= {*GRADIENT, "transfer"})
    for group in _groups(tried, lambda record: (*_threat(record), record.knowledge, record.num_examples)):
        many = [record for record in group if (record.steps or 0) > 1]
        if many:
            strongest = min(many, key=lambda record: record.robust_uar)
            pairs += [_Pair(weak=record, strong=strongest) for record in group if record.steps == 1]
    if not pairs:
        return NotChecked("no single step and no iterated attack were recorded at one budget on the same utterances")
    return [
        _doubt(
            MANY_STEPS,
            pair.weak,
            f"{pair.weak.attack} in one step leaves UAR {pair.weak.robust_uar:.3f} {at(pair.weak)}, the best iterated "
            f"attack, {pair.strong.attack} in {pair.strong.steps} steps, leaves {pair.strong.robust_uar:.3f} (defence "
            f"{pair.weak.defence}): "
            + _unless_grey_box(
                pair.strong,
                "gradients near the utterance mislead, as they do where they are masked, so attack by score, in "
                "transfer and with a loss on logits",
            ),
            "hint" if _is_grey_box(pair.strong) else "fails",
        )
        for pair in _worst_pairs(pairs)
    ]


def white_box_beats_black_box(records: Sequence[AttackRecord]) -> Outcome:
    """Whoever differentiates the model knows more than one who asks for its scores or decisions.

    Attacks that saw the same number of utterances saw the same ones. Where only different numbers can be compared, the
    gap must exceed two standard errors of the smaller set, and hints only.
    """
    doubts, compared = [], False
    for group in _groups(_attacks(records), _threat):
        white = [record for record in group if set(record.knowledge.split("+")) <= GRADIENT and not _is_noise(record)]
        for black in (record for record in group if set(record.knowledge.split("+")) & QUERIES):
            if not white:
                continue
            compared = True
            alike = [record for record in white if record.num_examples == black.num_examples]
            best = min(alike or white, key=lambda record: record.robust_uar)
            slack = _slack(black, best) if alike else max(_slack(black, best), 2 * _sampling_error(black, best))
            if best.robust_uar - black.robust_uar <= slack:
                continue
            sizes = (
                "" if alike else f", though on {black.num_examples} and on {best.num_examples} utterances respectively"
            )
            doubts.append(
                _doubt(
                    WHITE_BOX,
                    black,
                    f"{black.attack}, which knows {black.knowledge}s only, leaves UAR {black.robust_uar:.3f} "
                    f"{at(black)} where the best attack by gradients, {best.attack}, leaves {best.robust_uar:.3f} "
                    f"(defence {black.defence}){sizes}: "
                    + _unless_grey_box(
                        best,
                        "gradients are masked or their attacks too weak, so report the worst case and attack what "
                        "hides the gradient",
                    ),
                    "fails" if alike and not _is_grey_box(best) else "hint",
                )
            )
    if not compared:
        return NotChecked("no attack by scores or decisions was recorded beside one by gradients at one budget")
    return doubts


def attacks_beat_noise(records: Sequence[AttackRecord]) -> Outcome:
    """Noise of the same budget knows nothing of the model, and breaks no more than the best attack by gradients.

    Where it breaks more than another attack only, that one is hinted at.
    """
    best, others = [], []
    for group in _groups(_attacks(records), lambda record: (*_threat(record), record.num_examples)):
        noises = [record for record in group if _is_noise(record)]
        attacks = [record for record in group if not _is_noise(record)]
        if not noises or not attacks:
            continue
        noise = min(noises, key=lambda record: record.robust_uar)
        gradient = [record for record in attacks if set(record.knowledge.split("+")) <= GRADIENT]
        strongest = min(gradient or attacks, key=lambda record: record.robust_uar)
        best.append(_Pair(weak=noise, strong=strongest))
        others += [_Pair(weak=noise, strong=record) for record in attacks if record is not strongest]
    if not best:
        return NotChecked("no noise was recorded beside an attack at one budget on the same utterances")

    def doubt(pair: _Pair, severity: Severity) -> Doubt:
        return _doubt(
            NOISE,
            pair.strong,
            f"{pair.weak.attack} leaves UAR {pair.weak.robust_uar:.3f} {at(pair.weak)}, "
            f"{'the best attack by gradients,' if severity == 'fails' else 'but'} {pair.strong.attack}, "
            f"{pair.strong.robust_uar:.3f} (defence {pair.strong.defence}): "
            + _unless_grey_box(
                pair.strong,
                "the attack does worse than one that knows nothing, so do not report it as robustness; look for zero "
                "gradients, or give it more steps",
            ),
            "hint" if _is_grey_box(pair.strong) else severity,
        )

    return [doubt(pair, "fails") for pair in _worst_pairs(best)] + [
        doubt(pair, "hint") for pair in _worst_pairs(others)
    ]


def defences_are_attacked_adaptively(records: Sequence[AttackRecord]) -> Outcome:
    """A defence is judged by an attacker who knows of it, in expectation over its draws (Athalye et al. 2018)."""
    shown: dict[str, list[AttackRecord]] = defaultdict(list)
    for record in _attacks(records):
        if record.defence != NO_DEFENCE and not _is_noise(record):
            shown[record.defence].append(record)
    if not shown:
        return NotChecked("no test-time defence was shown to an attack")
    doubts = []
    for attacks in shown.values():
        if any("adaptive" in record.knowledge.split("+") and record.eot_samples > 0 for record in attacks):
            continue
        lowest = min(attacks, key=lambda record: record.robust_uar)
        doubts.append(
            _doubt(
                EXPECTATION,
                lowest,
                f"No attack on the defence {lowest.defence} differentiated it in expectation over its draws: UAR "
                f"{lowest.robust_uar:.3f} under {lowest.attack} {at(lowest)} is what an attacker leaves who does not "
                "know of the defence, and is no evidence of robustness; add an adaptive attack with EOT samples.",
            )
        )
    return doubts


def passes_buy_successes(records: Sequence[AttackRecord]) -> Outcome:
    """An attack that asked the model and broke nothing may not work at all.

    An iterated one fails where another attack broke something with no more to spend; else it is a hint. What a defence
    withstands that an attack does not know of says nothing of the attack.
    """
    paid = [
        record
        for record in _attacks(records)
        if record.forward_passes + record.backward_passes > 0
        and record.epsilon != 0
        and not _is_noise(record)
        and not _is_grey_box(record)
    ]
    if not paid:
        return NotChecked("no attack was recorded that asked the model it was shown to")
    idle = [record for record in paid if record.attack_success_rate == 0 and record.clean_uar > 0]
    better = [(record, _success_with_no_more(record, paid)) for record in idle]
    doubts = []
    for record, other in better:
        if other is not None and record.steps != 1 and not _asks_only(record):
            words = (
                f"{record.attack} {at(record)} sent {record.forward_passes} utterances forward and "
                f"{record.backward_passes} backward through the model and broke none, where {other.attack} {at(other)} "
                f"broke {other.attack_success_rate:.1%} (defence {record.defence}): the attack does not work on this "
                "model, so do not report it."
            )
            doubts.append(_doubt(SUCCESS, record, words))
    left = [record for record, other in better if other is None or record.steps == 1 or _asks_only(record)]
    for group in _groups(left, lambda record: _threat(record)[:3]):
        largest = max(group, key=lambda record: _strength(record) or 0.0)
        names = ", ".join(dict.fromkeys(record.attack for record in group))
        words = (
            f"Up to a budget {at(largest)}, {names} asked the model and broke no utterance (defence "
            f"{largest.defence}): either they cannot or they do not work, so try them at a larger budget, where they "
            "must succeed."
        )
        doubts.append(_doubt(SUCCESS, largest, words, "hint"))
    return doubts


def _success_with_no_more(record: AttackRecord, others: Sequence[AttackRecord]) -> AttackRecord | None:
    """The most successful attack of the same threat that had no more to spend.

    None where none broke anything, or too little to be no accident: on the same utterances one of them, on others as
    many as lead to 5 expected here.
    """

    def is_no_accident(other: AttackRecord) -> bool:
        expected = other.attack_success_rate * other.clean_uar * record.num_examples
        return expected > 1 + _ROUNDING if other.num_examples == record.num_examples else expected >= 5

    able = [
        other
        for other in others
        if is_no_accident(other)
        and _threat(other)[:3] == _threat(record)[:3]
        and (other.epsilon is None) == (record.epsilon is None)
        and (_strength(other) or 0.0) <= (_strength(record) or 0.0)
    ]
    return max(able, key=lambda other: other.attack_success_rate, default=None)


def clean_uar_is_plausible(records: Sequence[AttackRecord]) -> Outcome:
    """A clean UAR above 0.9 hints at a leak: speakers, sentences or takes of the test part that were trained on."""
    if not records:
        return NotChecked("nothing was recorded")
    best = max(records, key=lambda record: record.clean_uar)
    if not best.clean_uar > IMPLAUSIBLE_UAR:
        return []
    words = (
        f"The clean UAR is {best.clean_uar:.3f} (defence {best.defence}), which speech emotions of unknown speakers "
        "hardly allow: check that no speaker, sentence or take of the test part was trained on, unless the speech is "
        "synthetic."
    )
    return [Doubt(check=PLAUSIBLE, words=words, severity="hint", defence=best.defence)]


RECORD_CHECKS: Mapping[str, Callable[[Sequence[AttackRecord]], Outcome]] = MappingProxyType(
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


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two records, of which the strong one should leave no higher UAR."""

    weak: AttackRecord
    strong: AttackRecord

    @property
    def gap(self) -> float:
        return self.strong.robust_uar - self.weak.robust_uar


def _worst_pairs(pairs: Iterable[_Pair]) -> list[_Pair]:
    """Of the pairs that disagree the widest, one for every two attacks, defence and threat, whatever the budget."""
    wide = [pair for pair in pairs if pair.gap > _slack(pair.weak, pair.strong)]
    alike = _groups(
        wide, lambda pair: (pair.weak.attack, pair.strong.attack, pair.strong.knowledge, *_threat(pair.strong)[:3])
    )
    return [max(group, key=lambda pair: pair.gap) for group in alike]


def _doubt(check: str, record: AttackRecord, words: str, severity: Severity = "fails") -> Doubt:
    return Doubt(
        check=check,
        words=words,
        severity=severity,
        defence=record.defence,
        attack=record.attack,
        epsilon=record.epsilon,
    )


def _attacks(records: Sequence[AttackRecord]) -> list[AttackRecord]:
    """Single attacks and noises."""
    return [record for record in records if record.attack not in (CLEAN, WORST_CASE)]


def _worst_cases(records: Sequence[AttackRecord]) -> list[AttackRecord]:
    return [record for record in records if record.attack == WORST_CASE]


def _is_noise(record: AttackRecord) -> bool:
    return record.attack.startswith("noise")


def _asks_only(record: AttackRecord) -> bool:
    """Whether the attack sees no gradient; it may honestly break nothing where one that does breaks little."""
    return not {"score", "decision"}.isdisjoint(record.knowledge.split("+"))


def _is_grey_box(record: AttackRecord) -> bool:
    return record.defence != NO_DEFENCE and "adaptive" not in record.knowledge.split("+")


def _unless_grey_box(record: AttackRecord, advice: str) -> str:
    """What to do; where an attack does not know of the defence, that comes first."""
    return (
        f"{record.attack} does not know of the defence, so attack it adaptively."
        if _is_grey_box(record)
        else f"{advice}."
    )


def _threat(record: AttackRecord) -> tuple[Hashable, ...]:
    """Domain, norm, defence and budget: what two attacks must share to be compared."""
    budget = record.epsilon, record.snr_db
    return record.domain, record.norm, record.defence, *budget, record.seed, record.device


def _strength(record: AttackRecord) -> float | None:
    """Grows with the budget; None for a record without one."""
    if record.epsilon is not None:
        return record.epsilon
    return None if record.snr_db is None else -record.snr_db


def _slack(*records: AttackRecord) -> float:
    """How far figures may lie apart: half a point, or what one utterance is worth where that is more."""
    return max(HALF_A_POINT, *map(_one_utterance, records)) + _ROUNDING


def _one_utterance(record: AttackRecord) -> float:
    """UAR that one utterance of the rarest class is worth."""
    support = [count for row in record.confusion if (count := sum(row)) > 0]
    return 1 / (len(support) * min(support)) if support else 1 / max(record.num_examples, 1)


def _sampling_error(*records: AttackRecord) -> float:
    """Largest standard error of these UARs over the choice of utterances, by the binomial of their number."""
    return max(
        math.sqrt(max(record.robust_uar * (1 - record.robust_uar), 0.0) / max(record.num_examples, 1))
        for record in records
    )


def _groups(items: Iterable[_Item], key: Callable[[_Item], Hashable]) -> list[list[_Item]]:
    """Items that share a key, in the order in which the keys first occur."""
    groups: dict[Hashable, list[_Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())
