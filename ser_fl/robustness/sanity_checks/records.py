"""Doubts that the figures of a benchmark raise by themselves: nothing is run, and torch is not loaded. Figures disagree
where they differ by more than half a point of UAR, and by more than one utterance can.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from types import MappingProxyType

from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, ROUNDING, Doubt, NotChecked, SanityReport
from ser_fl.runs.records import CLEAN, NO_DEFENCE, WORST_CASE, AttackRecord

GRADIENT = frozenset({"undefended", "adaptive"})
"""Knowledge of an attacker who differentiates the model itself."""
QUERIES = frozenset({"score", "decision"})
"""Knowledge of one who sees no gradient, and may honestly break nothing where one who does breaks little."""
IMPLAUSIBLE_UAR = 0.9
"""Clean; far above what is published on speakers that were not trained on."""

EPSILON_0 = "at epsilon 0 the scores are the clean ones"
BELOW_CLEAN = "an attack does not raise UAR"
FALLS = "UAR falls as the budget grows"
MANY_STEPS = "many steps beat one"
WHITE_BOX = "the white box beats the black box"
NOISE = "attacks beat noise"
EXPECTATION = "every defence is attacked by one who knows of it"
SUCCESS = "passes buy successes"
PLAUSIBLE = "clean UAR is plausible"

Records = Sequence[AttackRecord]
Pair = tuple[AttackRecord, AttackRecord]
_uar = attrgetter("robust_uar")
_kind = attrgetter("domain", "norm", "defence")
_threat = attrgetter("domain", "norm", "defence", "epsilon", "snr_db", "seed", "device")
"""What two attacks must share to be compared."""
_effort = attrgetter("attack", "knowledge", "num_examples", "steps", "restarts", "eot_samples", "seed", "device")


def check_records(records: Records) -> SanityReport:
    """All checks that need no model, of one model's records, as `ser_fl.benchmark` returns them."""
    return SanityReport.of(RECORD_CHECKS, records)


def epsilon_0_is_clean(records: Records) -> Iterator[Doubt]:
    """Without a budget, every score must be the clean one, exactly."""
    idle = [record for record in _attacks_in(records, worst_cases=True) if record.epsilon == 0]
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
            yield _doubt(EPSILON_0, record, words)


def attacks_do_not_help(records: Records) -> Iterator[Doubt]:
    """No attack may raise UAR above the clean one; noise, which does not try to lower it, hints only."""
    attacks = _attacks_in(records, worst_cases=True)
    if not attacks:
        raise NotChecked("no attack was recorded")
    for record in attacks:
        if record.robust_uar - record.clean_uar > _leeway(record):
            words = (
                f"{record.attack} {_at(record)} raises UAR on the defence {record.defence} from {record.clean_uar:.3f} "
                f"to {record.robust_uar:.3f}: the attack helps the model, so check the sign of its loss and its labels."
            )
            yield _doubt(BELOW_CLEAN, record, words, hint=_is_noise(record))


def falls_with_the_budget(records: Records) -> Iterator[Doubt]:
    """A larger budget holds a smaller one, so that an attack that searches it well cannot do worse.

    A single step always goes to the edge, and may, as may one that is shown to a defence that it does not know of:
    those hint only. An attack that went on where it was at the smaller budget cannot.
    """
    swept = any(record.swept for record in _attacks_in(records))
    attacks = _attacks_in(records, worst_cases=not swept)
    tried = [r for r in attacks if not r.swept and (r.epsilon is not None or r.snr_db is not None)]
    pairs: list[Pair] = []
    for curve in _groups(tried, lambda record: (*_effort(record), *_kind(record), record.epsilon is None)):
        rising = sorted(curve, key=_strength)
        pairs += zip(accumulate(rising, lambda *two: min(two, key=_uar)), rising[1:], strict=False)
    if not pairs:
        raise NotChecked("no attack was recorded at two budgets, each by itself (sweep=false)")
    for weak, strong in _worst_pairs(pairs):
        words = (
            f"{strong.attack} leaves UAR {strong.robust_uar:.3f} {_at(strong)} and only {weak.robust_uar:.3f} "
            f"{_at(weak)}, which is less to spend (defence {strong.defence}): the attack does not search its ball, so "
            "give it more steps, restarts or a larger step size."
        )
        yield _doubt(FALLS, strong, words, hint=strong.steps == 1 or _is_noise(strong) or _is_grey_box(strong))


def many_steps_beat_one(records: Records) -> Iterator[Doubt]:
    """The strongest iterated attack of a threat breaks at least what a single step does. Shown to a defence that it
    does not know of, it may not (a single step transfers better): that hints only.
    """
    pairs: list[Pair] = []
    tried = (record for record in _attacks_in(records) if _knows(record) <= {*GRADIENT, "transfer"})
    for group in _groups(tried, lambda record: (*_threat(record), record.knowledge, record.num_examples)):
        if many := [record for record in group if (record.steps or 0) > 1]:
            pairs += [(record, min(many, key=_uar)) for record in group if record.steps == 1]
    if not pairs:
        raise NotChecked("no single step and no iterated attack were recorded at one budget on the same utterances")
    advice = (
        "gradients near the utterance mislead, as they do where they are masked, so attack by score, in transfer and "
        "with a loss on logits"
    )
    for weak, strong in _worst_pairs(pairs):
        words = (
            f"{weak.attack} in one step leaves UAR {weak.robust_uar:.3f} {_at(weak)}, the best iterated attack, "
            f"{strong.attack} in {strong.steps} steps, leaves {strong.robust_uar:.3f} (defence {weak.defence}): "
            f"{_unless_grey_box(strong, advice)}"
        )
        yield _doubt(MANY_STEPS, weak, words, hint=_is_grey_box(strong))


def white_box_beats_black_box(records: Records) -> Iterator[Doubt]:
    """Whoever differentiates the model knows more than one who asks for its scores or decisions. Attacks that saw as
    many utterances saw the same ones; else the gap must exceed two standard errors of the smaller set, and hints only.
    """
    compared = False
    advice = (
        "gradients are masked or their attacks too weak, so report the worst case and attack what hides the gradient"
    )
    for group in _groups(_attacks_in(records), _threat):
        white = [record for record in group if _knows(record) <= GRADIENT and not _is_noise(record)]
        for black in (record for record in group if white and _knows(record) & QUERIES):
            compared = True
            alike = [record for record in white if record.num_examples == black.num_examples]
            best = min(alike or white, key=_uar)
            slack, sizes = _leeway(black, best), ""
            if not alike:
                both = ((record.robust_uar, max(record.num_examples, 1)) for record in (black, best))
                errors = [math.sqrt(max(uar * (1 - uar), 0.0) / number) for uar, number in both]  # binomial
                slack = max(slack, 2 * max(errors))
                sizes = f", though on {black.num_examples} and on {best.num_examples} utterances respectively"
            if best.robust_uar - black.robust_uar > slack:
                words = (
                    f"{black.attack}, which knows {black.knowledge}s only, leaves UAR {black.robust_uar:.3f} "
                    f"{_at(black)} where the best attack by gradients, {best.attack}, leaves {best.robust_uar:.3f} "
                    f"(defence {black.defence}){sizes}: {_unless_grey_box(best, advice)}"
                )
                yield _doubt(WHITE_BOX, black, words, hint=not alike or _is_grey_box(best))
    if not compared:
        raise NotChecked("no attack by scores or decisions was recorded beside one by gradients at one budget")


def attacks_beat_noise(records: Records) -> Iterator[Doubt]:
    """Noise of the same budget knows nothing of the model, and breaks no more than the best attack by gradients. Where
    it breaks more than another attack only, that one is hinted at.
    """
    best: list[Pair] = []
    others: list[Pair] = []
    for group in _groups(_attacks_in(records), lambda record: (*_threat(record), record.num_examples)):
        noises = [record for record in group if _is_noise(record)]
        attacks = [record for record in group if not _is_noise(record)]
        if noises and attacks:
            noise = min(noises, key=_uar)
            strongest = min([record for record in attacks if _knows(record) <= GRADIENT] or attacks, key=_uar)
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
                f"{weak.attack} leaves UAR {weak.robust_uar:.3f} {_at(weak)}, {which} {strong.attack}, "
                f"{strong.robust_uar:.3f} (defence {strong.defence}): {_unless_grey_box(strong, advice)}"
            )
            yield _doubt(NOISE, strong, words, hint=pairs is others or _is_grey_box(strong))


def defences_are_attacked_adaptively(records: Records) -> Iterator[Doubt]:
    """A defence is judged by an attacker who knows of it, in expectation over its draws (Athalye et al. 2018)."""
    shown = [record for record in _attacks_in(records) if record.defence != NO_DEFENCE and not _is_noise(record)]
    if not shown:
        raise NotChecked("no test-time defence was shown to an attack")
    for attacks in _groups(shown, lambda record: record.defence):
        if any("adaptive" in _knows(record) and record.eot_samples > 0 for record in attacks):
            continue
        lowest = min(attacks, key=_uar)
        words = (
            f"No attack on the defence {lowest.defence} differentiated it in expectation over its draws: UAR "
            f"{lowest.robust_uar:.3f} under {lowest.attack} {_at(lowest)} is what an attacker leaves who does not know "
            "of the defence, and is no evidence of robustness; add an adaptive attack with EOT samples."
        )
        yield _doubt(EXPECTATION, lowest, words)


def passes_buy_successes(records: Records) -> Iterator[Doubt]:
    """An attack that asked the model and broke nothing may not work at all. An iterated one fails where another attack
    broke something with no more to spend; else it is a hint. A defence that it does not know of says nothing of the
    attack.
    """
    paid = [
        record
        for record in _attacks_in(records)
        if record.forward_passes + record.backward_passes > 0
        and record.epsilon != 0
        and not _is_noise(record)
        and not _is_grey_box(record)
    ]
    if not paid:
        raise NotChecked("no attack was recorded that asked the model it was shown to")
    left = []
    for record in (record for record in paid if record.attack_success_rate == 0 and record.clean_uar > 0):
        other = _success_with_no_more(record, paid)
        if other is None or record.steps == 1 or _knows(record) & QUERIES:
            left.append(record)
            continue
        words = (
            f"{record.attack} {_at(record)} sent {record.forward_passes} utterances forward and "
            f"{record.backward_passes} backward through the model and broke none, where {other.attack} {_at(other)} "
            f"broke {other.attack_success_rate:.1%} (defence {record.defence}): the attack does not work on this "
            "model, so do not report it."
        )
        yield _doubt(SUCCESS, record, words)
    for group in _groups(left, _kind):
        largest = max(group, key=_strength)
        names = ", ".join(dict.fromkeys(record.attack for record in group))
        words = (
            f"Up to a budget {_at(largest)}, {names} asked the model and broke no utterance (defence "
            f"{largest.defence}): either they cannot or they do not work, so try them at a larger budget, where they "
            "must succeed."
        )
        yield _doubt(SUCCESS, largest, words, hint=True)


def _success_with_no_more(record: AttackRecord, others: Records) -> AttackRecord | None:
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
        and _kind(other) == _kind(record)
        and (other.epsilon is None) == (record.epsilon is None)
        and _strength(other) <= _strength(record)
    ]
    return max(able, key=lambda other: other.attack_success_rate, default=None)


def clean_uar_is_plausible(records: Records) -> Iterator[Doubt]:
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


RECORD_CHECKS: Mapping[str, Callable[[Records], Iterator[Doubt]]] = MappingProxyType(
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


def _attacks_in(records: Records, *, worst_cases: bool = False) -> list[AttackRecord]:
    """Single attacks and noises; then worst cases, where they are asked for."""
    attacks = [record for record in records if record.attack != CLEAN and (worst_cases or record.attack != WORST_CASE)]
    return sorted(attacks, key=lambda record: record.attack == WORST_CASE)


def _knows(record: AttackRecord) -> set[str]:
    """What the attacker knows; of a worst case, what any of its attackers does."""
    return set(record.knowledge.split("+"))


def _is_noise(record: AttackRecord) -> bool:
    return record.attack.startswith("noise")


def _is_grey_box(record: AttackRecord) -> bool:
    return record.defence != NO_DEFENCE and "adaptive" not in _knows(record)


def _strength(record: AttackRecord) -> float:
    """Grows with the budget; 0 for a record without one."""
    return -(record.snr_db or 0.0) if record.epsilon is None else record.epsilon


def _doubt(check: str, record: AttackRecord, words: str, *, hint: bool = False) -> Doubt:
    about = {"defence": record.defence, "attack": record.attack}
    return Doubt(check=check, words=words, severity="hint" if hint else "fails", epsilon=record.epsilon, **about)


def _leeway(*records: AttackRecord) -> float:
    """How far figures may lie apart: half a point, or what an utterance of the rarest class is worth, if more."""
    worth = [HALF_A_POINT]
    for record in records:
        support = [count for row in record.confusion if (count := sum(row)) > 0]
        worth.append(1 / (len(support) * min(support)) if support else 1 / max(record.num_examples, 1))
    return max(worth) + ROUNDING


def _groups(records: Iterable[AttackRecord], key: Callable[[AttackRecord], Hashable]) -> list[list[AttackRecord]]:
    """Records that share a key, in the order in which the keys first occur."""
    groups: dict[Hashable, list[AttackRecord]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return list(groups.values())


def _worst_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Of the pairs that disagree the widest, one for every two attacks, defence and threat, whatever the budget."""
    worst: dict[Hashable, Pair] = {}
    for weak, strong in pairs:
        key, gap = (weak.attack, strong.attack, strong.knowledge, *_kind(strong)), _uar(strong) - _uar(weak)
        if gap > _leeway(weak, strong) and (key not in worst or gap > _uar(worst[key][1]) - _uar(worst[key][0])):
            worst[key] = weak, strong
    return list(worst.values())


def _at(record: AttackRecord) -> str:
    """The budget of a record, as sentences name it."""
    if record.epsilon is not None:
        return f"at epsilon {record.epsilon:.4g}"
    return "without a budget" if record.snr_db is None else f"at an SNR of {record.snr_db:g} dB"


def _unless_grey_box(record: AttackRecord, advice: str) -> str:
    """What to do; where an attack does not know of the defence, that comes first."""
    if _is_grey_box(record):
        return f"{record.attack} does not know of the defence, so attack it adaptively."
    return f"{advice}."
