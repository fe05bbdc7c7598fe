"""Doubts that show only when something is run: small experiments on some of the utterances of a benchmark.

They question the bare classifier: where its attacks do not work, none on a defended one that builds on them does.

Legend: N utterances of the subset, S of them still recognised, B batch, F mel bins, L frames, C classes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor

from ser_fl.attacks.attack import Attack, AttackSettings, Problem
from ser_fl.attacks.losses import Loss, cross_entropy, margin
from ser_fl.attacks.target import attacked
from ser_fl.attacks.threat_model import per_utterance
from ser_fl.devices import exact_arithmetic, send
from ser_fl.metrics import uar_of
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, ROUNDING, Doubt, NotChecked, SanityReport
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import NO_DEFENCE, AttackRecord

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

SAME_ANSWER = "the model answers the same question alike"
NOTHING_MOVES = "epsilon 0 changes nothing"
CHANCE = "a huge epsilon reaches chance"
STEPS = "twice the steps change nothing"
RESTARTS = "twice the restarts change nothing"
GRADIENTS = "gradients reach the input"
LEFT = "nothing weaker breaks what is left"
SAVED = "saved adversarials give the same result"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The utterances that are tried, and what several probes need to know of them, found once."""

    test_set: TestSet
    strongest: Attack | None
    """Iterated attack; None where there is none."""

    @property
    def attack(self) -> Attack:
        """The strongest one; `NotChecked` where there is none."""
        if self.strongest is None:
            raise NotChecked("no iterated attack by gradients ran on the bare model")
        return self.strongest

    @cached_property
    def clean_logits_NC(self) -> Tensor:
        return _logits_of(self.test_set, self.test_set.features_NFL)

    @cached_property
    def adversarial_NFL(self) -> Tensor:
        return _features_under(self.test_set, self.attack)

    @cached_property
    def logits_NC(self) -> Tensor:
        """Under the attack."""
        return _logits_of(self.test_set, self.adversarial_NFL)

    @cached_property
    def right_N(self) -> Tensor:
        """Which utterances the attack left recognised."""
        return self.logits_NC.argmax(1) == self.test_set.labels_N

    @cached_property
    def left(self) -> TestSet:
        return self.test_set.take(self.right_N.nonzero().flatten().tolist())

    def uar(self, right_N: Tensor) -> float:
        """UAR where these are recognised."""
        return uar_of(right_N.cpu().double().numpy(), self.test_set.labels_N.tolist())

    def fall(self, broken_S: Tensor) -> tuple[float, float] | None:
        """UAR under the attack, and where some of what it left is broken too, if that is half a point less or more."""
        right_N = self.right_N.clone()
        right_N[self.right_N] = ~broken_S
        before, after = self.uar(self.right_N), self.uar(right_N)
        return (before, after) if before - after > HALF_A_POINT + ROUNDING else None


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
        return SanityReport.of(PROBES, trial, on_check)


def answers_alike(trial: Trial) -> Iterator[Doubt]:
    """Two forward passes of one batch must agree: randomness inside the model is averaged over by no attack."""
    again_NC = _logits_of(trial.test_set, trial.test_set.features_NFL)
    apart = float((again_NC - trial.clean_logits_NC).abs().max())
    if not apart <= NEAR_TIE * float(trial.clean_logits_NC.abs().max()):
        turned = int((again_NC.argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
        words = (
            f"The model answers the same {len(again_NC)} utterances with logits {apart:.3g} apart when it is asked "
            f"twice ({turned} predictions differ): it draws random numbers of its own, of which every attack saw "
            "single draws, so put the randomness into a defence, which is attacked in expectation, or switch it off."
        )
        yield _doubt(SAME_ANSWER, words)


def nothing_moves(trial: Trial) -> Iterator[Doubt]:
    """Without a budget, features and predictions must be the clean ones, bit for bit."""
    idle = _at_epsilon(trial.attack, 0.0)
    idle_NFL = _features_under(trial.test_set, idle)
    moved = int((idle_NFL != trial.test_set.features_NFL).flatten(1).any(1).sum())
    turned = int((_logits_of(trial.test_set, idle_NFL).argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
    if moved or turned:
        words = (
            f"{idle.name} at epsilon 0 moves {moved} of {len(idle_NFL)} utterances and turns {turned} predictions: "
            "clean and attacked utterances are not prepared alike, so clip the clean features to the box before "
            "anything is measured."
        )
        yield _doubt(NOTHING_MOVES, words, idle)


def reaches_chance(trial: Trial) -> Iterator[Doubt]:
    """With a budget as wide as the box, any utterance can be made any other, so that UAR can be brought to chance."""
    test_set = trial.test_set
    huge = _at_epsilon(trial.attack, test_set.domain.widest(test_set.features_NFL, test_set.box))
    uar = trial.uar(_logits_of(test_set, _features_under(test_set, huge)).argmax(1) == test_set.labels_N)
    chance = 1 / test_set.num_classes
    if uar > chance + ROUNDING:
        words = (
            f"{huge.name} at epsilon {huge.settings.epsilon:.3g}, where every utterance can be made any other, leaves "
            f"UAR {uar:.3f} on {len(test_set)} utterances, above chance ({chance:.3f}): gradients are masked or the "
            "attack is broken, and no robust UAR of this benchmark can be believed until this one falls to chance."
        )
        yield _doubt(CHANCE, words, huge)


def gradients_arrive(trial: Trial) -> Iterator[Doubt]:
    """An utterance without a gradient cannot be attacked by one: zero or not finite fails, tiny ones hint."""
    largest_N = _largest_gradients(trial.test_set, cross_entropy)
    total, finite_N = len(largest_N), largest_N.isfinite()
    dead_N = ~finite_N | (largest_N == 0)
    peak = float(largest_N[finite_N].max()) if bool(finite_N.any()) else 0.0
    if dead := int(dead_N.sum()):
        margins_N = _largest_gradients(trial.test_set, margin)
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
        yield _doubt(GRADIENTS, words)
    if tiny := int(((largest_N < TINY * peak) & ~dead_N).sum()):
        words = (
            f"The gradient of the cross-entropy of {tiny} of {total} utterances ({tiny / total:.0%}) is below "
            f"{TINY:g} of the largest: the model is very sure of them, so attack with a loss on logits (DLR, C&W) too."
        )
        yield _doubt(GRADIENTS, words, hint=True)


def twice_the_effort(trial: Trial, *, check: str, effort: Literal["steps", "restarts"]) -> Iterator[Doubt]:
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
    broken_S = _logits_of(left, _features_under(left, harder)).argmax(1) != left.labels_N
    if uars := trial.fall(broken_S):
        more, total = int(broken_S.sum()), len(trial.test_set)
        words = (
            f"{2 * used} {effort} of {attack.name} in place of {used} take UAR from {uars[0]:.3f} to {uars[1]:.3f} "
            f"{_at_budget(attack)} ({more} more of {total} utterances broken, of which one is worth about "
            f"{1 / total:.3f}): the attack has not converged, so double until UAR moves by less than half a point."
        )
        yield _doubt(check, words, attack, hint=more <= 1)


def nothing_weaker_breaks_more(trial: Trial) -> Iterator[Doubt]:
    """What the attack left, a single step and random signs of the same size must leave too, utterance by utterance."""
    attack = trial.attack
    if attack.entry.norm != "inf":
        raise NotChecked(f"{attack.name}, the strongest iterated attack, keeps to another norm")
    if not len(left := trial.left):
        return
    stepped_S = _broken_by_a_step(left, attack.settings)
    moved_S = torch.zeros_like(stepped_S)
    for draw in range(NOISE_DRAWS):
        moved_S |= _broken_by_a_step(left, attack.settings, draw=draw)
    if uars := trial.fall(stepped_S | moved_S):
        words = (
            f"Of {len(left)} utterances that {attack.name} {_at_budget(attack)} left, a single step of FGSM breaks "
            f"{int(stepped_S.sum())} and {NOISE_DRAWS} draws of random signs break {int(moved_S.sum())} (UAR "
            f"{uars[0]:.3f}, then {uars[1]:.3f}): an attack that knows less does more, so gradients are masked or its "
            "steps do not suit the model."
        )
        yield _doubt(LEFT, words, attack, hint=int((stepped_S | moved_S).sum()) == 1)


def saved_give_the_same(trial: Trial) -> Iterator[Doubt]:
    """Adversarial utterances that were written as to a file and read again, in other batches, must be answered alike.
    Predictions count as different where they are no near tie, which rounding may turn.
    """
    content = save({"features_NFL": trial.adversarial_NFL.contiguous().cpu()})
    read_NFL = load(content)["features_NFL"].to(trial.adversarial_NFL.device)
    reversed_NC = _logits_of(trial.test_set, read_NFL.flip(0), batch_size=OTHER_BATCH).flip(0)
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
        yield _doubt(SAVED, words, trial.attack)


PROBES: Mapping[str, Callable[[Trial], Iterator[Doubt]]] = MappingProxyType(
    {
        SAME_ANSWER: answers_alike,
        NOTHING_MOVES: nothing_moves,
        GRADIENTS: gradients_arrive,
        STEPS: partial(twice_the_effort, check=STEPS, effort="steps"),
        RESTARTS: partial(twice_the_effort, check=RESTARTS, effort="restarts"),
        LEFT: nothing_weaker_breaks_more,
        CHANCE: reaches_chance,
        SAVED: saved_give_the_same,
    }
)


def strongest(attacks: Sequence[Attack], records: Sequence[AttackRecord] = ()) -> Attack | None:
    """The iterated attack by gradients that harmed the bare model most, at the budget that most of them ran at. Ties go
    to the one with more steps and starts. Minimal-norm attacks are left out: they stop where they succeed.
    """
    iterated = [
        attack
        for attack in attacks
        if attack.entry.knowledge == "undefended"
        and (attack.settings.steps or 0) > 1
        and attack.settings.epsilon > 0
        and not attack.settings.masked
        and "steps" in attack.entry.settable
        and not attack.entry.minimal
    ]
    if not iterated:
        return None
    ((usual, _),) = Counter(attack.settings.strength for attack in iterated).most_common(1)
    uars = {
        (record.attack, record.epsilon, record.snr_db): record.robust_uar
        for record in records
        if record.defence == NO_DEFENCE
    }

    def harm(attack: Attack) -> tuple[float, int]:
        settings = attack.settings
        epsilon = settings.epsilon if settings.snr_db is None else None
        uar = uars.get((attack.name, epsilon, settings.snr_db), 1.0)
        return uar, -(settings.steps or 1) * max(settings.restarts or 1, 1)

    return min((attack for attack in iterated if attack.settings.strength == usual), key=harm)


def _at_epsilon(attack: Attack, epsilon: float) -> Attack:
    """The same attack with another budget, an epsilon, and steps that keep their share of it."""
    settings = attack.settings
    step_size = None if settings.step_size is None else settings.step_size * epsilon / settings.epsilon
    return replace(attack, settings=replace(settings, epsilon=epsilon, snr_db=None, step_size=step_size))


def _logits_of(test_set: TestSet, features_NFL: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Logits of the bare classifier, shape (N, C), in batches of the test set's size or another."""
    with torch.no_grad():
        batches = torch.split(features_NFL, batch_size or test_set.batch_size)
        return torch.cat([test_set.model(batch) for batch in batches])


def _features_under(test_set: TestSet, attack: Attack) -> Tensor:
    """What an attack on the bare model shows it of all utterances, shape (N, F, L); nothing is kept."""
    adversarial_NFL = torch.empty_like(test_set.features_NFL)
    for rows, problem in _batches(test_set, attack.settings, whole=attack.entry.whole_set):
        with torch.no_grad():
            adversarial_NFL[rows] = problem.features(attack.craft(problem))
    return adversarial_NFL


def _largest_gradients(test_set: TestSet, loss: Loss) -> Tensor:
    """Largest absolute gradient of each utterance's own loss by any value that is moved, shape (N,); NaN where one is.
    At the clean utterance: features, or the samples of its recording.
    """
    largest_N = torch.empty(len(test_set), device=test_set.labels_N.device)
    for rows, problem in _batches(test_set, AttackSettings(name="gradient", epsilon=0.0)):
        with attacked(test_set.model):
            gradient = problem.answer(problem.clean, problem.labels_B, loss).gradient
        largest_N[rows] = gradient.flatten(1).abs().amax(1)
    return largest_N


def _broken_by_a_step(test_set: TestSet, settings: AttackSettings, *, draw: int | None = None) -> Tensor:
    """Which utterances a single step over the whole budget breaks, shape (N,). It goes along the ``draw``-th random
    signs, by a stream of each utterance; None for the gradient of the cross-entropy, which leads nowhere where there is
    none.
    """
    broken_N = torch.empty(len(test_set), dtype=torch.bool, device=test_set.labels_N.device)
    for rows, problem in _batches(test_set, settings):
        clean, own = problem.clean, None if problem.to_features is None else problem.to_features.own
        with attacked(test_set.model):
            ball = problem.ball
            if draw is None:
                along = problem.answer(clean, problem.labels_B, cross_entropy).gradient.nan_to_num(nan=0.0)
            else:
                streams = problem.streams("signs", draw)
                signs = torch.stack([torch.randint(2, clean.shape[1:], generator=stream) for stream in streams])
                along = send(2.0 * signs - 1, clean.device)
                along = along if own is None else own(clean + along) - clean
        moved = problem.box.clip(clean + per_utterance(ball.radius_B, along) * ball.steepest(along))
        with torch.no_grad():
            features = problem.features(moved if own is None else own(moved))
            broken_N[rows] = test_set.model(features).argmax(1) != problem.labels_B
    return broken_N


def _batches(
    test_set: TestSet, settings: AttackSettings, *, whole: bool = False
) -> Iterator[tuple[list[int], Problem]]:
    """All utterances as what is moved, a batch at a time."""
    size = max(len(test_set), 1) if whole else test_set.batch_size
    for first in range(0, len(test_set), size):
        batch = test_set.take(range(first, min(first + size, len(test_set))))
        with torch.inference_mode(False):  # tensors made there cannot take part in a gradient; their clones can
            batch = replace(batch, features_NFL=batch.features_NFL.clone(), labels_N=batch.labels_N.clone())
        for taken, problem in test_set.domain.problems(batch.problem(settings)):
            yield [first + row for row in taken], problem


def _at_budget(attack: Attack) -> str:
    settings = attack.settings
    return f"at epsilon {settings.epsilon:.4g}" if settings.snr_db is None else f"at {settings.budget}"


def _doubt(check: str, words: str, attack: Attack | None = None, *, hint: bool = False) -> Doubt:
    about: dict[str, Any] = {"severity": "hint" if hint else "fails", "defence": NO_DEFENCE}
    if attack is not None:
        epsilon = attack.settings.epsilon
        about |= {"attack": attack.name, "epsilon": epsilon if isfinite(epsilon) else None}
    return Doubt(check=check, words=words, **about)
