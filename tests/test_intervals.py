"""Intervals against the binomial distribution, Student's t in SciPy, and identities.

Legend: N utterances.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ser_fl.metrics import Bootstrap, confusion_matrix, scores, uar_by_group, uar_of


def ids_of(count: int) -> list[str]:
    return [f"u{index:04d}" for index in range(count)]


@pytest.mark.parametrize(("right", "total"), [(30, 100), (95, 100), (10, 20)])
def test_interval_of_one_emotion_is_the_binomials(right: int, total: int) -> None:
    """Resampling n utterances of which a share p is right draws from Binomial(n, p)."""
    recognised_N = np.array([1.0] * right + [0.0] * (total - right))
    interval = Bootstrap.of([0] * total, ids_of(total), seed=0).interval(recognised_N)
    assert interval is not None
    expected = stats.binom.ppf([0.025, 0.975], total, right / total) / total
    assert interval == pytest.approx(expected, abs=1 / total + 1e-6)


def test_interval_of_two_emotions_is_that_of_the_mean_of_two_shares() -> None:
    """Recalls of 0.5 over 200 and over 50 utterances: their mean is nearly normal, and the small emotion rules it."""
    labels = [0] * 200 + [1] * 50
    recognised_N = np.array([1.0, 0.0] * 125)
    interval = Bootstrap.of(labels, ids_of(250), seed=3).interval(recognised_N)
    assert interval is not None
    deviation = np.sqrt(0.25 / 200 + 0.25 / 50) / 2
    expected = stats.norm.interval(0.95, 0.5, deviation)
    assert interval == pytest.approx(expected, abs=0.01)


def test_every_resample_keeps_the_emotions() -> None:
    """One utterance of emotion 1, always right: UAR is never below a half, and no resample is without it."""
    labels = [0] * 30 + [1]
    recognised_N = np.array([0.0] * 30 + [1.0])
    assert Bootstrap.of(labels, ids_of(31), seed=0).interval(recognised_N) == pytest.approx((0.5, 0.5), abs=1e-6)


def test_interval_depends_on_seed_and_utterances_not_on_their_order() -> None:
    stream = np.random.default_rng(0)
    labels, ids = stream.integers(0, 3, 60).tolist(), ids_of(60)
    recognised_N = stream.integers(0, 2, 60).astype(float)
    straight = Bootstrap.of(labels, ids, seed=1).interval(recognised_N)
    order = stream.permutation(60).tolist()
    shuffled = Bootstrap.of([labels[i] for i in order], [ids[i] for i in order], seed=1).interval(recognised_N[order])
    assert shuffled == pytest.approx(straight, abs=1e-6)
    assert Bootstrap.of(labels, ids, seed=2).interval(recognised_N) != straight


def test_figures_of_the_same_utterances_are_paired() -> None:
    """Two attacks that leave the same utterances differ by 0 in every resample, however uncertain each is."""
    resamples = Bootstrap.of([0] * 20 + [1] * 20, ids_of(40), seed=0)
    first_N = np.array([1.0, 0.0] * 20)
    assert resamples.interval(first_N - first_N) == (0.0, 0.0)
    low, high = resamples.interval(first_N) or (0.0, 0.0)
    assert high - low > 0.1
    assert Bootstrap.of([], [], seed=0).interval(np.array([])) is None


def test_uar_is_the_confusion_matrixs() -> None:
    stream = np.random.default_rng(4)
    labels, predicted = stream.integers(0, 4, 50), stream.integers(0, 4, 50)
    expected = scores(confusion_matrix(labels.tolist(), predicted.tolist(), 5)).uar
    assert uar_of((labels == predicted).astype(float), labels.tolist()) == pytest.approx(expected, abs=1e-12)


def test_uar_by_group() -> None:
    recognised_N = np.array([1.0, 0.0, 1.0, 0.5, 0.0])
    by_group = uar_by_group(recognised_N, [0, 0, 1, 1, 0], ["b", "b", "b", "a", None])
    assert by_group == {"a": 0.5, "b": 0.75}
    assert list(by_group) == ["a", "b"]
