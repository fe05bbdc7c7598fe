"""The 84 patterns, their probabilities, and the defences made of them, against brute force and hand-written oracles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from ser_fl.defences import (
    DEFENCES,
    Classifier,
    Defence,
    ExpectedRandomisation,
    NoDefence,
    Randomisation,
    RandomisationEnsemble,
    build_defence,
)
from ser_fl.defences.randomisation import (
    Pattern,
    apply_patterns,
    draw_pattern,
    patterns,
)
from ser_fl.errors import UserError
from ser_fl.metrics import Confusion, confusion_matrix, scores
from ser_fl.randomness import generator

PAPER = (373, 64)
SMALL = (30, 70)


class TinyNet(nn.Module):
    """Three classes from features of any size, with logits that move when the image is shifted or stretched."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, kernel_size=3, stride=2)
        weights = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        self.convolution.weight = nn.Parameter(weights)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, features_BFL: Tensor) -> Tensor:
        response = self.convolution(features_BFL[:, None])
        # Bins and frames are weighted by place, so that a shift matters.
        ramp = torch.linspace(-1, 1, response.shape[-1])
        return torch.relu(response).mul(ramp.sin()).sum(dim=(2, 3))


def features(num_utterances: int, num_bins: int, num_frames: int, seed: int = 1) -> Tensor:
    return torch.randn(num_utterances, num_bins, num_frames, generator=torch.Generator().manual_seed(seed))


def expected_confusion(model: Classifier, original: Tensor, labels: Tensor, num_classes: int) -> Confusion:
    defence = ExpectedRandomisation()
    votes = defence.predict(model, original, [""] * len(labels), seed=0)
    matrices = [confusion_matrix(labels.tolist(), run.tolist(), num_classes) for run in votes]
    return np.asarray(np.average(matrices, axis=0, weights=defence.run_weights), dtype=np.float64)


def brute_force(num_frames: int, num_bins: int) -> dict[tuple[int, int, int, int], Fraction]:
    """Probability of (width, height, left, top) from the definition: every outcome of four uniform choices.

    The offset is chosen by a number that all numbers of choices divide, so that outcomes are equally likely.
    """
    found: dict[tuple[int, int, int, int], Fraction] = Counter()  # type: ignore[assignment]
    many = 420
    outcomes = list(product(range(num_frames, num_frames + 7), (num_bins, num_bins + 1), range(many), range(2)))
    for width, height, number, coin in outcomes:
        left = number % (num_frames + 7 - width)
        top = coin % (num_bins + 2 - height)
        found[width, height, left, top] += Fraction(1, len(outcomes))
    return found


@pytest.mark.parametrize(("num_frames", "num_bins"), [PAPER, SMALL])
def test_patterns_are_those_of_brute_force(num_frames: int, num_bins: int) -> None:
    listed = patterns(num_frames, num_bins)
    expected = brute_force(num_frames, num_bins)
    assert len(listed) == len(expected) == 84
    for pattern in listed:
        probability = expected[pattern.width, pattern.height, pattern.left, pattern.top]
        assert pattern.probability == pytest.approx(float(probability), rel=1e-12)


def test_probabilities_are_not_equal_and_make_one() -> None:
    probabilities = [pattern.probability for pattern in patterns(*PAPER)]
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert min(probabilities) == pytest.approx(1 / 196)
    assert max(probabilities) == pytest.approx(1 / 14)


def test_draws_follow_the_probabilities() -> None:
    num_draws = 20_000
    drawn = Counter(draw_pattern(3, f"speaker/{number}.wav", num_frames=30, num_bins=70) for number in range(num_draws))
    expected = {pattern: num_draws * pattern.probability for pattern in patterns(30, 70)}
    assert set(drawn) <= set(expected)
    chi_square = sum((drawn[pattern] - count) ** 2 / count for pattern, count in expected.items())
    # 83 degrees of freedom: mean 83, standard deviation 12.9; 135 is passed by chance once in 4000 seeds.
    assert 45 < chi_square < 135


def test_draws_of_one_utterance_and_of_one_seed_are_unrelated() -> None:
    def offsets(seeds: range, draws: range) -> Counter[int]:
        return Counter(
            draw_pattern(seed, "a.wav", draw, num_frames=30, num_bins=70).width - 30 for seed in seeds for draw in draws
        )

    for counted in (offsets(range(1), range(3500)), offsets(range(3500), range(1))):
        assert all(abs(counted[extra] - 500) < 5 * (500 * 6 / 7) ** 0.5 for extra in range(7))


def apply_pattern(features_BFL: Tensor, pattern: Pattern) -> Tensor:
    """All utterances alike."""
    return apply_patterns(features_BFL, [pattern] * len(features_BFL))


def bilinear(image: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Resize by hand: the first and last rows and columns stay where they are (aligned corners)."""
    resized = np.empty((height, width))
    for row, column in product(range(height), range(width)):
        y = row * (image.shape[0] - 1) / (height - 1)
        x = column * (image.shape[1] - 1) / (width - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
        upper = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
        lower = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
        resized[row, column] = upper * (1 - (y - y0)) + lower * (y - y0)
    return resized


@pytest.mark.parametrize(("num_frames", "num_bins"), [(11, 9), SMALL])
@pytest.mark.parametrize("choice", [0, 5, 41, 60, 83])
def test_resize_and_pad_by_hand(num_frames: int, num_bins: int, choice: int) -> None:
    pattern = patterns(num_frames, num_bins)[choice]
    original = features(2, num_bins, num_frames).double()
    shown = apply_pattern(original, pattern)
    assert shown.shape == (2, num_bins + 2, num_frames + 7)
    expected = np.full(shown.shape, 0.5)
    rows = slice(pattern.top, pattern.top + pattern.height)
    columns = slice(pattern.left, pattern.left + pattern.width)
    for number in range(2):
        expected[number, rows, columns] = bilinear(original[number].numpy(), pattern.height, pattern.width)
    np.testing.assert_allclose(shown.numpy(), expected, atol=1e-9)
    # In float32 a coordinate near 70 is off by up to 4e-6, times the slope of the image.
    np.testing.assert_allclose(apply_pattern(original.float(), pattern).numpy(), expected, atol=1e-4)


def test_smallest_size_keeps_the_features_to_the_bit() -> None:
    original = features(2, 64, 373)
    for pattern in patterns(373, 64):
        if (pattern.width, pattern.height) == (373, 64):
            shown = apply_pattern(original, pattern)
            assert torch.equal(shown[:, pattern.top : pattern.top + 64, pattern.left : pattern.left + 373], original)


def test_a_pattern_for_another_size_is_our_slip() -> None:
    with pytest.raises(AssertionError):
        apply_pattern(features(1, 64, 373), patterns(380, 64)[0])


def test_patterns_of_a_batch_are_those_of_each_utterance_alone() -> None:
    original = features(84, 70, 30)
    listed = patterns(30, 70)
    shown = apply_patterns(original, listed)
    for row, pattern in enumerate(listed):
        torch.testing.assert_close(shown[row], apply_pattern(original[row : row + 1], pattern)[0], atol=1e-6, rtol=0)


def test_transform_is_differentiable() -> None:
    original = features(3, 9, 11).double().requires_grad_()

    def shown(features_BFL: Tensor) -> Tensor:
        return Randomisation().transform(features_BFL, ["a", "b", "c"], seed=1, draw=0)

    assert torch.autograd.gradcheck(shown, (original,))


@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_predictions_do_not_depend_on_batch_or_order(name: str) -> None:
    defence, net = build_defence(name), TinyNet().eval()
    original, keys = features(40, 70, 30), [f"{number}.wav" for number in range(40)]
    whole = defence.predict(net, original, keys, seed=7)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    shuffled = defence.predict(net, original[order], [keys[row] for row in order], seed=7)
    assert torch.equal(shuffled, whole[:, order])
    parts = [defence.predict(net, original[row : row + 7], keys[row : row + 7], seed=7) for row in range(0, 40, 7)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_predictions_are_classes_by_run_without_gradient() -> None:
    net, original, keys = TinyNet().eval(), features(40, 70, 30), [f"{number}.wav" for number in range(40)]
    votes = Randomisation().predict(net, original, keys, seed=7)
    assert votes.shape == (3, 40)
    assert votes.dtype == torch.int64
    assert not votes.requires_grad
    assert len({tuple(run.tolist()) for run in votes}) == 3, "runs must differ"
    assert not torch.equal(votes, Randomisation().predict(net, original, keys, seed=8))
    first = Randomisation(num_draws=1).predict(net, original, keys, seed=7)
    assert torch.equal(first, votes[:1])


def test_an_ensemble_of_one_is_one_draw() -> None:
    net, original, keys = TinyNet().eval(), features(40, 70, 30), [f"{number}.wav" for number in range(40)]
    alone = RandomisationEnsemble(num_draws=1).predict(net, original, keys, seed=7)
    shown = [
        apply_pattern(original[row : row + 1], draw_pattern(7, key, num_frames=30, num_bins=70))
        for row, key in enumerate(keys)
    ]
    assert torch.equal(alone[0], net(torch.cat(shown)).argmax(dim=-1))
    assert torch.equal(alone, Randomisation(num_draws=1).predict(net, original, keys, seed=7))


def test_an_ensemble_averages_probabilities_and_does_not_vote() -> None:
    def two_classes(features_BFL: Tensor) -> Tensor:
        """Very sure of class 1 in the widest pattern alone, a little for class 0 in all others."""
        widest = (features_BFL[:, :, 6] != 0.5).any(dim=1) & (features_BFL[:, :, 0] != 0.5).any(dim=1)
        return torch.where(widest[:, None], torch.tensor([0.0, 50.0]), torch.tensor([0.1, 0.0]))

    original, keys = torch.ones(300, 70, 30), [f"{number}.wav" for number in range(300)]
    defence = RandomisationEnsemble(num_draws=3)
    logits = [two_classes(defence.transform(original, keys, seed=1, draw=draw)) for draw in range(3)]
    expected = torch.stack([one.softmax(dim=-1) for one in logits]).mean(dim=0).argmax(dim=-1)
    majority = torch.stack([one.argmax(dim=-1) for one in logits]).mode(dim=0).values
    assert not torch.equal(expected, majority), "the example must tell the two apart"
    assert torch.equal(defence.predict(two_classes, original, keys, seed=1)[0], expected)


def test_no_defence_is_the_model() -> None:
    net, original = TinyNet().eval(), features(8, 70, 30)
    votes = NoDefence().predict(net, original, [str(row) for row in range(8)], seed=1)
    assert torch.equal(votes, net(original).argmax(dim=-1)[None])


def test_expected_confusion_is_the_mean_over_draws() -> None:
    net, original = TinyNet().eval(), features(24, 70, 30)
    labels = torch.arange(24) % 3
    expected = expected_confusion(net, original, labels, 3)
    np.testing.assert_allclose(expected.sum(axis=1), 8, atol=1e-9)
    keys, runs = [f"{number}.wav" for number in range(24)], 400
    votes = Randomisation(num_draws=runs).predict(net, original, keys, seed=11)
    drawn = np.stack([confusion_matrix(labels.tolist(), run.tolist(), 3) for run in votes])
    standard_error = drawn.std(axis=0) / runs**0.5
    assert (standard_error > 0).sum() >= 6, "the draws must differ for this to say anything"
    assert (np.abs(drawn.mean(axis=0) - expected) <= 4.5 * standard_error + 1e-9).all()
    # UAR is linear: the UAR of the expected matrix is the expected UAR.
    uars = np.array([scores(one).uar for one in drawn])
    assert abs(scores(expected).uar - uars.mean()) <= 4.5 * uars.std() / runs**0.5


def test_expected_confusion_weighs_the_patterns() -> None:
    def is_narrow(features_BFL: Tensor) -> Tensor:
        """Class 1 where the last seven frames are padding: width L, left 0."""
        narrow = (features_BFL[:, :, -7:] == 0.5).all(dim=(1, 2))
        return torch.stack([torch.zeros(len(narrow)), narrow.float() * 2 - 1], dim=1)

    expected = expected_confusion(is_narrow, torch.ones(4, 70, 30), torch.tensor([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(expected, [[3 * 48 / 49, 3 / 49], [48 / 49, 1 / 49]], atol=1e-12)


def test_defences_by_name() -> None:
    built = {name: build_defence(name) for name in DEFENCES}
    assert {name: defence.name for name, defence in built.items()} == {name: name for name in DEFENCES}
    assert {name: defence.num_draws for name, defence in built.items()} == {
        "none": 1,
        "randomisation": 3,
        "randomisation_expected": 84,
        "randomisation_ensemble": 10,
        "quantisation": 1,
        "smoothing": 1,
    }
    with pytest.raises(UserError, match=r"did you mean 'randomisation'.*Known: none, quantisation, randomisation"):
        build_defence("randomization")


class Jitter(Defence):
    """As somebody would write it who has read the docstring of `ser_fl.defences.defence`."""

    name = "jitter"

    def __init__(self, num_draws: int, weights: tuple[float, ...] | None = None) -> None:
        self.num_draws = num_draws
        self.weights = weights

    @property
    def run_weights(self) -> tuple[float, ...]:
        return self.weights or super().run_weights

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        noise = [torch.randn(features_BFL.shape[1:], generator=generator(seed, key, draw)) for key in keys_B]
        return features_BFL + torch.stack(noise).to(features_BFL)


def test_own_defence_needs_a_name_and_a_transformation() -> None:
    defence = build_defence(Jitter(3))
    assert (defence.run_weights, defence.outcome_weights, defence.approximation) == ((1 / 3,) * 3, None, None)
    original = torch.zeros(4, 8, 10)
    votes = defence.predict(lambda features_BFL: features_BFL.mean(dim=2), original, "abcd", seed=5)
    means = [defence.transform(original, "abcd", seed=5, draw=draw).mean(dim=2) for draw in range(3)]
    assert torch.equal(votes, torch.stack(means).argmax(dim=2)), "each draw is scored by itself"
    assert len({tuple(run) for run in votes.tolist()}) > 1
    with pytest.raises(NotImplementedError, match="jitter lists no outcomes"):
        defence.outcomes(original, [[0] * 4])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Jitter, "a name or an object of a class derived from ser_fl.defences.Defence, got <class"),
        (lambda features_BFL: features_BFL, "a name or an object of a class derived .* got <function"),
        (Jitter(2, weights=(0.5, 0.6)), r"run_weights of defence 'jitter' must be 0 or more and sum to 1, got \(0\.5"),
        (Jitter(2, weights=(1.5, -0.5)), "run_weights of defence 'jitter' must be 0 or more"),
    ],
)
def test_what_is_no_defence_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_defence(given)


def test_zero_draws_are_refused() -> None:
    with pytest.raises(UserError, match="num_draws of randomisation must be 1 or more, got 0"):
        Randomisation(num_draws=0)
    with pytest.raises(UserError, match="num_draws of randomisation_ensemble must be 1 or more, got -1"):
        RandomisationEnsemble(num_draws=-1)


def test_a_drawn_pattern_is_a_listed_one() -> None:
    drawn = draw_pattern(1, "a.wav", num_frames=373, num_bins=64)
    assert isinstance(drawn, Pattern)
    assert drawn in patterns(373, 64)
    assert drawn == draw_pattern(1, "a.wav", num_frames=373, num_bins=64)
