"""The masking threshold against published formulas and worked numbers, and the ball of all that lies under it.

Legend: B clips, T samples, K frequencies, L frames.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ser_fl.attacks.clips import Clips
from ser_fl.attacks.psychoacoustic import (
    LOUDEST_DB,
    QUIET_MARGIN_DB,
    MaskingBall,
    ShortTime,
    bark,
    masking_threshold,
    threshold_in_quiet_db,
)
from ser_fl.config.compose import compose
from ser_fl.data.frontend import LogMel
from ser_fl.data.synthetic import SyntheticCorpus

LOGMEL = LogMel(compose(["experiment=debug", "frontend.duration_s=1.0"]).frontend)
RATE_HZ = 16000


@pytest.mark.parametrize(
    ("frequency_hz", "level_db"),
    # By hand from Terhardt's formula: 3.64 f^-0.8 - 6.5 exp(-0.6 (f - 3.3)^2) + 0.001 f^4, f in kHz.
    [(100.0, 22.95), (1000.0, 3.37), (3300.0, -4.98), (8000.0, 4.79), (0.0, 83.22)],
)
def test_threshold_in_quiet(frequency_hz: float, level_db: float) -> None:
    assert float(threshold_in_quiet_db(torch.tensor([frequency_hz]))[0]) == pytest.approx(level_db, abs=0.01)


@pytest.mark.parametrize(("frequency_hz", "place"), [(0.0, 0.0), (100.0, 0.99), (1000.0, 8.51), (4000.0, 17.25)])
def test_bark_scale(frequency_hz: float, place: float) -> None:
    assert float(bark(torch.tensor([frequency_hz]))[0]) == pytest.approx(place, abs=0.01)


def tone(frequency_hz: float, amplitude: float = 0.5, num_samples: int = RATE_HZ) -> Tensor:
    # In float64: a second of a tone is thousands of radians, whose rounding to float32 would be noise.
    return amplitude * torch.sin(2 * math.pi * frequency_hz * torch.arange(num_samples).double() / RATE_HZ).float()


def level_db(samples_T: Tensor) -> Tensor:
    """The threshold of a middle frame in dB SPL: the clip's loudest bin is at `LOUDEST_DB`."""
    threshold_KL = masking_threshold(samples_T, RATE_HZ)
    loudest = ShortTime.at(RATE_HZ).spectrum(samples_T[None]).abs().amax()
    return LOUDEST_DB + 20 * torch.log10(threshold_KL[:, threshold_KL.shape[1] // 2] / loudest)


@pytest.mark.parametrize("frequency_hz", [250.0, 1000.0, 4000.0])
def test_a_tone_hides_most_at_its_own_place(frequency_hz: float) -> None:
    """Worked numbers: the tone is in the middle of a bin, whose neighbours have a quarter of its power each."""
    level_K = level_db(tone(frequency_hz))
    frequencies_K = ShortTime.at(RATE_HZ).frequencies_hz(RATE_HZ)
    bark_K = bark(frequencies_K)
    place = float(bark(torch.tensor([frequency_hz], dtype=torch.float64))[0])
    peak = int(level_K.argmax())
    assert float(frequencies_K[peak]) == pytest.approx(frequency_hz)
    masker_db = LOUDEST_DB + 10 * math.log10(1.5)
    assert float(level_K[peak]) == pytest.approx(masker_db - 6.025 - 0.275 * place, abs=0.1)
    for away in (-1.0, 1.0):
        near = int((bark_K - place - away).abs().argmin())
        distance = float(bark_K[near]) - place
        fall = 27 * distance if away < 0 else (-27 + 0.37 * (masker_db - 40)) * distance
        assert float(level_K[near] - level_K[peak]) == pytest.approx(fall, abs=0.1)


def test_far_from_a_faint_companion_only_quiet_counts() -> None:
    """Two octaves below a tone of 4 kHz its skirt is under the threshold in quiet, less the model's margin."""
    level_K = level_db(tone(4000.0))
    frequencies_K = ShortTime.at(RATE_HZ).frequencies_hz(RATE_HZ)
    row = int((frequencies_K - 500).abs().argmin())
    quiet_db = float(threshold_in_quiet_db(frequencies_K[row : row + 1])[0]) - QUIET_MARGIN_DB
    assert float(level_K[row]) == pytest.approx(quiet_db, abs=0.1)


def test_of_two_maskers_in_half_a_bark_the_stronger_counts() -> None:
    both, alone = level_db(tone(1000.0) + tone(1046.875, 0.05)), level_db(tone(1000.0))
    apart = level_db(tone(1000.0) + tone(3000.0, 0.05))
    assert float((both - alone).abs().max()) < 0.5
    assert float((apart - alone).max()) > 10


def test_louder_clips_hide_more_in_proportion() -> None:
    """Whoever listens turns the volume up, so that only the ratio of threshold to clip counts."""
    quiet, loud = (masking_threshold(tone(1000.0, amplitude), RATE_HZ) for amplitude in (0.01, 0.5))
    assert torch.allclose(loud, 50 * quiet, rtol=1e-3)


def test_silence_hides_nothing() -> None:
    clips = Clips.of([torch.zeros(5000)], RATE_HZ, LOGMEL)
    ball = MaskingBall.around(clips)
    assert not bool(ball.threshold_BKL.any())
    moved_BT = ball.project(clips.waveform_BT + 0.1)
    assert float((moved_BT - clips.waveform_BT).abs().max()) < 1e-12
    assert bool(ball.random([torch.Generator().manual_seed(0)]).isfinite().all())


@pytest.fixture(scope="module")
def speech() -> tuple[Clips, MaskingBall]:
    corpus = SyntheticCorpus(2, 1)
    waveforms = [corpus.read(utterance)[0] for utterance in corpus.utterances[:2]]
    clips = Clips.of([waveforms[0], waveforms[1][:9000]], RATE_HZ, LOGMEL)
    return clips, MaskingBall.around(clips)


def test_what_is_projected_lies_under_the_threshold(speech: tuple[Clips, MaskingBall]) -> None:
    clips, ball = speech
    stream = torch.Generator().manual_seed(3)
    for amplitude in (1e-4, 1e-2, 1.0):
        step_BT = amplitude * torch.randn(clips.waveform_BT.shape, generator=stream) * clips.movable_BT
        noisy_BT = clips.waveform_BT + step_BT
        assert bool((ball.excess(step_BT) > 1).all()) and bool((ball.share_below(noisy_BT) < 0.99).all())
        inside_BT = ball.project(noisy_BT)
        assert bool((ball.excess(inside_BT - clips.waveform_BT) <= 1.001).all())
        assert bool((ball.share_below(inside_BT) == 1).all())
        assert torch.equal(clips.moved(inside_BT), inside_BT)
        assert bool((clips.lengths(inside_BT - clips.waveform_BT) > 0).all())


def test_what_is_inside_stays(speech: tuple[Clips, MaskingBall]) -> None:
    clips, ball = speech
    inside_BT = ball.random([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.allclose(ball.project(inside_BT), inside_BT, atol=1e-6)
    half_BT = clips.waveform_BT + (inside_BT - clips.waveform_BT) / 2
    assert torch.allclose(ball.project(half_BT), half_BT, atol=1e-7)


def test_projection_keeps_what_a_loud_passage_hides(speech: tuple[Clips, MaskingBall]) -> None:
    """A few excessive frames must not silence the rest: turned down by the worst bin alone, far less would be left."""
    clips, ball = speech
    step_BT = ball.steepest(torch.randn(clips.waveform_BT.shape, generator=torch.Generator().manual_seed(3)))
    kept_B = clips.lengths(ball.project(clips.waveform_BT + step_BT) - clips.waveform_BT)
    scaled_B = clips.lengths(step_BT / ball.excess(step_BT)[:, None])
    assert bool((kept_B > 3 * scaled_B).all())


def test_steepest_raises_a_linear_loss(speech: tuple[Clips, MaskingBall]) -> None:
    clips, ball = speech
    gradient_BT = torch.randn(clips.waveform_BT.shape, generator=torch.Generator().manual_seed(4))
    moved_BT = ball.project(clips.waveform_BT + ball.steepest(gradient_BT))
    rise_B = ((moved_BT - clips.waveform_BT) * gradient_BT).sum(1)
    random_BT = ball.random([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert bool((rise_B > 5 * ((random_BT - clips.waveform_BT) * gradient_BT).sum(1).abs()).all())


def test_subset_and_radius(speech: tuple[Clips, MaskingBall]) -> None:
    clips, ball = speech
    noisy_BT = clips.waveform_BT + 0.01 * clips.movable_BT
    part = ball.subset(torch.tensor([1]))
    assert torch.allclose(part.project(noisy_BT[1:]), ball.project(noisy_BT)[1:], atol=1e-6)


@pytest.mark.parametrize(("rate", "window"), [(8000, 1024), (16000, 2048), (22050, 2048), (44100, 4096), (48000, 8192)])
def test_windows_last_alike_at_every_rate(rate: int, window: int) -> None:
    assert ShortTime.at(rate).window_samples == window


def test_samples_of_a_spectrum_are_the_samples() -> None:
    short = ShortTime.at(8000)
    samples_BT = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(short.samples(short.spectrum(samples_BT), 5000), samples_BT, atol=1e-5)
