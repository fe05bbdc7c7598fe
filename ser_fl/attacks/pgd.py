"""FGSM, BIM and PGD: projected gradient ascent of a loss, for training on tensors and for the benchmark.

`descend` takes any inputs, any norm, and expectations. In L-infinity and without an expectation it equals ART's
FastGradientMethod, BasicIterativeMethod and ProjectedGradientDescentPyTorch to the last bit in float32, given the same
start and batch. `fgsm`, `bim` and `pgd` can be called inside a training step, under ``no_grad`` and under
``inference_mode``: no NumPy round trip, no hidden forward passes (a step is one forward and one backward), no gradient
of a parameter, no change of mode.

When to choose which: FGSM costs one gradient and is weak (and training on it alone may fail against iterated attacks);
BIM iterates it from the clean utterance; PGD iterates it from a random start and is the strongest.

Legend: B utterances, R restarts, F mel bins, L frames, C classes; "..." is what is moved: mel bins and frames, or
samples.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import Loss, cross_entropy
from ser_fl.attacks.target import Passes, Target, attacked, best_of_starts
from ser_fl.attacks.threat_model import Ball, Box, per_utterance
from ser_fl.devices import send
from ser_fl.errors import UserError

TOTAL_RADII = 4.0
"""Length of all steps together, in radii, where no step size is set. A random start in an L2 ball of so many dimensions
lies at a right angle to the way up, and the usual 2.5 end 9 degrees short of it."""


def craft_fgsm(problem: Problem) -> Tensor:
    """One step of the budget from the clean input."""
    ball, box = problem.ball, problem.box
    return descend(problem, ball, problem.labels_B, steps=1, step_size=ball.radius_B, starts=None, box=box)


def craft_pgd(problem: Problem) -> Tensor:
    """Steps from each random start, until one succeeds; without restarts, BIM.

    Only utterances that no start has broken are started again. ART's restarts judge success by a changed prediction,
    and so may exchange a wrong one for the right one; here success is a wrong class. Where every start fails, the
    largest loss is kept. With 0 restarts it starts once, at the clean utterance. Where a smaller budget led to takes
    the place of the first start.
    """
    ball, step_size = problem.ball, problem.settings.step_size
    return descend(
        problem,
        ball,
        problem.labels_B,
        steps=problem.steps,
        step_size=TOTAL_RADII * ball.radius_B / problem.steps if step_size is None else step_size,
        starts=torch.stack(problem.starts(ball)),
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
    """Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083), to be used inside `target.attacked`.

    Sign steps in an L-infinity ball, normalised steps in an L2 ball; each is clipped to the box, then brought back to
    the ball. Of several restarts an utterance keeps the one in which it is least often recognised, under draws of the
    defence common to all, then the one of the largest loss. One that is not recognised in any of these draws is not
    started again.

    Args:
        target: what is questioned; one forward and backward pass an utterance, step and draw, and with more than one
            candidate a forward pass for each to choose by.
        ball: the budget, around inputs that lie inside the box.
        labels_B: true classes.
        steps: of each restart, >= 0. Each draws anew from the defence's randomness.
        step_size: length of a step in the norm of the ball, or one an utterance, shape (B,).
        starts: inputs inside the ball, shape (B, ...), or one a restart, shape (R, B, ...); None for the clean inputs.
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

    def ascend(rows_N: Tensor | None, restart: int) -> Tensor:
        """The order of its operations is ART's: step, clip to the box, project onto the ball."""
        part, around, labels_N, stride_N, start = target, ball, labels_B, stride_B, starts[restart]
        if rows_N is not None:
            part, around = target.subset(rows_N), ball.subset(rows_N)
            labels_N, stride_N, start = labels_B[rows_N], stride_B[rows_N], start[rows_N]
        stride, moved = per_utterance(stride_N, around.clean), box.clip(start.detach())
        for step in range(restart * steps, (restart + 1) * steps):
            gradient = part.answer(moved, labels_N, loss, step=step).gradient
            moved = around.project(box.clip(around.steepest(gradient).mul_(stride).add_(moved)))
        return moved

    held = None if incumbent is None else box.clip(incumbent.detach().clone())
    return best_of_starts(target, labels_B, len(starts), ascend, loss=loss, incumbent=held)


def divergence(logits_BC: Tensor, adversarial_BC: Tensor) -> Tensor:
    """KL(p || p') of each utterance, shape (B,): how far adversarial predictions p' are from clean ones p."""
    return F.kl_div(
        F.log_softmax(adversarial_BC, dim=1), F.log_softmax(logits_BC, dim=1), reduction="none", log_target=True
    ).sum(1)


def random_start(features_BFL: Tensor, epsilon: float, generator: Generator) -> Tensor:
    """Features moved by noise uniform in the L-infinity ball of radius epsilon, shape (B, F, L). It is drawn on the
    generator's device, so that a generator on the CPU gives the same start everywhere.
    """
    unit = torch.rand(features_BFL.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return features_BFL.detach() + send((2 * unit - 1) * epsilon, features_BFL.device)


def own_starts(features_BFL: Tensor, epsilon: float, generators: Iterable[Generator]) -> Tensor:
    """`random_start` of every utterance by a generator of its own (all on one device), whoever else is in the batch."""
    return _ball(features_BFL.detach(), epsilon).random(generators)


def fgsm(model: nn.Module, features_BFL: Tensor, labels_B: Tensor, *, epsilon: float, **how: Any) -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of epsilon. With a random start it
    is the R+FGSM of Wong et al. 2020 (arXiv 2001.03994) at a step of epsilon; theirs of 1.25 epsilon is one step of
    `pgd`, of which the other arguments, result and errors are.
    """
    return pgd(model, features_BFL, labels_B, epsilon=epsilon, step_size=epsilon, steps=1, **how)


def bim(
    model: nn.Module, features_BFL: Tensor, labels_B: Tensor, *, step_size: float, steps: int, **how: Any
) -> Tensor:
    """Basic iterative method (Kurakin et al. 2017, arXiv 1607.02533): PGD that starts at the clean utterance."""
    return pgd(model, features_BFL, labels_B, step_size=step_size, steps=steps, **how)


def pgd(
    model: nn.Module,
    features_BFL: Tensor,
    labels_B: Tensor | None,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    box: Box | None = None,
    start_BFL: Tensor | None = None,
    low_precision: bool = False,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) in the L-infinity ball.

    Args:
        model: maps features_BFL to logits_BC; its modes and gradients are as before when this returns.
        features_BFL: clean features, float32; clipped to the box before anything else.
        labels_B: true classes, int64; None to raise the `divergence` from the model's own clean predictions (TRADES:
            arXiv 1901.08573, section 4), which has no gradient at the clean utterance: start elsewhere.
        epsilon: radius of the ball, >= 0, in units of the features; 0 gives the clean features, clipped.
        step_size: how far each step moves every cell, >= 0, same units.
        steps: number of steps, >= 0, of one forward and one backward pass each.
        box: the values that features may take; None for any.
        start_BFL: where to start, inside the ball, such as `random_start` gives; None for the clean utterance.
        low_precision: run the model in bfloat16, as while it is trained so; not for benchmarks.

    Returns:
        Detached; within epsilon of the clipped clean features and inside the box, up to one rounding to float32.

    Raises:
        UserError: epsilon, step_size or steps is below 0.
    """
    for name, value in (("epsilon", epsilon), ("step_size", step_size), ("steps", steps)):
        if not value >= 0:
            raise UserError(f"{name} must be >= 0, got {value}")
    box = Box.unbounded() if box is None else box.to(features_BFL.device)
    with attacked(model, low_precision=low_precision):
        # Tensors made under inference_mode cannot take part in a gradient; their clones can.
        clean_BFL = box.clip(features_BFL.detach().clone())
        return descend(
            Target(network=model, keys_B=[""] * len(clean_BFL), passes=Passes()),
            _ball(clean_BFL, epsilon),
            clean_BFL.new_zeros(len(clean_BFL), dtype=torch.int64) if labels_B is None else labels_B.clone(),
            steps=steps,
            step_size=step_size,
            starts=None if start_BFL is None else start_BFL.detach().clone(),
            box=box,
            loss=_away_from(model, clean_BFL) if labels_B is None else cross_entropy,
        )


def _ball(features_BFL: Tensor, epsilon: float) -> Ball:
    return Ball(features_BFL, features_BFL.new_full((len(features_BFL),), epsilon), "inf")


def _away_from(model: nn.Module, clean_BFL: Tensor) -> Loss:
    with torch.no_grad():
        clean_BC = model(clean_BFL)
    return lambda logits_BC, labels_B: divergence(clean_BC, logits_BC)
