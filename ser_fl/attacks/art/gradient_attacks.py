"""ART's own attacks by gradients on ART's PyTorchClassifier over our model: FGSM, BIM, PGD, MIM and DeepFool.

FGSM, BIM and PGD give the same bits as `ser_fl.attacks.pgd`: the steps are ART's, while random starts, what a smaller
budget led to, and who is started again are ours. ART draws its starts from NumPy's global state, so that they hang on
the batch, and its restarts judge success by a changed prediction.

Legend: B utterances, N some of them, F mel bins, L frames. ART sees images of shape (B, 1, F, L).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import classifier_of, clip_values_of, generated, import_art, right_when_clean
from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.target import best_of_starts

DEEPFOOL_OVERSHOOT = 0.02


def craft_fgsm(problem: Problem) -> Tensor:
    """ART's FastGradientMethod: one step of epsilon from the clean utterance."""
    return _made_by("FastGradientMethod", problem)


def craft_bim(problem: Problem) -> Tensor:
    """ART's BasicIterativeMethod from the clean utterance, or from where a smaller budget led to."""
    start = problem.clean if problem.start_BFL is None else problem.start_BFL
    return _iterate("BasicIterativeMethod", problem, [start])


def craft_pgd(problem: Problem) -> Tensor:
    """ART's ProjectedGradientDescentPyTorch from each random start, until one succeeds; see `pgd.craft_pgd`."""
    return _iterate("ProjectedGradientDescentPyTorch", problem, problem.starts(problem.ball))


def _iterate(class_name: str, problem: Problem, starts: list[Tensor]) -> Tensor:
    """What an iterated class finds from each start, chosen as `pgd.descend` does."""

    def ascend(rows_N: Tensor | None, restart: int) -> Tensor:
        part, start, steps = problem, starts[restart], problem.steps
        if rows_N is not None:
            part, start = problem.subset(rows_N), start[rows_N]
        words: dict[str, Any] = {"eps_step": problem.settings.step_size, "max_iter": steps, "verbose": False}
        return _made_by(class_name, part, start_NFL=start, first_step=restart * steps, **words)

    held = None if problem.start_BFL is None else problem.box.clip(problem.start_BFL.detach().clone())
    return best_of_starts(problem.target, problem.labels_B, len(starts), ascend, incumbent=held)


def _made_by(
    class_name: str, problem: Problem, start_NFL: Tensor | None = None, first_step: int = 0, **words: Any
) -> Tensor:
    """What a class makes on a PyTorchClassifier that answers no more than it needs.

    Its gradient is `Target.answer`'s, of the whole batch at once. ``first_step`` is the number of the first step's
    draws of a randomised model; ``words`` are other arguments of the class.
    """
    estimator = classifier_of(replace(problem, expectation=None), clip_values_of(problem.box))
    # For a success rate that only ART's log would see it asks for predictions: two passes an utterance.
    estimator.predict = lambda images, **_: np.zeros((len(images), problem.num_classes), np.float32)
    target, labels_B, steps = problem.target, problem.labels_B, count(first_step)

    def expected_gradient(x: Any, y: Any) -> Any:
        moved_BFL = torch.as_tensor(x, device=labels_B.device)[:, 0]
        gradient_B1FL = target.answer(moved_BFL, labels_B, cross_entropy, step=next(steps)).gradient[:, None]
        return gradient_B1FL if isinstance(x, Tensor) else gradient_B1FL.cpu().numpy()

    if problem.expectation is not None:
        estimator.loss_gradient = expected_gradient
    kind = getattr(import_art(), class_name)
    attack = kind(estimator, eps=problem.settings.epsilon, batch_size=len(problem.keys_B), **words)
    if start_NFL is not None:
        # ART 1.20.1 knows two starts only: the input, and a random one. Its HopSkipJump takes an ``x_adv_init``; a PGD
        # that did would make this hook needless, and a test fails.
        start_N1FL, pgd = problem.box.clip(start_NFL.detach())[:, None], getattr(attack, "_attack", attack)
        plain = pgd._compute_pytorch
        pgd._compute_pytorch = lambda moved_N1FL, *others: plain(
            start_N1FL if pgd._i_max_iter == 0 else moved_N1FL, *others
        )
    lower_F1, upper_F1, movable = problem.box.lower_F1, problem.box.upper_F1, None
    if lower_F1 is not None and upper_F1 is not None and not bool((lower_F1 < upper_F1).all()):
        # ART's own bounds cannot meet (`clip_values_of`).
        movable = (lower_F1 < upper_F1).expand_as(problem.clean)[:, None].float().cpu().numpy()
    return generated(attack, problem, mask=movable)


def craft_mim(problem: Problem) -> Tensor:
    """ART's MomentumIterativeMethod with the paper's decay of 1: each gradient counts by its own L1 norm."""
    attack = import_art().MomentumIterativeMethod(
        classifier_of(problem, clip_values_of(problem.box)),
        norm="inf",
        decay=1.0,
        eps=problem.settings.epsilon,
        eps_step=problem.settings.step_size,
        max_iter=problem.settings.steps,
        batch_size=len(problem.keys_B),
        verbose=False,
    )
    return generated(attack, problem)


def craft_deepfool(problem: Problem) -> Tensor:
    """ART's DeepFool on the model that clips to the box first, so that its nearest utterance lies inside.

    Told of a box, ART's class stretches its steps by the box's width, and ends that much too far away. It leads away
    from the predicted class, so that it is given only what is right when clean. What rounding to the box mends is
    returned clean.
    """
    adversarial_BFL, right_N = problem.clean.clone(), right_when_clean(problem)
    if not len(right_N):
        return adversarial_BFL
    part = problem.subset(right_N)
    attack = import_art().DeepFool(
        classifier_of(part, None, to_features=problem.box.clip),
        max_iter=part.settings.steps,
        epsilon=DEEPFOOL_OVERSHOOT,
        nb_grads=part.num_classes,
        batch_size=1,  # in a larger batch all go on until the last one is through
        verbose=False,
    )
    adversarial_BFL[right_N] = generated(attack, part)
    inside_BFL = problem.box.clip(adversarial_BFL)
    with torch.no_grad():
        wrong_B = problem.target(inside_BFL).argmax(1) != problem.labels_B
    return torch.where(wrong_B[:, None, None], inside_BFL, problem.clean)
