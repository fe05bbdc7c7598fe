"""Doubts that show only when something is run: small experiments on some of the utterances of a benchmark.

They question the bare classifier: where its attacks do not work, none on a defended one that builds on them does.

Legend: N utterances of the subset, S of them still recognised, B batch, F mel bins, L frames, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from safetensors.torch import load, save

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.domains import LOGMEL
from ser_fl.attacks.losses import cross_entropy, margin
from ser_fl.devices import exact_arithmetic
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.sanity_checks.report import ROUNDING, Checks, Doubt, NotChecked, SanityReport, at_budget
from ser_fl.robustness.sanity_checks.trial import (
    Trial,
    broken_by_a_step,
    features_under,
    largest_gradients,
    logits_of,
    strongest,
)
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import NO_DEFENCE, AttackRecord

SUBSET = 64
"""Utterances, where nothing else is asked for."""
NOISE_DRAWS = 10
"""Of random signs, on what the attack left."""
OTHER_BATCH = 5
"""Utterances at a time when predictions are made again: another size than anyone chooses."""
REMADE = 1e-3
"""Standardised units that features of one recording may differ by, made in batches of two sizes."""
TINY = 1e-6
"""Of the largest gradient: below it an utterance hardly takes part in an attack that compares gradients."""
NEAR_TIE = 1e-4
"""Lead of the first class over the second, relative to the largest logit, that rounding may turn."""

PROBES = Checks[Trial]()


def probe(
    test_set: TestSet,
    attacks: Sequence[Attack],
    *,
    subset_size: int = SUBSET,
    records: Sequence[AttackRecord] = (),
    on_check: OnAttack = silent,
) -> SanityReport:
    """All checks that need the model. They take as long as the strongest attack does on the subset two or three times,
    and four times where the model withstands it.

    Args:
        test_set: classifier and utterances of the benchmark.
        attacks: those of the benchmark; the strongest iterated one (`strongest`) is looked into.
        subset_size: number of utterances, spread over the emotions and drawn by the test set's own seed.
        records: of the benchmark, which say which attack was the strongest; without them it is the one of most effort.
        on_check: told of progress.
    """
    trial = Trial(test_set=test_set.subset(subset_size), strongest=strongest(attacks, records))
    with evaluating(test_set.model), exact_arithmetic():
        return PROBES.made_of(trial, on_check)


@PROBES.named("the model answers the same question alike")
def answers_alike(trial: Trial) -> Iterator[Doubt]:
    """Two forward passes of one batch must agree: randomness inside the model is averaged over by no attack."""
    again_NC = logits_of(trial.test_set, trial.test_set.features_NFL)
    apart = float((again_NC - trial.clean_logits_NC).abs().max())
    if not apart <= NEAR_TIE * float(trial.clean_logits_NC.abs().max()):
        turned = int((again_NC.argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
        words = (
            f"The model answers the same {len(again_NC)} utterances with logits {apart:.3g} apart when it is asked "
            f"twice ({turned} predictions differ): it draws random numbers of its own, of which every attack saw "
            "single draws, so put the randomness into a defence, which is attacked in expectation, or switch it off."
        )
        yield _doubt(words)


@PROBES.named("epsilon 0 changes nothing")
def nothing_moves(trial: Trial) -> Iterator[Doubt]:
    """Without a budget, features and predictions must be the clean ones: bit for bit where features are what is moved,
    and to rounding where a front end makes them anew of recordings, in batches of another size.
    """
    idle = _at_epsilon(trial.attack, 0.0)
    idle_NFL = features_under(trial.test_set, idle)
    rounding = 0.0 if trial.test_set.domain is LOGMEL else REMADE
    moved = int(((idle_NFL - trial.test_set.features_NFL).abs() > rounding).flatten(1).any(1).sum())
    turned = int((logits_of(trial.test_set, idle_NFL).argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
    if moved or turned:
        words = (
            f"{idle.name} at epsilon 0 moves {moved} of {len(idle_NFL)} utterances and turns {turned} predictions: "
            "clean and attacked utterances are not prepared alike, so clip the clean features to the box before "
            "anything is measured."
        )
        yield _doubt(words, idle)


@PROBES.named("gradients reach the input")
def gradients_arrive(trial: Trial) -> Iterator[Doubt]:
    """An utterance without a gradient cannot be attacked by one: zero or not finite fails, tiny ones hint."""
    largest_N = largest_gradients(trial.test_set, cross_entropy)
    total, finite_N = len(largest_N), largest_N.isfinite()
    dead_N = ~finite_N | (largest_N == 0)
    peak = float(largest_N[finite_N].max()) if bool(finite_N.any()) else 0.0
    if dead := int(dead_N.sum()):
        margins_N = largest_gradients(trial.test_set, margin)
        rescued = int((dead_N & margins_N.isfinite() & (margins_N > 0)).sum())
        advice = (
            f"the margin of the logits has one for {rescued} of them, so attack with a loss on logits (DLR, C&W)"
            if rescued
            else "neither has the margin of the logits, so attack by score, in transfer or around what hides it"
        )
        words = (
            f"The gradient of the cross-entropy is zero or not finite for {dead} of {total} utterances "
            f"({dead / total:.0%}): {advice}."
        )
        yield _doubt(words)
    if tiny := int(((largest_N < TINY * peak) & ~dead_N).sum()):
        words = (
            f"The gradient of the cross-entropy of {tiny} of {total} utterances ({tiny / total:.0%}) is below "
            f"{TINY:g} of the largest: the model is very sure of them, so attack with a loss on logits (DLR, C&W) too."
        )
        yield _doubt(words, hint=True)


def twice_the_effort(trial: Trial, *, effort: Literal["steps", "restarts"]) -> Iterator[Doubt]:
    """An attack that has converged finds nothing more in twice the steps or from twice the starts. What it broke stays
    broken, as in a worst case, so that only the rest is attacked again.
    """
    attack = trial.attack
    if effort not in attack.entry.settable:
        raise NotChecked(f"{attack.name}, the strongest iterated attack, has no {effort}")
    if not len(left := trial.left):
        return
    used = max(getattr(attack.settings, effort) or 1, 1)
    twice: dict[str, Any] = {effort: 2 * used}
    harder = replace(attack, settings=replace(attack.settings, **twice))
    broken_S = logits_of(left, features_under(left, harder)).argmax(1) != left.labels_N
    if uars := trial.fall(broken_S):
        more, total = int(broken_S.sum()), len(trial.test_set)
        words = (
            f"{2 * used} {effort} of {attack.name} in place of {used} take UAR from {uars[0]:.3f} to {uars[1]:.3f} "
            f"{at_budget(attack.settings)} ({more} more of {total} utterances broken, of which one is worth about "
            f"{1 / total:.3f}): the attack has not converged, so double until UAR moves by less than half a point."
        )
        yield _doubt(words, attack, hint=more <= 1)


PROBES["twice the steps change nothing"] = partial(twice_the_effort, effort="steps")
PROBES["twice the restarts change nothing"] = partial(twice_the_effort, effort="restarts")


@PROBES.named("nothing weaker breaks what is left")
def nothing_weaker_breaks_more(trial: Trial) -> Iterator[Doubt]:
    """What the attack left, a single step and random signs of the same size must leave too, utterance by utterance."""
    attack = trial.attack
    if attack.entry.norm != "inf":
        raise NotChecked(f"{attack.name}, the strongest iterated attack, keeps to another norm")
    if not len(left := trial.left):
        return
    stepped_S = broken_by_a_step(left, attack.settings)
    moved_S = torch.zeros_like(stepped_S)
    for draw in range(NOISE_DRAWS):
        moved_S |= broken_by_a_step(left, attack.settings, draw=draw)
    if uars := trial.fall(stepped_S | moved_S):
        words = (
            f"Of {len(left)} utterances that {attack.name} {at_budget(attack.settings)} left, a single step of FGSM "
            f"breaks {int(stepped_S.sum())} and {NOISE_DRAWS} draws of random signs break {int(moved_S.sum())} (UAR "
            f"{uars[0]:.3f}, then {uars[1]:.3f}): an attack that knows less does more, so gradients are masked or its "
            "steps do not suit the model."
        )
        yield _doubt(words, attack, hint=int((stepped_S | moved_S).sum()) == 1)


@PROBES.named("a huge epsilon reaches chance")
def reaches_chance(trial: Trial) -> Iterator[Doubt]:
    """With a budget as wide as the box, any utterance can be made any other, so that UAR can be brought to chance."""
    test_set = trial.test_set
    huge = _at_epsilon(trial.attack, test_set.domain.widest(test_set.features_NFL, test_set.box))
    uar = trial.uar(logits_of(test_set, features_under(test_set, huge)).argmax(1) == test_set.labels_N)
    chance = 1 / test_set.num_classes
    if uar > chance + ROUNDING:
        words = (
            f"{huge.name} at epsilon {huge.settings.epsilon:.3g}, where every utterance can be made any other, leaves "
            f"UAR {uar:.3f} on {len(test_set)} utterances, above chance ({chance:.3f}): gradients are masked or the "
            "attack is broken, and no robust UAR of this benchmark can be believed until this one falls to chance."
        )
        yield _doubt(words, huge)


@PROBES.named("saved adversarials give the same result")
def saved_give_the_same(trial: Trial) -> Iterator[Doubt]:
    """Adversarial utterances that were written as to a file and read again, in other batches, must be answered alike.
    Predictions count as different where they are no near tie, which rounding may turn.
    """
    content = save({"features_NFL": trial.adversarial_NFL.contiguous().cpu()})
    read_NFL = load(content)["features_NFL"].to(trial.adversarial_NFL.device)
    reversed_NC = logits_of(trial.test_set, read_NFL.flip(0), batch_size=OTHER_BATCH).flip(0)
    first_N2 = trial.logits_NC.topk(2).values
    near_N = first_N2[:, 0] - first_N2[:, 1] <= NEAR_TIE * trial.logits_NC.abs().amax(1)
    turned_N = (reversed_NC.argmax(1) != trial.logits_NC.argmax(1)) & ~near_N
    if turned := int(turned_N.sum()):
        again = trial.uar(reversed_NC.argmax(1) == trial.test_set.labels_N)
        words = (
            f"{turned} of {len(read_NFL)} adversarial utterances of {trial.attack.name} are answered otherwise when "
            f"they are read from a file and go through the model {OTHER_BATCH} at a time (UAR "
            f"{trial.uar(trial.right_N):.3f}, then {again:.3f}): the model looks at the rest of the batch or is "
            "random, so put its normalisation into evaluation mode."
        )
        yield _doubt(words, trial.attack)


def _at_epsilon(attack: Attack, epsilon: float) -> Attack:
    """The same attack with another budget, an epsilon, and steps that keep their share of it."""
    settings = attack.settings
    step_size = None if settings.step_size is None else settings.step_size * epsilon / settings.epsilon
    return replace(attack, settings=replace(settings, epsilon=epsilon, snr_db=None, step_size=step_size))


def _doubt(words: str, attack: Attack | None = None, *, hint: bool = False) -> Doubt:
    about: dict[str, Any] = {}
    if attack is not None:
        epsilon = attack.settings.epsilon
        about = {"attack": attack.name, "epsilon": epsilon if isfinite(epsilon) else None}
    return Doubt(words=words, severity="hint" if hint else "fails", defence=NO_DEFENCE, **about)
