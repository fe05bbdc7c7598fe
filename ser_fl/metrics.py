"""Unweighted average recall and its kin, from confusion matrices.

Every figure is computed from a confusion matrix (rows: true class, columns: predicted class), because matrices
of different holders of data can be summed, and the mean of their recalls cannot.

Legend: C classes, N utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Confusion = npt.NDArray[np.float64]


def confusion_matrix(labels_N: Sequence[int], predictions_N: Sequence[int], num_classes: int) -> Confusion:
    """Count utterances by true class (row) and predicted class (column).

    Args:
        labels_N: true classes, 0 to ``num_classes - 1``.
        predictions_N: predicted classes, same range.
        num_classes: number of classes C, present or not.

    Returns:
        Matrix of shape (C, C); float64, so that expected counts over random draws fit as well.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    labels = np.asarray(labels_N, dtype=np.int64)
    predictions = np.asarray(predictions_N, dtype=np.int64)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Figures of one confusion matrix, all in [0, 1], or NaN where there was nothing to score."""

    uar: float
    accuracy: float
    macro_f1: float
    per_class_recall: tuple[float | None, ...]
    """Recall of each class; ``None`` for a class without a true utterance."""


def scores(confusion: Confusion) -> Scores:
    """UAR, accuracy, macro F1 and per-class recall of a confusion matrix.

    UAR (unweighted average recall) is the mean recall over the classes that have true utterances. Where every class
    is present it is scikit-learn's ``balanced_accuracy_score``; a class without true utterances has no recall and is
    left out, whether or not it was predicted. (torchmetrics counts a predicted but absent class as 0, audmetric any
    absent class: both would punish a client for a class it does not hold.) Macro F1 is taken over the same classes.
    Accuracy is what some papers call WAR or "weighted" accuracy.

    >>> import numpy as np
    >>> result = scores(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> result.uar, result.per_class_recall
    (0.875, (0.75, 1.0, None))
    """
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    correct = np.diagonal(confusion)
    present = support > 0
    if not present.any():
        nothing = float("nan")
        return Scores(uar=nothing, accuracy=nothing, macro_f1=nothing, per_class_recall=(None,) * len(support))
    recall = correct[present] / support[present]
    f1 = 2 * correct[present] / (support[present] + predicted[present])
    by_class = iter(recall.tolist())
    return Scores(
        uar=float(recall.mean()),
        accuracy=float(correct.sum() / support.sum()),
        macro_f1=float(f1.mean()),
        per_class_recall=tuple(next(by_class) if here else None for here in present.tolist()),
    )
