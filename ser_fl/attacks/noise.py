"""Noise in the ball: the control of every benchmark. An attack that noise can match has found nothing.

Carlini et al. 2019 (arXiv 1902.06705) ask for it beside every attack: of many draws the worst one counts.

Legend: B utterances, N the ones that are still recognised, F mel bins, L frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ser_fl.attacks.best_adversarial import BestAdversarial
from ser_fl.attacks.problem import Problem
from ser_fl.devices import send


def craft_noise_uniform(problem: Problem) -> Tensor:
    """The worst of several draws that are uniform in the L-infinity ball."""
    return _worst_of_draws(problem, "noise_uniform", lambda shape, stream: 2 * torch.rand(shape, generator=stream) - 1)


def craft_noise_gaussian(problem: Problem) -> Tensor:
    """The worst of several draws of white noise with standard deviation epsilon, clipped to the L-infinity ball.

    A third of all cells is clipped, so that it is louder than uniform noise.
    """
    return _worst_of_draws(
        problem, "noise_gaussian", lambda shape, stream: torch.randn(shape, generator=stream).clamp_(-1, 1)
    )


def _worst_of_draws(problem: Problem, name: str, draw: Callable[[torch.Size, Generator], Tensor]) -> Tensor:
    """As many draws as steps for each utterance, by a stream of its own, until it is recognised no more."""
    streams = list(problem.streams(name))
    found = BestAdversarial.of(problem.target, problem.features_BFL, problem.labels_B)
    for _ in range(problem.steps):
        rows_N = found.unbroken()
        if not len(rows_N):
            break
        part = problem.subset(rows_N)
        unit_NFL = torch.stack([draw(part.features_BFL.shape[1:], streams[row]) for row in rows_N.tolist()])
        noisy_NFL = part.features_BFL + problem.settings.epsilon * send(unit_NFL, part.features_BFL.device)
        candidate = BestAdversarial.of(part.target, part.box.clip(noisy_NFL), part.labels_B)
        found = found.put(rows_N, found.subset(rows_N).or_better(candidate))
    return found.inputs
