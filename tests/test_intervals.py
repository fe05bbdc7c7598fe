"""Intervals against the binomial distribution, Student's t in SciPy, and identities.

Legend: N utterances.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ser_fl.metrics import Bootstrap, confusion_matrix, recording_products, scores, uar_by_group, uar_of
from ser_fl.report.reader import TestScores
from ser_fl.report.replications import half_width_of_uar


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


def test_segments_that_are_alike_tell_no_more_than_their_recording() -> None:
    """Seven segments of each recording, all right or all wrong: the interval is that of the recordings, to the bit
    that seven makes of a float32, and not 2.6 times narrower."""
    stream = np.random.default_rng(1)
    labels, ids = stream.integers(0, 3, 40).tolist(), ids_of(40)
    recognised_N = stream.integers(0, 2, 40).astype(float)
    whole = Bootstrap.of(labels, ids, seed=1).interval(recognised_N)
    cut = Bootstrap.of(np.repeat(labels, 7).tolist(), np.repeat(ids, 7).tolist(), seed=1)
    assert cut.interval(np.repeat(recognised_N, 7)) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_recordings_of_any_length_are_drawn_whole_as_scipy_draws_them(is_mixed: bool) -> None:
    """Recordings of 1 to 9 utterances, of one emotion or of several; some are easy, some hard."""
    stream = np.random.default_rng(7)
    sizes = stream.integers(1, 10, 30)
    recordings = np.repeat(np.arange(30), sizes)
    labels = stream.integers(0, 2, len(recordings)) if is_mixed else recordings % 2
    recognised_N = (stream.random(len(recordings)) < stream.beta(1, 1, 30)[recordings]).astype(float)

    def uar(*drawn: np.ndarray) -> float:
        rows = np.concatenate([np.flatnonzero(recordings == one) for one in np.concatenate(drawn)])
        return uar_of(recognised_N[rows], labels[rows].tolist())

    strata = (np.arange(30),) if is_mixed else (np.arange(0, 30, 2), np.arange(1, 30, 2))
    theirs = stats.bootstrap(
        strata, uar, vectorized=False, n_resamples=3000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    names = [f"r{one:02d}" for one in recordings]
    ours = Bootstrap.of(labels.tolist(), names, seed=0).interval(recognised_N)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.015)
    assert ours is not None
    low, high = Bootstrap.of(labels.tolist(), ids_of(len(names)), seed=0).interval(recognised_N) or (0.0, 0.0)
    assert ours[1] - ours[0] > 1.3 * (high - low), "there is something to find"
    backwards = Bootstrap.of(labels[::-1].tolist(), names[::-1], seed=0).interval(recognised_N[::-1])
    assert backwards == pytest.approx(ours, abs=1e-6)
    # The interval of folds is that of a normal distribution, to first order.
    confusion = confusion_matrix(labels.tolist(), np.where(recognised_N == 1, labels, 1 - labels).tolist(), 2)
    products = recording_products(recognised_N, labels.tolist(), names, 2)
    test = TestScores(confusion=as_rows(confusion), recording_products=as_rows(products))
    assert half_width_of_uar([test]) == pytest.approx((theirs.high - theirs.low) / 2, rel=0.12)


def as_rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def test_products_of_recordings_add_up_over_folds_that_are_cut_and_that_are_not() -> None:
    """As of one test part; where all is uncut it is the binomial formula."""
    stream = np.random.default_rng(2)
    labels, right = stream.integers(0, 3, 60), stream.integers(0, 2, 60)
    predicted = np.where(right == 1, labels, (labels + 1) % 3)
    names = [f"r{row // 4}" for row in range(40)] + [f"s{row}" for row in range(20)]

    def test_of(rows: slice, *, is_cut: bool) -> TestScores:
        products = recording_products(right[rows].astype(float), labels[rows].tolist(), names[rows], 3)
        confusion = confusion_matrix(labels[rows].tolist(), predicted[rows].tolist(), 3)
        return TestScores(confusion=as_rows(confusion), recording_products=as_rows(products) if is_cut else ())

    whole = half_width_of_uar([test_of(slice(60), is_cut=True)])
    folds = [test_of(slice(40), is_cut=True), test_of(slice(40, 60), is_cut=False)]
    assert half_width_of_uar(folds) == pytest.approx(whole, rel=1e-9)
    uncut = slice(40, 60)
    binomial = half_width_of_uar([test_of(uncut, is_cut=False)])
    assert half_width_of_uar([test_of(uncut, is_cut=True)]) == pytest.approx(binomial, rel=1e-9)


def test_one_recording_of_each_emotion_leaves_nothing_to_draw() -> None:
    recordings = ["a"] * 5 + ["b"] * 4
    assert Bootstrap.of([0] * 5 + [1] * 4, recordings, seed=0).interval(np.array([1.0, 0, 0] * 3)) is None


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
