"""What probes ask of a model: the utterances that are tried, the strongest attack on them, and small experiments.

Legend: N utterances of the subset, S of them still recognised, B batch, F mel bins, L frames, C classes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ser_fl.attacks.attack import Attack, AttackSettings, Problem
from ser_fl.attacks.losses import Loss, cross_entropy
from ser_fl.attacks.target import attacked
from ser_fl.attacks.threat_model import per_utterance
from ser_fl.devices import send
from ser_fl.metrics import uar_of
from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, ROUNDING, NotChecked
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import NO_DEFENCE, AttackRecord


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
        return logits_of(self.test_set, self.test_set.features_NFL)

    @cached_property
    def adversarial_NFL(self) -> Tensor:
        return features_under(self.test_set, self.attack)

    @cached_property
    def logits_NC(self) -> Tensor:
        """Under the attack."""
        return logits_of(self.test_set, self.adversarial_NFL)

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


def logits_of(test_set: TestSet, features_NFL: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Logits of the bare classifier, shape (N, C), in batches of the test set's size or another."""
    with torch.no_grad():
        batches = torch.split(features_NFL, batch_size or test_set.batch_size)
        return torch.cat([test_set.model(batch) for batch in batches])


def features_under(test_set: TestSet, attack: Attack) -> Tensor:
    """What an attack on the bare model shows it of all utterances, shape (N, F, L); nothing is kept."""
    adversarial_NFL = torch.empty_like(test_set.features_NFL)
    for rows, problem in _batches(test_set, attack.settings, whole=attack.entry.whole_set):
        with torch.no_grad():
            adversarial_NFL[rows] = problem.features(attack.craft(problem))
    return adversarial_NFL


def largest_gradients(test_set: TestSet, loss: Loss) -> Tensor:
    """Largest absolute gradient of each utterance's own loss by any value that is moved, shape (N,); NaN where one is.
    At the clean utterance: features, or the samples of its recording.
    """
    largest_N = torch.empty(len(test_set), device=test_set.labels_N.device)
    for rows, problem in _batches(test_set, AttackSettings(name="gradient", epsilon=0.0)):
        with attacked(test_set.model):
            gradient = problem.answer(problem.clean, problem.labels_B, loss).gradient
        largest_N[rows] = gradient.flatten(1).abs().amax(1)
    return largest_N


def broken_by_a_step(test_set: TestSet, settings: AttackSettings, *, draw: int | None = None) -> Tensor:
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
