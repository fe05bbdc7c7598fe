"""Defences without randomness: worked values, and what must be refused."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import median_filter

from ser_fl.defences import MedianSmoothing, Quantisation
from ser_fl.errors import UserError


def test_quantisation_rounds_to_the_nearest_level() -> None:
    features = torch.tensor([[[-0.8, -0.2, 0.0, 0.26, 0.6, 3.3]]])
    shown = Quantisation(step=0.5).transform(features, ["a"], seed=0, draw=0)
    assert shown.tolist() == [[[-1.0, -0.0, 0.0, 0.5, 0.5, 3.5]]]
    fine = torch.randn(2, 8, 9)
    shown = Quantisation(step=0.1).transform(fine, ["a", "b"], seed=0, draw=0)
    assert float((shown - fine).abs().max()) <= 0.05 + 1e-6
    torch.testing.assert_close(shown * 10, (shown * 10).round())


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_smoothing_is_a_median_over_frames_with_repeated_edges(frames: int) -> None:
    features = torch.randn(3, 5, 12)
    shown = MedianSmoothing(frames=frames).transform(features, ["a", "b", "c"], seed=0, draw=0)
    expected = median_filter(features.numpy(), size=(1, 1, frames), mode="nearest")
    assert torch.equal(shown, torch.from_numpy(expected))


def test_outcomes_are_the_transform_k_times() -> None:
    features = torch.randn(3, 5, 12)
    for defence in (Quantisation(), MedianSmoothing()):
        shown = defence.outcomes(features, [[0] * 3] * 2)
        assert torch.equal(shown, defence.transform(features, ["a"] * 3, seed=0, draw=0).repeat(2, 1, 1))


def test_a_prediction_is_that_of_what_is_shown() -> None:
    features = torch.randn(20, 5, 12)
    defence = Quantisation(step=2.0)

    def model(shown: torch.Tensor) -> torch.Tensor:
        return shown.flatten(1)[:, :3]

    votes = defence.predict(model, features, ["a"] * 20, seed=0)
    assert torch.equal(votes, ((features / 2).round() * 2).flatten(1)[:, :3].argmax(1)[None])
    assert not torch.equal(votes, model(features).argmax(1)[None])


def test_impossible_settings_are_refused() -> None:
    for step in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="step must be > 0 and finite"):
            Quantisation(step=step)
    for frames in (0, 2, -3):
        with pytest.raises(UserError, match="frames must be odd and 1 or more"):
            MedianSmoothing(frames=frames)
