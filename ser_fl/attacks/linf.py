"""FGSM, BIM, PGD and ART's MIM, with random starts that belong to an utterance, not to a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import clip_values_of, import_art
from ser_fl.attacks.pgd import descend
from ser_fl.attacks.problem import Problem
from ser_fl.randomness import generator


def craft_fgsm(problem: Problem) -> Tensor:
    """One step of epsilon from the clean utterance."""
    return descend(
        problem.target,
        problem.ball,
        problem.labels_B,
        steps=1,
        step_size=problem.settings.epsilon,
        starts=None,
        box=problem.box,
    )


def craft_bim(problem: Problem) -> Tensor:
    """Sign steps from the clean utterance, or from where a smaller budget led to."""
    return _iterate(problem, problem.start_BFL)


def craft_mim(problem: Problem) -> Tensor:
    """ART's MomentumIterativeMethod with the paper's decay of 1: each gradient counts by its own L1 norm."""
    import_art()
    from art.attacks.evasion import MomentumIterativeMethod

    attack = MomentumIterativeMethod(
        problem.classifier(clip_values=clip_values_of(problem.box)),
        norm="inf",
        decay=1.0,
        eps=problem.settings.epsilon,
        eps_step=problem.settings.step_size,
        max_iter=problem.settings.steps,
        batch_size=len(problem.keys_B),
        verbose=False,
    )
    return problem.features(attack.generate(problem.inputs(), problem.labels()))


def craft_pgd(problem: Problem) -> Tensor:
    """Sign steps from each random start, until one succeeds.

    Only utterances that no start has broken are started again. ART's own restarts judge success by a changed
    prediction, and so may exchange a wrong prediction for the right one; here success is a wrong class. Where every
    start fails, the utterance with the largest loss is kept. With 0 restarts it starts once, at the clean utterance.
    Where a smaller budget led to takes the place of the first start.
    """
    starts = [_starts(problem, restart) for restart in range(problem.settings.restarts or 0)]
    if problem.start_BFL is not None:
        starts[:1] = [problem.start_BFL]
    return _iterate(problem, torch.stack(starts) if starts else None)


def _iterate(problem: Problem, starts: Tensor | None) -> Tensor:
    settings = problem.settings
    assert settings.steps is not None and settings.step_size is not None
    return descend(
        problem.target,
        problem.ball,
        problem.labels_B,
        steps=settings.steps,
        step_size=settings.step_size,
        starts=starts,
        box=problem.box,
        incumbent=problem.start_BFL,
    )


def _starts(problem: Problem, restart: int) -> Tensor:
    """A start for every utterance, keyed by (seed, utterance, restart): batches and their order do not matter."""
    streams = (generator("pgd", problem.seed, key, restart) for key in problem.keys_B)
    return problem.ball.random(streams)
