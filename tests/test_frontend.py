"""The front end against an oracle in numpy, and standardisation against pooled figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

import ser_fl
from ser_fl import compose
from ser_fl.config.frontend import FrontendConfig
from ser_fl.data.frontend import FeatureStatistics, LogMel, Standardisation, repeat_to_length, resample
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.errors import UserError
from ser_fl.models.networks import build_network

SECONDS3 = FrontendConfig(
    name="seconds3",
    sample_rate_hz=16000,
    window_samples=512,
    hop_samples=256,
    num_mels=64,
    fmin_hz=20.0,
    fmax_hz=8000.0,
    duration_s=3.0,
    log_offset=1e-8,
    clip="training",
)
PAPER = replace(SECONDS3, duration_s=5.984)
SMALL = replace(SECONDS3, sample_rate_hz=4000, window_samples=64, hop_samples=32, num_mels=8, fmax_hz=2000.0)
Array = NDArray[np.float64]


def noise(num_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def sine(frequency_hz: float, sample_rate_hz: int, duration_s: float = 0.5) -> Tensor:
    time = torch.arange(round(duration_s * sample_rate_hz), dtype=torch.float64) / sample_rate_hz
    return torch.sin(2 * torch.pi * frequency_hz * time).float() / 2


def slaney_mel(frequency_hz: Array) -> Array:
    """Slaney's Auditory Toolbox: 200/3 Hz a mel up to 1 kHz, then 27 mels for every factor of 6.4."""
    return np.where(
        frequency_hz < 1000, frequency_hz * 3 / 200, 15 + 27 * np.log(np.maximum(frequency_hz, 1) / 1000) / np.log(6.4)
    )


def slaney_hz(mel: Array) -> Array:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def slaney_filters(config: FrontendConfig) -> Array:
    """Triangles between neighbouring mel points, of unit area in Hz; shape (F, bins)."""
    low, high = slaney_mel(np.array([config.fmin_hz, config.fmax_hz]))
    corners_hz = slaney_hz(np.linspace(low, high, config.num_mels + 2))
    bins_hz = np.arange(config.window_samples // 2 + 1) * config.sample_rate_hz / config.window_samples
    rows = [
        np.interp(bins_hz, [left, centre, right], [0, 2 / (right - left), 0], left=0, right=0)
        for left, centre, right in zip(corners_hz, corners_hz[1:], corners_hz[2:], strict=False)
    ]
    return np.array(rows)


def log_mel_oracle(waveform_T: Array, config: FrontendConfig) -> Array:
    """Frame by frame: periodic Hamming window, magnitude of the FFT, mel sum, logarithm; shape (F, L)."""
    size = config.window_samples
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(size) / size)
    columns = []
    for start in range(0, len(waveform_T) - size + 1, config.hop_samples):
        magnitude = np.abs(np.fft.rfft(window * waveform_T[start : start + size]))
        columns.append(np.log(slaney_filters(config) @ magnitude + config.log_offset))
    return np.array(columns).T


def test_slaney_scale_of_the_oracle_at_its_published_points() -> None:
    points = np.array([0.0, 200 / 3, 1000.0, 6400.0])
    assert slaney_mel(points) == pytest.approx([0, 1, 15, 42])
    assert slaney_hz(slaney_mel(points)) == pytest.approx(points)


@pytest.mark.parametrize(("config", "num_samples", "num_frames"), [(PAPER, 95_744, 373), (SECONDS3, 48_000, 186)])
def test_length_of_clips_and_features(config: FrontendConfig, num_samples: int, num_frames: int) -> None:
    frontend = LogMel(config)
    clip_T = frontend.clip(noise(20_000), 16_000)
    assert clip_T.shape == (num_samples,)
    assert frontend(clip_T[None]).shape == (1, 64, num_frames) == (1, config.num_mels, config.num_frames)


@pytest.mark.parametrize("config", [replace(SECONDS3, duration_s=0.3), replace(SMALL, duration_s=0.3, fmin_hz=50.0)])
def test_equals_the_oracle(config: FrontendConfig) -> None:
    waveforms_BT = torch.stack([noise(config.num_samples), sine(440, config.sample_rate_hz, 0.3)])
    features_BFL = LogMel(config)(waveforms_BT).double().numpy()
    for waveform_T, features_FL in zip(waveforms_BT.double().numpy(), features_BFL, strict=True):
        # Magnitudes, where float32 is exact to 1e-6 of the loudest; logarithms blow up the rounding of quiet cells.
        expected = log_mel_oracle(waveform_T, config)
        assert np.exp(features_FL) == pytest.approx(np.exp(expected), abs=1e-6)
    assert features_BFL[0] == pytest.approx(log_mel_oracle(waveforms_BT[0].double().numpy(), config), abs=1e-4)


def test_silence_is_the_log_offset() -> None:
    features = LogMel(SMALL)(torch.zeros(1, 512))
    assert torch.equal(features, torch.full_like(features, 1e-8).log())


def test_twice_the_amplitude_is_log_two_more() -> None:
    """Magnitude, not power, which would give twice that."""
    frontend = LogMel(SECONDS3)
    once, twice = (frontend(scale * noise(2000)[None]) for scale in (1, 2))
    assert (twice - once).numpy() == pytest.approx(np.log(2), abs=1e-4)


def test_gradient_to_the_waveform_equals_finite_differences() -> None:
    """In float64, every sample against every cell; the lowest cells of so short a window are empty and constant."""
    frontend = LogMel(SMALL).double()
    waveform_BT = noise(2 * 128).double().reshape(2, 128).requires_grad_()
    assert torch.autograd.gradcheck(frontend, (waveform_BT,), eps=1e-6, atol=1e-4)


def test_gradient_at_digital_silence_is_finite() -> None:
    """Clips begin and end in zeros; an attack on the waveform must not meet a NaN there."""
    waveform_BT = torch.zeros(1, 512, requires_grad=True)
    LogMel(SMALL)(waveform_BT).sum().backward()
    assert waveform_BT.grad is not None
    assert waveform_BT.grad.isfinite().all()


def test_gradient_equals_torchaudios_transform() -> None:
    """In float64, of the same settings; its magnitude is `Tensor.abs`, ours a root of squares."""
    peer = torchaudio.transforms.MelSpectrogram(
        sample_rate=SECONDS3.sample_rate_hz,
        n_fft=SECONDS3.window_samples,
        hop_length=SECONDS3.hop_samples,
        f_min=SECONDS3.fmin_hz,
        f_max=SECONDS3.fmax_hz,
        n_mels=SECONDS3.num_mels,
        window_fn=torch.hamming_window,
        power=1.0,
        center=False,
        norm="slaney",
        mel_scale="slaney",
    ).double()
    waveform_BT = noise(2 * 4000).double().reshape(2, 4000).requires_grad_()
    weights_BFL = torch.randn(2, 64, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, gradients = [], []
    for features_BFL in (LogMel(SECONDS3).double()(waveform_BT), torch.log(peer(waveform_BT) + SECONDS3.log_offset)):
        (gradient_BT,) = torch.autograd.grad((features_BFL * weights_BFL).sum(), waveform_BT)
        values.append(features_BFL.detach().numpy())
        gradients.append(gradient_BT.numpy())
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("batch", [2, 7, 33])
def test_batched_and_alone_differ_by_rounding_at_most(batch: int) -> None:
    frontend = LogMel(SECONDS3)
    clips_BT = torch.stack([frontend.clip(noise(20_000 + 1000 * seed, seed), 16_000) for seed in range(batch)])
    together_BFL = frontend(clips_BT)
    for clip_T, features_FL in zip(clips_BT, together_BFL, strict=True):
        torch.testing.assert_close(frontend(clip_T[None])[0], features_FL, rtol=0, atol=2e-6)


def test_repeating_goes_through_to_the_recorded_samples() -> None:
    """A sample that is repeated three times has the gradient of all three."""
    recorded_T = torch.arange(4.0, requires_grad=True)
    (repeat_to_length(recorded_T, 10) * torch.arange(10.0)).sum().backward()
    assert recorded_T.grad is not None
    assert recorded_T.grad.tolist() == [0 + 4 + 8, 1 + 5 + 9, 2 + 6, 3 + 7]


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 1]), (6, [1, 2, 3, 1, 2, 3]), (7, [1, 2, 3, 1, 2, 3, 1])],
)
def test_repeat_to_length(num_samples: int, expected: list[int]) -> None:
    assert repeat_to_length(torch.tensor([1.0, 2.0, 3.0]), num_samples).tolist() == expected


@pytest.mark.parametrize("from_hz", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_sines_frequency_and_loudness(from_hz: int) -> None:
    """Half a second at 16 kHz is 8,000 samples: a bin of the FFT is 2 Hz wide."""
    resampled_T = resample(sine(440, from_hz), from_hz, 16_000)
    assert resampled_T.shape == (8_000,)
    spectrum = np.abs(np.fft.rfft(resampled_T.double().numpy()))
    assert 2 * int(spectrum.argmax()) == 440
    assert resampled_T[500:-500].square().mean().sqrt().item() == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    """12 kHz would come back as 4 kHz."""
    assert resample(sine(12_000, 48_000), 48_000, 16_000)[500:-500].abs().max() < 0.005


def test_equal_rates_change_nothing() -> None:
    waveform_T = noise(100)
    assert torch.equal(resample(waveform_T, 16_000, 16_000), waveform_T)


def test_clip_resamples_before_it_repeats() -> None:
    """Otherwise a clip of another rate would have another length."""
    clip_T = LogMel(SECONDS3).clip(sine(440, 48_000, duration_s=1.0), 48_000)
    assert clip_T.shape == (48_000,)
    assert torch.equal(clip_T[:16_000], clip_T[16_000:32_000])


def features(num_utterances: int, seed: int) -> Tensor:
    """Bins far from zero and of unlike spread, as log-mel features are; shape (N, 8, 12)."""
    stream = torch.Generator().manual_seed(seed)
    spread_F1 = torch.linspace(0.1, 2, 8)[:, None]
    return torch.randn(num_utterances, 8, 12, generator=stream) * spread_F1 - torch.linspace(1, 8, 8)[:, None]


@pytest.fixture
def client_features() -> list[Tensor]:
    return [features(count, seed) for seed, count in enumerate((3, 1, 10))]


@pytest.fixture
def statistics(client_features: list[Tensor]) -> list[FeatureStatistics]:
    return list(map(FeatureStatistics.of, client_features))


def test_all_clients_statistics_standardise_as_the_pooled_features_do(
    client_features: list[Tensor], statistics: list[FeatureStatistics]
) -> None:
    pooled = torch.cat(client_features).double().numpy()
    mean_F, deviation_F = pooled.mean((0, 2)), pooled.std((0, 2))
    ours = Standardisation.from_statistics(statistics, SMALL)
    assert [own.count for own in statistics] == [3 * 12, 12, 10 * 12]
    assert ours.mean_F1.flatten().numpy() == pytest.approx(mean_F, rel=1e-6)
    assert ours.deviation_F1.flatten().numpy() == pytest.approx(deviation_F, rel=1e-6)
    assert ours.upper_F1.flatten().numpy() == pytest.approx((pooled.max((0, 2)) - mean_F) / deviation_F, rel=1e-6)
    whole = FeatureStatistics.of(torch.cat(client_features))
    assert sum(own.sum_F for own in statistics).numpy() == pytest.approx(whole.sum_F.numpy(), rel=1e-12)
    for name, values_F1 in Standardisation.from_statistics([whole], SMALL).state_dict().items():
        torch.testing.assert_close(values_F1, ours.state_dict()[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip", ["training", "none"])
def test_standardised_training_features_have_mean_zero_and_deviation_one(
    client_features: list[Tensor], statistics: list[FeatureStatistics], clip: str
) -> None:
    """With the box as well: it holds all training features."""
    standardisation = Standardisation.from_statistics(statistics, replace(SMALL, clip=clip))
    standardised = standardisation(torch.cat(client_features)).double()
    assert standardised.mean((0, 2)).numpy() == pytest.approx(0, abs=1e-5)
    assert standardised.std((0, 2), correction=0).numpy() == pytest.approx(1, abs=1e-5)


def test_box_reaches_from_the_log_floor_to_the_training_maximum(
    client_features: list[Tensor], statistics: list[FeatureStatistics]
) -> None:
    standardisation = Standardisation.from_statistics(statistics, SMALL)
    training = torch.cat(client_features)
    lower_F, upper_F = standardisation.lower_F1.flatten(), standardisation.upper_F1.flatten()
    assert torch.allclose(standardisation(training).amax((0, 2)), upper_F, rtol=1e-5, atol=1e-5)
    assert (standardisation(training).amin((0, 2)) > lower_F).all()
    silence = LogMel(SMALL)(torch.zeros(1, 512))
    assert torch.allclose(standardisation(silence)[0, :, 0], lower_F, rtol=1e-5)
    below = standardisation(silence - 5)
    assert torch.equal(below[0, :, 0], lower_F)
    louder = standardisation(training + 100)
    assert torch.equal(louder, standardisation.upper_F1.expand_as(louder))


def test_without_a_box_nothing_is_clipped(statistics: list[FeatureStatistics]) -> None:
    standardisation = Standardisation.from_statistics(statistics, replace(SMALL, clip="none"))
    far = torch.full((1, 8, 1), 1000.0)
    expected = (far - standardisation.mean_F1) / standardisation.deviation_F1
    assert torch.equal(standardisation(far), expected)
    assert torch.equal(standardisation.lower_F1, torch.full((8, 1), -torch.inf))
    assert torch.equal(standardisation.upper_F1, torch.full((8, 1), torch.inf))


@pytest.mark.parametrize("log_offset", [1e-8, 1e-6, 3e-5, 1.0])
def test_box_of_a_silent_bin_is_a_point_and_not_inside_out(log_offset: float) -> None:
    """The floor in float64 can lie above the silence that float32 features hold, and so can, by a bit, any other."""
    config = replace(SMALL, log_offset=log_offset)
    training = LogMel(config)(torch.zeros(3, config.num_samples))
    training[:, 0] = 1.0
    training[:, 1] = torch.nextafter(training[:, 1], torch.tensor(-torch.inf))
    standardisation = Standardisation.from_statistics([FeatureStatistics.of(training)], config)
    assert (standardisation.lower_F1 <= standardisation.upper_F1).all()
    assert torch.equal(standardisation.lower_F1[1:], standardisation.upper_F1[1:])
    assert torch.equal(standardisation.lower_F1[2:], torch.zeros(6, 1)), "the mean of silence is silence"
    within = standardisation(training)
    assert torch.equal(within, within.clamp(standardisation.lower_F1, standardisation.upper_F1))


@pytest.mark.parametrize("num_mels", [224, 256])
def test_mel_bins_without_a_frequency_are_refused(num_mels: int, recwarn: pytest.WarningsRecorder) -> None:
    empty = np.flatnonzero(slaney_filters(replace(SECONDS3, num_mels=num_mels)).max(axis=1) == 0)
    message = rf"frontend\.num_mels .* of {num_mels}, {len(empty)} hold none \(the first is bin {empty[0]}\)"
    with pytest.raises(UserError, match=message + r".*window_samples=512; lower num_mels or raise window_samples"):
        LogMel(replace(SECONDS3, num_mels=num_mels))
    assert not list(recwarn)


def test_bin_that_never_changes_gives_finite_features() -> None:
    """Band-limited recordings leave their upper bins at the log floor."""
    training = features(4, 0)
    training[:, 3] = np.log(1e-8)
    standardisation = Standardisation.from_statistics([FeatureStatistics.of(training)], SMALL)
    standardised = standardisation(features(4, 1))
    assert standardised.isfinite().all()
    assert standardised[:, 3].abs().max() < 1


def test_rates_without_a_common_divisor_would_fill_the_memory_and_are_refused() -> None:
    with pytest.raises(UserError, match="16001 Hz cannot be resampled to 16000 Hz; convert the recording"):
        resample(torch.zeros(100), 16001, 16000)
    assert resample(torch.zeros(22255), 22255, 16000).shape == (16000,)


DELTAS = replace(SECONDS3, deltas=True)


def test_deltas_are_slopes_of_five_frames_after_the_mel_bins() -> None:
    """Worked by numpy: least squares slopes, the ends repeated; on them once more."""
    plain = LogMel(SECONDS3)(LogMel(SECONDS3).clip(noise(48_000), 16_000)[None])[0]
    given = build_frontend(DELTAS)(build_frontend(DELTAS).clip(noise(48_000), 16_000)[None])[0]
    assert given.shape == (192, 186) == (DELTAS.num_features, DELTAS.num_frames)
    assert torch.equal(given[:64], plain)

    def slopes(values: Array) -> Array:
        padded = np.pad(values, ((0, 0), (2, 2)), mode="edge")
        parts = [step * padded[:, 2 + step : 2 + step + values.shape[1]] for step in (-2, -1, 1, 2)]
        return np.asarray(np.sum(parts, axis=0) / 10)

    expected = slopes(plain.double().numpy())
    np.testing.assert_allclose(given[64:128].numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(given[128:].numpy(), slopes(expected), atol=1e-4)


def test_deltas_are_differentiable() -> None:
    double = build_frontend(DELTAS).double()
    inputs = noise(48_000)[None].double().requires_grad_()
    weights = torch.randn(192, 186, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((double(inputs)[0, 64:] * weights[64:]).mean(), inputs)
    direction, step = gradient / gradient.norm(), 1e-7
    there, back = ((double(inputs + sign * step * direction)[0, 64:] * weights[64:]).mean() for sign in (1, -1))
    assert float(((there - back) / (2 * step)).detach()) == pytest.approx(float(gradient.norm()), rel=1e-3)


def test_deltas_have_a_box_of_ten_deviations_and_another_key() -> None:
    features = build_frontend(DELTAS)(torch.stack([noise(48_000), 0.1 * noise(48_000)]))
    both = [
        Standardisation.from_statistics([FeatureStatistics.of(part)], config)
        for part, config in (
            (features, DELTAS),
            (features[:, :64], SECONDS3),
        )
    ]
    for name in ("lower_F1", "upper_F1"):
        assert torch.equal(getattr(both[0], name)[:64], getattr(both[1], name))
        assert getattr(both[0], name)[64:].abs().unique().tolist() == [10]
    assert DELTAS.key != SECONDS3.key and DELTAS.key[: len(SECONDS3.key)] == SECONDS3.key


@pytest.mark.parametrize("name", ["crnn_tiny", "vgg15", "resnet", "pooled"])
def test_networks_take_deltas_as_channels(name: str) -> None:
    """The first convolution sees three images, and their gradient; with zero weights on two, it is that of one."""
    config = compose([f"model={name}", "frontend.deltas=true"])
    network = build_network(config.model, 4, seed=1, frontend=config.frontend).eval()
    features = torch.randn(2, 192, 186).requires_grad_()
    (gradient,) = torch.autograd.grad(network(features).square().sum(), features)
    assert all(part.any() for part in gradient.split(64, dim=1))
    if name == "pooled":
        return
    plain = build_network(config.model, 4, seed=1).eval()
    state = network.state_dict()
    first = next(key for key in state if state[key].dim() == 4)
    plain.load_state_dict(state | {first: state[first][:, :1]})
    state[first][:, 1:] = 0
    alone = features[:, :64].detach().requires_grad_()
    torch.testing.assert_close(network(features), plain(alone))
    (expected,) = torch.autograd.grad(plain(alone).square().sum(), alone)
    (given,) = torch.autograd.grad(network(features).square().sum(), features)
    torch.testing.assert_close(given[:, :64], expected, rtol=1e-4, atol=1e-6)


def test_a_run_with_deltas_is_trained_loaded_and_attacked(tmp_path: Path) -> None:
    settings = ["experiment=debug", "tracking=none", "frontend.deltas=true", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="mel_masks is of mel bins alone, which neither"):
        compose([*settings, "augmentation.mel_masks=1"])
    run = ser_fl.train(compose([*settings, "federation.num_rounds=1"]))
    assert ser_fl.evaluate(run).uar == pytest.approx(run.metrics().uar)
    with pytest.raises(UserError, match="shifts mel bins, and a network with deltas knows each feature by its place"):
        ser_fl.benchmark(run, attacks=["fgsm"], defences=["none", "randomisation"])
    records = ser_fl.benchmark(
        run,
        attacks=["fgsm"],
        defences=["none"],
        domain="waveform",
        snr_dbs=[20.0],
        curve_attacks=[],
        max_examples=4,
        checks=False,
    )
    assert next(record for record in records if record.attack == "fgsm").backward_passes > 0
