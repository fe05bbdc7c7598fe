"""FGSM, BIM and PGD: projected gradient ascent of a loss on a target, for any inputs, any norm, and in expectation.

In L-infinity and without an expectation it equals ART's FastGradientMethod, BasicIterativeMethod and
ProjectedGradientDescentPyTorch, and `ser_fl.attacks.training_attacks`, to the last bit, given the same start and batch.

Legend: B utterances, R restarts; whatever follows B is what is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import Loss, cross_entropy
from ser_fl.attacks.target import Target, best_of_starts
from ser_fl.attacks.threat_model import Ball, Box, per_utterance

TOTAL_RADII = 4.0
"""Length of all steps together, in radii, where no step size is set. A random start in an L2 ball of so many dimensions
lies at a right angle to the way up, and the usual 2.5 end 9 degrees short of it."""


def craft_fgsm(problem: Problem) -> Tensor:
    """One step of the budget from the clean input."""
    ball, box = problem.ball, problem.box
    return descend(problem.target, ball, problem.labels_B, steps=1, step_size=ball.radius_B, starts=None, box=box)


def craft_bim(problem: Problem) -> Tensor:
    """Steps from the clean input, or from where a smaller budget led to."""
    return _iterate(problem, problem.ball, problem.start_BFL)


def craft_pgd(problem: Problem) -> Tensor:
    """Steps from each random start, until one succeeds.

    Only utterances that no start has broken are started again. ART's own restarts judge success by a changed
    prediction, and so may exchange a wrong prediction for the right one; here success is a wrong class. Where every
    start fails, the utterance with the largest loss is kept. With 0 restarts it starts once, at the clean utterance.
    Where a smaller budget led to takes the place of the first start.
    """
    ball = problem.ball
    return _iterate(problem, ball, torch.stack(problem.starts(ball)))


def _iterate(problem: Problem, ball: Ball, starts: Tensor | None) -> Tensor:
    step_size = problem.settings.step_size
    return descend(
        problem.target,
        ball,
        problem.labels_B,
        steps=problem.steps,
        step_size=TOTAL_RADII * ball.radius_B / problem.steps if step_size is None else step_size,
        starts=starts,
        box=problem.box,
        incumbent=problem.start_BFL,
    )


def descend(
    target: Target,
    ball: Ball,
    labels_B: Tensor,
    *,
    steps: int,
    step_size: float | Tensor,
    starts: Tensor | None,
    box: Box,
    loss: Loss = cross_entropy,
    incumbent: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083), to be used inside `surroundings.attacked`.

    Sign steps in an L-infinity ball, normalised steps in an L2 ball; each is clipped to the box, then brought back to
    the ball. Of several restarts an utterance keeps the one in which it is least often recognised, under draws of the
    defence that are common to all, and among equals the one of the largest loss. An utterance that is not recognised in
    any of these draws is not started again.

    Args:
        target: what is questioned; one forward and backward pass an utterance, step and draw, and with more than one
            candidate a forward pass for each to choose by.
        ball: the budget, around inputs that lie inside the box.
        labels_B: true classes.
        steps: of each restart, >= 0. Each draws anew from the defence's randomness.
        step_size: length of a step in the norm of the ball, or one an utterance, shape (B,).
        starts: inputs inside the ball, one an utterance, shape (B, ...), or one an utterance and restart, shape
            (R, B, ...); None for one start at the clean inputs.
        box: the values that inputs may take.
        loss: what is raised.
        incumbent: inputs inside ball and box, shape (B, ...), that stay where no restart does better; None for none.

    Returns:
        The last iterate of the best restart, shape (B, ...), detached; inside ball and box, both up to one rounding.
    """
    if starts is None:
        starts = ball.clean
    if starts.dim() == ball.clean.dim():
        starts = starts[None]
    stride_B = step_size if isinstance(step_size, Tensor) else ball.clean.new_full((len(labels_B),), step_size)

    def ascend(rows_N: Tensor | None, start: Tensor, restart: int) -> Tensor:
        """The order of its operations is ART's: step, clip to the box, project onto the ball."""
        part, around, labels_N, stride_N = target, ball, labels_B, stride_B
        if rows_N is not None:
            part, around = target.subset(rows_N), ball.subset(rows_N)
            labels_N, stride_N = labels_B[rows_N], stride_B[rows_N]
        stride, moved = per_utterance(stride_N, around.clean), box.clip(start.detach())
        for step in range(restart * steps, (restart + 1) * steps):
            gradient = part.answer(moved, labels_N, loss, step=step).gradient
            moved = around.project(box.clip(around.steepest(gradient).mul_(stride).add_(moved)))
        return moved

    held = None if incumbent is None else box.clip(incumbent.detach().clone())
    return best_of_starts(target, labels_B, starts, ascend, loss=loss, incumbent=held)
