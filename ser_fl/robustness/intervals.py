"""How sure a UAR is: bootstrap over utterances, and UAR by group.

Legend: N utterances, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ser_fl.randomness import derive_seed

NUM_RESAMPLES = 2000
LEVEL = 0.95

Interval = tuple[float, float]
"""Lower and upper end."""
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """Resamples of some utterances, to be used for every figure about them: differences of figures are then paired.

    Utterances are drawn with replacement within their emotion (a stratified bootstrap: Efron and Tibshirani 1993,
    chapter 8), because UAR is a mean of recalls whose denominators a test part fixes: in a plain one an emotion of few
    utterances could be missing from a resample. Utterances are taken for independent; speakers are not resampled, so
    that the interval is about these speakers.
    """

    weights_SN: npt.NDArray[np.float32]
    """What each utterance counts in the UAR of each resample; a row sums to 1."""

    @classmethod
    def of(cls, labels_N: Sequence[int], ids: Sequence[str], seed: int) -> Self:
        """Draws that depend on (seed, emotion) and on which utterances there are, not on their order."""
        weights_SN = np.zeros((NUM_RESAMPLES, len(ids)), dtype=np.float32)
        by_label: dict[int, list[int]] = {}
        for row in sorted(range(len(ids)), key=lambda row: ids[row]):
            by_label.setdefault(labels_N[row], []).append(row)
        for label, rows in by_label.items():
            stream = np.random.default_rng(derive_seed("bootstrap", seed, label))
            counts = stream.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=NUM_RESAMPLES)
            weights_SN[:, rows] = counts / (len(rows) * len(by_label))
        return cls(weights_SN)

    def interval(self, recognised_N: _Floats) -> Interval | None:
        """The middle 95 % of resampled UARs.

        Args:
            recognised_N: of each utterance, how likely it is to be recognised, in [0, 1]; or a difference of two such
                figures, for the interval of a difference of UARs.

        Returns:
            None without utterances.
        """
        if not len(recognised_N):
            return None
        tail = (1 - LEVEL) / 2
        uar_S = self.weights_SN @ recognised_N.astype(np.float32)
        low, high = np.quantile(uar_S.astype(np.float64), [tail, 1 - tail])
        return float(low), float(high)


def uar_of(recognised_N: _Floats, labels_N: Sequence[int]) -> float:
    """UAR: mean over the emotions that occur of the mean over their utterances.

    >>> uar_of(np.array([1.0, 0.0, 1.0]), [0, 0, 1])
    0.75
    """
    labels = np.asarray(labels_N)
    return float(np.mean([recognised_N[labels == label].mean() for label in np.unique(labels)]))


def uar_by_group(recognised_N: _Floats, labels_N: Sequence[int], groups_N: Sequence[str | None]) -> dict[str, float]:
    """UAR of every group's utterances, by name in alphabetical order; None is no group."""
    labels, groups = np.asarray(labels_N), np.asarray(groups_N, dtype=object)
    names = sorted({group for group in groups_N if group is not None})
    return {name: uar_of(recognised_N[groups == name], labels[groups == name].tolist()) for name in names}
