"""FGSM, BIM, MIM and PGD as ART's own classes, with random starts that belong to an utterance, not to a batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fl.attacks.estimator import clip_values_of, import_art
from ser_fl.attacks.gradient import own_starts
from ser_fl.attacks.problem import Problem
from ser_fl.randomness import generator


def craft_fgsm(problem: Problem) -> Tensor:
    """ART's FastGradientMethod, one step of epsilon."""
    import_art()
    from art.attacks.evasion import FastGradientMethod

    attack = FastGradientMethod(
        problem.classifier(clip_values=clip_values_of(problem.box)),
        norm="inf",
        eps=problem.settings.epsilon,
        eps_step=problem.settings.epsilon,
        batch_size=len(problem.keys_B),
    )
    return problem.features(attack.generate(problem.inputs(), problem.labels()))


def craft_bim(problem: Problem) -> Tensor:
    """ART's BasicIterativeMethod."""
    import_art()
    from art.attacks.evasion import BasicIterativeMethod

    attack = BasicIterativeMethod(problem.classifier(clip_values=clip_values_of(problem.box)), **_iterated(problem))
    return problem.features(attack.generate(problem.inputs(), problem.labels()))


def craft_mim(problem: Problem) -> Tensor:
    """ART's MomentumIterativeMethod with the paper's decay of 1: each gradient counts by its own L1 norm."""
    import_art()
    from art.attacks.evasion import MomentumIterativeMethod

    attack = MomentumIterativeMethod(
        problem.classifier(clip_values=clip_values_of(problem.box)), norm="inf", decay=1.0, **_iterated(problem)
    )
    return problem.features(attack.generate(problem.inputs(), problem.labels()))


def craft_pgd(problem: Problem) -> Tensor:
    """ART's ProjectedGradientDescentPyTorch from each random start, until one succeeds.

    Only utterances that no start has broken are started again. ART's own restarts judge success by a changed
    prediction, and so may exchange a wrong prediction for the right one; here success is a wrong class. Where every
    start fails, the utterance with the largest loss is kept. With 0 restarts it starts once, at the clean utterance.
    """
    restarts = problem.settings.restarts or 0
    if restarts <= 1:
        return _descend(problem, _starts(problem, 0) if restarts else None)
    adversarial_BFL = problem.features_BFL.clone()
    largest_B = torch.full_like(adversarial_BFL[:, 0, 0], -torch.inf)
    unbroken = torch.arange(len(problem.keys_B), device=adversarial_BFL.device)
    for restart in range(restarts):
        part = problem.subset(unbroken)
        candidates_NFL = _descend(part, _starts(part, restart))
        logits_NC = problem.logits(candidates_NFL)
        loss_N = F.cross_entropy(logits_NC, part.labels_B, reduction="none")
        broken_N = logits_NC.argmax(1) != part.labels_B
        better_N = broken_N | (loss_N > largest_B[unbroken])
        adversarial_BFL[unbroken[better_N]] = candidates_NFL[better_N]
        largest_B[unbroken[better_N]] = loss_N[better_N]
        unbroken = unbroken[~broken_N]
        if not len(unbroken):
            break
    return adversarial_BFL


def _starts(problem: Problem, restart: int) -> Tensor:
    """A start for every utterance, keyed by (seed, utterance, restart): batches and their order do not matter."""
    streams = (generator("pgd", problem.seed, key, restart) for key in problem.keys_B)
    return own_starts(problem.features_BFL, problem.settings.epsilon, streams)


def _descend(problem: Problem, start_BFL: Tensor | None) -> Tensor:
    settings = {"norm": "inf", "num_random_init": 0 if start_BFL is None else 1, **_iterated(problem)}
    attack = _started_pgd()(problem.classifier(clip_values=clip_values_of(problem.box)), **settings)
    attack.start = None if start_BFL is None else problem.box.clip(start_BFL)[:, None]
    return problem.features(attack.generate(problem.inputs(), problem.labels()))


def _iterated(problem: Problem) -> dict[str, Any]:
    """Our words for the settings of an iterated attack, in ART's."""
    return {
        "eps": problem.settings.epsilon,
        "eps_step": problem.settings.step_size,
        "max_iter": problem.settings.steps,
        "batch_size": len(problem.keys_B),
        "verbose": False,
    }


@cache
def _started_pgd() -> type[Any]:
    """ART's PGD, which starts where it is told instead of drawing from NumPy's global state."""
    import_art()
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    class StartedPGD(ProjectedGradientDescentPyTorch):  # type: ignore[misc]
        start: Tensor | None = None

        def _compute_pytorch(
            self,
            x: Tensor,
            x_init: Tensor,
            y: Tensor,
            mask: Any,
            eps: Any,
            eps_step: Any,
            random_init: bool,
            momentum: Any,
        ) -> Tensor:
            if random_init and self.start is not None:
                x = self.start.to(x.device)
            return super()._compute_pytorch(x, x_init, y, mask, eps, eps_step, False, momentum)  # type: ignore[no-any-return]

    return StartedPGD
