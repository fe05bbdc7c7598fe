"""ART's MomentumIterativeMethod and DeepFool on one batch.

Legend: B utterances, F mel bins, L frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import clip_values_of, import_art
from ser_fl.attacks.problem import Problem

DEEPFOOL_OVERSHOOT = 0.02


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


def craft_deepfool(problem: Problem) -> Tensor:
    """ART's DeepFool on the model that clips to the box first, so that its nearest utterance lies inside.

    Told of a box, ART's class would stretch its steps by the box's width, and end that much too far away. It leads
    away from the predicted class, not the true one, so that it is given only what is right when clean. What is not
    misclassified after rounding to the box is the clean utterance.
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
    inside_BFL = problem.box.clip(adversarial_BFL)
    wrong_B = problem.logits(inside_BFL).argmax(1) != problem.labels_B
    return torch.where(wrong_B[:, None, None], inside_BFL, problem.features_BFL)
