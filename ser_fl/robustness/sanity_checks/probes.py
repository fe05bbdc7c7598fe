"""Doubts that show only when something is run: small experiments on some of the utterances of a benchmark.

They question the bare classifier, without a test-time defence: where its attacks do not work, no attack on a defended
one that builds on them does.

Legend: N utterances of the subset, S of them still recognised, B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.attack import Attack
from ser_fl.attacks.losses import Loss, cross_entropy, margin
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.target import Target
from ser_fl.attacks.training_attacks import attacked
from ser_fl.devices import exact_arithmetic, send
from ser_fl.metrics import confusion_matrix, scores
from ser_fl.randomness import generator
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, Doubt, NotChecked, Outcome, SanityReport, Severity
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord

NO_DEFENCE = "none"
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

OnCheck = Callable[[str, int, int], None]
"""Told "checks", how many are done, of how many."""


def probe(
    test_set: TestSet,
    attacks: Sequence[Attack],
    *,
    subset_size: int = SUBSET,
    records: Sequence[AttackRecord] = (),
    on_check: OnCheck = lambda name, done, total: None,
) -> SanityReport:
    """All checks that need the model.

    They take as long as the strongest attack does on the subset two or three times, and four times where the model
    withstands it.

    Args:
        test_set: classifier and utterances of the benchmark.
        attacks: those of the benchmark; the strongest iterated one (`strongest`) is looked into.
        subset_size: number of utterances, spread over the emotions and drawn by the test_set's own seed.
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


def strongest(attacks: Sequence[Attack], records: Sequence[AttackRecord] = ()) -> Attack | None:
    """The iterated attack by gradients that harmed the bare model most, at the budget that most of them ran at.

    Ties go to the one with more steps and starts. Minimal-norm attacks are left out: they stop where they succeed.
    """
    iterated = [
        attack
        for attack in attacks
        if attack.knowledge == "undefended"
        and (attack.settings.steps or 0) > 1
        and attack.settings.epsilon > 0
        and "steps" in attack.entry.settable
        and not attack.entry.minimal
    ]
    if not iterated:
        return None
    ((epsilon, _),) = Counter(attack.settings.epsilon for attack in iterated).most_common(1)
    uars = {(record.attack, record.epsilon): record.robust_uar for record in records if record.defence == NO_DEFENCE}

    def harm(attack: Attack) -> tuple[float, int]:
        settings = attack.settings
        uar = uars.get((settings.name, settings.epsilon), 1.0)
        return uar, -(settings.steps or 1) * max(settings.restarts or 1, 1)

    return min((attack for attack in iterated if attack.settings.epsilon == epsilon), key=harm)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The utterances that are tried, and what several probes need to know of them, found once."""

    test_set: TestSet
    """Of the subset alone."""
    attack: Attack | None
    """The strongest iterated one; None where there is none."""

    @cached_property
    def clean_logits_NC(self) -> Tensor:
        return logits_of(self.test_set, self.test_set.features_NFL)

    @cached_property
    def adversarial_NFL(self) -> Tensor:
        """What the attack made, or the clean features where there is none."""
        return self.test_set.features_NFL if self.attack is None else _craft(self.test_set, self.attack)

    @cached_property
    def logits_NC(self) -> Tensor:
        """Under the attack."""
        return logits_of(self.test_set, self.adversarial_NFL)

    @property
    def right_N(self) -> Tensor:
        """Which utterances the attack left recognised."""
        return self.logits_NC.argmax(1) == self.test_set.labels_N

    def uar(self, right_N: Tensor) -> float:
        """UAR where these are recognised; it needs recalls only, so that the rest may count as any other class."""
        labels_N = self.test_set.labels_N
        predicted_N = torch.where(right_N, labels_N, (labels_N + 1) % self.test_set.num_classes)
        matrix = confusion_matrix(labels_N.tolist(), predicted_N.tolist(), self.test_set.num_classes)
        return scores(matrix).uar


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
    idle_NFL = _craft(trial.test_set, _at_epsilon(trial.attack, 0.0))
    moved = int((idle_NFL != trial.test_set.features_NFL).flatten(1).any(1).sum())
    turned = int((logits_of(trial.test_set, idle_NFL).argmax(1) != trial.clean_logits_NC.argmax(1)).sum())
    if not moved and not turned:
        return []
    words = (
        f"{trial.attack.settings.name} at epsilon 0 moves {moved} of {len(idle_NFL)} utterances and turns {turned} "
        "predictions: clean and attacked utterances are not prepared alike, so clip the clean features to the box "
        "before anything is measured."
    )
    return [_doubt(NOTHING_MOVES, trial.attack, words, epsilon=0.0)]


def reaches_chance(trial: Trial) -> Outcome:
    """With a budget as wide as the box, any utterance can be made any other, so that UAR can be brought to chance."""
    if trial.attack is None:
        return _NO_ATTACK
    huge = _at_epsilon(trial.attack, _width(trial.test_set))
    made_NFL = _craft(trial.test_set, huge)
    uar = trial.uar(logits_of(trial.test_set, made_NFL).argmax(1) == trial.test_set.labels_N)
    chance = 1 / trial.test_set.num_classes
    if uar <= chance + _ROUNDING:
        return []
    words = (
        f"{huge.settings.name} at epsilon {huge.settings.epsilon:.3g}, where every utterance can be made any other, "
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
        return NotChecked(f"{trial.attack.settings.name}, the strongest iterated attack, has no restarts")
    starts = 2 * max(trial.attack.settings.restarts or 1, 1)
    return _harder(trial, trial.attack, replace(trial.attack.settings, restarts=starts), RESTARTS, f"{starts} restarts")


def gradients_arrive(trial: Trial) -> Outcome:
    """An utterance without a gradient cannot be attacked by one: zero or not finite fails, tiny ones hint."""
    largest_N = _largest(_gradients(trial.test_set, cross_entropy))
    total = len(largest_N)
    finite_N = largest_N.isfinite()
    dead_N = ~finite_N | (largest_N == 0)
    peak = float(largest_N[finite_N].max()) if bool(finite_N.any()) else 0.0
    tiny = int(((largest_N < TINY * peak) & ~dead_N).sum())
    doubts = []
    if dead := int(dead_N.sum()):
        margins_N = _largest(_gradients(trial.test_set, margin))
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
    if trial.attack.norm != "inf":
        return NotChecked(f"{trial.attack.settings.name}, the strongest iterated attack, keeps to another norm")
    rows_S = trial.right_N.nonzero().flatten()
    if not len(rows_S):
        return []
    left, epsilon = _rows(trial.test_set, rows_S), trial.attack.settings.epsilon
    step_NFL = epsilon * _gradients(left, cross_entropy).nan_to_num(nan=0.0).sign()
    stepped_S = logits_of(left, left.box.clip(left.features_NFL + step_NFL)).argmax(1) != left.labels_N
    moved_S = torch.zeros_like(stepped_S)
    for draw in range(NOISE_DRAWS):
        moved_S |= logits_of(left, _with_signs(left, epsilon, draw)).argmax(1) != left.labels_N
    right_N = trial.right_N.clone()
    right_N[rows_S] = ~(stepped_S | moved_S)
    before, after, more = trial.uar(trial.right_N), trial.uar(right_N), int((stepped_S | moved_S).sum())
    if before - after <= HALF_A_POINT + _ROUNDING:
        return []
    words = (
        f"Of {len(rows_S)} utterances that {trial.attack.settings.name} at epsilon {epsilon:.4g} left, a single step "
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
        f"{turned} of {len(read_NFL)} adversarial utterances of {trial.attack.settings.name} are answered otherwise "
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


def logits_of(test_set: TestSet, features_NFL: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Logits of the bare classifier, shape (N, C), in batches of the test_set's size or another."""
    with torch.no_grad():
        batches = torch.split(features_NFL, batch_size or test_set.batch_size)
        return torch.cat([test_set.model(batch) for batch in batches])


def _harder(trial: Trial, attack: Attack, settings: AttackSettings, check: str, words_of_change: str) -> Outcome:
    """Whether a stronger version of the attack breaks what the attack left.

    What it broke stays broken, as in a worst case, so that only the rest is attacked again.
    """
    right_N = trial.right_N.clone()
    before = trial.uar(right_N)
    rows_S = right_N.nonzero().flatten()
    if len(rows_S):
        left = _rows(trial.test_set, rows_S)
        still_S = logits_of(left, _craft(left, replace(attack, settings=settings))).argmax(1) == left.labels_N
        right_N[rows_S] = still_S
    after, more, total = trial.uar(right_N), len(rows_S) - int(right_N.sum()), len(right_N)
    if before - after <= HALF_A_POINT + _ROUNDING:
        return []
    words = (
        f"{words_of_change} of {settings.name} in place of {_effort(attack, check)} take UAR from {before:.3f} to "
        f"{after:.3f} at epsilon {settings.epsilon:.4g} ({more} more of {total} utterances broken, of which one is "
        f"worth about {1 / total:.3f}): the attack has not converged, so double until UAR moves by less than half a "
        "point."
    )
    return [_doubt(check, attack, words, severity="fails" if more > 1 else "hint")]


def _effort(attack: Attack, check: str) -> str:
    return str(attack.settings.steps if check == STEPS else max(attack.settings.restarts or 1, 1))


def _gradients(test_set: TestSet, loss: Loss) -> Tensor:
    """Gradient of each utterance's own loss at the clean features, shape (N, F, L)."""
    gradients = []
    with attacked(test_set.model):
        for start in range(0, len(test_set.ids), test_set.batch_size):
            batch = slice(start, start + test_set.batch_size)
            target = Target(network=test_set.model, keys_B=test_set.ids[batch], passes=Passes())
            # Tensors made under inference_mode cannot take part in a gradient; their clones can.
            features_BFL, labels_B = test_set.features_NFL[batch].clone(), test_set.labels_N[batch].clone()
            gradients.append(target.answer(features_BFL, labels_B, loss).gradient)
    return torch.cat(gradients)


def _largest(gradient_NFL: Tensor) -> Tensor:
    """Largest absolute cell of each utterance, shape (N,); NaN where a cell is NaN."""
    return gradient_NFL.flatten(1).abs().amax(1)


def _craft(test_set: TestSet, attack: Attack) -> Tensor:
    """Adversarial utterances of the bare model."""
    return attack.generate(
        test_set.model,
        test_set.features_NFL,
        test_set.labels_N,
        box=test_set.box,
        num_classes=test_set.num_classes,
        keys_B=test_set.ids,
        seed=test_set.seed,
        batch_size=test_set.batch_size,
    ).adversarial_BFL


def _with_signs(test_set: TestSet, epsilon: float, draw: int) -> Tensor:
    """Every cell moved by epsilon, up or down by a stream of each utterance, inside the box."""
    shape = test_set.features_NFL.shape[1:]
    streams = (generator("signs", test_set.seed, utterance_id, draw) for utterance_id in test_set.ids)
    signs_NFL = torch.stack([torch.randint(2, shape, generator=stream) for stream in streams])
    moves_NFL = send((2.0 * signs_NFL - 1) * epsilon, test_set.features_NFL.device)
    return test_set.box.clip(test_set.features_NFL + moves_NFL)


def _at_epsilon(attack: Attack, epsilon: float) -> Attack:
    """The same attack with another budget, and steps that keep their share of it."""
    settings = attack.settings
    step_size = None if settings.step_size is None else settings.step_size * epsilon / settings.epsilon
    return replace(attack, settings=replace(settings, epsilon=epsilon, step_size=step_size))


def _width(test_set: TestSet) -> float:
    """The box's widest side, or the range of the features where there is no box."""
    box = test_set.box
    if box.lower_F1 is None or box.upper_F1 is None:
        return float(test_set.features_NFL.max() - test_set.features_NFL.min())
    return float((box.upper_F1 - box.lower_F1).max())


def _rows(test_set: TestSet, rows_S: Tensor) -> TestSet:
    """The test_set of some of its utterances."""
    return replace(
        test_set,
        features_NFL=test_set.features_NFL[rows_S],
        labels_N=test_set.labels_N[rows_S],
        ids=tuple(test_set.ids[row] for row in rows_S.tolist()),
    )


def _doubt(
    check: str, attack: Attack, words: str, *, epsilon: float | None = None, severity: Severity = "fails"
) -> Doubt:
    return Doubt(
        check=check,
        words=words,
        severity=severity,
        defence=NO_DEFENCE,
        attack=attack.settings.name,
        epsilon=attack.settings.epsilon if epsilon is None else epsilon,
    )
