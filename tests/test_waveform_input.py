"""Recorded waveforms on their way to features: what the front end hears of them, and what is never touched.

Legend: B clips, T samples, F mel bins, L frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from ser_fl.attacks.clips import ClipBall, Clips, heard_samples
from ser_fl.attacks.waveform_domain import WaveformToFeatures
from ser_fl.config.compose import compose
from ser_fl.data.audio import read_audio
from ser_fl.data.frontend import FeatureStatistics, LogMel, Standardisation

FRONTEND = compose(["experiment=debug", "frontend.duration_s=0.5"]).frontend
LOGMEL = LogMel(FRONTEND)


def recording(num_samples: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return (0.2 * torch.randn(num_samples, generator=stream)).clamp(-1, 1)


def as_read(waveforms: list[Tensor], rate: int) -> Tensor:
    """Features as the store computes them: each recording by itself."""
    return torch.cat([LOGMEL(LOGMEL.clip(waveform_T, rate)[None]) for waveform_T in waveforms])


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_clean_features_are_those_of_the_store(rate: int) -> None:
    """Clips of one sample, short, one sample too short, just long enough, one too long and much too long."""
    heard = heard_samples(LOGMEL, rate)
    lengths = [1, 999, heard - 1, heard, heard + 1, 3 * heard]
    waveforms = [recording(length, seed) for seed, length in enumerate(lengths)]
    expected_BFL = as_read(waveforms, rate)
    standardisation = Standardisation.from_statistics([FeatureStatistics.of(expected_BFL[:3])], FRONTEND)
    clips = Clips.of(waveforms, rate, LOGMEL)
    features_BFL = WaveformToFeatures(clips, LOGMEL, standardisation)(clips.waveform_BT)
    # Above 4 kHz there is nothing but rounding in what was recorded at 8 kHz, and the logarithm of it.
    tolerance = 1e-4 if rate >= 16000 else 0.05
    assert torch.allclose(features_BFL, standardisation(expected_BFL), atol=tolerance)
    assert clips.heard_B.tolist() == [1, 999, heard - 1, heard, heard, heard]


def test_the_second_channel_of_a_stereo_file_is_what_is_moved(tmp_path: Path) -> None:
    stereo = np.stack([recording(4000, 0).numpy(), recording(4000, 1).numpy()], axis=1)
    soundfile.write(tmp_path / "two.wav", stereo, 22050, subtype="FLOAT")
    waveform_T, rate = read_audio(tmp_path / "two.wav", "second")
    clips = Clips.of([waveform_T], rate, LOGMEL)
    assert (clips.sample_rate_hz, clips.recorded_B.tolist()) == (22050, [4000])
    assert torch.equal(clips.waveform_BT[0, :4000], torch.from_numpy(stereo[:, 1]))


def plain(num_mels: int = FRONTEND.num_mels) -> Standardisation:
    side = torch.full((num_mels,), torch.inf)
    return Standardisation(torch.zeros(num_mels), torch.ones(num_mels), -side, side)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_what_is_no_clip_is_neither_heard_nor_moved(rate: int) -> None:
    heard = heard_samples(LOGMEL, rate)
    clips = Clips.of([recording(700), recording(2 * heard, 1)], rate, LOGMEL)
    to_features = WaveformToFeatures(clips, LOGMEL, plain())
    moved_BT = clips.waveform_BT + 0.1
    inputs_BT = moved_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(to_features(inputs_BT).square().sum(), inputs_BT)
    for row, length in enumerate((700, heard)):
        assert torch.equal(gradient_BT[row, length:], torch.zeros_like(gradient_BT[row, length:]))
        assert (gradient_BT[row, :length] != 0).float().mean() > 0.9
        kept_T = clips.moved(moved_BT)[row]
        assert torch.equal(kept_T[length:], clips.waveform_BT[row, length:])
        assert torch.equal(kept_T[:length], moved_BT[row, :length])
    assert clips.waveform_BT[1, heard] != 0  # recorded, and needed to resample what is heard
    assert torch.equal(to_features(moved_BT), to_features(clips.moved(moved_BT)))


def test_a_repeated_clip_moves_as_a_whole() -> None:
    """A perturbation of a short clip is heard in every repetition, as that of the clip repeated beforehand is."""
    short_T, step_T = recording(1000), 0.01 * recording(1000, 3)
    clips = Clips.of([short_T], 16000, LOGMEL)
    moved_BT = clips.waveform_BT.clone()
    moved_BT[0, :1000] += step_T
    features_BFL = WaveformToFeatures(clips, LOGMEL, plain())(moved_BT)
    assert torch.allclose(features_BFL, as_read([(short_T + step_T).repeat(8)], 16000), atol=1e-4)


def test_gradient_is_the_slope() -> None:
    clips = Clips.of([recording(1000)], 16000, LOGMEL)
    to_features = WaveformToFeatures(clips, LOGMEL, plain())
    inputs_BT = clips.waveform_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(to_features(inputs_BT).mean(), inputs_BT)
    direction_BT = gradient_BT / gradient_BT.norm()
    step = 1e-3
    ahead, behind = (to_features(inputs_BT + sign * step * direction_BT).mean() for sign in (1, -1))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(float(gradient_BT.norm()), rel=0.02)


def test_silence_has_a_gradient_that_is_a_number() -> None:
    clips = Clips.of([torch.zeros(500)], 16000, LOGMEL)
    inputs_BT = clips.waveform_BT.clone().requires_grad_()
    features_BFL = WaveformToFeatures(clips, LOGMEL, plain())(inputs_BT)
    (gradient_BT,) = torch.autograd.grad(features_BFL.sum(), inputs_BT)
    assert bool(gradient_BT.isfinite().all()) and bool(features_BFL.isfinite().all())


def test_subset_is_the_same_of_some_clips() -> None:
    clips = Clips.of([recording(700), recording(20000, 1), recording(3000, 2)], 16000, LOGMEL)
    to_features = WaveformToFeatures(clips, LOGMEL, plain())
    rows = torch.tensor([2, 0])
    part = to_features.subset(rows)
    assert torch.allclose(part(clips.waveform_BT[rows]), to_features(clips.waveform_BT)[rows], atol=1e-5)
    assert part.clips.heard_B.tolist() == [3000, 700]


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_random_starts_stay_on_the_clip_and_belong_to_it(norm: str) -> None:
    clips = Clips.of([recording(700), recording(8000, 1)], 16000, LOGMEL)
    ball = ClipBall(clips.waveform_BT, torch.tensor([0.5, 0.25]), norm, clips.heard_B)  # type: ignore[arg-type]
    started_BT = ball.random([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    step_BT = started_BT - clips.waveform_BT
    assert torch.equal(started_BT[0, 700:], clips.waveform_BT[0, 700:])
    order = 2 if norm == "2" else torch.inf
    size_B = torch.linalg.vector_norm(step_BT, ord=order, dim=1)
    assert bool((size_B <= ball.radius_B * (1 + 1e-5)).all()) and bool((size_B > 0.9 * ball.radius_B).all())
    alone_BT = ball.subset(torch.tensor([1])).random([torch.Generator().manual_seed(2)])
    assert torch.equal(alone_BT[0], started_BT[1])
