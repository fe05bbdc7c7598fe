"""Doubts that two attacks raise together: the one that should be the stronger leaves a higher UAR.

Two figures disagree where they differ by more than half a point of UAR, and by more than one utterance can.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ser_fl.robustness.sanity_checks.record_facts import (
    GRADIENT,
    QUERIES,
    doubt_of,
    groups,
    is_grey_box,
    is_noise,
    leeway,
    single_attacks,
    strength,
    threat,
    unless_grey_box,
    worst_cases,
)
from ser_fl.robustness.sanity_checks.report import Doubt, NotChecked, Outcome, Severity, at
from ser_fl.runs.records import AttackRecord

FALLS = "UAR falls as the budget grows"
MANY_STEPS = "many steps beat one"
WHITE_BOX = "the white box beats the black box"
NOISE = "attacks beat noise"


def falls_with_the_budget(records: Sequence[AttackRecord]) -> Outcome:
    """A larger budget holds a smaller one, so that an attack that searches it well cannot do worse.

    A single step can, since it always goes to the edge, and so can one that is shown to a defence that it does not
    know of: those hint only. An attack that went on where it was at the smaller budget cannot by its making.
    """
    pairs, compared = [], False
    tried = single_attacks(records)
    if not any(record.swept for record in tried):
        tried += worst_cases(records)
    curves = groups(
        (record for record in tried if strength(record) is not None and not record.swept),
        lambda record: (
            *(record.attack, record.knowledge, record.domain, record.norm, record.defence, record.num_examples),
            *(record.seed, record.device),
            *(record.steps, record.restarts, record.eot_samples, record.epsilon is None),
        ),
    )
    for curve in curves:
        lowest, *rest = sorted(curve, key=lambda record: strength(record) or 0.0)
        compared |= bool(rest)
        for record in rest:
            pairs.append(_Pair(weak=lowest, strong=record))
            lowest = min(lowest, record, key=lambda tried: tried.robust_uar)
    if not compared:
        return NotChecked("no attack was recorded at two budgets, each by itself (sweep=false)")
    return [
        doubt_of(
            FALLS,
            pair.strong,
            f"{pair.strong.attack} leaves UAR {pair.strong.robust_uar:.3f} {at(pair.strong)} and only "
            f"{pair.weak.robust_uar:.3f} {at(pair.weak)}, which is less to spend (defence {pair.strong.defence}): the "
            "attack does not search its ball, so give it more steps, restarts or a larger step size.",
            "hint" if pair.strong.steps == 1 or is_noise(pair.strong) or is_grey_box(pair.strong) else "fails",
        )
        for pair in _worst_pairs(pairs)
    ]


def many_steps_beat_one(records: Sequence[AttackRecord]) -> Outcome:
    """The strongest iterated attack of a threat breaks at least what a single step does.

    Predictions to a defence that it does not know of, it may not (a single step transfers better): that hints only.
    """
    pairs = []
    tried = (
        record for record in single_attacks(records) if set(record.knowledge.split("+")) <= {*GRADIENT, "transfer"}
    )
    for group in groups(tried, lambda record: (*threat(record), record.knowledge, record.num_examples)):
        many = [record for record in group if (record.steps or 0) > 1]
        if many:
            strongest = min(many, key=lambda record: record.robust_uar)
            pairs += [_Pair(weak=record, strong=strongest) for record in group if record.steps == 1]
    if not pairs:
        return NotChecked("no single step and no iterated attack were recorded at one budget on the same utterances")
    return [
        doubt_of(
            MANY_STEPS,
            pair.weak,
            f"{pair.weak.attack} in one step leaves UAR {pair.weak.robust_uar:.3f} {at(pair.weak)}, the best iterated "
            f"attack, {pair.strong.attack} in {pair.strong.steps} steps, leaves {pair.strong.robust_uar:.3f} (defence "
            f"{pair.weak.defence}): "
            + unless_grey_box(
                pair.strong,
                "gradients near the utterance mislead, as they do where they are masked, so attack by score, in "
                "transfer and with a loss on logits",
            ),
            "hint" if is_grey_box(pair.strong) else "fails",
        )
        for pair in _worst_pairs(pairs)
    ]


def white_box_beats_black_box(records: Sequence[AttackRecord]) -> Outcome:
    """Whoever differentiates the model knows more than one who asks for its scores or decisions.

    Attacks that saw the same number of utterances saw the same ones. Where only different numbers can be compared, the
    gap must exceed two standard errors of the smaller set, and hints only.
    """
    doubts, compared = [], False
    for group in groups(single_attacks(records), threat):
        white = [record for record in group if set(record.knowledge.split("+")) <= GRADIENT and not is_noise(record)]
        for black in (record for record in group if set(record.knowledge.split("+")) & QUERIES):
            if not white:
                continue
            compared = True
            alike = [record for record in white if record.num_examples == black.num_examples]
            best = min(alike or white, key=lambda record: record.robust_uar)
            slack = leeway(black, best) if alike else max(leeway(black, best), 2 * _sampling_error(black, best))
            if best.robust_uar - black.robust_uar <= slack:
                continue
            sizes = (
                "" if alike else f", though on {black.num_examples} and on {best.num_examples} utterances respectively"
            )
            doubts.append(
                doubt_of(
                    WHITE_BOX,
                    black,
                    f"{black.attack}, which knows {black.knowledge}s only, leaves UAR {black.robust_uar:.3f} "
                    f"{at(black)} where the best attack by gradients, {best.attack}, leaves {best.robust_uar:.3f} "
                    f"(defence {black.defence}){sizes}: "
                    + unless_grey_box(
                        best,
                        "gradients are masked or their attacks too weak, so report the worst case and attack what "
                        "hides the gradient",
                    ),
                    "fails" if alike and not is_grey_box(best) else "hint",
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
    for group in groups(single_attacks(records), lambda record: (*threat(record), record.num_examples)):
        noises = [record for record in group if is_noise(record)]
        attacks = [record for record in group if not is_noise(record)]
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
        return doubt_of(
            NOISE,
            pair.strong,
            f"{pair.weak.attack} leaves UAR {pair.weak.robust_uar:.3f} {at(pair.weak)}, "
            f"{'the best attack by gradients,' if severity == 'fails' else 'but'} {pair.strong.attack}, "
            f"{pair.strong.robust_uar:.3f} (defence {pair.strong.defence}): "
            + unless_grey_box(
                pair.strong,
                "the attack does worse than one that knows nothing, so do not report it as robustness; look for zero "
                "gradients, or give it more steps",
            ),
            "hint" if is_grey_box(pair.strong) else severity,
        )

    return [doubt(pair, "fails") for pair in _worst_pairs(best)] + [
        doubt(pair, "hint") for pair in _worst_pairs(others)
    ]


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
    wide = [pair for pair in pairs if pair.gap > leeway(pair.weak, pair.strong)]
    alike = groups(
        wide, lambda pair: (pair.weak.attack, pair.strong.attack, pair.strong.knowledge, *threat(pair.strong)[:3])
    )
    return [max(group, key=lambda pair: pair.gap) for group in alike]


def _sampling_error(*records: AttackRecord) -> float:
    """Largest standard error of these UARs over the choice of utterances, by the binomial of their number."""
    return max(
        math.sqrt(max(record.robust_uar * (1 - record.robust_uar), 0.0) / max(record.num_examples, 1))
        for record in records
    )
