"""What a defended model says of utterances, and the figures that are counted from it.

Legend: N utterances, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ser_fl.defences import Defence
from ser_fl.metrics import Confusion, confusion_matrix
from ser_fl.robustness.test_set import TestSet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What a defended model said of clean or adversarial utterances; on the CPU."""

    votes_RN: Tensor
    run_weights: tuple[float, ...]
    """How much each run counts; they sum to 1."""
    labels_N: Tensor
    num_classes: int

    @property
    def confusion(self) -> Confusion:
        """Weighted mean of the runs' confusion matrices."""
        labels = self.labels_N.tolist()
        runs = [confusion_matrix(labels, run.tolist(), self.num_classes) for run in self.votes_RN]
        return np.asarray(np.average(runs, axis=0, weights=self.run_weights), dtype=np.float64)

    @property
    def right_RN(self) -> Tensor:
        """Which utterances were recognised, in each run."""
        return self.votes_RN == self.labels_N

    @property
    def weights_R(self) -> Tensor:
        """`run_weights`, float64."""
        return torch.tensor(self.run_weights, dtype=torch.float64)

    @property
    def recognised_N(self) -> Tensor:
        """How likely each utterance is to be recognised: the mean of its runs, float64."""
        return self.weights_R @ self.right_RN.double()

    def take(self, rows: Sequence[int]) -> Predictions:
        """The same of some of the utterances."""
        return replace(self, votes_RN=self.votes_RN[:, rows], labels_N=self.labels_N[rows])


def show(test_set: TestSet, features_NFL: Tensor, defence: Defence) -> Predictions:
    """Predictions of the defended model."""
    votes = [torch.zeros(len(defence.run_weights), 0, dtype=torch.int64)]
    for start in range(0, len(features_NFL), test_set.batch_size):
        batch = slice(start, start + test_set.batch_size)
        ids = test_set.ids[batch]
        votes.append(defence.predict(test_set.model, features_NFL[batch], ids, seed=test_set.seed).cpu())
    return Predictions(
        votes_RN=torch.cat(votes, dim=1),
        run_weights=defence.run_weights,
        labels_N=test_set.labels_N.cpu(),
        num_classes=test_set.num_classes,
    )


def success_rate(right_RN: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float:
    """Successes among the utterances that were right when clean, over all runs; 0 where none was right."""
    weights_R = torch.tensor(run_weights, dtype=torch.float64)
    right, success = (float(weights_R @ counts.sum(dim=1).double()) for counts in (right_RN, success_RN))
    return success / right if right else 0.0


def mean_over_successes(value_N: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float:
    """Mean over the successes that `success_rate` counts, each by the weight of its run; 0 where there was none."""
    weights_R = torch.tensor(run_weights, dtype=torch.float64)
    weight_N = weights_R @ success_RN.double()
    return float(weight_N @ value_N.double() / weight_N.sum()) if bool(weight_N.any()) else 0.0


def weighted_median(value_RN: Tensor, weight_RN: Tensor) -> float | None:
    """The smallest value that half of all, by weight, do not exceed; None where that is infinite or weighs nothing.

    >>> weighted_median(torch.tensor([[0.0, 0.1, 0.2, float("inf")]]), torch.ones(1, 4))
    0.1
    """
    values, order = value_RN.double().flatten().sort(stable=True)
    weights = weight_RN.double().flatten()[order]
    if not bool(weights.any()):
        return None
    reached = weights.cumsum(0) >= (0.5 - 1e-9) * weights.sum()
    median = float(values[int(reached.nonzero()[0])])
    return median if median != float("inf") else None


def median_over_successes(value_N: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float | None:
    """Median over the successes that `success_rate` counts, each by the weight of its run; of what was measured (not
    NaN), and None where there is none.
    """
    weight_N = torch.tensor(run_weights, dtype=torch.float64) @ (success_RN & ~value_N.isnan()).double()
    return weighted_median(value_N.nan_to_num(0.0), weight_N)
