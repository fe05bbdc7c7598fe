"""FGSM, BIM and PGD by ART's own classes on ART's PyTorchClassifier over our model.

The same bits as `ser_fl.attacks.pgd`: the steps are ART's, while random starts, what a smaller budget led to, and who
is started again are ours. ART draws its starts from NumPy's global state, so that they hang on the batch, and its
restarts judge success by a changed prediction.

Legend: B utterances, F mel bins, L frames, C classes, R restarts. ART sees images of shape (B, 1, F, L).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import Array, clip_values_of, import_art
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.pgd import best_of_starts, starts_of
from ser_fl.attacks.problem import Problem


def craft_fgsm(problem: Problem) -> Tensor:
    """ART's FastGradientMethod: one step of epsilon from the clean utterance."""
    import_art()
    from art.attacks.evasion import FastGradientMethod

    attack = FastGradientMethod(_estimator(problem, 0), eps=problem.settings.epsilon, batch_size=len(problem.keys_B))
    return _generate(attack, problem)


def craft_bim(problem: Problem) -> Tensor:
    """ART's BasicIterativeMethod from the clean utterance, or from where a smaller budget led to."""
    import_art()
    from art.attacks.evasion import BasicIterativeMethod

    start = problem.ball.clean if problem.start_BFL is None else problem.start_BFL
    return _best_of_starts(BasicIterativeMethod, problem, [start])


def craft_pgd(problem: Problem) -> Tensor:
    """ART's ProjectedGradientDescentPyTorch from each random start, until one succeeds; see `pgd.craft_pgd`."""
    import_art()
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    return _best_of_starts(ProjectedGradientDescentPyTorch, problem, starts_of(problem, problem.ball))


def _best_of_starts(kind: type[Any], problem: Problem, starts: list[Tensor]) -> Tensor:
    """What an iterated class finds from each start, chosen as `pgd.descend` does."""

    def ascend(rows_N: Tensor | None, start_NFL: Tensor, restart: int) -> Tensor:
        part, settings = problem if rows_N is None else problem.subset(rows_N), problem.settings
        attack = kind(
            _estimator(part, restart * problem.steps),
            eps=settings.epsilon,
            eps_step=settings.step_size,
            max_iter=problem.steps,
            batch_size=len(part.keys_B),
            verbose=False,
        )
        _start_at(attack, part.box.clip(start_NFL.detach())[:, None])
        return _generate(attack, part)

    held = None if problem.start_BFL is None else problem.box.clip(problem.start_BFL.detach().clone())
    return best_of_starts(problem.target, problem.labels_B, starts, ascend, incumbent=held)


def _start_at(attack: Any, start_B1FL: Tensor) -> None:
    """Let a PGD of ART's, or a class that hands on to one, take its first step from a start.

    ART 1.20.1 knows two starts only: the input, and a random one. Its HopSkipJump takes an ``x_adv_init``; a PGD that
    did would make this needless, and a test fails.
    """
    pgd = getattr(attack, "_attack", attack)
    plain = pgd._compute_pytorch

    def from_start(moved_B1FL: Tensor, *others: Any) -> Tensor:
        moved: Tensor = plain(start_B1FL if pgd._i_max_iter == 0 else moved_B1FL, *others)
        return moved

    pgd._compute_pytorch = from_start


def _generate(attack: Any, problem: Problem) -> Tensor:
    return problem.features(attack.generate(problem.inputs(), problem.labels(), mask=_movable(problem)))


def _movable(problem: Problem) -> Array | None:
    """A mask of what the box lets move; None where it lets all. ART's own bounds cannot meet (`clip_values_of`)."""
    lower_F1, upper_F1 = problem.box.lower_F1, problem.box.upper_F1
    if lower_F1 is None or upper_F1 is None or bool((lower_F1 < upper_F1).all()):
        return None
    movable: Array = (lower_F1 < upper_F1).expand_as(problem.features_BFL)[:, None].float().cpu().numpy()
    return movable


def _estimator(problem: Problem, first_step: int) -> Any:
    """The model as a PyTorchClassifier that answers no more than these attacks need.

    Args:
        problem: what is attacked; in expectation a gradient is that of `Target.answer`, for the whole batch at once.
        first_step: number of the first step's draws of a randomised model.
    """
    estimator = replace(problem, expectation=None).classifier(clip_values=clip_values_of(problem.box))
    # For a success rate that only ART's log would see it asks for predictions: two passes an utterance.
    estimator.predict = lambda images, **_: np.zeros((len(images), problem.num_classes), np.float32)
    if problem.expectation is not None:
        estimator.loss_gradient = _expected_gradient(problem, first_step)
    return estimator


def _expected_gradient(problem: Problem, first_step: int) -> Callable[..., Any]:
    """ART's ``loss_gradient`` over a randomised model; of images as NumPy arrays or tensors."""
    target, labels_B, steps = problem.target, problem.labels_B, count(first_step)

    def loss_gradient(x: Any, y: Any) -> Any:
        moved_BFL = torch.as_tensor(x, device=labels_B.device)[:, 0]
        gradient_B1FL = target.answer(moved_BFL, labels_B, cross_entropy, step=next(steps)).gradient[:, None]
        return gradient_B1FL if isinstance(x, Tensor) else gradient_B1FL.cpu().numpy()

    return loss_gradient
