"""The front end: waveform to log-mel features, differentiable, and their standardisation.

Legend: B batch, T samples, Q frequencies, F mel bins, L frames, N utterances.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from ser_fl.config.frontend import MOMENTS, AnyFrontend, Pool
from ser_fl.data.audio import check_resampling
from ser_fl.devices import float32_by_default
from ser_fl.errors import UserError


def repeat_to_length(waveform_T: Tensor, num_samples: int) -> Tensor:
    """Repeat a clip end to end until it has ``num_samples`` samples; of a longer one, a view of the first.

    >>> repeat_to_length(torch.tensor([1.0, 2.0]), 5).tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0]
    """
    repeats = -(-num_samples // waveform_T.shape[-1])
    repeated_T = waveform_T if repeats == 1 else waveform_T.repeat(repeats)
    return repeated_T[:num_samples]


def resample(waveform_T: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Resample by torchaudio's windowed sinc; the waveform itself where the rates are equal. A `UserError` refuses
    rates with so small a common divisor that the filter would fill the memory.
    """
    if from_hz == to_hz:
        return waveform_T
    check_resampling(from_hz, to_hz)
    from torchaudio.functional import resample as windowed_sinc

    with float32_by_default():
        resampled_T: Tensor = windowed_sinc(waveform_T, from_hz, to_hz)
    return resampled_T


class FrontEnd(nn.Module):
    """From clips of one length to features of shape (B, F, L), differentiable."""

    at_once = 1
    """Clips of a batch in which the features of a corpus are computed."""

    def __init__(self, config: AnyFrontend) -> None:
        super().__init__()
        self.num_samples = config.num_samples
        self.sample_rate_hz = config.sample_rate_hz
        self.hop_samples = config.hop_samples

    def clip(self, waveform_T: Tensor, sample_rate_hz: int) -> Tensor:
        """One recorded waveform, resampled and repeated to the front end's length."""
        return repeat_to_length(resample(waveform_T, sample_rate_hz, self.sample_rate_hz), self.num_samples)


def mel_filters(config: AnyFrontend) -> Tensor:
    """Mel bins of Slaney's scale and normalisation, shape (window // 2 + 1, mel bins), float32.

    Raises:
        UserError: a mel bin is so narrow that no frequency of the transform falls into it.
    """
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings(), float32_by_default():
        warnings.filterwarnings("ignore", message=".*all zero values.*")  # told below, as an error
        filters: Tensor = melscale_fbanks(
            config.window_samples // 2 + 1,
            config.fmin_hz,
            config.fmax_hz,
            config.num_mels,
            config.sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
    if empty := (filters.amax(0) == 0).nonzero().flatten().tolist():
        raise UserError(
            f"frontend.num_mels must be so low that every mel bin holds a frequency: of {config.num_mels}, "
            f"{len(empty)} hold none (the first is bin {empty[0]}) with frontend.window_samples="
            f"{config.window_samples}; lower num_mels or raise window_samples"
        )
    return filters


def pool_frames(layers_BFL: Tensor, pool: Pool, num_layers: int = 1) -> Tensor:
    """Frames averaged ``pool`` at a time; or mean and deviation over time of each layer's units, shape (B, 2 F, 1)."""
    if pool != "clip":
        return nn.functional.avg_pool1d(layers_BFL, pool)
    layers_BNDL = torch.unflatten(layers_BFL, 1, (num_layers, -1))
    variance_BND1 = layers_BNDL.var(dim=3, correction=0, keepdim=True)
    return torch.cat([layers_BNDL.mean(dim=3, keepdim=True), (variance_BND1 + 1e-8).sqrt()], dim=2).flatten(1, 2)


def at_moments(log_mel_BML: Tensor) -> Tensor:
    """Log-mel magnitudes at `MOMENTS` of the clip, as bins of one frame."""
    return nn.functional.adaptive_avg_pool1d(log_mel_BML, MOMENTS).flatten(1)[:, :, None]


class LogMel(FrontEnd):
    """Log-mel spectrogram with the settings of the paper's authors (arXiv 2203.04696).

    Hamming window, no centring, magnitude (not power) spectrogram, ``log(x + 1e-8)``. Mel scale and normalisation are
    Slaney's, librosa's default; their code does not say otherwise. A clip alone in its batch has the same features to
    the last bit with one thread of torch; in a batch rounding may differ, by another path of the matrix product.

    Raises:
        UserError: as `mel_filters`.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: AnyFrontend) -> None:
        super().__init__(config)
        self.log_offset = config.log_offset
        self.register_buffer("window", torch.hamming_window(config.window_samples, dtype=torch.float32))
        self.register_buffer("filters", mel_filters(config))

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Features of shape (B, F, L) from waveforms of shape (B, T), in natural-log magnitude. Magnitudes take half
        the time of `Tensor.abs`. 1e-30 under the root, far below what float32 can add to the log offset, keeps the
        gradient at zero finite.
        """
        frames_BLT = waveform_BT.unfold(-1, len(self.window), self.hop_samples)
        spectrum_BLQ = torch.fft.rfft(frames_BLT * self.window)
        floor = torch.tensor(1e-30, dtype=spectrum_BLQ.real.dtype, device=spectrum_BLQ.device)
        power_BLQ = torch.addcmul(floor, spectrum_BLQ.real, spectrum_BLQ.real)
        power_BLQ = torch.addcmul(power_BLQ, spectrum_BLQ.imag, spectrum_BLQ.imag)
        return torch.log(power_BLQ.sqrt() @ self.filters + self.log_offset).transpose(-1, -2)


class LogMelDeltas(LogMel):
    """Log-mel spectrogram, its first and its second differences over time, one after the other."""

    def forward(self, waveform_BT: Tensor) -> Tensor:
        from torchaudio.functional import compute_deltas

        log_mel_BFL = super().forward(waveform_BT)
        first_BFL = compute_deltas(log_mel_BFL)
        return torch.cat([log_mel_BFL, first_BFL, compute_deltas(first_BFL)], dim=1)


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Sums per mel bin, in float64: what a client tells of its features, so that all clients are standardised alike."""

    count: int
    """Frames summed over."""
    sum_F: Tensor
    sum_of_squares_F: Tensor
    maximum_F: Tensor

    @classmethod
    def of(cls, features_NFL: Tensor) -> FeatureStatistics:
        values = features_NFL.double()
        return cls(
            count=values.shape[0] * values.shape[2],
            sum_F=values.sum((0, 2)),
            sum_of_squares_F=values.square().sum((0, 2)),
            maximum_F=values.amax((0, 2)),
        )

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        """Per bin, float64: the population's, and at least 1e-5, for bins that never change."""
        mean_F = self.sum_F / self.count
        variance_F = self.sum_of_squares_F / self.count - mean_F.square()
        return mean_F, variance_F.clamp(min=0).sqrt().clamp(min=1e-5)


class Standardisation(nn.Module):
    """Zero mean and unit deviation per mel bin, then the box that clean features are clipped to: per bin from the
    standardised log floor (silence) to the training maximum; unbounded with ``clip="none"``, as in the paper's code.
    """

    mean_F1: Tensor
    deviation_F1: Tensor
    lower_F1: Tensor
    upper_F1: Tensor

    def __init__(self, mean_F: Tensor, deviation_F: Tensor, lower_F: Tensor, upper_F: Tensor) -> None:
        super().__init__()
        for name, values in (("mean", mean_F), ("deviation", deviation_F), ("lower", lower_F), ("upper", upper_F)):
            self.register_buffer(f"{name}_F1", values.float().reshape(-1, 1).clone())

    @classmethod
    def from_statistics(cls, clients: Collection[FeatureStatistics], config: AnyFrontend) -> Standardisation:
        """Standardisation by the statistics of all clients' features, as if these were in one place."""
        pooled = FeatureStatistics(
            count=sum(own.count for own in clients),
            sum_F=reduce(torch.add, (own.sum_F for own in clients)),
            sum_of_squares_F=reduce(torch.add, (own.sum_of_squares_F for own in clients)),
            maximum_F=reduce(torch.maximum, (own.maximum_F for own in clients)),
        )
        mean, deviation = pooled.mean_and_deviation()
        if config.is_waveform:
            mean, deviation = torch.zeros_like(mean), torch.ones_like(mean)
        if config.clip == "none":
            infinity = torch.full_like(mean, float("inf"))
            return cls(mean, deviation, -infinity, infinity)
        if config.is_waveform:  # full scale
            return cls(mean, deviation, -deviation, deviation)
        # In float32, as the features are: the maximum of a bin that is always silent is then exactly the floor.
        floor = torch.full_like(mean, torch.nan if config.floor is None else config.floor)
        floor[: config.num_heard] = torch.tensor(config.log_offset, dtype=torch.float32).log().double()
        lower, upper = (floor - mean) / deviation, (pooled.maximum_F - mean) / deviation
        lower, upper = lower.masked_fill(floor.isnan(), -10.0), upper.masked_fill(floor.isnan(), 10.0)
        return cls(mean, deviation, lower, torch.maximum(lower, upper))

    @classmethod
    def of_scaled(cls, config: AnyFrontend) -> Standardisation:
        """Of features that are scaled by speaker already: the box alone, ten deviations about the mean."""
        zero = torch.zeros(config.num_features)
        side = torch.full_like(zero, float("inf") if config.clip == "none" else 10.0)
        return cls(zero, zero + 1, -side, side)

    def forward(self, features_BFL: Tensor) -> Tensor:
        standardised = (features_BFL - self.mean_F1) / self.deviation_F1
        return torch.clamp(standardised, self.lower_F1, self.upper_F1)
