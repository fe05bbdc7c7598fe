"""Where the curve of robust UAR over epsilon begins and ends.

Legend: B utterances, F mel bins, L frames.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from ser_fl.attacks.pgd import bim
from ser_fl.attacks.step_size import default_step_size
from ser_fl.metrics import uar_of
from ser_fl.robustness.test_set import TestSet

NUM_EPSILONS = 10
NEAR_CLEAN = 0.02
"""Two points of UAR."""
_MAX_DOUBLINGS = 12
_STEPS = 10


def epsilons_of_curve(test_set: TestSet, around: float = 0.05) -> tuple[float, ...]:
    """Ten epsilons from where UAR is within 2 points of clean to where it is at most chance, in geometric steps,
    rounded to three digits, the ends outwards.

    Both ends are found by doubling and halving from ``around`` (> 0), with a basic iterative method of ten steps on the
    bare model. The search ends within twelve doublings and below the width of the box: a model with masked gradients
    may never come down to chance.
    """
    box, labels = test_set.box, test_set.labels_N.tolist()
    chance = 1 / max(len(set(labels)), 1)
    width = math.inf
    if box.lower_F1 is not None and box.upper_F1 is not None:
        width = float((box.upper_F1 - box.lower_F1).max())

    @cache
    def uar(epsilon: float) -> float:
        right = []
        batches = (torch.split(of, test_set.batch_size) for of in (test_set.features_NFL, test_set.labels_N))
        for features_BFL, labels_B in zip(*batches, strict=True):
            moved_BFL = features_BFL
            if epsilon:
                step = default_step_size(epsilon)
                moved_BFL = bim(
                    test_set.model, features_BFL, labels_B, epsilon=epsilon, step_size=step, steps=_STEPS, box=box
                )
            with torch.no_grad():
                right.append(test_set.model(moved_BFL).argmax(1) == labels_B)
        return uar_of(torch.cat(right).cpu().double().numpy(), labels)

    if uar(around) <= chance:
        high = _scaled(around, 0.5, lambda epsilon: uar(epsilon / 2) <= chance)
    else:
        high = _scaled(around, 2, lambda epsilon: epsilon < width and uar(epsilon) > chance)
    near_clean = uar(0.0) - NEAR_CLEAN
    low = _scaled(min(high, around), 0.5, lambda epsilon: uar(epsilon) < near_clean)
    low = _scaled(low, 2, lambda epsilon: uar(2 * epsilon) >= near_clean)
    points = np.geomspace(low, max(high, 2 * low), NUM_EPSILONS)
    inner = (_rounded(point, round) for point in points[1:-1])
    return (_rounded(points[0], math.floor), *inner, _rounded(points[-1], math.ceil))


def _scaled(epsilon: float, factor: float, goes_on: Callable[[float], bool]) -> float:
    """The first of epsilon * factor^k that ends the search."""
    for _ in range(_MAX_DOUBLINGS):
        if not goes_on(epsilon):
            break
        epsilon *= factor
    return epsilon


def _rounded(value: float, to_integer: Callable[[float], float]) -> float:
    """Three digits.

    >>> _rounded(0.012345, math.ceil)
    0.0124
    """
    unit = 10 ** (math.floor(math.log10(value)) - 2)
    return float(f"{to_integer(value / unit) * unit:.3g}")
