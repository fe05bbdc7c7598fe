"""AutoPGD: projected gradient ascent that chooses its step size by itself, for each utterance.

Croce and Hein 2020 (arXiv 2003.01690, algorithm 1): steps of twice the radius at first, with momentum. At checkpoints
that come closer and closer, an utterance whose loss rose too seldom, or not at all, halves its step and goes back to
its best point.

A randomised model answers in expectation over draws of its defence. Losses can be compared only under the same draws,
but an ascent that always sees the same draws fools those alone. So the draws change at checkpoints, where the present
point and the best one are asked again. The best of every stretch is judged by draws that no stretch has climbed (step
0), and the best by those is returned. It costs two more questions a checkpoint, and none where nothing is random.

Our deviations: the point that is returned is the one that is recognised least, then the one with the largest loss; a
start is uniform in the ball, not on its surface.

Legend: B utterances, C classes, N the utterances that are still recognised; whatever follows B is what is moved.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import (
    Loss,
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
)
from ser_fl.attacks.target import BestAdversarial, Target, best_of_starts
from ser_fl.attacks.threat_model import Ball, Box, either, per_utterance

MOMENTUM = 0.75
"""Share of the new step in a move; the rest is the last move's (alpha of the paper)."""
SHARE_OF_RISES = 0.75
"""An ascent that rises in a smaller share of its steps jumps over the peak (rho of the paper)."""


def checkpoints(steps: int) -> tuple[int, ...]:
    """Numbers of steps after which the step size is looked at (section 3.1 of the paper), below ``steps``.

    >>> checkpoints(100)
    (22, 41, 57, 70, 80, 87, 93, 99)
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded, since 0.22 * 50 must not become 12 by a last digit.
    marks = dict.fromkeys(math.ceil(round(share * steps, 6)) for share in shares[1:])
    return tuple(mark for mark in marks if mark < steps)


def autopgd(
    target: Target,
    ball: Ball,
    labels_B: Tensor,
    *,
    loss: Loss,
    steps: int,
    box: Box,
    start: Tensor | None = None,
    first_draws: int = 1,
) -> Tensor:
    """One ascent for every utterance, to be used inside `target.attacked`.

    It costs one forward and one backward pass a step, and a forward pass at the end. ``start``, shape (B, ...), is
    projected to ball and box first; None is the clean inputs, which lie in the box. ``first_draws`` (>= 1) numbers the
    first step's draws of a randomised model, so that restarts see others.

    Returns:
        Of all points that it came by, the least recognised, then the one with the largest loss: shape (B, ...), inside
            ball and box up to one rounding.
    """

    def inside(moved: Tensor) -> Tensor:
        return box.clip(ball.project(moved))

    def judge(inputs: Tensor) -> BestAdversarial:
        """The better of what was found before and now, under draws that stay the same."""
        now = BestAdversarial.of(target, inputs, labels_B, loss=loss)
        return now if judged is None else judged.or_better(now)

    judged: BestAdversarial | None = None
    marks, last_mark, draws = checkpoints(steps), 0, first_draws
    random = target.expectation is not None
    size_B = 2 * ball.radius_B
    current = before = inside(ball.clean if start is None else start)
    answer = target.answer(current, labels_B, loss, step=draws)
    gradient, loss_B = answer.gradient, answer.loss_B
    found = BestAdversarial(current, answer.right_B, loss_B)
    summit = [current, gradient, loss_B]  # the point with the largest loss, where an ascent goes back to
    rises_B, summit_at_mark_B = torch.zeros_like(size_B), loss_B
    halved_B = torch.ones_like(size_B, dtype=torch.bool)  # the paper's second condition needs a checkpoint before
    for step in range(1, steps + 1):
        ahead = inside(current + per_utterance(size_B, current) * ball.steepest(gradient))
        if step > 1:
            ahead = inside(current + MOMENTUM * (ahead - current) + (1 - MOMENTUM) * (current - before))
        before, current = current, ahead
        if step == steps:
            loss_B, right_B = target.score(current, labels_B, loss, step=draws)
            found = found.or_better(BestAdversarial(current, right_B, loss_B))
            break
        answer = target.answer(current, labels_B, loss, step=draws)
        rises_B = rises_B + (answer.loss_B > loss_B)
        gradient, loss_B = answer.gradient, answer.loss_B
        found = found.or_better(BestAdversarial(current, answer.right_B, loss_B))
        summit = either(loss_B > summit[2], (current, gradient, loss_B), summit)
        if step not in marks:
            continue
        stuck_B = ~halved_B & (summit[2] <= summit_at_mark_B)
        halved_B = stuck_B | (rises_B < SHARE_OF_RISES * (step - last_mark))
        size_B = torch.where(halved_B, size_B / 2, size_B)
        current, gradient, loss_B = either(halved_B, summit, (current, gradient, loss_B))
        if random:
            judged = judge(found.inputs)
            draws += 1
            answer = target.answer(current, labels_B, loss, step=draws)
            gradient, loss_B = answer.gradient, answer.loss_B
            found = BestAdversarial(current, answer.right_B, loss_B)
            summit[2], _ = target.score(summit[0], labels_B, loss, step=draws)
        rises_B, summit_at_mark_B, last_mark = torch.zeros_like(rises_B), summit[2], step
    return judge(found.inputs).inputs if random else found.inputs


def restarted(
    target: Target,
    ball: Ball,
    labels_B: Tensor,
    *,
    losses: Sequence[Callable[[Tensor], Loss]],
    starts: Callable[[Tensor, int], Tensor | None],
    steps: int,
    box: Box,
) -> Tensor:
    """One ascent after another, as `autopgd`, each for the utterances that those before have not broken.

    An utterance is broken once its (expected) recognition is 0. Else its least recognised point is kept, then the one
    with the largest margin, whatever was raised. ``losses`` has one loss an ascent, made for utterances by their rows;
    ``starts`` says from rows and the ascent's number where it starts, None for the clean inputs.
    """

    def ascend(rows_N: Tensor | None, number: int) -> Tensor:
        assert rows_N is not None, "there is an incumbent"
        return autopgd(
            target.subset(rows_N),
            ball.subset(rows_N),
            labels_B[rows_N],
            loss=losses[number](rows_N),
            steps=steps,
            box=box,
            start=starts(rows_N, number),
            first_draws=1 + number * (1 + len(checkpoints(steps))),
        )

    return best_of_starts(target, labels_B, len(losses), ascend, loss=margin, step=0, incumbent=ball.clean)


def likeliest_wrong_classes(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """All classes but the true one, the likeliest first, shape (B, C - 1).

    >>> likeliest_wrong_classes(torch.tensor([[0.1, 3.0, 2.0, 1.0]]), torch.tensor([1]))
    tensor([[2, 3, 0]])
    """
    hidden_BC = logits_BC.scatter(1, labels_B[:, None], -torch.inf)
    return hidden_BC.argsort(dim=1, descending=True)[:, :-1]


def craft_apgd_ce(problem: Problem) -> Tensor:
    """AutoPGD on the cross-entropy, from each random start."""
    return _craft(problem, [lambda rows_N: cross_entropy])


def craft_apgd_dlr(problem: Problem) -> Tensor:
    """AutoPGD on the difference of logits ratio, from each random start."""
    return _craft(problem, [lambda rows_N: difference_of_logits_ratio])


def craft_apgd_t(problem: Problem) -> Tensor:
    """AutoPGD on the targeted difference of logits ratio: from each start to every wrong class, the likeliest first."""
    with torch.no_grad():
        targets_BT = likeliest_wrong_classes(problem(problem.clean), problem.labels_B)

    def towards(rank: int) -> Callable[[Tensor], Loss]:
        return lambda rows_N: targeted_difference_of_logits_ratio(targets_BT[rows_N, rank])

    return _craft(problem, [towards(rank) for rank in range(problem.num_classes - 1)])


def _craft(problem: Problem, losses: Sequence[Callable[[Tensor], Loss]]) -> Tensor:
    """All losses from the first start, then from the next; the first of all ascents takes a start that is given."""
    ball, restarts = problem.ball, problem.settings.restarts or 0

    def starts(rows_N: Tensor, number: int) -> Tensor | None:
        if number == 0 and problem.start_BFL is not None:
            return problem.start_BFL[rows_N]
        if not restarts:
            return None
        return ball.subset(rows_N).random(problem.subset(rows_N).streams("apgd", number))

    every = list(losses) * max(restarts, 1)
    return restarted(problem, ball, problem.labels_B, losses=every, starts=starts, steps=problem.steps, box=problem.box)
