"""Attacks that see scores alone: Square, and noise in the ball, the control of every benchmark.

Square (Andriushchenko et al. 2020, arXiv 1912.00049, L-infinity) is a random search by windows of the perturbation set
to one face of the ball. ART's SquareAttack is not used: it shows all utterances of a batch the same windows from
NumPy's global state, so that a result depends on who else is in the batch; it asks three questions for each that it
needs; its loss takes the second best logit for the best wrong one even where the true class is third; its squares must
fit into the shorter side of an image. One utterance at a time it cannot be afforded.

Our windows have the area of the paper's squares: as tall as wide where that fits into the mel bins, else over all bins
and wider. The first perturbation is the paper's: stripes, each frame at one face of the ball. Against a randomised
model all questions are asked under the same draws, in expectation.

An attack that noise can match has found nothing: Carlini et al. 2019 (arXiv 1902.06705) ask for it beside every attack.
Of many draws the worst one counts.

Legend: B utterances, N the ones that are still recognised, Q queries, F mel bins, L frames.
"""

import math
from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.target import BestAdversarial
from ser_fl.devices import send

FIRST_SHARE = 0.8
"""Of all cells in the first window (p of the paper, at AutoAttack's value)."""
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the window's area is halved (section 4.1 of the paper)."""
LOOK_EVERY = 10
"""Queries of Square between two looks at who is broken: a broken utterance is asked for no more after the next look."""

Ask = Callable[[Problem, Tensor, Tensor, int], Tensor]
"""(problem of the utterances that are left, their rows, their best so far, number of the query) -> what to ask of."""


def craft_noise_uniform(problem: Problem) -> Tensor:
    """The worst of several draws that are uniform in the L-infinity ball."""
    return _noise(problem, "noise_uniform", lambda shape, stream: 2 * torch.rand(shape, generator=stream) - 1)


def craft_noise_gaussian(problem: Problem) -> Tensor:
    """The worst of several draws of white noise of standard deviation epsilon, clipped to the L-infinity ball: a third
    of all cells is, so that it is louder than uniform noise.
    """
    return _noise(problem, "noise_gaussian", lambda shape, stream: torch.randn(shape, generator=stream).clamp_(-1, 1))


def _noise(problem: Problem, name: str, draw: Callable[[torch.Size, Generator], Tensor]) -> Tensor:
    """As many draws as steps for each utterance, by a stream of its own, until it is recognised no more."""
    streams = list(problem.streams(name))

    def ask(part: Problem, rows_N: Tensor, best_NFL: Tensor, query: int) -> Tensor:
        unit_NFL = torch.stack([draw(part.clean.shape[1:], streams[row]) for row in rows_N.tolist()])
        return part.clean + problem.settings.epsilon * send(unit_NFL, part.clean.device)

    return _search(problem, ask, look_every=1)


def craft_square(problem: Problem) -> Tensor:
    """Random search with as many queries as steps, until an utterance is recognised no more. What each will ask is
    drawn once by its own stream: batches and their order do not matter.
    """
    epsilon, (num_bins, num_frames) = problem.settings.epsilon, problem.clean.shape[1:]
    stripes, chance = [], []
    for stream in problem.streams("square"):
        stripes.append(2.0 * torch.randint(2, (num_frames,), generator=stream) - 1)
        chance.append(torch.rand((problem.steps, 3), generator=stream))
    stripes_BL, chance_BQ3 = (send(torch.stack(drawn), problem.clean.device) for drawn in (stripes, chance))

    def ask(part: Problem, rows_N: Tensor, best_NFL: Tensor, query: int) -> Tensor:
        if query == 0:
            return part.clean + epsilon * stripes_BL[rows_N][:, None]
        bin_N, frame_N, side_N = chance_BQ3[rows_N, query].unbind(1)
        share = FIRST_SHARE / 2 ** bisect_left(HALVINGS, query / problem.steps)
        height, width = window(share, num_bins, num_frames)
        bins_NF1 = _covered(bin_N, height, num_bins)[:, :, None]
        frames_N1L = _covered(frame_N, width, num_frames)[:, None]
        step_N = torch.where(side_N < 0.5, -1.0, 1.0) * epsilon
        return torch.where(bins_NF1 & frames_N1L, part.clean + step_N[:, None, None], best_NFL)

    return _search(problem, ask, look_every=LOOK_EVERY)


def window(share: float, num_bins: int, num_frames: int) -> tuple[int, int]:
    """Height and width of a window that covers a share of all cells, at least one cell.

    >>> window(0.04, 50, 100), window(0.8, 50, 100)
    ((14, 14), (50, 80))
    """
    area = share * num_bins * num_frames
    height = min(max(round(math.sqrt(area)), 1), num_bins)
    width = height if height < num_bins else round(area / height)
    return height, min(max(width, 1), num_frames)


def _covered(chance_N: Tensor, size: int, length: int) -> Tensor:
    """Which of ``length`` places a window of ``size`` covers whose place is drawn from [0, 1), shape (N, length)."""
    first_N1 = (chance_N * (length - size + 1)).floor()[:, None]
    place = torch.arange(length, device=chance_N.device)
    return (place >= first_N1) & (place < first_N1 + size)


def _search(problem: Problem, ask: Ask, *, look_every: int) -> Tensor:
    """As many queries as steps, of which each utterance keeps the best, until it is recognised no more."""
    found = BestAdversarial.of(problem, problem.clean, problem.labels_B)
    rows_N, part = found.unbroken(), problem
    for query in range(problem.steps):
        if query % look_every == 0:
            rows_N = found.unbroken()
            part = problem.subset(rows_N)
        if not len(rows_N):
            break
        asked_NFL = part.box.clip(ask(part, rows_N, found.inputs[rows_N], query))
        found = found.with_better(rows_N, BestAdversarial.of(part, asked_NFL, part.labels_B))
    return found.inputs
