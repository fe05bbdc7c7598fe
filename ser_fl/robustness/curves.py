"""The curve of robust UAR over epsilon: where it begins and ends, and the smallest epsilon of each utterance.

Legend: N utterances, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ser_fl.attacks.step_size import default_step_size
from ser_fl.attacks.training_attacks import bim
from ser_fl.robustness.intervals import uar_of
from ser_fl.robustness.outcomes import Outcome
from ser_fl.robustness.predictions import Predictions
from ser_fl.robustness.test_set import TestSet

NUM_EPSILONS = 10
NEAR_CLEAN = 0.02
"""Two points of UAR."""
_MAX_DOUBLINGS = 12
_STEPS = 10


def epsilons_of_curve(test_set: TestSet, around: float = 0.05) -> tuple[float, ...]:
    """Epsilons from where UAR is within 2 points of clean to where it is at most chance, in geometric steps.

    Both ends are found by doubling and halving, with a basic iterative method of ten steps on the bare model. An end
    that is not found within twelve doublings, or below the width of the box, is where the search ended: a model with
    masked gradients may never come down to chance.

    Args:
        test_set: classifier and utterances.
        around: where the search begins, > 0.

    Returns:
        Ten epsilons, rounded to three digits, the ends outwards.
    """
    labels = test_set.labels_N.tolist()
    chance = 1 / max(len(set(labels)), 1)
    measured: dict[float, float] = {}

    def uar(epsilon: float) -> float:
        if epsilon not in measured:
            measured[epsilon] = uar_of(_recognised(test_set, epsilon), labels)
        return measured[epsilon]

    near_clean = uar(0.0) - NEAR_CLEAN
    high = _first(lambda epsilon: uar(epsilon) <= chance, around, _width(test_set))
    low = _last(lambda epsilon: uar(epsilon) >= near_clean, min(high, around))
    points = np.geomspace(low, max(high, 2 * low), NUM_EPSILONS)
    inner = (_rounded(point, round) for point in points[1:-1])
    return (_rounded(points[0], math.floor), *inner, _rounded(points[-1], math.ceil))


def _first(reached: Callable[[float], bool], begin: float, end: float) -> float:
    """The smallest of begin * 2^k where something is reached, up to ``end``."""
    epsilon = begin
    if reached(epsilon):
        for _ in range(_MAX_DOUBLINGS):
            if not reached(epsilon / 2):
                break
            epsilon /= 2
        return epsilon
    for _ in range(_MAX_DOUBLINGS):
        if epsilon >= end or reached(epsilon):
            break
        epsilon *= 2
    return epsilon


def _last(holds: Callable[[float], bool], begin: float) -> float:
    """The largest of begin * 2^k where something still holds."""
    epsilon = begin
    for _ in range(_MAX_DOUBLINGS):
        if holds(epsilon):
            break
        epsilon /= 2
    for _ in range(_MAX_DOUBLINGS):
        if not holds(2 * epsilon):
            break
        epsilon *= 2
    return epsilon


def _rounded(value: float, to_integer: Callable[[float], float]) -> float:
    """Three digits.

    >>> _rounded(0.012345, math.ceil)
    0.0124
    """
    unit = 10 ** (math.floor(math.log10(value)) - 2)
    return float(f"{to_integer(value / unit) * unit:.3g}")


def _width(test_set: TestSet) -> float:
    """The largest epsilon that makes a difference: that of the box, infinite without one."""
    if test_set.box.lower_F1 is None or test_set.box.upper_F1 is None:
        return math.inf
    return float((test_set.box.upper_F1 - test_set.box.lower_F1).max())


def _recognised(test_set: TestSet, epsilon: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """1 for the utterances that are recognised in spite of the search's attack, and 0 for the others."""
    right = []
    for first in range(0, len(test_set), test_set.batch_size):
        batch = slice(first, first + test_set.batch_size)
        features_BFL, labels_B = test_set.features_NFL[batch], test_set.labels_N[batch]
        if epsilon:
            features_BFL = bim(
                test_set.model,
                features_BFL,
                labels_B,
                epsilon=epsilon,
                step_size=default_step_size(epsilon),
                steps=_STEPS,
                box=test_set.box,
            )
        with torch.no_grad():
            right.append(test_set.model(features_BFL).argmax(1) == labels_B)
    return torch.cat(right).cpu().double().numpy()


def smallest_epsilons(outcome: Outcome, sweep: Sequence[Outcome], defence: str, clean: Predictions) -> Tensor:
    """The smallest epsilon that broke each utterance in each run, shape (R, N); infinite where none did.

    Of an attack that looks for the nearest adversarial utterance in L-infinity it is the norm that was found.

    Args:
        outcome: whose utterances are asked about.
        sweep: outcomes of the same attack and attacker at smaller epsilons, on these utterances or others.
        defence: that they were shown to.
        clean: what was said of the utterances before; what was wrong then has 0.
    """
    assert outcome.epsilon is not None, "asked of L-infinity attacks alone"
    labels_N, inf = clean.labels_N, float("inf")
    own_N = torch.full((len(labels_N),), outcome.epsilon, dtype=torch.float64)
    if outcome.minimal and outcome.norm == "inf":
        own_N = torch.tensor(outcome.linf_N, dtype=torch.float64)
    smallest_RN = torch.where(outcome.votes_RN(defence) == labels_N, inf, own_N)
    place = {utterance_id: row for row, utterance_id in enumerate(outcome.ids)}
    for smaller in sweep:
        shared = [(place[key], column) for column, key in enumerate(smaller.ids) if key in place]
        rows, columns = [row for row, _ in shared], [column for _, column in shared]
        broken_RM = smaller.votes_RN(defence)[:, columns] != labels_N[rows]
        found_RM = torch.where(broken_RM, torch.tensor(smaller.epsilon, dtype=torch.float64), inf)
        smallest_RN[:, rows] = torch.minimum(smallest_RN[:, rows], found_RM)
    return torch.where(clean.right_RN, smallest_RN, 0.0)
