"""From a sentence and a delivery to curves over time: what larynx, tongue and lips do.

S syllables; L control points, one every `CONTROL_S` seconds; 3 formants move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ser_fl.data.synthetic.delivery import Delivery
from ser_fl.data.synthetic.speakers import Speaker

Curve = NDArray[np.float64]

CONTROL_S = 0.004
MALE_TRACT_CM = 17.5
"""The tract that the formants below belong to."""
_DRIFT_S = 0.15

SENTENCES = (
    "pano seli tamu kife",
    "kitu manole fasi po",
    "suna pike lomi tase",
    "lomi tasuke nipa fo",
    "fenu sola tike mano",
    "mika tofuna lise ku",
    "nase kuli mofa tepi",
    "teli monaku sifo la",
    "pusi lane foki matu",
    "sako timule nafe si",
)
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
_CLOSED_F1_HZ = 250.0


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
    """The S syllables of a sentence, each a consonant from `onset` and a vowel from `vowel` to `end`, then a pause."""

    letters: list[str]
    stressed: NDArray[np.bool_]
    """First of its word."""
    onset: Curve
    """Seconds, as are the next three."""
    vowel: Curve
    end: Curve
    pause: Curve
    times: Curve
    """Of the L control points, seconds."""

    @property
    def consonants(self) -> list[_Consonant]:
        return [_CONSONANTS[letters[0]] for letters in self.letters]


def articulate(sentence: str, speaker: Speaker, delivery: Delivery, rng: np.random.Generator) -> Articulation:
    """The curves of one utterance."""
    syllables = _time(sentence, speaker, delivery, rng)
    voicing_L, noise_L = _amplitudes(syllables, delivery, rng)
    noise_hz_S = [consonant.noise_hz for consonant in syllables.consonants]
    return Articulation(
        f0_hz=_pitch(syllables, speaker, delivery, rng),
        voicing=voicing_L,
        noise=noise_L,
        noise_hz=np.interp(syllables.times, syllables.onset, noise_hz_S),
        formants_hz=_formants(syllables, speaker),
    )


def _time(sentence: str, speaker: Speaker, delivery: Delivery, rng: np.random.Generator) -> _Syllables:
    """When each syllable is spoken."""
    words = sentence.split()
    letters = [word[i : i + 2] for word in words for i in range(0, len(word), 2)]
    stressed_S = np.array([i == 0 for word in words for i in range(0, len(word), 2)])
    last_S = np.append(stressed_S[1:], True)
    tempo = speaker.rate_hz / 5.0 * np.clip(1 + delivery.rate_pct / 100, 0.5, 1.8)
    # Consonants yield less to tempo than vowels do.
    closed_S = np.array([_CONSONANTS[syllable[0]].duration_s for syllable in letters]) / np.sqrt(tempo)
    open_S = np.where(stressed_S, 0.14, 0.10) / tempo * np.exp(0.1 * rng.standard_normal(len(letters)))
    open_S *= 1 + last_S * np.clip(0.15 + delivery.drawl_pct / 100, -0.4, 1.2)
    pause_S = last_S * max(speaker.pause_s + delivery.pause_s, 0.0) * rng.uniform(0.4, 1.6, len(letters))
    pause_S[-1] = 0.06  # the room after the last word
    onset_S = 0.06 + np.concatenate(([0.0], np.cumsum(closed_S + open_S + pause_S)[:-1]))
    vowel_S = onset_S + closed_S
    end_S = vowel_S + open_S
    times_L = np.arange(0.0, end_S[-1] + pause_S[-1], CONTROL_S)
    return _Syllables(letters, stressed_S, onset_S, vowel_S, end_S, pause_S, times_L)


def _amplitudes(syllables: _Syllables, delivery: Delivery, rng: np.random.Generator) -> tuple[Curve, Curve]:
    """Voice and noise over time, straight between knots."""
    num_syllables, consonants = len(syllables.letters), syllables.consonants
    onset_S, vowel_S, end_S, pause_S = syllables.onset, syllables.vowel, syllables.end, syllables.pause
    place_S = np.linspace(-0.5, 0.5, num_syllables)
    stress_S = (2.0 + delivery.stress_db) * (syllables.stressed - 0.5)
    level_S = 10 ** ((stress_S + delivery.fade_db * place_S + rng.standard_normal(num_syllables)) / 20)
    hum_S = level_S * [consonant.voicing for consonant in consonants]
    closed_S, open_S = vowel_S - onset_S, end_S - vowel_S
    hold_S = np.append(hum_S[1:], 0.0) * (pause_S == 0)  # what the vowel passes on to the next consonant
    knots = (
        (onset_S, hum_S),
        (vowel_S - 0.1 * closed_S, hum_S),
        (vowel_S + 0.15 * open_S, level_S),
        (end_S - 0.25 * open_S, 0.9 * level_S),
        (end_S, np.maximum(hold_S, 0.1)),
        (end_S + 0.5 * pause_S, hold_S),
    )
    times_S6, voicing_S6 = (np.stack(column, axis=1) for column in zip(*knots, strict=True))
    noise_S4 = level_S[:, None] * [consonant.noise for consonant in consonants]
    noise_S5 = np.concatenate((noise_S4, np.zeros((num_syllables, 1))), axis=1)
    times_S5 = onset_S[:, None] + closed_S[:, None] * [0.0, 0.5, 0.75, 1.0, 1.2]
    voicing_L = np.interp(syllables.times, times_S6.ravel(), voicing_S6.ravel(), left=0.0)
    return voicing_L, np.interp(syllables.times, times_S5.ravel(), noise_S5.ravel())


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
    knots = np.arange(0.0, times_L[-1] + _DRIFT_S, _DRIFT_S)
    drift_L = np.interp(times_L, knots, 0.3 * rng.standard_normal(len(knots)))
    shift_st_L = delivery.pitch_st + accents_L + line_L + end_L + tremor_L + drift_L
    f0_hz_L: Curve = np.clip(speaker.pitch_hz * 2 ** (shift_st_L / 12), 60.0, 700.0)
    return f0_hz_L


def _formants(syllables: _Syllables, speaker: Speaker) -> Curve:
    """First three formants, gliding from a consonant's locus to the vowel and on, shape (L, 3)."""
    scale, vowel_S, open_S = MALE_TRACT_CM / speaker.tract_cm, syllables.vowel, syllables.end - syllables.vowel
    knots_S3 = np.stack((vowel_S - 0.01, vowel_S + 0.3 * open_S, vowel_S + 0.8 * open_S), axis=1)
    loci = [(_CLOSED_F1_HZ, consonant.locus_hz, 2500.0) for consonant in syllables.consonants]
    vowels = [_VOWELS[letters[1]] for letters in syllables.letters]
    targets_S33 = np.array(list(zip(loci, vowels, vowels, strict=True)))
    formants = [np.interp(syllables.times, knots_S3.ravel(), targets_S33[:, :, n].ravel()) for n in range(3)]
    return scale * np.stack(formants, axis=1)
