"""The fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827), L2 and L-infinity, on tensors.

It asks of every utterance how small a perturbation is enough, rather than whether one epsilon is. An iteration is one
forward and one backward pass.

Legend: B utterances, N those that are attacked; whatever follows is what is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ser_fl.attacks.minimum_norm import Aim, Nearest, dual_size, size
from ser_fl.attacks.problem import Problem
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Ball, Box, Norm, per_utterance

STEP, LAST_STEP = 0.5, 0.01
"""First and last size of a step, as shares of the radius."""
SHRINK, LAST_SHRINK = 0.1, 1e-3
"""By what share the radius falls and grows, at first and at last."""
OVERSHOOT = 0.02
"""By what share the radius exceeds the linear estimate, which on a linear model ends on the boundary, not beyond it."""


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
    """The nearest adversarial inputs, by steps up the margin within a ball whose radius closes in on the boundary;
    inside `ser_fl.attacks.training_attacks.attacked`.

    The radius is where a linear model would have its boundary until something was found; from then on it shrinks
    where the input is adversarial and grows where it is not (algorithm 1 of the paper). Where we depart from it: a step
    is a share of the radius, not an absolute length, and for L-infinity goes along the signs of the gradient, so that
    no setting has to fit the data; and what was found is drawn in along the segment to the clean input at the end.
    On our CRNN 30 iterations end within a hundredth of where 500 do.

    Args:
        target: what is attacked.
        clean: shape (B, ...), inside the box.
        labels_B: true classes; target classes where targeted.
        norm: the norm that is made small.
        box: the values that inputs may take; None for any.
        steps: iterations, >= 1.
        targeted: towards the labels rather than away from them.

    Returns:
        Shape (B, ...): misclassified and inside the box, or clean where nothing was found and where the label is
        missed (hit, if targeted) to begin with.
    """
    box = Box.unbounded() if box is None else box
    rows_N, aim = Aim(target=target, labels_B=labels_B, box=box, targeted=targeted).set_out(clean, norm)
    start = moved = clean[rows_N]
    nearest, every_N = Nearest.none_yet(start, norm), torch.arange(len(rows_N), device=clean.device)
    radius_N = clean.new_full((len(rows_N),), torch.inf)
    for iteration in range(steps if len(rows_N) else 0):
        lead_N, gradient, reached_N = aim.ask(moved, iteration)
        distance_N = size(moved - start, norm)
        nearest.offer(every_N, moved, distance_N, reached_N)
        best_N = nearest.distance_B
        fading = (1 + math.cos(math.pi * iteration / steps)) / 2
        step = LAST_STEP + (STEP - LAST_STEP) * fading
        shrink = LAST_SHRINK + (SHRINK - LAST_SHRINK) * fading
        linear_N = (1 + OVERSHOOT) * (distance_N + lead_N.abs() / dual_size(gradient, norm))
        outward_N = torch.where(best_N.isfinite(), (1 + shrink) * radius_N, linear_N)
        radius_N = torch.where(reached_N, (1 - shrink) * torch.minimum(radius_N, best_N), outward_N)
        ball = Ball(start, radius_N, norm)
        moved = box.clip(ball.project(moved + per_utterance(step * radius_N, moved) * ball.steepest(gradient)))
    return clean.index_copy(0, rows_N, nearest.draw_in(aim, steps))


def craft_fmn(problem: Problem) -> Tensor:
    """FMN in L-infinity: the smallest epsilon of each utterance."""
    return _craft(problem, "inf")


def craft_fmn_l2(problem: Problem) -> Tensor:
    """FMN in L2."""
    return _craft(problem, "2")


def _craft(problem: Problem, norm: Norm) -> Tensor:
    return fast_minimum_norm(
        problem.target, problem.clean, problem.labels_B, norm=norm, box=problem.box, steps=problem.steps
    )
