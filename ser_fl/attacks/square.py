"""Square attack: random search that asks for scores alone, by windows of the perturbation set to one face of the ball.

Andriushchenko et al. 2020 (arXiv 1912.00049), L-infinity. ART's SquareAttack is not used: it shows all utterances of a
batch the same windows from NumPy's global state, so that a result depends on who else is in the batch; it asks three
questions for each that it needs; its loss takes the second best logit for the best wrong one even where the true class
is third; and its squares must fit into the shorter side of an image. One utterance at a time it cannot be afforded.

Ours are windows of the same area as the paper's squares: as tall as wide where that fits into the mel bins, else over
all bins and wider. The first perturbation is the paper's: stripes, each frame at one face of the ball.

Against a randomised model all questions are asked under the same draws, in expectation.

Legend: B utterances, N the ones that are still recognised, Q queries, F mel bins, L frames.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from ser_fl.attacks.best_adversarial import BestAdversarial
from ser_fl.attacks.problem import Problem
from ser_fl.devices import send

FIRST_SHARE = 0.8
"""Of all cells in the first window (p of the paper, at AutoAttack's value)."""
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the window's area is halved (section 4.1 of the paper)."""
LOOK_EVERY = 10
"""Queries between two looks at who is broken: a broken utterance is asked for no more after the next look."""


def craft_square(problem: Problem) -> Tensor:
    """Random search with as many queries as steps, until an utterance is recognised no more."""
    rows_N = torch.arange(len(problem.keys_B), device=problem.features_BFL.device)
    found = BestAdversarial.of(problem.target, problem.features_BFL, problem.labels_B)
    queries = _Queries.drawn(problem, problem.steps)
    for query in range(problem.steps):
        if query % LOOK_EVERY == 0:
            rows_N = found.unbroken()
            part, chosen = problem.subset(rows_N), queries.subset(rows_N)
            if not len(rows_N):
                break
        best = found.subset(rows_N)
        asked_NFL = chosen.stripes(part) if query == 0 else chosen.moved(best.inputs, part, query)
        candidate = BestAdversarial.of(part.target, part.box.clip(asked_NFL), part.labels_B)
        found = found.put(rows_N, best.or_better(candidate))
    return found.inputs


def window(share: float, num_bins: int, num_frames: int) -> tuple[int, int]:
    """Height and width of a window that covers a share of all cells, at least one cell.

    >>> window(0.04, 50, 100), window(0.8, 50, 100)
    ((14, 14), (50, 80))
    """
    area = share * num_bins * num_frames
    height = min(max(round(math.sqrt(area)), 1), num_bins)
    width = height if height < num_bins else round(area / height)
    return height, min(max(width, 1), num_frames)


class _Queries:
    """What each utterance will ask, drawn once by a stream of its own: batches and their order do not matter."""

    def __init__(self, stripes_NL: Tensor, chance_NQ3: Tensor) -> None:
        self._stripes_NL = stripes_NL
        """-1 or 1 for every frame."""
        self._chance_NQ3 = chance_NQ3
        """Uniform in [0, 1): place among bins, place among frames, side of the ball."""

    @classmethod
    def drawn(cls, problem: Problem, queries: int) -> _Queries:
        num_frames = problem.features_BFL.shape[-1]
        stripes, chance = [], []
        for stream in problem.streams("square"):
            stripes.append(2.0 * torch.randint(2, (num_frames,), generator=stream) - 1)
            chance.append(torch.rand((queries, 3), generator=stream))
        device = problem.features_BFL.device
        return cls(send(torch.stack(stripes), device), send(torch.stack(chance), device))

    def subset(self, rows_N: Tensor) -> _Queries:
        return _Queries(self._stripes_NL[rows_N], self._chance_NQ3[rows_N])

    def stripes(self, problem: Problem) -> Tensor:
        """The clean utterances with every frame at one face of the ball."""
        return problem.features_BFL + problem.settings.epsilon * self._stripes_NL[:, None]

    def moved(self, best_NFL: Tensor, problem: Problem, query: int) -> Tensor:
        """The best so far, with the window of this query at one face of the ball."""
        _, num_bins, num_frames = best_NFL.shape
        share = FIRST_SHARE / 2 ** bisect_left(HALVINGS, query / self._chance_NQ3.shape[1])
        height, width = window(share, num_bins, num_frames)
        bins_NF1 = _between(self._chance_NQ3[:, query, 0], height, num_bins)[:, :, None]
        frames_N1L = _between(self._chance_NQ3[:, query, 1], width, num_frames)[:, None]
        side_N = torch.where(self._chance_NQ3[:, query, 2] < 0.5, -1.0, 1.0) * problem.settings.epsilon
        return torch.where(bins_NF1 & frames_N1L, problem.features_BFL + side_N[:, None, None], best_NFL)


def _between(chance_N: Tensor, size: int, length: int) -> Tensor:
    """Which of ``length`` places a window of ``size`` covers, shape (N, length)."""
    first_N1 = (chance_N * (length - size + 1)).floor()[:, None]
    place = torch.arange(length, device=chance_N.device)
    return (place >= first_N1) & (place < first_N1 + size)
