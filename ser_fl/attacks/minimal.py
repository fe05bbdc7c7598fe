"""Attacks that look for the nearest adversarial utterance: Carlini and Wagner's, FMN, and ART's DeepFool.

All but C&W L-infinity look for it however far it is; `budget.keep_within` then decides whether that is near enough.
What they return is misclassified inside the box, or else it is the clean utterance. Against a randomised defence
misclassified means in most of the draws, which is near, and not all that a budget can do: for how much a defence
withstands take attacks that fill their budget, such as AutoPGD.

Legend: B utterances, F mel bins, L frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import import_art
from ser_fl.attacks.carlini_wagner import carlini_wagner_l2, carlini_wagner_linf
from ser_fl.attacks.fmn import fast_minimum_norm
from ser_fl.attacks.problem import Problem

DEEPFOOL_OVERSHOOT = 0.02


def craft_cw_l2(problem: Problem) -> Tensor:
    """Our C&W L2, where ART's class takes ten times as long and ends farther away."""
    return carlini_wagner_l2(
        problem.target,
        problem.features_BFL,
        problem.labels_B,
        box=problem.box,
        steps=_steps(problem),
    )


def craft_cw_linf(problem: Problem) -> Tensor:
    """Our C&W L-infinity from the budget inwards: ART's class takes tens of thousands of passes an utterance."""
    return carlini_wagner_linf(
        problem.target,
        problem.features_BFL,
        problem.labels_B,
        tau_B=problem.ball.radius_B,
        box=problem.box,
        steps=_steps(problem),
    )


def craft_fmn(problem: Problem) -> Tensor:
    """FMN in L-infinity: the smallest epsilon of each utterance."""
    return fast_minimum_norm(
        problem.target, problem.features_BFL, problem.labels_B, norm="inf", box=problem.box, steps=_steps(problem)
    )


def craft_fmn_l2(problem: Problem) -> Tensor:
    """FMN in L2."""
    return fast_minimum_norm(
        problem.target, problem.features_BFL, problem.labels_B, norm="2", box=problem.box, steps=_steps(problem)
    )


def _steps(problem: Problem) -> int:
    """The resolved number of steps."""
    assert problem.settings.steps is not None
    return problem.settings.steps


def craft_deepfool(problem: Problem) -> Tensor:
    """ART's DeepFool on the model that clips to the box first, so that its nearest utterance lies inside.

    Told of a box, ART's class would stretch its steps by the box's width, and end that much too far away. It leads
    away from the predicted class, not the true one, so that it is given only what is right when clean.
    """
    import_art()
    from art.attacks.evasion import DeepFool

    adversarial_BFL = problem.features_BFL.clone()
    right = problem.right_when_clean()
    if not len(right):
        return adversarial_BFL
    part = problem.subset(right)
    attack = DeepFool(
        part.classifier(clip_values=None, to_features=problem.box.clip),
        max_iter=part.settings.steps,
        epsilon=DEEPFOOL_OVERSHOOT,
        nb_grads=part.num_classes,
        batch_size=1,  # in a larger batch all go on until the last one is through
        verbose=False,
    )
    adversarial_BFL[right] = part.features(attack.generate(part.inputs(), part.labels()))
    return _misclassified_or_clean(problem, adversarial_BFL)


def _misclassified_or_clean(problem: Problem, adversarial_BFL: Tensor) -> Tensor:
    """What is misclassified after rounding to the box, and the clean utterance in place of all else."""
    inside_BFL = problem.box.clip(adversarial_BFL)
    wrong_B = problem.logits(inside_BFL).argmax(1) != problem.labels_B
    return torch.where(wrong_B[:, None, None], inside_BFL, problem.features_BFL)
