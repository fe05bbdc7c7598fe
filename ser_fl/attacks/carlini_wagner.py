"""Carlini and Wagner's attacks, L2 and L-infinity (arXiv 1608.04644), on tensors: all utterances at once.

An utterance has its own constant, search and end, whoever else is in the batch; one that is through leaves it. An
iteration is one forward and one backward pass. When to choose which: the field compares by the L2 attack;
`minimum_norm` finds the nearest adversarial utterance in fewer passes, in either norm.

Legend: B utterances, N those still attacked; whatever follows is what is moved: mel bins and frames, or samples.
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.minimum_norm import Aim, Nearest, nearest_by, rise_of
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import NORMS, Ball, Box, Rows, per_utterance

STEP = 0.3
"""How far a first step of the L2 attack moves, as a share of the distance: the linear estimate, then the best."""
LAST_STEP = 0.05
"""What is left of a step's size at the last iteration; it falls linearly."""
LINF_STEP = 0.5
"""The same for the L-infinity attack, as a share of the bound tau."""
GROWTH = 8.0
"""Of a constant with which nothing was found."""
PROGRESS = 3e-3
"""By what share an objective must fall to count as falling."""
TAU_FACTOR = 0.9
"""Of the largest change of a cell that is enough: the next bound (section VI.C of the paper)."""
SEARCH_STEPS = 3
"""Constants of the L2 attack that are tried, where nothing else is said."""
FURTHER = 4.0
"""How much longer steps are after a constant with which nothing was found: the linear estimate was too near."""
EMPTY = 5
"""Constants that an utterance is given beyond the others for as long as nothing was found. Audio needs them: bins of
digital silence make a slope so steep, and so short, that the estimate is hundreds of times too near."""
LOOK = 2
"""Iterations between looks at who is through, each of which waits for a GPU."""
_MOMENTUM, _SQUARES = 0.7, 0.9


@dataclass(slots=True, eq=False)
class _Adam(Rows):
    """Adam (arXiv 1412.6980) for each utterance by itself, begun anew where it is told."""

    mean: Tensor
    square: Tensor
    """One a cell, or one an utterance: a step then keeps the direction of the gradient."""
    age_N: Tensor

    @classmethod
    def at_rest(cls, inputs: Tensor, *, together: bool) -> Self:
        square = inputs.new_zeros(len(inputs), *(1,) * (inputs.dim() - 1)) if together else torch.zeros_like(inputs)
        return cls(torch.zeros_like(inputs), square, inputs.new_zeros(len(inputs)))

    def direction(self, gradient: Tensor) -> Tensor:
        """The next step of size 1, root mean square, shape (N, ...)."""
        squared = gradient.square()
        if self.square.shape != gradient.shape:
            squared = squared.mean(dim=tuple(range(1, gradient.dim())), keepdim=True)
        self.mean = _MOMENTUM * self.mean + (1 - _MOMENTUM) * gradient
        self.square = _SQUARES * self.square + (1 - _SQUARES) * squared
        self.age_N = self.age_N + 1
        mean = self.mean / per_utterance(1 - _MOMENTUM**self.age_N, gradient)
        root = (self.square / per_utterance(1 - _SQUARES**self.age_N, gradient)).sqrt()
        return mean / root.clamp(min=torch.finfo(gradient.dtype).tiny)

    def begin_anew(self, where_N: Tensor) -> None:
        keep_N = (~where_N).to(self.age_N.dtype)
        self.mean, self.square = (moment * per_utterance(keep_N, moment) for moment in (self.mean, self.square))
        self.age_N = self.age_N * keep_N


@dataclass(slots=True, kw_only=True, eq=False)
class _Search(Rows):
    """Where each utterance is in its search for the constant, the weight of the classification loss."""

    constant_N: Tensor
    too_small_N: Tensor
    enough_N: Tensor  # infinite until one was enough
    number_N: Tensor  # constants that were tried
    iteration_N: Tensor  # with this constant, as all that follow
    found_N: Tensor  # whether it has been enough
    lowest_N: Tensor  # objective
    stale_N: Tensor  # iterations since that last fell

    @classmethod
    def begin(cls, constant_N: Tensor) -> Self:
        zeros = {field.name: torch.zeros_like(constant_N) for field in fields(cls)}
        endless = {name: torch.full_like(constant_N, torch.inf) for name in ("enough_N", "lowest_N")}
        return cls(**zeros | endless | {"constant_N": constant_N, "found_N": zeros["found_N"].bool()})

    def note(self, objective_N: Tensor, reached_N: Tensor, steps: int, patience: int) -> Tensor:
        """Take an iteration into account; where a constant is through, choose the next, and say so, shape (N,)."""
        fell_N = objective_N < self.lowest_N * (1 - PROGRESS)
        self.lowest_N = torch.minimum(objective_N, self.lowest_N)
        self.stale_N = torch.where(fell_N, 0, self.stale_N + 1)
        self.found_N = self.found_N | reached_N
        self.iteration_N = self.iteration_N + 1
        over_N = (self.iteration_N >= steps) | (self.stale_N >= patience)
        self.enough_N = torch.where(over_N & self.found_N, self.constant_N, self.enough_N)
        self.too_small_N = torch.where(over_N & ~self.found_N, self.constant_N, self.too_small_N)
        between_N = (self.too_small_N + self.enough_N) / 2
        next_N = torch.where(self.enough_N.isinf(), GROWTH * self.constant_N, between_N)
        self.constant_N = torch.where(over_N, next_N, self.constant_N)
        self.number_N = self.number_N + over_N
        for name, at_first in (("iteration_N", 0), ("stale_N", 0), ("lowest_N", torch.inf), ("found_N", False)):
            setattr(self, name, torch.where(over_N, at_first, getattr(self, name)))
        return over_N


def carlini_wagner_l2(
    target: Target,
    clean: Tensor,
    labels_B: Tensor,
    *,
    box: Box | None = None,
    steps: int = 20,
    search_steps: int = SEARCH_STEPS,
    targeted: bool = False,
) -> Tensor:
    """Carlini and Wagner's L2 attack: the smallest ``|d|^2 + c * max(lead of the true class, 0)`` by Adam, inside
    `target.attacked`.

    As in the paper a binary search looks for the smallest constant c that is enough, an objective that stops falling
    ends a constant early, and the nearest adversarial input of all iterations is kept. Where we depart from it:

    - c begins at ``2 * lead / |gradient|^2``, right for a linear model whatever the scale of its logits, and the step
      size at a share of such a model's distance: no setting has to fit the data.
    - The box is kept to by projection (the first of the ways in section V.B), not by a change of variables: at the
      edge, where padded and silent cells lie, tanh has no slope.
    - Adam's second moment is a mean over each utterance's cells. One a cell would make every step a sign step, for
      which L2 pays most.
    - A next constant goes on from where the last one ended, so that few iterations are enough.
    - What was found is drawn in along the segment to the clean input at the end.

    Arguments and result are as of `minimum_norm.fast_minimum_norm`, but ``steps`` are iterations for each constant, at
    most, and ``search_steps`` (>= 1) constants are tried, up to `EMPTY` more where nothing was found.
    """
    box = box or Box.unbounded()
    rows_N, aim = Aim(target=target, labels_B=labels_B, box=box, targeted=targeted).set_out(clean, "2")
    start = moved = clean[rows_N]
    nearest, going_N, part = Nearest.none_yet(start, "2"), torch.arange(len(rows_N), device=clean.device), aim
    adam, total, patience = _Adam.at_rest(start, together=True), steps * search_steps, max(2, steps // 5)
    latest = total + EMPTY * steps
    search: _Search | None = None
    reach_N = torch.zeros_like(labels_B[rows_N], dtype=clean.dtype)
    for iteration in range(latest):
        if not len(going_N):
            break
        lead_N, gradient, reached_N = part.ask(moved, iteration)
        change = moved - start
        distance_N = NORMS["2"].size(change)
        nearest.offer(going_N, moved, distance_N, reached_N)
        if search is None:
            rise_N = rise_of(gradient, "2")
            reach_N = -lead_N / rise_N
            search = _Search.begin(2 * reach_N / rise_N)
        # The constant of this iteration: that of the next one is chosen below.
        weight_N = torch.where(reached_N, 0, search.constant_N)
        done_N = (search.number_N * steps + search.iteration_N).clamp(max=total)
        over_N = search.note(distance_N.square() - weight_N * lead_N, reached_N, steps, patience)
        best_N = nearest.distance_B[going_N]
        reach_N = torch.where(best_N.isfinite(), best_N, torch.where(over_N, FURTHER * reach_N, reach_N))
        stride_N = STEP * (1 - (1 - LAST_STEP) * done_N / total) * reach_N / math.sqrt(change[0].numel())
        direction = adam.direction(2 * change - per_utterance(weight_N, change) * gradient)
        moved = box.clip(moved - per_utterance(stride_N, moved) * direction)
        adam.begin_anew(over_N)
        if iteration % LOOK == 0:
            allowed_N = search_steps + EMPTY * best_N.isinf()
            still = (search.number_N < allowed_N).nonzero().flatten()
            if len(still) < len(going_N):
                going_N, moved, start, reach_N = going_N[still], moved[still], start[still], reach_N[still]
                part, adam, search = part.subset(still), adam.subset(still), search.subset(still)
    return clean.index_copy(0, rows_N, nearest.draw_in(aim, latest))


def carlini_wagner_linf(
    target: Target,
    clean: Tensor,
    labels_B: Tensor,
    *,
    tau_B: Tensor,
    box: Box | None = None,
    steps: int = 40,
    targeted: bool = False,
) -> Tensor:
    """Carlini and Wagner's L-infinity attack: Adam on the classification loss within a bound tau that shrinks, inside
    `target.attacked`.

    As in the paper the bound falls to 0.9 of what was enough whenever something was found, and the search goes on from
    there. Where we depart from it: the bound is kept to by projection, not by the penalty ``sum(max(|d| - tau, 0))``,
    so that no constant is weighed against it and no utterance leaves its first bound, the budget; and ``steps`` count
    for all bounds together, not for each.

    Arguments and result are as of `minimum_norm.fast_minimum_norm`; ``tau_B`` is the first bound, >= 0, in the units of
    the inputs.
    """
    box = box or Box.unbounded()
    rows_N, aim = Aim(target=target, labels_B=labels_B, box=box, targeted=targeted).set_out(clean, "inf")
    start = moved = clean[rows_N]
    nearest, every_N = Nearest.none_yet(start, "inf"), torch.arange(len(rows_N), device=clean.device)
    adam, tau_N = _Adam.at_rest(start, together=False), tau_B[rows_N]
    for iteration in range(steps if len(rows_N) else 0):
        _, gradient, reached_N = aim.ask(moved, iteration)
        distance_N = NORMS["inf"].size(moved - start)
        nearest.offer(every_N, moved, distance_N, reached_N)
        tau_N = torch.where(reached_N, torch.minimum(tau_N, TAU_FACTOR * distance_N), tau_N)
        stride_N = LINF_STEP * (1 - (1 - LAST_STEP) * iteration / steps) * tau_N
        moved = moved + per_utterance(stride_N, moved) * adam.direction(gradient)
        moved = box.clip(Ball(start, tau_N, "inf").project(moved))
    return clean.index_copy(0, rows_N, nearest.draw_in(aim, steps))


craft_cw_l2 = nearest_by(carlini_wagner_l2)
"""Where ART's class takes ten times as long and ends farther away; however far it is."""


def craft_cw_linf(problem: Problem) -> Tensor:
    """From the budget inwards: ART's class takes tens of thousands of passes an utterance."""
    return nearest_by(carlini_wagner_linf, tau_B=problem.ball.radius_B)(problem)
