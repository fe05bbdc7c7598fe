"""Poisoned enrolment: the clips by which an unseen speaker is scaled are input as well, and may be perturbed.

One perturbation of the K clips moves the speaker's mean and deviation (`normalisation=speaker`), and with them every
utterance of that speaker that is ever scored: an untargeted attack on one speaker's whole service. The statistics are
differentiable by the clips, so that projected gradient ascent goes through them.

Legend: K clips that enrol a speaker, M utterances of the speaker that are scored, B of a batch, F bins, L frames, C
classes; "..." is whatever is moved, bins and frames or samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.pgd import TOTAL_RADII
from ser_fl.attacks.target import Passes, ToFeatures, attacked
from ser_fl.attacks.threat_model import Ball, Box, Rows, per_utterance
from ser_fl.data.normalisation import Scale
from ser_fl.devices import CPU
from ser_fl.randomness import generator


@dataclass(frozen=True, slots=True, eq=False)
class ScaledFeatures(Rows):
    """From features that are moved in units of the clean enrolment to what a classifier is shown: the `ToFeatures` of a
    `Target`. What is not moved keeps its bits, whatever the standardised features were clipped to.
    """

    clean: Tensor
    """Standardised by the clean enrolment, shape (B, F, L)."""
    raw_BFL: Tensor
    """The same as the front end gives them."""
    unit_BF1: Tensor
    """Deviation of each speaker's clean enrolment."""
    standardisation: nn.Module
    mean_BF1: Tensor | None = None
    """By which they are scaled now, and the deviation; None for features as the front end gives them."""
    deviation_BF1: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        features_BFL = self.raw_BFL + (inputs - self.clean) * self.unit_BF1
        if self.mean_BF1 is not None and self.deviation_BF1 is not None:
            features_BFL = (features_BFL - self.mean_BF1) / self.deviation_BF1
        standardised_BFL: Tensor = self.standardisation(features_BFL)
        return standardised_BFL

    def ball(self, epsilon: float, snr_db: float | None, masked: bool) -> Ball:
        return Ball(self.clean, self.clean.new_full((len(self.clean),), epsilon), "inf")

    def own(self, inputs: Tensor) -> Tensor:
        return inputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnrolmentClips:
    """Clips that enrol a speaker, as what is moved: features of all, or recordings of one sampling rate."""

    ids: tuple[str, ...]
    places: tuple[int, ...]
    """Among the K clips of the speaker."""
    clean: Tensor
    """Shape (K, ...)."""
    box: Box
    to_features: ToFeatures
    """To features as the front end gives them, not scaled; derived from `Rows`."""
    near: Scale | None = None
    """As `Scale.enrolled` takes it."""

    def kept(self, inputs: Tensor) -> Tensor:
        """What was moved, inside the box, and where it may be; detached."""
        return self.to_features.own(self.box.clip(inputs)).detach()

    def streams(self, seed: int, start: int) -> Iterator[Generator]:
        """A stream of random numbers for every clip."""
        return (generator("enrolment_attack", seed, key, start) for key in self.ids)


Moved = Sequence[Tensor]
"""Of each of some `EnrolmentClips`."""


def scale_by(enrolment: Sequence[EnrolmentClips], moved: Moved | None = None) -> Scale:
    """The speaker's scale by these clips, clean where they are not moved: in the order of the K clips, one by one and
    on the CPU, so that what did not move has the bits that it had.
    """
    found: dict[int, Tensor] = {}
    for clips, inputs in zip(enrolment, moved or [clips.clean for clips in enrolment], strict=True):
        assert isinstance(clips.to_features, Rows)
        for row, place in enumerate(clips.places):
            one = torch.tensor([row], device=inputs.device)
            with torch.no_grad():
                found[place] = clips.to_features.subset(one)(inputs[one]).to(CPU)
    return Scale.enrolled(torch.cat([found[place] for place in sorted(found)]), enrolment[0].near)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """One speaker, as a system serves them: the scored utterances, and the classifier, which sees them as scaled."""

    network: nn.Module
    standardisation: nn.Module
    raw_MFL: Tensor
    """Scored utterances, as the front end gives them."""
    labels_M: Tensor
    batch_size: int
    seed: int
    passes: Passes

    def answer(self, scale: Scale, most: float | None = None) -> tuple[int, float, list[Tensor]]:
        """How many utterances are recognised, their mean loss, and the gradient of the mean of losses that count up to
        ``most`` each by both columns of the scale; none without ``most``.
        """
        columns = [column.detach().requires_grad_(most is not None) for column in (scale.mean, scale.deviation)]
        right, loss, gradients = 0, 0.0, [torch.zeros_like(column) for column in columns]
        batches = (torch.split(of, self.batch_size) for of in (self.raw_MFL, self.labels_M))
        for raw_BFL, labels_B in zip(*batches, strict=True):
            logits_BC = self.network(self.standardisation(Scale(*columns)(raw_BFL)))
            losses_B = cross_entropy(logits_BC, labels_B)
            self.passes.forward += len(labels_B)
            if most is not None:
                found = torch.autograd.grad(losses_B.clamp(max=most).sum() / len(self.labels_M), columns)
                gradients = [gradient + more for gradient, more in zip(gradients, found, strict=True)]
                self.passes.backward += len(labels_B)
            right += int((logits_BC.argmax(1) == labels_B).sum())
            loss += float(losses_B.detach().double().sum()) / len(self.labels_M)
        return right, loss, gradients


def poison(service: Service, enrolment: Sequence[EnrolmentClips], attack: Attack, num_classes: int) -> list[Tensor]:
    """The clips, each moved within its own budget and box, so that the fewest of the speaker's scored utterances are
    recognised, then with the largest mean loss: the best of all iterates, the clean clips among them.

    Projected gradient ascent of the mean cross-entropy over the M utterances, of known classes, through the mean and
    deviation of the K clips, which all move in a step. The first start is the clean clips. Others are random, and there
    no utterance's loss counts beyond log C, where it is wrong for sure (Shafahi et al., arXiv 1811.11304).
    """
    settings = attack.settings
    balls = [clips.to_features.ball(settings.epsilon, settings.snr_db, settings.masked) for clips in enrolment]
    steps, best, fewest = settings.steps or 0, [clips.clean for clips in enrolment], (math.inf, math.inf)
    strides = [
        TOTAL_RADII * ball.radius_B / max(steps, 1)
        if settings.step_size is None
        else torch.full_like(ball.radius_B, settings.step_size)
        for ball in balls
    ]
    with attacked(service.network):
        for start in range(max(settings.restarts or 0, 1)):
            moved, most = [clips.clean for clips in enrolment], math.inf
            if start:
                keyed = (clips.streams(service.seed, start) for clips in enrolment)
                moved, most = (
                    [ball.random(streams) for ball, streams in zip(balls, keyed, strict=True)],
                    math.log(num_classes),
                )
            for step in range(steps + 1):
                moved = [clips.kept(inputs).requires_grad_() for clips, inputs in zip(enrolment, moved, strict=True)]
                features = [clips.to_features(inputs) for clips, inputs in zip(enrolment, moved, strict=True)]
                found = Scale.enrolled(torch.cat(features), enrolment[0].near)
                right, loss, raised = service.answer(found, most if step < steps else None)
                if (right, -loss) < fewest:
                    best, fewest = [inputs.detach() for inputs in moved], (right, -loss)
                if step == steps:
                    break
                gradients = torch.autograd.grad((found.mean, found.deviation), moved, raised)
                moved = [
                    ball.project(inputs.detach() + ball.steepest(gradient) * per_utterance(stride_B, gradient))
                    for ball, inputs, gradient, stride_B in zip(balls, moved, gradients, strides, strict=True)
                ]
    return best
