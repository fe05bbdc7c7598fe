"""UAR and its kin against scikit-learn, and what they mean where a class is missing."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from ser_fl.metrics import confusion_matrix, scores

Labels = NDArray[np.int64]


def drawn(seed: int, num_classes: int, count: int = 60) -> tuple[Labels, Labels]:
    """Unbalanced labels, every class present, and predictions that are right more often than not."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(num_classes))
    labels_N = np.concatenate([np.arange(num_classes), rng.choice(num_classes, count, p=weights)])
    guesses_N = rng.integers(0, num_classes, len(labels_N))
    return labels_N, np.where(rng.random(len(labels_N)) < 0.6, labels_N, guesses_N)


@pytest.mark.parametrize("num_classes", [2, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn_where_every_class_is_present(seed: int, num_classes: int) -> None:
    labels_N, predictions_N = drawn(seed, num_classes)
    confusion = confusion_matrix(labels_N.tolist(), predictions_N.tolist(), num_classes)
    assert np.array_equal(confusion, sklearn_metrics.confusion_matrix(labels_N, predictions_N))
    result = scores(confusion)
    assert result.uar == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels_N, predictions_N), abs=1e-12)
    assert result.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels_N, predictions_N), abs=1e-12)
    f1 = sklearn_metrics.f1_score(labels_N, predictions_N, average="macro")
    assert result.macro_f1 == pytest.approx(f1, abs=1e-12)
    recalls = sklearn_metrics.recall_score(labels_N, predictions_N, average=None)
    assert result.per_class_recall == pytest.approx(recalls.tolist(), abs=1e-12)


def test_rows_are_true_and_columns_predicted() -> None:
    assert confusion_matrix([0, 0, 0, 1], [1, 1, 0, 2], 3).tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]


def test_predicted_class_without_true_utterances_is_left_out() -> None:
    """Class 2 takes an utterance of class 1: its recall falls to 1/2, and class 2 itself counts nowhere.

    Recalls 1 and 1/2. F1 of class 0: 2 * 2 / (2 + 2), of class 1: 2 * 1 / (2 + 1).
    """
    result = scores(confusion_matrix([0, 0, 1, 1], [0, 0, 1, 2], 3))
    assert result.per_class_recall == (1.0, 0.5, None)
    assert result.uar == 0.75
    assert result.macro_f1 == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert result.accuracy == 0.75


def test_class_absent_from_both_changes_nothing() -> None:
    labels_N, predictions_N = drawn(0, 4)
    without = scores(confusion_matrix(labels_N.tolist(), predictions_N.tolist(), 4))
    with_absent = scores(confusion_matrix(labels_N.tolist(), predictions_N.tolist(), 6))
    assert (with_absent.uar, with_absent.accuracy, with_absent.macro_f1) == (
        without.uar,
        without.accuracy,
        without.macro_f1,
    )
    assert with_absent.per_class_recall == (*without.per_class_recall, None, None)


def test_absent_class_in_the_middle_keeps_its_place() -> None:
    result = scores(confusion_matrix([0, 2, 2], [0, 2, 0], 3))
    assert result.per_class_recall == (1.0, None, 0.5)


def test_summed_matrices_give_the_pooled_figures_and_mean_recalls_do_not() -> None:
    """Two holders of data, one without the last class: the sum is the matrix of the pooled utterances."""
    first = ([0, 0, 1, 1], [0, 1, 1, 1])
    second = ([0, 2, 2, 2], [0, 2, 2, 0])
    by_holder = [confusion_matrix(*holder, 3) for holder in (first, second)]
    labels_N, predictions_N = first[0] + second[0], first[1] + second[1]
    pooled = scores(np.sum(by_holder, axis=0))
    assert pooled.uar == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels_N, predictions_N), abs=1e-12)
    assert pooled.uar != pytest.approx(np.mean([scores(confusion).uar for confusion in by_holder]), abs=0.01)


def test_expected_counts_over_random_draws_are_scored_as_counts() -> None:
    whole = scores(np.array([[6.0, 2.0], [1.0, 3.0]]))
    assert scores(np.array([[0.75, 0.25], [0.125, 0.375]])) == whole


def test_nothing_to_score_is_not_a_number() -> None:
    result = scores(confusion_matrix([], [], 3))
    assert isnan(result.uar)
    assert isnan(result.accuracy)
    assert isnan(result.macro_f1)
    assert result.per_class_recall == (None, None, None)


def test_nothing_right_is_zero_and_not_undefined() -> None:
    result = scores(confusion_matrix([0, 1], [1, 0], 2))
    assert (result.uar, result.accuracy, result.macro_f1) == (0.0, 0.0, 0.0)
