"""Attacks that look for the nearest adversarial input: what they share, and the fast minimum-norm attack.

They look for it however far it is; `threat_model.keep_within` then decides whether that is near enough. They return
what is misclassified inside the box, or else the clean utterance. Against a randomised defence misclassified means in
most draws: for how much a defence withstands take attacks that fill their budget, such as AutoPGD. Carlini and Wagner's
two are in `carlini_wagner`.

Legend: B utterances, C classes, N some of the utterances; whatever follows is what is moved: bins and frames, samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import margin
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import NORMS, Ball, Box, Norm, Rows, either, per_utterance

CLASSES = 8
"""How many wrong classes are looked at for the nearest boundary, the most likely ones first."""
CLEAR = 1e-4
"""By what share of the clean lead of the true class another must lead to count."""
ROUNDING = 1e-6
"""The least such lead, as a share of the largest logit: ten roundings to float32."""
SEGMENT_STEPS = 5
"""Bisections of the last way from the clean input: one forward pass each, to a thirty-second of its length."""
STEP, LAST_STEP = 0.5, 0.01
"""First and last size of a step of FMN, as shares of the radius."""
SHRINK, LAST_SHRINK = 0.1, 1e-3
"""By what share its radius falls and grows, at first and at last."""
OVERSHOOT = 0.02
"""By what share its radius exceeds the linear estimate, which on a linear model ends on the boundary, not beyond it."""


def rise_of(gradient: Tensor, norm: Norm) -> Tensor:
    """How fast a loss of this gradient rises along its steepest perturbation of norm 1, shape (B,); never 0."""
    return NORMS[norm].dual_size(gradient).clamp(min=1e-12)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aim(Rows):
    """A model, and what it is to say of each utterance: any class but its label, or (`targeted`) its label."""

    target: Target
    labels_B: Tensor
    """True classes, or target ones."""
    box: Box
    targeted: bool = False
    towards_B: Tensor | None = None
    """The wrong classes that are headed for, though any other will do; None for the best one at every point."""
    clear_B: Tensor | None = None
    """The lead that an adversarial input must exceed; None for 0."""

    def ask(self, moved: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """How far each utterance has come, by one forward and one backward pass: the lead in logits of what is headed
        for, shape (B,); its gradient, shape (B, ...), 0 for values at the edge of the box that it would push out; and
        where the aim is reached, shape (B,). A randomised model must be wrong (right, if targeted) in over half of its
        draws, by weight.
        """
        answer = self.target.answer(moved, self.labels_B, self._lead, step=step)
        reached_B = self._reached(self._margin(answer.logits_BC, self.labels_B), answer.right_B)
        return answer.loss_B, self._movable(answer.gradient, moved), reached_B

    def reached(self, moved: Tensor, step: int) -> Tensor:
        """Where the aim is reached, shape (B,), by one forward pass."""
        return self._reached(*self.target.score(moved, self.labels_B, self._margin, step=step))

    def set_out(self, clean: Tensor, norm: Norm) -> tuple[Tensor, Self]:
        """The utterances whose aim is not reached to begin with, shape (N,), and theirs, with a class to head for.

        The class is the one whose boundary would be nearest if the model were linear, as in DeepFool (Moosavi-Dezfooli
        et al. 2016, arXiv 1511.04599, equation 8). The wrong class of the largest logit is often another one: following
        it made perturbations up to 1.4 times as large on our CRNN. It costs a forward and a backward pass for each of
        the `CLASSES` most likely ones. From then on an input counts as adversarial only by a lead of `CLEAR` of what
        the clean one lacked, and more than `ROUNDING`: on the boundary itself a prediction depends on who else is in
        the batch.
        """
        answer = self.target.answer(clean, self.labels_B, self._lead)
        reached_B = self._reached(self._margin(answer.logits_BC, self.labels_B), answer.right_B)
        rows_N = (~reached_B).nonzero().flatten()
        clear_B = torch.maximum(CLEAR * answer.loss_B.abs(), ROUNDING * answer.logits_BC.abs().amax(dim=1))
        part, clean = replace(self, clear_B=clear_B).subset(rows_N), clean[rows_N]
        if self.targeted or not len(rows_N):
            return rows_N, part
        logits_NC = answer.logits_BC[rows_N].scatter(1, part.labels_B[:, None], -torch.inf)
        order_NC = logits_NC.argsort(dim=1, descending=True, stable=True)[:, : min(CLASSES, logits_NC.shape[1] - 1)]
        nearest_N = -answer.loss_B[rows_N] / rise_of(self._movable(answer.gradient[rows_N], clean), norm)
        towards_N = order_NC[:, 0]
        for rank in range(1, order_NC.shape[1]):
            lead_N, gradient, _ = replace(part, towards_B=order_NC[:, rank]).ask(clean, 0)
            distance_N = -lead_N / rise_of(gradient, norm)
            towards_N = torch.where(distance_N < nearest_N, order_NC[:, rank], towards_N)
            nearest_N = torch.minimum(distance_N, nearest_N)
        return rows_N, replace(part, towards_B=towards_N)

    def _margin(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return margin(logits_BC, labels_B) * (-1 if self.targeted else 1)

    def _lead(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        if self.towards_B is None:
            return self._margin(logits_BC, labels_B)
        ahead_B, true_B = (logits_BC.gather(1, which_B[:, None])[:, 0] for which_B in (self.towards_B, labels_B))
        return ahead_B - true_B

    def _movable(self, gradient: Tensor, moved: Tensor) -> Tensor:
        if self.box.lower_F1 is None:
            return gradient
        return gradient * (self.box.clip(moved + gradient.sign()) != moved)

    def _reached(self, margin_B: Tensor, right_B: Tensor) -> Tensor:
        if self.target.expectation is None:
            return margin_B > (0 if self.clear_B is None else self.clear_B)
        return right_B > 0.5 if self.targeted else right_B < 0.5


@dataclass(slots=True, eq=False)
class Nearest:
    clean: Tensor
    norm: Norm
    inputs: Tensor
    """Shape (B, ...); the clean one where none was found."""
    distance_B: Tensor
    """Infinite where none was found."""

    @classmethod
    def none_yet(cls, clean: Tensor, norm: Norm) -> Self:
        return cls(clean, norm, clean.clone(), clean.new_full((len(clean),), torch.inf))

    def offer(self, rows_N: Tensor, moved: Tensor, distance_N: Tensor, reached_N: Tensor) -> None:
        """Keep what is adversarial and nearer than what was kept of these utterances."""
        nearer_N = reached_N & (distance_N < self.distance_B[rows_N])
        kept = self.inputs[rows_N], self.distance_B[rows_N]
        self.inputs[rows_N], self.distance_B[rows_N] = either(nearer_N, (moved, distance_N), kept)

    def draw_in(self, aim: Aim, step: int) -> Tensor:
        """What was found, moved towards the clean input while it stays adversarial, by `SEGMENT_STEPS` forward passes.
        Box and ball are convex, so that the way lies in both.
        """
        rows_N = (self.distance_B.isfinite() & (self.distance_B > 0)).nonzero().flatten()
        if not len(rows_N):
            return self.inputs
        part, clean, step_out = aim.subset(rows_N), self.clean[rows_N], self.inputs[rows_N] - self.clean[rows_N]
        near_N = torch.zeros_like(self.distance_B[rows_N])
        far_N, found = torch.ones_like(near_N), self.inputs[rows_N]
        for _ in range(SEGMENT_STEPS):
            middle_N = (near_N + far_N) / 2
            moved = aim.box.clip(clean + per_utterance(middle_N, clean) * step_out)
            reached_N = part.reached(moved, step)
            found = torch.where(per_utterance(reached_N, moved), moved, found)
            near_N, far_N = torch.where(reached_N, near_N, middle_N), torch.where(reached_N, middle_N, far_N)
        self.inputs[rows_N], self.distance_B[rows_N] = found, far_N * self.distance_B[rows_N]
        return self.inputs


def fast_minimum_norm(
    target: Target,
    clean: Tensor,
    labels_B: Tensor,
    *,
    norm: Norm,
    box: Box | None = None,
    steps: int = 30,
    targeted: bool = False,
) -> Tensor:
    """The fast minimum-norm attack (FMN; Pintor et al. 2021, arXiv 2102.12827): the nearest adversarial inputs, by
    steps up the margin within a ball whose radius closes in on the boundary; inside `target.attacked`.

    An iteration is one forward and one backward pass. The radius is where a linear model would have its boundary until
    something was found; then it shrinks where the input is adversarial and grows where it is not (algorithm 1 of the
    paper). Where we depart from it: a step is a share of the radius, not an absolute length, and for L-infinity goes
    along the signs of the gradient, so that no setting has to fit the data; and what was found is drawn in along the
    segment to the clean input at the end. On our CRNN 30 iterations end within a hundredth of where 500 do.

    Args:
        target: what is attacked.
        clean: shape (B, ...), inside the box.
        labels_B: true classes; target classes where targeted.
        norm: the norm that is made small.
        box: the values that inputs may take; None for any.
        steps: iterations, >= 1.
        targeted: towards the labels rather than away from them.

    Returns:
        Shape (B, ...): misclassified and inside the box, or clean where nothing was found and where the label is missed
            (hit, if targeted) to begin with.
    """
    box = box or Box.unbounded()
    rows_N, aim = Aim(target=target, labels_B=labels_B, box=box, targeted=targeted).set_out(clean, norm)
    start = moved = clean[rows_N]
    nearest, every_N = Nearest.none_yet(start, norm), torch.arange(len(rows_N), device=clean.device)
    radius_N = clean.new_full((len(rows_N),), torch.inf)
    for iteration in range(steps if len(rows_N) else 0):
        lead_N, gradient, reached_N = aim.ask(moved, iteration)
        distance_N = NORMS[norm].size(moved - start)
        nearest.offer(every_N, moved, distance_N, reached_N)
        best_N = nearest.distance_B
        fading = (1 + math.cos(math.pi * iteration / steps)) / 2
        step = LAST_STEP + (STEP - LAST_STEP) * fading
        shrink = LAST_SHRINK + (SHRINK - LAST_SHRINK) * fading
        linear_N = (1 + OVERSHOOT) * (distance_N + lead_N.abs() / rise_of(gradient, norm))
        outward_N = torch.where(best_N.isfinite(), (1 + shrink) * radius_N, linear_N)
        radius_N = torch.where(reached_N, (1 - shrink) * torch.minimum(radius_N, best_N), outward_N)
        ball = Ball(start, radius_N, norm)
        moved = box.clip(ball.project(moved + per_utterance(step * radius_N, moved) * ball.steepest(gradient)))
    return clean.index_copy(0, rows_N, nearest.draw_in(aim, steps))


def nearest_by(search: Callable[..., Tensor], **how: Any) -> Callable[[Problem], Tensor]:
    """A search of this kind as an attack of the registry."""
    return lambda problem: search(problem, problem.clean, problem.labels_B, box=problem.box, steps=problem.steps, **how)


craft_fmn = nearest_by(fast_minimum_norm, norm="inf")
"""The smallest epsilon of each utterance."""
craft_fmn_l2 = nearest_by(fast_minimum_norm, norm="2")
