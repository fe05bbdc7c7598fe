"""Which perturbations a listener cannot hear: the masking threshold of a clip, and the ball of all that lies under it.

The threshold is that of psychoacoustic model 1 of MPEG-1 audio (ISO/IEC 11172-3, annex D; Lin and Abdulla 2015), as Qin
et al. 2019 (arXiv 1903.10346) use it: the loudest bin of a clip is played at 96 dB SPL; every local maximum of a
frame's spectrum above the threshold in quiet is a masker, of the power of its three bins; a masker of level P at z_m
Bark hides what lies below P - 6.025 - 0.275 z_m at its own place, 27 dB a Bark less below it and 27 - 0.37 max(P - 40,
0) dB a Bark less above it; all of these and the threshold in quiet add up in power. Two deviations, both stricter or
equal: of maskers within half a Bark of each other only the strongest counts, whichever order they come in; and a clip
of digital silence hides nothing.

Qin et al. trade a hinge on what exceeds the threshold against success, so that some of the perturbation may remain
audible. Here the threshold is a constraint: the perturbations whose short-time spectrum nowhere exceeds it are a convex
set, symmetric around the clip, and so a ball like any other. Every time-frequency bin of a projected perturbation lies
at or under the threshold, to rounding. That a listener hears nothing is the model's claim, not a guarantee.

Legend: B clips, T samples, K frequencies, L frames.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ser_fl.attacks.clips import Clips
from ser_fl.attacks.threat_model import Ball
from ser_fl.devices import send

LOUDEST_DB = 96.0
"""Sound pressure level at which the loudest bin of a clip is assumed to be played."""
QUIET_MARGIN_DB = 12.0
"""How far under the threshold in quiet the model stays: that of MPEG-1 at 96 kbit/s and more, and of Qin et al."""
WINDOW_S = 0.128
"""2,048 samples at 16 kHz, as Qin et al."""
FRAMES_PER_WINDOW = 4
_APART_BARK = 0.5
_TINY = 1e-20
_CUTS = 2
"""Of the spectrum in each projection onto the ball; frames that then still exceed the threshold are turned down."""


def bark(frequency_hz: Tensor) -> Tensor:
    """Frequencies on the Bark scale (Zwicker and Terhardt 1980), same shape.

    >>> bark(torch.tensor([1000.0])).round(decimals=2).tolist()
    [8.51]
    """
    return 13 * torch.atan(0.00076 * frequency_hz) + 3.5 * torch.atan((frequency_hz / 7500).square())


def threshold_in_quiet_db(frequency_hz: Tensor) -> Tensor:
    """The faintest audible tone, in dB SPL (Terhardt 1979), same shape; frequencies below 20 Hz count as 20 Hz."""
    kilohertz = frequency_hz.clamp(min=20.0) / 1000
    bump = 6.5 * torch.exp(-0.6 * (kilohertz - 3.3).square())
    return 3.64 * kilohertz**-0.8 - bump + 1e-3 * kilohertz**4


@dataclass(frozen=True, slots=True)
class ShortTime:
    """Short-time spectra of padded clips: Hann windows of some 128 ms, four to a window's length."""

    window_samples: int
    hop_samples: int

    @classmethod
    def at(cls, sample_rate_hz: int) -> Self:
        """Windows of a power of two, as near to 128 ms as they get."""
        window_samples = 2 ** round(math.log2(WINDOW_S * sample_rate_hz))
        return cls(window_samples, window_samples // FRAMES_PER_WINDOW)

    def frequencies_hz(self, sample_rate_hz: int) -> Tensor:
        """Of every bin, float64, shape (K,)."""
        return torch.arange(self.window_samples // 2 + 1, dtype=torch.float64) * sample_rate_hz / self.window_samples

    def spectrum(self, samples_BT: Tensor) -> Tensor:
        """Complex spectrum of shape (B, K, L), of frames around every hop; zeros lie beyond both ends."""
        window = torch.hann_window(self.window_samples, device=samples_BT.device, dtype=samples_BT.dtype)
        return torch.stft(
            samples_BT, self.window_samples, self.hop_samples, window=window, pad_mode="constant", return_complex=True
        )

    def samples(self, spectrum_BKL: Tensor, length: int) -> Tensor:
        """The samples whose spectrum is nearest (Griffin and Lim 1984), shape (B, T)."""
        window = torch.hann_window(self.window_samples, device=spectrum_BKL.device, dtype=spectrum_BKL.real.dtype)
        return torch.istft(spectrum_BKL, self.window_samples, self.hop_samples, window=window, length=length)

    def gain(self, ratio_BL: Tensor, length: int) -> Tensor:
        """A gain of at most 1 that turns frames with a ratio above 1 down by it at least, shape (B, T). A frame is
        turned down as far as the most excessive one within half a window, which shares samples with it; from frame to
        frame the gain runs straight.
        """
        reach = FRAMES_PER_WINDOW // 2
        gain_B1L = -F.max_pool1d(-1 / ratio_BL.clamp(min=1.0)[:, None], 2 * reach + 1, stride=1, padding=reach)
        between = (ratio_BL.shape[1] - 1) * self.hop_samples + 1
        gain_BT = F.interpolate(gain_B1L, between, mode="linear", align_corners=True)[:, 0]
        # Fewer samples than a hop lie behind the last frame's middle.
        return F.pad(gain_BT[None], (0, max(length - between, 0)), mode="replicate")[0, :, :length]


def masking_threshold(samples_T: Tensor, sample_rate_hz: int) -> Tensor:
    """Largest magnitude of a perturbation's short-time spectrum that the clip hides: float32, shape (K, L), on the
    device of the samples; zero for a clip of digital silence. It bounds
    ``abs(ShortTime.at(sample_rate_hz).spectrum(perturbation))``. Frames go through it one at a time, on the CPU, in
    float64.
    """
    short = ShortTime.at(sample_rate_hz)
    magnitude_KL = short.spectrum(samples_T.detach().cpu().double()[None])[0].abs()
    loudest = magnitude_KL.amax()
    if not bool(loudest > 0):
        return torch.zeros(magnitude_KL.shape, device=samples_T.device)
    power_KL = (magnitude_KL / loudest).square() * 10 ** (LOUDEST_DB / 10)
    frequencies_K = short.frequencies_hz(sample_rate_hz)
    bark_K, quiet_K = bark(frequencies_K), threshold_in_quiet_db(frequencies_K) - QUIET_MARGIN_DB
    level_KL = torch.stack([_masked_db(power_K, bark_K, quiet_K) for power_K in power_KL.T], dim=1)
    return (10 ** ((level_KL - LOUDEST_DB) / 20) * loudest).float().to(samples_T.device)


def _masked_db(power_K: Tensor, bark_K: Tensor, quiet_K: Tensor) -> Tensor:
    """The global threshold of one frame, in dB SPL, from its power on the same scale; shape (K,)."""
    inner = power_K[1:-1]
    peaks = ((inner > power_K[:-2]) & (inner >= power_K[2:])).nonzero().flatten() + 1
    level_M = 10 * torch.log10(power_K[peaks - 1] + power_K[peaks] + power_K[peaks + 1])
    audible = level_M > quiet_K[peaks]
    peaks, level_M = peaks[audible], level_M[audible]
    if len(peaks):
        near_MM = (bark_K[peaks][:, None] - bark_K[peaks]).abs() < _APART_BARK
        strongest_M = level_M >= torch.where(near_MM, level_M, -torch.inf).amax(1)
        peaks, level_M = peaks[strongest_M], level_M[strongest_M]
    place_M1, level_M1 = bark_K[peaks][:, None], level_M[:, None]
    above_MK = bark_K - place_M1
    slope_MK = torch.where(above_MK > 0, -27 + 0.37 * (level_M1 - 40).clamp(min=0), 27.0)
    masked_MK = level_M1 - 6.025 - 0.275 * place_M1 + slope_MK * above_MK
    per_db = math.log(10) / 10
    return 10 * torch.log10(torch.exp(per_db * masked_MK).sum(0) + torch.exp(per_db * quiet_K))


@dataclass(frozen=True, slots=True, eq=False)
class MaskingBall(Ball):
    """All waveforms whose perturbation lies under the masking threshold of their clip. Its norm is the largest ratio of
    the perturbation's short-time magnitude to the threshold over all bins: a radius of 1 is the threshold itself, 0.5
    lies 6 dB under it.
    """

    clips: Clips
    threshold_BKL: Tensor
    short: ShortTime

    @classmethod
    def around(cls, clips: Clips) -> Self:
        thresholds = [masking_threshold(waveform_T, clips.sample_rate_hz) for waveform_T in clips.waveform_BT]
        radius_B = torch.ones(len(clips), device=clips.waveform_BT.device)
        short = ShortTime.at(clips.sample_rate_hz)
        return cls(clips.waveform_BT, radius_B, "inf", clips, torch.stack(thresholds), short)

    def project(self, moved: Tensor) -> Tensor:
        """Waveforms inside, near the given ones, shape (B, T); the same where they are inside already.

        Spectra are cut at the threshold and made those of samples again: projections onto two convex sets, which
        approach a point of both, but slowly where a quiet frame overlaps a loud one. So after a few of them the frames
        that still exceed the threshold are turned down, with those that share samples, and what is left scales the
        clip's whole perturbation.
        """
        step_BT = (moved - self.clean) * self.clips.movable_BT
        for _ in range(_CUTS):
            spectrum_BKL = self.short.spectrum(step_BT)
            ratio_BKL = self._ratio(spectrum_BKL)
            cut_BT = self.short.samples(_scaled(spectrum_BKL, 1 / ratio_BKL.clamp(min=1.0)), step_BT.shape[1])
            fits_B1 = ratio_BKL.flatten(1).amax(1)[:, None] <= 1
            step_BT = torch.where(fits_B1, step_BT, cut_BT * self.clips.movable_BT)
        step_BT = step_BT * self.short.gain(self._ratio(self.short.spectrum(step_BT)).amax(1), step_BT.shape[1])
        return self.clean + step_BT / self.excess(step_BT).clamp(min=1.0)[:, None]

    def steepest(self, gradient: Tensor) -> Tensor:
        """The perturbation that moves every bin by its threshold, in the phase of the gradient, shape (B, T). To first
        order it raises the loss most in the ball; frames overlap, so that it may lie somewhat outside, and is to be
        projected.
        """
        spectrum_BKL = self.short.spectrum(gradient)
        scale_BKL = self.threshold_BKL / spectrum_BKL.abs().clamp(min=_TINY)
        return self.short.samples(_scaled(spectrum_BKL, scale_BKL), gradient.shape[1]) * self.clips.movable_BT

    def random(self, generators_B: Iterable[Generator]) -> Tensor:
        """Waveforms in the ball whose bins have uniform phases and magnitudes before projection, shape (B, T)."""
        shape = (1, *self.threshold_BKL.shape[1:])
        drawn = [torch.rand((2, *shape), generator=stream, device=stream.device) for stream in generators_B]
        share_BKL, turn_BKL = send(torch.cat(drawn, dim=1), self.clean.device)
        bound_BKL = self.threshold_BKL * self.radius_B[:, None, None]
        spectrum_BKL = torch.polar(share_BKL * bound_BKL, 2 * math.pi * turn_BKL)
        return self.project(self.clean + self.short.samples(spectrum_BKL, self.clean.shape[1]))

    def excess(self, step_BT: Tensor) -> Tensor:
        """Largest ratio of a perturbation's magnitude to the bound over all bins, shape (B,); 0 for none at all."""
        return self._ratio(self.short.spectrum(step_BT)).flatten(1).amax(1)

    def _ratio(self, spectrum_BKL: Tensor) -> Tensor:
        bound_BKL = self.threshold_BKL * self.radius_B[:, None, None]
        return spectrum_BKL.abs() / bound_BKL.clamp(min=_TINY)

    def share_below(self, moved: Tensor) -> Tensor:
        """Share of time-frequency bins, in frames around the clip's samples, whose perturbation lies at or under the
        threshold, shape (B,). A thousandth of it, 0.009 dB, is allowed for the rounding of float32 samples.
        """
        magnitude_BKL = self.short.spectrum(moved - self.clean).abs()
        last_B = (self.clips.heard_B + self.short.window_samples // 2 - 1) // self.short.hop_samples
        frames_L = torch.arange(magnitude_BKL.shape[2], device=last_B.device)
        counts_BL = (frames_L <= last_B[:, None]).float()
        under_BL = (magnitude_BKL <= self.threshold_BKL * (1 + 1e-3)).float().mean(1)
        return (under_BL * counts_BL).sum(1) / counts_BL.sum(1)


def _scaled(spectrum_BKL: Tensor, scale_BKL: Tensor) -> Tensor:
    """Complex numbers times real ones, without making those complex first, which takes several times as long."""
    return torch.view_as_complex(torch.view_as_real(spectrum_BKL) * scale_BKL[..., None])
