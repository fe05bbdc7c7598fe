"""Source and filter: curves become a waveform (Fant, "Acoustic Theory of Speech Production", 1960).

A train of glottal pulses (the derivative of Rosenberg's pulse, 1971) with jitter, shimmer and aspiration, and the
noise of consonants, are shaped frame by frame in the short-time Fourier domain by formants and spectral tilt.

T samples; K frames; Q frequencies; L control points.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ser_fl.data.synthetic.articulation import CONTROL_S, MALE_TRACT_CM, Articulation, Curve
from ser_fl.data.synthetic.delivery import Delivery
from ser_fl.data.synthetic.speakers import Speaker

FRAME_S = 0.032
PEAK = 0.95
LEVEL_DBFS = -30.0
"""RMS of an average vowel in a neutral voice."""
ROOM_GAIN_SD_DB = 4.0
ROOM_TILT_SD_DB = 1.2
"""Of one utterance's room and microphone, dB per octave."""
ROOM_NOISE_DBFS = (-67.0, -51.0)
"""RMS of the background noise, drawn uniformly."""

_CONSONANT_GAIN = np.float32(0.35)
_MOVING_BANDWIDTHS_HZ = (70.0, 90.0, 130.0)
_FIXED_BANDWIDTH_HZ = 200.0
_PULSE_POINTS = 1024


def synthesise(
    curves: Articulation, speaker: Speaker, delivery: Delivery, sample_rate_hz: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Waveform of shape (T,), peak at most `PEAK`, with the gain and the noise of a room."""
    source_T = _source(curves, speaker, delivery, sample_rate_hz, rng)
    hop = round(FRAME_S * sample_rate_hz / 2)
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop)).astype(np.float32)
    padded = np.pad(source_T, (hop, hop + -len(source_T) % hop))
    spectrum_KQ = np.fft.rfft(sliding_window_view(padded, 2 * hop)[::hop] * window)
    hz_Q = np.fft.rfftfreq(2 * hop, 1 / sample_rate_hz).astype(np.float64)
    at_K = np.arange(len(spectrum_KQ)) * hop / (CONTROL_S * sample_rate_hz)
    spectrum_KQ *= _response(curves, speaker, delivery, hz_Q, at_K)
    gain_db = LEVEL_DBFS + delivery.level_db + rng.normal(0.0, ROOM_GAIN_SD_DB)
    room_Q = _tilt(hz_Q, rng.normal(0.0, ROOM_TILT_SD_DB)) * 10 ** (gain_db / 20)
    spectrum_KQ *= room_Q.astype(np.float32)
    spectrum_KQ += _room_noise(len(spectrum_KQ), hz_Q, rng)
    frames = np.fft.irfft(spectrum_KQ, 2 * hop).astype(np.float32) * window
    waveform_T = (frames[:-1, hop:] + frames[1:, :hop]).reshape(-1)[: len(source_T)]
    waveform_T /= np.float32(max(1.0, float(np.abs(waveform_T).max()) / PEAK))
    return waveform_T


def _source(
    curves: Articulation, speaker: Speaker, delivery: Delivery, sample_rate_hz: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Pulses and noise of shape (T,) before any filter; RMS 1 in an average vowel."""
    control_L = np.arange(len(curves.f0_hz))
    at_T = np.arange(int(len(control_L) * CONTROL_S * sample_rate_hz)) / (CONTROL_S * sample_rate_hz)
    cycles_T = np.interp(at_T, control_L, np.cumsum(curves.f0_hz) * CONTROL_S)
    cycle_T = cycles_T.astype(np.int32)
    num_cycles = int(cycle_T[-1]) + 1
    jitter_pct = np.clip(speaker.jitter_pct + delivery.jitter_pct, 0.1, 5.0)
    # Jitter moves the closure, where a pulse is loudest, within its cycle.
    stretch = 1 + jitter_pct / 100 * rng.standard_normal(num_cycles)
    loudness = (1 + speaker.shimmer_pct / 100 * rng.standard_normal(num_cycles)).astype(np.float32)
    point_T = ((cycles_T - cycle_T) * (stretch * _PULSE_POINTS)[cycle_T]).astype(np.int32)
    pulse_T = _pulse(speaker.open_quotient)[np.minimum(point_T, _PULSE_POINTS)] * loudness[cycle_T]
    noise_T = _white_noise(len(at_T), rng)
    breath = 10 ** ((speaker.breath_db + delivery.breath_db) / 20)
    voicing_T = np.interp(at_T, control_L, curves.voicing).astype(np.float32)
    hiss_T = np.interp(at_T, control_L, curves.noise).astype(np.float32)
    source_T: NDArray[np.float32] = voicing_T * pulse_T + (hiss_T + np.float32(breath) * voicing_T) * noise_T
    return source_T


def _white_noise(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """RMS 1. Uniform, which is drawn faster than a normal one and sounds the same after any filter."""
    return (rng.random(size, dtype=np.float32) - np.float32(0.5)) * np.float32(np.sqrt(12))


def _pulse(open_quotient: float) -> NDArray[np.float32]:
    """One cycle of glottal flow, differentiated (the lips radiate the derivative): slow opening, abrupt closure."""
    phase = np.arange(_PULSE_POINTS + 1) / _PULSE_POINTS
    opening, closing = 0.67 * open_quotient, 0.33 * open_quotient
    rising = 0.5 / opening * np.sin(np.pi * phase / opening)
    falling = -0.5 / closing * np.sin(np.pi / 2 * (phase - opening) / closing)
    pulse = np.where(phase < opening, rising, np.where(phase < open_quotient, falling, 0.0))
    pulse /= np.sqrt(np.mean(pulse**2))
    return pulse.astype(np.float32)


def _response(
    curves: Articulation, speaker: Speaker, delivery: Delivery, hz_Q: Curve, at_K: Curve
) -> NDArray[np.complex64]:
    """What the mouth does to each frame, (K, Q): formants and tilt in voiced frames, a consonant's band elsewhere.

    `at_K` is the middle of each frame, counted in control points.
    """
    control_L = np.arange(len(curves.f0_hz))

    def column(curve_L: Curve) -> NDArray[np.float32]:
        return np.interp(at_K, control_L, curve_L).astype(np.float32)[:, None]

    damping_KQ = np.ones((len(at_K), len(hz_Q)), np.complex64)
    for formant_hz_L, bandwidth_hz in zip(curves.formants_hz.T, _MOVING_BANDWIDTHS_HZ, strict=True):
        damping_KQ *= _resonance(hz_Q, column(formant_hz_L), bandwidth_hz)
    voice_KQ = _fixed_response(speaker, delivery, hz_Q) / damping_KQ
    # A pulse train falls by 6 dB per octave: vowels of equal voicing shall be about equally loud.
    weight_Q = (1 / np.maximum(hz_Q, 100.0) ** 2).astype(np.float32)
    power_K = (voice_KQ.real**2 + voice_KQ.imag**2) @ (weight_Q / weight_Q.sum())
    hiss_K1 = column(curves.noise).clip(0.0, 1.0)
    voice_KQ *= (1 - hiss_K1) / np.sqrt(power_K)[:, None]
    octaves_Q = np.log2(np.maximum(hz_Q, 50.0)).astype(np.float32)
    voice_KQ += _CONSONANT_GAIN * hiss_K1 * np.exp(-3 * (octaves_Q - np.log2(column(curves.noise_hz))) ** 2)
    return voice_KQ


def _fixed_response(speaker: Speaker, delivery: Delivery, hz_Q: Curve) -> NDArray[np.complex64]:
    """Tilt, and the formants above the third, which hardly move, (Q,)."""
    scale = MALE_TRACT_CM / speaker.tract_cm
    formants_hz = (scale * np.arange(3500.0, hz_Q[-1] / scale + 1000.0, 1000.0)).astype(np.float32)
    damping_Q = _resonance(hz_Q, formants_hz[:, None], _FIXED_BANDWIDTH_HZ).prod(axis=0)
    response_Q: NDArray[np.complex64] = _tilt(hz_Q, speaker.tilt_db + delivery.tilt_db).astype(np.float32) / damping_Q
    return response_Q


def _tilt(hz_Q: Curve, db_per_octave: float) -> Curve:
    """Gain 1 up to 500 Hz, then a straight line over log frequency, (Q,)."""
    return (np.maximum(hz_Q, 500.0) / 500.0) ** (db_per_octave / 6.02)


def _resonance(hz_Q: Curve, formant_hz: NDArray[np.float32], bandwidth_hz: float) -> NDArray[np.complex64]:
    """What a second-order resonance with gain 1 at 0 Hz divides by; a column of formants gives a row for each."""
    ratio = (hz_Q.astype(np.float32) / formant_hz).astype(np.float32)
    result = np.empty(ratio.shape, np.complex64)
    result.real = 1 - ratio * ratio
    result.imag = ratio * (np.float32(bandwidth_hz) / formant_hz)
    return result


def _room_noise(num_frames: int, hz_Q: Curve, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Stationary coloured noise, (K, Q)."""
    colour_Q = np.maximum(hz_Q, 60.0) ** -rng.uniform(0.3, 0.8)
    amplitude = 10 ** (rng.uniform(*ROOM_NOISE_DBFS) / 20) * np.sqrt(len(hz_Q) - 1)  # RMS 1 after windows and overlap
    colour_Q *= amplitude / np.sqrt(np.mean(colour_Q**2))
    noise_KQ = _white_noise(2 * num_frames * len(hz_Q), rng).view(np.complex64).reshape(num_frames, -1)
    return noise_KQ * colour_Q.astype(np.float32)
