"""Attacks beyond sign steps as ART's own classes: Carlini and Wagner's L2 and L-infinity, and DeepFool.

C&W L2 and DeepFool look for the nearest adversarial utterance, however far it is; `budget.keep_within` then decides
whether that is near enough. What they return is misclassified inside the box, or else it is the clean utterance.

Legend: B utterances, F mel bins, L frames.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ser_fl.attacks.budget import Box
from ser_fl.attacks.estimator import clip_values_of, import_art
from ser_fl.attacks.problem import Problem

# ART searches for the constant, the weight of the classification loss, by doubling it until the first success and
# halving it after each one. After a failure that follows a success it stays where it is, since it overwrites the
# constant that it means to remember (c_old is c_current). So it should start low, but not so low that all steps are
# spent on doubling. From 4, six steps reach 128, and all of eight utterances of a linear model are broken at no more
# than 1.18 times the distance of the nearest adversarial one; where the logits are scaled by 0.3 to 3, nine in ten are
# within 1.25 times. From 10, five steps left one of the eight at 2.9 times; from ART's own 0.01, ten steps reach 5.
CW_L2_CONSTANT = 4.0
CW_L2_SEARCH_STEPS = 6
CW_L2_CONFIDENCE = 1e-3
"""Lead of the wrong class, in logits: with 0 ART takes a tie for a success, which the true class may win."""
CW_LINF_LEARNING_RATE = 0.2
"""Of Adam in tanh space, where 2 is 96 % of the way to the edge of the budget."""
DEEPFOOL_OVERSHOOT = 0.02


def craft_cw_l2(problem: Problem) -> Tensor:
    """ART's CarliniL2Method: steps of gradient descent with a line search, per step of its search for the constant.

    Needs a box: its change of variables maps the real line onto it. Each utterance that is right when clean is attacked
    alone; the others are left as they are. With 10 steps that takes some 350 forward and 120 backward passes of one
    utterance, 1.2 s on one core for the network of ``model=crnn_small`` and 64 x 186 features.
    """
    import_art()
    from art.attacks.evasion import CarliniL2Method

    adversarial_BFL = problem.features_BFL.clone()
    right = problem.right_when_clean()
    if not len(right):
        return adversarial_BFL
    part = problem.subset(right)
    attack = CarliniL2Method(
        part.classifier(clip_values=clip_values_of(part.box)),
        confidence=CW_L2_CONFIDENCE,
        max_iter=part.settings.steps,
        binary_search_steps=CW_L2_SEARCH_STEPS,
        initial_const=CW_L2_CONSTANT,
        # In a larger batch ART judges an utterance anew whenever another one moves, by the loss and distance of a trial
        # point that it had rejected: the result would depend on who else is in the batch.
        batch_size=1,
        verbose=False,
    )
    adversarial_BFL[right] = part.features(attack.generate(part.inputs(), part.labels()))
    return _misclassified_or_clean(problem, adversarial_BFL)


def _misclassified_or_clean(problem: Problem, adversarial_BFL: Tensor) -> Tensor:
    """What is misclassified after rounding to the box, and the clean utterance in place of all else."""
    inside_BFL = problem.box.clip(adversarial_BFL)
    wrong_B = problem.logits(inside_BFL).argmax(1) != problem.labels_B
    return torch.where(wrong_B[:, None, None], inside_BFL, problem.features_BFL)


def craft_cw_linf(problem: Problem) -> Tensor:
    """ART's CarliniLInfMethod inside the budget: it moves a perturbation, whose range is the budget within the box.

    Left to itself the class looks for the smallest tau that bounds a successful perturbation, from 1.0 down to 1/256
    in steps of 10 %, each with 21 weights of the classification loss, which its gradient does not use: tens of
    thousands of passes per utterance (1.0 is also far above any budget of ours). Here a perturbation of +-1 is epsilon,
    so that the first tau is the budget and the only one tried, with one weight that stops the descent as soon as the
    class has changed. The result is within the budget, but not the smallest.
    """
    perturbation_BFL = torch.zeros_like(problem.features_BFL)
    for row in problem.right_when_clean():  # ART's class takes one utterance at a time anyway
        perturbation_BFL[row] = _linf_perturbation(problem.subset(row[None]))[0]
    return _misclassified_or_clean(problem, problem.features_BFL + perturbation_BFL)


def _linf_perturbation(problem: Problem) -> Tensor:
    """Perturbation of the one utterance of a problem, shape (1, F, L); zero where none was found."""
    import_art()
    from art.attacks.evasion import CarliniLInfMethod

    clean_1FL, epsilon = problem.features_BFL, problem.settings.epsilon
    unit = epsilon * 1.001  # ART counts a perturbation only where it stays below 1
    edge_1FL = torch.full_like(clean_1FL, epsilon)
    room = Box(
        (problem.box.clip(clean_1FL - edge_1FL) - clean_1FL) / unit,
        (problem.box.clip(clean_1FL + edge_1FL) - clean_1FL) / unit,
    )
    attack = CarliniLInfMethod(
        problem.classifier(
            clip_values=clip_values_of(room), to_features=lambda moved_1FL: clean_1FL + unit * moved_1FL
        ),
        confidence=0.0,
        learning_rate=CW_LINF_LEARNING_RATE,
        max_iter=problem.settings.steps,
        decrease_factor=1e-3,
        initial_const=1e4,
        largest_const=1.5e4,
        verbose=False,
    )
    return unit * problem.features(attack.generate(np.zeros_like(problem.inputs()), problem.labels()))


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
