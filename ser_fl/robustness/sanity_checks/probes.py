"""Doubts that show only when something is run: small experiments on some of the utterances of a benchmark.

They question the bare classifier, without a test-time defence: where its attacks do not work, no attack on a defended
one that builds on them does. What is moved, features or recordings, is the domain's of the test set.

Legend: N utterances of the subset, S of them still recognised, B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file

from ser_fl.attacks.attack import Attack, AttackSettings
from ser_fl.attacks.losses import cross_entropy, margin
from ser_fl.devices import exact_arithmetic
from ser_fl.robustness.crafting import features_under
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, Doubt, NotChecked, Outcome, SanityReport, Severity
from ser_fl.robustness.sanity_checks.trial import (
    NO_DEFENCE,
    Trial,
    at_epsilon,
    broken_by,
    budget_of,
    gradient_of,
    largest_gradients,
    logits_of,
    signs_of,
    strongest,
)
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord

SUBSET = 64
"""Utterances, where nothing else is asked for."""
NOISE_DRAWS = 10
"""Of random signs, on what the attack left."""
OTHER_BATCH = 5
"""Utterances at a time when predictions are made again: another size than anyone chooses."""
TINY = 1e-6
"""Of the largest gradient: below it an utterance hardly takes part in an attack that compares gradients."""
NEAR_TIE = 1e-4
"""Lead of the first class over the second, relative to the largest logit, that rounding may turn."""
_ROUNDING = 1e-9

SAME_ANSWER = "the model answers the same question alike"
NOTHING_MOVES = "epsilon 0 changes nothing"
CHANCE = "a huge epsilon reaches chance"
STEPS = "twice the steps change nothing"
RESTARTS = "twice the restarts change nothing"
GRADIENTS = "gradients reach the input"
LEFT = "nothing weaker breaks what is left"
SAVED = "saved adversarials give the same result"

_NO_ATTACK = NotChecked("no iterated attack by gradients ran on the bare model")


def probe(
    test_set: TestSet,
    attacks: Sequence[Attack],
    *,
    subset_size: int = SUBSET,
    records: Sequence[AttackRecord] = (),
    on_check: OnAttack = silent,
) -> SanityReport:
    """All checks that need the model.

    They take as long as the strongest attack does on the subset two or three times, and four times where the model
    withstands it.

    Args:
        test_set: classifier and utterances of the benchmark.
        attacks: those of the benchmark; the strongest iterated one (`strongest`) is looked into.
        subset_size: number of utterances, spread over the emotions and drawn by the test set's own seed.
        records: of the benchmark, which say which attack was the strongest; without them it is the one of most effort.
        on_check: told of progress.
    """
    trial = Trial(test_set=test_set.subset(subset_size), attack=strongest(attacks, records))
    outcomes: dict[str, Outcome] = {}
    with evaluating(test_set.model), exact_arithmetic():
        for name, check in PROBES.items():
            on_check("checks", len(outcomes), len(PROBES))
            outcomes[name] = check(trial)
    on_check("checks", len(PROBES), len(PROBES))
    return SanityReport.of(outcomes)


def answers_alike(trial: Trial) -> Outcome:
    """Two forward passes of one batch must agree: randomness inside the model is averaged over by no attack."""
    again_NC = logits_of(trial.test_set, trial.test_set.features_NFL)
    size = float(trial.clean_logits_NC.abs().max())
    apart = float((again_NC - trial.clean_logits_NC).abs().max())
    turned = int((again_NC.argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
    if apart <= NEAR_TIE * size:
        return []
    words = (
        f"The model answers the same {len(again_NC)} utterances with logits {apart:.3g} apart when it is asked twice "
        f"({turned} predictions differ): it draws random numbers of its own, of which every attack saw single draws, "
        "so put the randomness into a defence, which is attacked in expectation, or switch it off."
    )
    return [Doubt(check=SAME_ANSWER, words=words, defence=NO_DEFENCE)]


def nothing_moves(trial: Trial) -> Outcome:
    """Without a budget, features and predictions must be the clean ones, bit for bit."""
    if trial.attack is None:
        return _NO_ATTACK
    idle_NFL = features_under(trial.test_set, at_epsilon(trial.attack, 0.0))
    moved = int((idle_NFL != trial.test_set.features_NFL).flatten(1).any(1).sum())
    turned = int((logits_of(trial.test_set, idle_NFL).argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
    if not moved and not turned:
        return []
    words = (
        f"{trial.attack.name} at epsilon 0 moves {moved} of {len(idle_NFL)} utterances and turns {turned} "
        "predictions: clean and attacked utterances are not prepared alike, so clip the clean features to the box "
        "before anything is measured."
    )
    return [_doubt(NOTHING_MOVES, trial.attack, words, epsilon=0.0)]


def reaches_chance(trial: Trial) -> Outcome:
    """With a budget as wide as the box, any utterance can be made any other, so that UAR can be brought to chance."""
    if trial.attack is None:
        return _NO_ATTACK
    huge = at_epsilon(trial.attack, trial.test_set.domain.widest(trial.test_set.features_NFL, trial.test_set.box))
    made_NFL = features_under(trial.test_set, huge)
    uar = trial.uar(logits_of(trial.test_set, made_NFL).argmax(1) == trial.test_set.labels_N)
    chance = 1 / trial.test_set.num_classes
    if uar <= chance + _ROUNDING:
        return []
    words = (
        f"{huge.name} at epsilon {huge.settings.epsilon:.3g}, where every utterance can be made any other, "
        f"leaves UAR {uar:.3f} on {len(made_NFL)} utterances, above chance ({chance:.3f}): gradients are masked or the "
        "attack is broken, and no robust UAR of this benchmark can be believed until this one falls to chance."
    )
    return [_doubt(CHANCE, huge, words)]


def steps_suffice(trial: Trial) -> Outcome:
    """An attack that has converged finds nothing more in twice the steps."""
    if trial.attack is None:
        return _NO_ATTACK
    steps = 2 * (trial.attack.settings.steps or 1)
    return _harder(trial, trial.attack, replace(trial.attack.settings, steps=steps), STEPS, f"{steps} steps")


def restarts_suffice(trial: Trial) -> Outcome:
    """An attack that was started often enough finds nothing more from twice the starts."""
    if trial.attack is None:
        return _NO_ATTACK
    if "restarts" not in trial.attack.entry.settable:
        return NotChecked(f"{trial.attack.name}, the strongest iterated attack, has no restarts")
    starts = 2 * max(trial.attack.settings.restarts or 1, 1)
    return _harder(trial, trial.attack, replace(trial.attack.settings, restarts=starts), RESTARTS, f"{starts} restarts")


def gradients_arrive(trial: Trial) -> Outcome:
    """An utterance without a gradient cannot be attacked by one: zero or not finite fails, tiny ones hint."""
    largest_N = largest_gradients(trial.test_set, cross_entropy)
    total = len(largest_N)
    finite_N = largest_N.isfinite()
    dead_N = ~finite_N | (largest_N == 0)
    peak = float(largest_N[finite_N].max()) if bool(finite_N.any()) else 0.0
    tiny = int(((largest_N < TINY * peak) & ~dead_N).sum())
    doubts = []
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
        doubts.append(Doubt(check=GRADIENTS, words=words, defence=NO_DEFENCE))
    if tiny:
        words = (
            f"The gradient of the cross-entropy of {tiny} of {total} utterances ({tiny / total:.0%}) is below "
            f"{TINY:g} of the largest: the model is very sure of them, so attack with a loss on logits (DLR, C&W) too."
        )
        doubts.append(Doubt(check=GRADIENTS, words=words, severity="hint", defence=NO_DEFENCE))
    return doubts


def nothing_weaker_breaks_more(trial: Trial) -> Outcome:
    """What the attack left, a single step and random signs of the same size must leave too, utterance by utterance."""
    if trial.attack is None:
        return _NO_ATTACK
    if trial.attack.entry.norm != "inf":
        return NotChecked(f"{trial.attack.name}, the strongest iterated attack, keeps to another norm")
    rows_S = trial.right_N.nonzero().flatten()
    if not len(rows_S):
        return []
    left, settings = trial.test_set.take(rows_S.tolist()), trial.attack.settings
    stepped_S = broken_by(left, settings, gradient_of(cross_entropy))
    moved_S = torch.zeros_like(stepped_S)
    for draw in range(NOISE_DRAWS):
        moved_S |= broken_by(left, settings, signs_of(draw))
    right_N = trial.right_N.clone()
    right_N[rows_S] = ~(stepped_S | moved_S)
    before, after, more = trial.uar(trial.right_N), trial.uar(right_N), int((stepped_S | moved_S).sum())
    if before - after <= HALF_A_POINT + _ROUNDING:
        return []
    words = (
        f"Of {len(rows_S)} utterances that {trial.attack.name} {budget_of(settings)} left, a single step "
        f"of FGSM breaks {int(stepped_S.sum())} and {NOISE_DRAWS} draws of random signs break {int(moved_S.sum())} "
        f"(UAR {before:.3f}, then {after:.3f}): an attack that knows less does more, so gradients are masked or "
        "its steps do not suit the model."
    )
    return [_doubt(LEFT, trial.attack, words, severity="fails" if more > 1 else "hint")]


def saved_give_the_same(trial: Trial) -> Outcome:
    """Adversarial utterances that were written to a file and read again, in other batches, must be answered alike.

    Predictions count as different where they are no near tie, which rounding may turn.
    """
    if trial.attack is None:
        return _NO_ATTACK
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adversarial.safetensors"
        save_file({"features_NFL": trial.adversarial_NFL.contiguous().cpu()}, path)
        read_NFL = load_file(path)["features_NFL"].to(trial.adversarial_NFL.device)
    reversed_NC = logits_of(trial.test_set, read_NFL.flip(0), batch_size=OTHER_BATCH).flip(0)
    first_N2 = trial.logits_NC.topk(2).values
    near_N = first_N2[:, 0] - first_N2[:, 1] <= NEAR_TIE * trial.logits_NC.abs().amax(1)
    turned_N = (reversed_NC.argmax(1) != trial.logits_NC.argmax(1)) & ~near_N
    if not (turned := int(turned_N.sum())):
        return []
    again = trial.uar(reversed_NC.argmax(1) == trial.test_set.labels_N)
    words = (
        f"{turned} of {len(read_NFL)} adversarial utterances of {trial.attack.name} are answered otherwise "
        f"when they are read from a file and go through the model {OTHER_BATCH} at a time (UAR "
        f"{trial.uar(trial.right_N):.3f}, then {again:.3f}): the model looks at the rest of the batch or is random, so "
        "put its normalisation into evaluation mode."
    )
    return [_doubt(SAVED, trial.attack, words)]


PROBES: Mapping[str, Callable[[Trial], Outcome]] = MappingProxyType(
    {
        SAME_ANSWER: answers_alike,
        NOTHING_MOVES: nothing_moves,
        GRADIENTS: gradients_arrive,
        STEPS: steps_suffice,
        RESTARTS: restarts_suffice,
        LEFT: nothing_weaker_breaks_more,
        CHANCE: reaches_chance,
        SAVED: saved_give_the_same,
    }
)


def _harder(trial: Trial, attack: Attack, settings: AttackSettings, check: str, words_of_change: str) -> Outcome:
    """Whether a stronger version of the attack breaks what the attack left.

    What it broke stays broken, as in a worst case, so that only the rest is attacked again.
    """
    right_N = trial.right_N.clone()
    before = trial.uar(right_N)
    rows_S = right_N.nonzero().flatten()
    if len(rows_S):
        left = trial.test_set.take(rows_S.tolist())
        still_S = logits_of(left, features_under(left, replace(attack, settings=settings))).argmax(1) == left.labels_N
        right_N[rows_S] = still_S
    after, more, total = trial.uar(right_N), len(rows_S) - int(right_N.sum()), len(right_N)
    if before - after <= HALF_A_POINT + _ROUNDING:
        return []
    words = (
        f"{words_of_change} of {attack.name} in place of {_effort(attack, check)} take UAR from {before:.3f} to "
        f"{after:.3f} {budget_of(settings)} ({more} more of {total} utterances broken, of which one is "
        f"worth about {1 / total:.3f}): the attack has not converged, so double until UAR moves by less than half a "
        "point."
    )
    return [_doubt(check, attack, words, severity="fails" if more > 1 else "hint")]


def _effort(attack: Attack, check: str) -> str:
    return str(attack.settings.steps if check == STEPS else max(attack.settings.restarts or 1, 1))


def _doubt(
    check: str, attack: Attack, words: str, *, epsilon: float | None = None, severity: Severity = "fails"
) -> Doubt:
    own = attack.settings.epsilon if math.isfinite(attack.settings.epsilon) else None
    return Doubt(
        check=check,
        words=words,
        severity=severity,
        defence=NO_DEFENCE,
        attack=attack.name,
        epsilon=own if epsilon is None else epsilon,
    )
