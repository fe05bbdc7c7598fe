"""Doubts that two attacks raise together: the one that should be the stronger leaves a higher UAR. They disagree where
they differ by more than half a point of UAR, and by more than one utterance can.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, ROUNDING, Doubt, NotChecked, Severity
from ser_fl.runs.records import CLEAN, NO_DEFENCE, WORST_CASE, AttackRecord

GRADIENT = frozenset({"undefended", "adaptive"})
"""Knowledge of an attacker who differentiates the model itself."""
QUERIES = frozenset({"score", "decision"})
"""Knowledge of one who sees no gradient, and may honestly break nothing where one who does breaks little."""

FALLS = "UAR falls as the budget grows"
MANY_STEPS = "many steps beat one"
WHITE_BOX = "the white box beats the black box"
NOISE = "attacks beat noise"

Item = TypeVar("Item")
Pair = tuple[AttackRecord, AttackRecord]


def attacks_in(records: Iterable[AttackRecord], *, worst_cases: bool = False) -> list[AttackRecord]:
    """Single attacks and noises; then worst cases, where they are asked for."""
    attacks = [record for record in records if record.attack != CLEAN and (worst_cases or record.attack != WORST_CASE)]
    return sorted(attacks, key=lambda record: record.attack == WORST_CASE)


def knows(record: AttackRecord) -> set[str]:
    """What the attacker knows; of a worst case, what any of its attackers does."""
    return set(record.knowledge.split("+"))


def is_noise(record: AttackRecord) -> bool:
    return record.attack.startswith("noise")


def is_grey_box(record: AttackRecord) -> bool:
    return record.defence != NO_DEFENCE and "adaptive" not in knows(record)


def threat(record: AttackRecord) -> tuple[Hashable, ...]:
    """Domain, norm, defence and budget: what two attacks must share to be compared."""
    budget = record.epsilon, record.snr_db
    return record.domain, record.norm, record.defence, *budget, record.seed, record.device


def strength(record: AttackRecord) -> float | None:
    """Grows with the budget; None for a record without one."""
    if record.epsilon is not None:
        return record.epsilon
    return None if record.snr_db is None else -record.snr_db


def leeway(*records: AttackRecord) -> float:
    """How far figures may lie apart: half a point, or what an utterance of the rarest class is worth, if more."""
    worth = [HALF_A_POINT]
    for record in records:
        support = [count for row in record.confusion if (count := sum(row)) > 0]
        worth.append(1 / (len(support) * min(support)) if support else 1 / max(record.num_examples, 1))
    return max(worth) + ROUNDING


def groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items that share a key, in the order in which the keys first occur."""
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def at(record: AttackRecord) -> str:
    """The budget of a record, as sentences name it."""
    if record.epsilon is not None:
        return f"at epsilon {record.epsilon:.4g}"
    return "without a budget" if record.snr_db is None else f"at an SNR of {record.snr_db:g} dB"


def doubt_of(check: str, record: AttackRecord, words: str, *, hint: bool = False) -> Doubt:
    """A doubt about one record."""
    severity: Severity = "hint" if hint else "fails"
    about = {"defence": record.defence, "attack": record.attack}
    return Doubt(check=check, words=words, severity=severity, epsilon=record.epsilon, **about)


def falls_with_the_budget(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """A larger budget holds a smaller one, so that an attack that searches it well cannot do worse.

    A single step always goes to the edge, and may, as may one that is shown to a defence that it does not know of:
    those hint only. An attack that went on where it was at the smaller budget cannot.
    """
    swept = any(record.swept for record in attacks_in(records))
    curves = groups(
        (
            record
            for record in attacks_in(records, worst_cases=not swept)
            if strength(record) is not None and not record.swept
        ),
        lambda record: (
            *(record.attack, record.knowledge, record.domain, record.norm, record.defence, record.num_examples),
            *(record.seed, record.device),
            *(record.steps, record.restarts, record.eot_samples, record.epsilon is None),
        ),
    )
    pairs: list[Pair] = []
    for curve in curves:
        lowest, *rest = sorted(curve, key=lambda record: strength(record) or 0.0)
        for record in rest:
            pairs.append((lowest, record))
            lowest = min(lowest, record, key=lambda tried: tried.robust_uar)
    if not pairs:
        raise NotChecked("no attack was recorded at two budgets, each by itself (sweep=false)")
    for weak, strong in _worst_pairs(pairs):
        words = (
            f"{strong.attack} leaves UAR {strong.robust_uar:.3f} {at(strong)} and only {weak.robust_uar:.3f} "
            f"{at(weak)}, which is less to spend (defence {strong.defence}): the attack does not search its ball, so "
            "give it more steps, restarts or a larger step size."
        )
        yield doubt_of(FALLS, strong, words, hint=strong.steps == 1 or is_noise(strong) or is_grey_box(strong))


def many_steps_beat_one(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """The strongest iterated attack of a threat breaks at least what a single step does. Shown to a defence that it
    does not know of, it may not (a single step transfers better): that hints only.
    """
    pairs: list[Pair] = []
    tried = (record for record in attacks_in(records) if knows(record) <= {*GRADIENT, "transfer"})
    for group in groups(tried, lambda record: (*threat(record), record.knowledge, record.num_examples)):
        many = [record for record in group if (record.steps or 0) > 1]
        if many:
            strongest = min(many, key=lambda record: record.robust_uar)
            pairs += [(record, strongest) for record in group if record.steps == 1]
    if not pairs:
        raise NotChecked("no single step and no iterated attack were recorded at one budget on the same utterances")
    advice = (
        "gradients near the utterance mislead, as they do where they are masked, so attack by score, in transfer and "
        "with a loss on logits"
    )
    for weak, strong in _worst_pairs(pairs):
        words = (
            f"{weak.attack} in one step leaves UAR {weak.robust_uar:.3f} {at(weak)}, the best iterated attack, "
            f"{strong.attack} in {strong.steps} steps, leaves {strong.robust_uar:.3f} (defence {weak.defence}): "
            f"{_unless_grey_box(strong, advice)}"
        )
        yield doubt_of(MANY_STEPS, weak, words, hint=is_grey_box(strong))


def white_box_beats_black_box(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """Whoever differentiates the model knows more than one who asks for its scores or decisions. Attacks that saw as
    many utterances saw the same ones; else the gap must exceed two standard errors of the smaller set, and hints only.
    """
    compared = False
    advice = (
        "gradients are masked or their attacks too weak, so report the worst case and attack what hides the gradient"
    )
    for group in groups(attacks_in(records), threat):
        white = [record for record in group if knows(record) <= GRADIENT and not is_noise(record)]
        for black in (record for record in group if white and knows(record) & QUERIES):
            compared = True
            alike = [record for record in white if record.num_examples == black.num_examples]
            best = min(alike or white, key=lambda record: record.robust_uar)
            slack, sizes = leeway(black, best), ""
            if not alike:
                # By the binomial of their numbers.
                errors = [
                    math.sqrt(max(record.robust_uar * (1 - record.robust_uar), 0.0) / max(record.num_examples, 1))
                    for record in (black, best)
                ]
                slack = max(slack, 2 * max(errors))
                sizes = f", though on {black.num_examples} and on {best.num_examples} utterances respectively"
            if best.robust_uar - black.robust_uar <= slack:
                continue
            words = (
                f"{black.attack}, which knows {black.knowledge}s only, leaves UAR {black.robust_uar:.3f} {at(black)} "
                f"where the best attack by gradients, {best.attack}, leaves {best.robust_uar:.3f} (defence "
                f"{black.defence}){sizes}: {_unless_grey_box(best, advice)}"
            )
            yield doubt_of(WHITE_BOX, black, words, hint=not alike or is_grey_box(best))
    if not compared:
        raise NotChecked("no attack by scores or decisions was recorded beside one by gradients at one budget")


def attacks_beat_noise(records: Sequence[AttackRecord]) -> Iterator[Doubt]:
    """Noise of the same budget knows nothing of the model, and breaks no more than the best attack by gradients. Where
    it breaks more than another attack only, that one is hinted at.
    """
    best: list[Pair] = []
    others: list[Pair] = []
    for group in groups(attacks_in(records), lambda record: (*threat(record), record.num_examples)):
        noises = [record for record in group if is_noise(record)]
        attacks = [record for record in group if not is_noise(record)]
        if noises and attacks:
            noise = min(noises, key=lambda record: record.robust_uar)
            gradient = [record for record in attacks if knows(record) <= GRADIENT]
            strongest = min(gradient or attacks, key=lambda record: record.robust_uar)
            best.append((noise, strongest))
            others += [(noise, record) for record in attacks if record is not strongest]
    if not best:
        raise NotChecked("no noise was recorded beside an attack at one budget on the same utterances")
    advice = (
        "the attack does worse than one that knows nothing, so do not report it as robustness; look for zero "
        "gradients, or give it more steps"
    )
    for pairs, which in ((best, "the best attack by gradients,"), (others, "but")):
        for weak, strong in _worst_pairs(pairs):
            words = (
                f"{weak.attack} leaves UAR {weak.robust_uar:.3f} {at(weak)}, {which} {strong.attack}, "
                f"{strong.robust_uar:.3f} (defence {strong.defence}): {_unless_grey_box(strong, advice)}"
            )
            yield doubt_of(NOISE, strong, words, hint=pairs is others or is_grey_box(strong))


def _unless_grey_box(record: AttackRecord, advice: str) -> str:
    """What to do; where an attack does not know of the defence, that comes first."""
    if is_grey_box(record):
        return f"{record.attack} does not know of the defence, so attack it adaptively."
    return f"{advice}."


def _worst_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Of the pairs that disagree the widest, one for every two attacks, defence and threat, whatever the budget."""

    def gap(pair: Pair) -> float:
        return pair[1].robust_uar - pair[0].robust_uar

    alike = groups(
        (pair for pair in pairs if gap(pair) > leeway(*pair)),
        lambda pair: (pair[0].attack, pair[1].attack, pair[1].knowledge, *threat(pair[1])[:3]),
    )
    return [max(group, key=gap) for group in alike]
