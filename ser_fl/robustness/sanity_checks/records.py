"""Doubts that the figures of a benchmark raise by themselves: nothing is run, and torch is not loaded. Figures disagree
where they differ by more than half a point of UAR, and by more than one utterance can.
"""

import math
from collections.abc import Iterator
from itertools import accumulate
from operator import attrgetter

from ser_fl.robustness.sanity_checks.comparison import (
    GRADIENT,
    QUERIES,
    Pair,
    Records,
    attacks_in,
    effort,
    groups,
    is_grey_box,
    is_noise,
    kind,
    knows,
    leeway,
    strength,
    threat,
    uar,
    worst_pairs,
)
from ser_fl.robustness.sanity_checks.report import ROUNDING, Checks, Doubt, NotChecked, SanityReport, at_budget
from ser_fl.runs.records import NO_DEFENCE, AttackRecord

IMPLAUSIBLE_UAR = 0.9
"""Clean; far above what is published on speakers that were not trained on."""
RECORD_CHECKS = Checks[Records]()


def check_records(records: Records) -> SanityReport:
    """All checks that need no model, of one model's records, as `ser_fl.benchmark` returns them."""
    return RECORD_CHECKS.made_of(records)


@RECORD_CHECKS.named("at epsilon 0 the scores are the clean ones")
def epsilon_0_is_clean(records: Records) -> Iterator[Doubt]:
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
            yield _doubt(record, words)


@RECORD_CHECKS.named("an attack does not raise UAR")
def attacks_do_not_help(records: Records) -> Iterator[Doubt]:
    """No attack may raise UAR above the clean one; noise, which does not try to lower it, hints only."""
    attacks = attacks_in(records, worst_cases=True)
    if not attacks:
        raise NotChecked("no attack was recorded")
    for record in attacks:
        if record.robust_uar - record.clean_uar > leeway(record):
            words = (
                f"{record.attack} {at_budget(record)} raises UAR on the defence {record.defence} from "
                f"{record.clean_uar:.3f} to {record.robust_uar:.3f}: the attack helps the model, so check the sign of "
                "its loss and its labels."
            )
            yield _doubt(record, words, hint=is_noise(record))


@RECORD_CHECKS.named("UAR falls as the budget grows")
def falls_with_the_budget(records: Records) -> Iterator[Doubt]:
    """A larger budget holds a smaller one, so that an attack that searches it well cannot do worse.

    A single step always goes to the edge, and may, as may one that is shown to a defence that it does not know of:
    those hint only. An attack that went on where it was at the smaller budget cannot.
    """
    swept = any(record.swept for record in attacks_in(records))
    attacks = attacks_in(records, worst_cases=not swept)
    tried = [r for r in attacks if not r.swept and (r.epsilon is not None or r.snr_db is not None)]
    pairs: list[Pair] = []
    for curve in groups(tried, lambda record: (*effort(record), *kind(record), record.epsilon is None)):
        rising = sorted(curve, key=strength)
        pairs += zip(accumulate(rising, lambda *two: min(two, key=uar)), rising[1:], strict=False)
    if not pairs:
        raise NotChecked("no attack was recorded at two budgets, each by itself (sweep=false)")
    for weak, strong in worst_pairs(pairs):
        words = (
            f"{strong.attack} leaves UAR {strong.robust_uar:.3f} {at_budget(strong)} and only {weak.robust_uar:.3f} "
            f"{at_budget(weak)}, which is less to spend (defence {strong.defence}): the attack does not search its "
            "ball, so give it more steps, restarts or a larger step size."
        )
        yield _doubt(strong, words, hint=strong.steps == 1 or is_noise(strong) or is_grey_box(strong))


@RECORD_CHECKS.named("many steps beat one")
def many_steps_beat_one(records: Records) -> Iterator[Doubt]:
    """The strongest iterated attack of a threat breaks at least what a single step does. Shown to a defence that it
    does not know of, it may not (a single step transfers better): that hints only.
    """
    pairs: list[Pair] = []
    tried = (record for record in attacks_in(records) if knows(record) <= {*GRADIENT, "transfer"})
    for group in groups(tried, lambda record: (*threat(record), record.knowledge, record.num_examples)):
        if many := [record for record in group if (record.steps or 0) > 1]:
            pairs += [(record, min(many, key=uar)) for record in group if record.steps == 1]
    if not pairs:
        raise NotChecked("no single step and no iterated attack were recorded at one budget on the same utterances")
    advice = (
        "gradients near the utterance mislead, as they do where they are masked, so attack by score, in transfer and "
        "with a loss on logits"
    )
    for weak, strong in worst_pairs(pairs):
        words = (
            f"{weak.attack} in one step leaves UAR {weak.robust_uar:.3f} {at_budget(weak)}, the best iterated attack, "
            f"{strong.attack} in {strong.steps} steps, leaves {strong.robust_uar:.3f} (defence {weak.defence}): "
            f"{_unless_grey_box(strong, advice)}"
        )
        yield _doubt(weak, words, hint=is_grey_box(strong))


@RECORD_CHECKS.named("the white box beats the black box")
def white_box_beats_black_box(records: Records) -> Iterator[Doubt]:
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
            best = min(alike or white, key=uar)
            slack, sizes = leeway(black, best), ""
            if not alike:
                both = ((record.robust_uar, max(record.num_examples, 1)) for record in (black, best))
                errors = [math.sqrt(max(uar * (1 - uar), 0.0) / number) for uar, number in both]  # binomial
                slack = max(slack, 2 * max(errors))
                sizes = f", though on {black.num_examples} and on {best.num_examples} utterances respectively"
            if best.robust_uar - black.robust_uar > slack:
                words = (
                    f"{black.attack}, which knows {black.knowledge}s only, leaves UAR {black.robust_uar:.3f} "
                    f"{at_budget(black)} where the best attack by gradients, {best.attack}, leaves "
                    f"{best.robust_uar:.3f} (defence {black.defence}){sizes}: {_unless_grey_box(best, advice)}"
                )
                yield _doubt(black, words, hint=not alike or is_grey_box(best))
    if not compared:
        raise NotChecked("no attack by scores or decisions was recorded beside one by gradients at one budget")


@RECORD_CHECKS.named("attacks beat noise")
def attacks_beat_noise(records: Records) -> Iterator[Doubt]:
    """Noise of the same budget knows nothing of the model, and breaks no more than the best attack by gradients. Where
    it breaks more than another attack only, that one is hinted at.
    """
    best: list[Pair] = []
    others: list[Pair] = []
    for group in groups(attacks_in(records), lambda record: (*threat(record), record.num_examples)):
        noises = [record for record in group if is_noise(record)]
        attacks = [record for record in group if not is_noise(record)]
        if noises and attacks:
            noise = min(noises, key=uar)
            strongest = min([record for record in attacks if knows(record) <= GRADIENT] or attacks, key=uar)
            best.append((noise, strongest))
            others += [(noise, record) for record in attacks if record is not strongest]
    if not best:
        raise NotChecked("no noise was recorded beside an attack at one budget on the same utterances")
    advice = (
        "the attack does worse than one that knows nothing, so do not report it as robustness; look for zero "
        "gradients, or give it more steps"
    )
    for pairs, which in ((best, "the best attack by gradients,"), (others, "but")):
        for weak, strong in worst_pairs(pairs):
            words = (
                f"{weak.attack} leaves UAR {weak.robust_uar:.3f} {at_budget(weak)}, {which} {strong.attack}, "
                f"{strong.robust_uar:.3f} (defence {strong.defence}): {_unless_grey_box(strong, advice)}"
            )
            yield _doubt(strong, words, hint=pairs is others or is_grey_box(strong))


@RECORD_CHECKS.named("every defence is attacked by one who knows of it")
def defences_are_attacked_adaptively(records: Records) -> Iterator[Doubt]:
    """A defence is judged by an attacker who knows of it, in expectation over its draws (Athalye et al. 2018)."""
    shown = [record for record in attacks_in(records) if record.defence != NO_DEFENCE and not is_noise(record)]
    if not shown:
        raise NotChecked("no test-time defence was shown to an attack")
    for attacks in groups(shown, lambda record: record.defence):
        if any("adaptive" in knows(record) and record.eot_samples > 0 for record in attacks):
            continue
        lowest = min(attacks, key=uar)
        words = (
            f"No attack on the defence {lowest.defence} differentiated it in expectation over its draws: UAR "
            f"{lowest.robust_uar:.3f} under {lowest.attack} {at_budget(lowest)} is what an attacker leaves who does "
            "not know of the defence, and is no evidence of robustness; add an adaptive attack with EOT samples."
        )
        yield _doubt(lowest, words)


@RECORD_CHECKS.named("passes buy successes")
def passes_buy_successes(records: Records) -> Iterator[Doubt]:
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
        able = [other for other in paid if _promises_success(other, record)]
        if not able or record.steps == 1 or knows(record) & QUERIES:
            left.append(record)
            continue
        other = max(able, key=attrgetter("attack_success_rate"))
        words = (
            f"{record.attack} {at_budget(record)} sent {record.forward_passes} utterances forward and "
            f"{record.backward_passes} backward through the model and broke none, where {other.attack} "
            f"{at_budget(other)} broke {other.attack_success_rate:.1%} (defence {record.defence}): the attack does "
            "not work on this model, so do not report it."
        )
        yield _doubt(record, words)
    for group in groups(left, kind):
        largest = max(group, key=strength)
        names = ", ".join(dict.fromkeys(record.attack for record in group))
        words = (
            f"Up to a budget {at_budget(largest)}, {names} asked the model and broke no utterance (defence "
            f"{largest.defence}): either they cannot or they do not work, so try them at a larger budget, where they "
            "must succeed."
        )
        yield _doubt(largest, words, hint=True)


def _promises_success(other: AttackRecord, record: AttackRecord) -> bool:
    """Whether an attack of the same threat that had no more to spend broke too much for an accident: on the same
    utterances more than one of them, on others as many as lead to 5 expected here.
    """
    alike = kind(other) == kind(record) and (other.epsilon is None) == (record.epsilon is None)
    expected = other.attack_success_rate * other.clean_uar * record.num_examples
    enough = expected > 1 + ROUNDING if other.num_examples == record.num_examples else expected >= 5
    return alike and enough and strength(other) <= strength(record)


@RECORD_CHECKS.named("clean UAR is plausible")
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
        yield Doubt(words=words, severity="hint", defence=best.defence)


def _doubt(record: AttackRecord, words: str, *, hint: bool = False) -> Doubt:
    about = {"defence": record.defence, "attack": record.attack}
    return Doubt(words=words, severity="hint" if hint else "fails", epsilon=record.epsilon, **about)


def _unless_grey_box(record: AttackRecord, advice: str) -> str:
    """What to do; where an attack does not know of the defence, that comes first."""
    if is_grey_box(record):
        return f"{record.attack} does not know of the defence, so attack it adaptively."
    return f"{advice}."
