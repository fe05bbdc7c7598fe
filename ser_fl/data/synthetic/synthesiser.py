"""From a sentence and a delivery to a waveform: what larynx, tongue and lips do, then source and filter.

As in Fant, "Acoustic Theory of Speech Production" (1960): a train of glottal pulses (the derivative of Rosenberg's
pulse, 1971) with jitter, shimmer and aspiration, and the noise of consonants, are shaped frame by frame in the
short-time Fourier domain by formants and spectral tilt.

S syllables; L control points, one every `CONTROL_S` seconds; 3 formants move; T samples; K frames; Q frequencies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ser_fl.data.synthetic.voices import Delivery, Speaker

Curve = NDArray[np.float64]

CONTROL_S = 0.004
MALE_TRACT_CM = 17.5
"""The tract that the formants below belong to."""
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

SENTENCES = (
    "pano seli tamu kife", "kitu manole fasi po", "suna pike lomi tase", "lomi tasuke nipa fo", "fenu sola tike mano",
    "mika tofuna lise ku", "nase kuli mofa tepi", "teli monaku sifo la", "pusi lane foki matu", "sako timule nafe si",
)  # fmt: skip
"""Nonsense words of two-letter syllables, as in Banse and Scherer (1996), the same for every emotion."""

# First three formants of a man's vowels, Hz (after Peterson and Barney, 1952).
_VOWELS = {"a": (730, 1150, 2440), "e": (520, 1840, 2480), "i": (280, 2250, 2900), "o": (500, 900, 2420),
           "u": (310, 870, 2250)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Consonant:
    duration_s: float
    voicing: float
    """Amplitude of the voice relative to a vowel's."""
    noise: tuple[float, float, float, float]
    """Amplitude of the noise at 0, 1/2, 3/4 and the end of the consonant: a burst or a hiss."""
    noise_hz: float
    locus_hz: float
    """The second formant's place."""


_BURST, _HISS, _NO_NOISE = (0.0, 0.0, 1.0, 0.4), (0.0, 1.0, 1.0, 0.2), (0.0, 0.0, 0.0, 0.0)
_CONSONANTS = {
    "p": _Consonant(0.07, 0.0, _BURST, 900, 900),
    "t": _Consonant(0.07, 0.0, _BURST, 4200, 1750),
    "k": _Consonant(0.08, 0.0, _BURST, 2200, 2100),
    "s": _Consonant(0.10, 0.0, _HISS, 5600, 1700),
    "f": _Consonant(0.09, 0.0, _HISS, 3800, 1000),
    "m": _Consonant(0.06, 0.35, _NO_NOISE, 1000, 1000),
    "n": _Consonant(0.06, 0.35, _NO_NOISE, 1000, 1700),
    "l": _Consonant(0.06, 0.50, _NO_NOISE, 1000, 1300),
}


@dataclass(frozen=True, slots=True)
class Articulation:
    """Curves at L control points: shape (L,), the formants' (L, 3)."""

    f0_hz: Curve
    voicing: Curve
    """Amplitude of the glottal source, about 1 in a vowel."""
    noise: Curve
    """Amplitude of consonant noise, about 1 at its loudest."""
    noise_hz: Curve
    formants_hz: Curve


@dataclass(frozen=True, slots=True)
class _Syllables:
    """The S syllables of a sentence: from `onset` a consonant, from `vowel` to `end` a vowel, then a pause."""

    consonants: list[_Consonant]
    vowels: list[tuple[int, int, int]]
    """Formants, Hz."""
    stressed: NDArray[np.bool_]
    """First of its word."""
    onset: Curve
    vowel: Curve
    end: Curve
    pause: Curve
    times: Curve
    """Of the L control points."""


def articulate(sentence: str, speaker: Speaker, delivery: Delivery, rng: np.random.Generator) -> Articulation:
    """The curves of one utterance, straight between knots."""
    syllables = _time(sentence, speaker, delivery, rng)
    consonants, num_syllables, times_L = syllables.consonants, len(syllables.consonants), syllables.times
    onset_S, vowel_S, end_S = syllables.onset, syllables.vowel, syllables.end
    closed_S, open_S = vowel_S - onset_S, end_S - vowel_S
    # Amplitudes of voice and noise.
    place_S = np.linspace(-0.5, 0.5, num_syllables)
    stress_S = (2.0 + delivery.stress_db) * (syllables.stressed - 0.5)
    level_S = 10 ** ((stress_S + delivery.fade_db * place_S + rng.standard_normal(num_syllables)) / 20)
    hum_S = level_S * [consonant.voicing for consonant in consonants]
    hold_S = np.append(hum_S[1:], 0.0) * (syllables.pause == 0)  # what the vowel passes on to the next consonant
    knots = (
        (onset_S, hum_S),
        (vowel_S - 0.1 * closed_S, hum_S),
        (vowel_S + 0.15 * open_S, level_S),
        (end_S - 0.25 * open_S, 0.9 * level_S),
        (end_S, np.maximum(hold_S, 0.1)),
        (end_S + 0.5 * syllables.pause, hold_S),
    )
    times_S6, voicing_S6 = (np.stack(column, axis=1) for column in zip(*knots, strict=True))
    noise_S4 = level_S[:, None] * [consonant.noise for consonant in consonants]
    noise_S5 = np.concatenate((noise_S4, np.zeros((num_syllables, 1))), axis=1)
    times_S5 = onset_S[:, None] + closed_S[:, None] * [0.0, 0.5, 0.75, 1.0, 1.2]
    # First three formants, gliding from a consonant's locus to the vowel and on.
    knots_S3 = np.stack((vowel_S - 0.01, vowel_S + 0.3 * open_S, vowel_S + 0.8 * open_S), axis=1)
    loci = [(250.0, consonant.locus_hz, 2500.0) for consonant in consonants]
    targets_S33 = np.array(list(zip(loci, syllables.vowels, syllables.vowels, strict=True)))
    formants = [np.interp(times_L, knots_S3.ravel(), targets_S33[:, :, n].ravel()) for n in range(3)]
    return Articulation(
        f0_hz=_pitch(syllables, speaker, delivery, rng),
        voicing=np.interp(times_L, times_S6.ravel(), voicing_S6.ravel(), left=0.0),
        noise=np.interp(times_L, times_S5.ravel(), noise_S5.ravel()),
        noise_hz=np.interp(times_L, onset_S, [consonant.noise_hz for consonant in consonants]),
        formants_hz=MALE_TRACT_CM / speaker.tract_cm * np.stack(formants, axis=1),
    )


def _time(sentence: str, speaker: Speaker, delivery: Delivery, rng: np.random.Generator) -> _Syllables:
    words = sentence.split()
    letters = [word[i : i + 2] for word in words for i in range(0, len(word), 2)]
    consonants, vowels = [_CONSONANTS[pair[0]] for pair in letters], [_VOWELS[pair[1]] for pair in letters]
    stressed_S = np.array([i == 0 for word in words for i in range(0, len(word), 2)])
    last_S = np.append(stressed_S[1:], True)
    tempo = speaker.rate_hz / 5.0 * np.clip(1 + delivery.rate_pct / 100, 0.5, 1.8)
    # Consonants yield less to tempo than vowels do.
    closed_S = np.array([consonant.duration_s for consonant in consonants]) / np.sqrt(tempo)
    open_S = np.where(stressed_S, 0.14, 0.10) / tempo * np.exp(0.1 * rng.standard_normal(len(letters)))
    open_S *= 1 + last_S * np.clip(0.15 + delivery.drawl_pct / 100, -0.4, 1.2)
    pause_S = last_S * max(speaker.pause_s + delivery.pause_s, 0.0) * rng.uniform(0.4, 1.6, len(letters))
    pause_S[-1] = 0.06  # the room after the last word
    onset_S = 0.06 + np.concatenate(([0.0], np.cumsum(closed_S + open_S + pause_S)[:-1]))
    vowel_S = onset_S + closed_S
    end_S = vowel_S + open_S
    times_L = np.arange(0.0, end_S[-1] + pause_S[-1], CONTROL_S)
    return _Syllables(consonants, vowels, stressed_S, onset_S, vowel_S, end_S, pause_S, times_L)


def _pitch(syllables: _Syllables, speaker: Speaker, delivery: Delivery, rng: np.random.Generator) -> Curve:
    """F0: a line, an accent on every word, an end, a tremor and a drift nobody intends."""
    times_L, duration_s, stressed_S = syllables.times, syllables.end[-1], syllables.stressed
    height_st = speaker.range_st * np.clip(1 + delivery.range_pct / 100, 0.1, 3.0)
    accent_S = height_st * (stressed_S * rng.uniform(0.7, 1.3, len(stressed_S)) - 0.4)
    accents_L = np.interp(times_L, (syllables.vowel + syllables.end) / 2, accent_S)
    line_L = (delivery.slope_st - 1.5) * (times_L / duration_s - 0.5)
    last_word_s = syllables.onset[np.flatnonzero(stressed_S)[-1]]
    end_L = delivery.final_st * np.clip((times_L - last_word_s) / (duration_s - last_word_s), 0.0, 1.0)
    tremor_L = delivery.tremor_st * np.sin(2 * np.pi * (rng.uniform(5.0, 7.0) * times_L + rng.uniform()))
    knots = np.arange(0.0, times_L[-1] + 0.15, 0.15)
    drift_L = np.interp(times_L, knots, 0.3 * rng.standard_normal(len(knots)))
    shift_st_L = delivery.pitch_st + accents_L + line_L + end_L + tremor_L + drift_L
    f0_hz_L: Curve = np.clip(speaker.pitch_hz * 2 ** (shift_st_L / 12), 60.0, 700.0)
    return f0_hz_L


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
    colour_Q = np.maximum(hz_Q, 60.0) ** -rng.uniform(0.3, 0.8)  # of the room's stationary noise
    amplitude = 10 ** (rng.uniform(*ROOM_NOISE_DBFS) / 20) * np.sqrt(len(hz_Q) - 1)  # RMS 1 after windows and overlap
    colour_Q *= amplitude / np.sqrt(np.mean(colour_Q**2))
    noise_KQ = _white_noise(2 * spectrum_KQ.size, rng).view(np.complex64).reshape(spectrum_KQ.shape)
    spectrum_KQ += noise_KQ * colour_Q.astype(np.float32)
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
    scale = MALE_TRACT_CM / speaker.tract_cm  # formants above the third hardly move
    fixed_hz = (scale * np.arange(3500.0, hz_Q[-1] / scale + 1000.0, 1000.0)).astype(np.float32)
    fixed_Q = _resonance(hz_Q, fixed_hz[:, None], _FIXED_BANDWIDTH_HZ).prod(axis=0)
    tilt_Q = _tilt(hz_Q, speaker.tilt_db + delivery.tilt_db).astype(np.float32)
    voice_KQ: NDArray[np.complex64] = tilt_Q / fixed_Q / damping_KQ
    # A pulse train falls by 6 dB per octave: vowels of equal voicing shall be about equally loud.
    weight_Q = (1 / np.maximum(hz_Q, 100.0) ** 2).astype(np.float32)
    power_K = (voice_KQ.real**2 + voice_KQ.imag**2) @ (weight_Q / weight_Q.sum())
    hiss_K1 = column(curves.noise).clip(0.0, 1.0)
    voice_KQ *= (1 - hiss_K1) / np.sqrt(power_K)[:, None]
    octaves_Q = np.log2(np.maximum(hz_Q, 50.0)).astype(np.float32)
    voice_KQ += _CONSONANT_GAIN * hiss_K1 * np.exp(-3 * (octaves_Q - np.log2(column(curves.noise_hz))) ** 2)
    return voice_KQ


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
