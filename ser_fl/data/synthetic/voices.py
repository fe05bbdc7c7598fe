"""Who speaks, and how: virtual speakers' neutral voices, and what an emotion changes in them.

What the prosody literature reports, as shifts from a neutral voice. Signs and order of size follow Banse and Scherer
(1996), "Acoustic profiles in vocal emotion expression", Juslin and Laukka (2003), "Communication of emotions in vocal
expression and music performance" (their Table 11), and, for guilt, which neither measures, their findings on shame: a
weaker, more even kin of sadness. The sizes are ours, tuned so that the corpus is neither trivial nor hopeless.
"""

from dataclasses import dataclass

import numpy as np

from ser_fl.randomness import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A neutral voice: a vocal tract, a larynx and a temper."""

    speaker_id: str
    sex: str
    tract_cm: float
    """Vocal-tract length; formants lie at 17.5 cm / tract_cm times those of an average man."""
    pitch_hz: float  # F0 at rest
    range_st: float  # height of an F0 accent, semitones
    rate_hz: float  # syllables a second
    pause_s: float  # usual pause between words
    open_quotient: float
    """Share of a glottal cycle with the glottis open: small is a pressed voice."""
    breath_db: float  # aspiration noise relative to the pulses
    jitter_pct: float
    shimmer_pct: float
    tilt_db: float
    """Spectral tilt on top of the pulse's own, dB per octave above 500 Hz."""


# Tract lengths and F0 of adults: Fant (1960), Peterson and Barney (1952), Hillenbrand et al. (1995).
_RANGES = {
    "female": {"tract_cm": (13.8, 15.6), "pitch_hz": (175.0, 235.0)},
    "male": {"tract_cm": (16.2, 18.4), "pitch_hz": (95.0, 140.0)},
    "both": {"range_st": (2.5, 4.5), "rate_hz": (4.2, 5.2), "pause_s": (0.06, 0.14), "open_quotient": (0.5, 0.75),
             "breath_db": (-34.0, -24.0), "jitter_pct": (0.3, 0.8), "shimmer_pct": (2.0, 5.0), "tilt_db": (-2.0, 0.0)},
}  # fmt: skip


def make_speaker(speaker_id: str, seed: int) -> Speaker:
    """The speaker of this id ("f01": female, "m01": male): the same whoever else is in the corpus."""
    rng = np.random.default_rng(derive_seed("speaker", seed, speaker_id))
    sex = "female" if speaker_id.startswith("f") else "male"
    drawn = {name: rng.uniform(*bounds) for name, bounds in {**_RANGES[sex], **_RANGES["both"]}.items()}
    return Speaker(speaker_id=speaker_id, sex=sex, **drawn)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an utterance changes in its speaker's neutral voice; all 0 is neutral."""

    pitch_st: float  # F0 level, semitones
    range_pct: float  # F0 range: how high the accents rise, percent
    slope_st: float  # F0 from the first syllable to the last, semitones: the contour's line
    final_st: float  # F0 over the last word, semitones: the contour's end
    tremor_st: float  # depth of a 6 Hz wobble of F0, semitones
    jitter_pct: float  # irregularity of single glottal cycles, percent of the period
    rate_pct: float  # syllables a second, percent
    drawl_pct: float  # lengthening of each word's last vowel, percent
    pause_s: float  # pause between words, seconds
    level_db: float  # intensity, dB
    stress_db: float  # intensity of stressed syllables above the others, dB
    fade_db: float  # intensity from the first syllable to the last, dB
    tilt_db: float  # spectral tilt of the voice, dB per octave above 500 Hz
    breath_db: float  # aspiration noise, dB


# Rows: full expression by an average speaker. Columns in the order of Delivery.
_EMOTIONS: dict[str, tuple[float, ...]] = {
    #             F0                            | time             | intensity      | voice quality
    #            pitch range slope final trem jit  rate drawl pause  level stress fade  tilt breath
    "anger":     (5.0,   60,  0.0, -7.0, 0.0, 1.5,   20,  -20, -0.08,  7.0,  3.0,  0.0,  2.5, -4.0),
    "disgust":   (-2.0, -20, -2.0, -4.0, 0.0, 2.0,  -15,  110,  0.02, -1.0,  0.0,  0.0,  1.0,  0.0),
    "fear":      (7.0,  -70,  3.0,  1.0, 1.3, 1.0,   30,  -15,  0.06, -1.0, -3.0,  0.0, -0.5,  6.0),
    "guilt":     (-1.0, -40, -1.0, -1.0, 0.0, 0.3,   10,    0,  0.27, -3.0,  0.0,-13.0, -1.0,  2.0),
    "happiness": (5.0,  100,  0.0,  2.0, 0.0, 0.0,   15,   15, -0.06,  3.0,  5.0,  6.0,  1.5, -1.0),
    "sadness":   (-3.0, -60, -6.0, -2.0, 0.2, 0.3,  -35,    0,  0.08, -5.0, -3.0, -2.0, -2.0,  5.0),
    "surprise":  (6.0,  100,  4.0, 13.0, 0.0, 0.2,   -5,   40, -0.03,  3.0,  0.0,  5.0,  1.0,  0.0),
}  # fmt: skip
# The same columns. Standard deviation of what is left to chance, and of each speaker's own way with an emotion.
_UTTERANCE_SD = (1.5, 20, 1.2, 1.5, 0.1, 0.2, 7, 15, 0.03, 2.0, 1.0, 1.5, 0.8, 1.5)
_HABIT_SD     = (1.5, 15, 1.5, 2.0, 0.1, 0.2, 6, 15, 0.04, 1.0, 1.0, 2.0, 0.5, 1.0)  # fmt: skip

EXPRESSIVENESS = (0.4, 1.15)
"""How strongly an utterance shows its emotion, drawn uniformly: at 0 all emotions sound alike. The weak end sets how
much emotions overlap, and so what a good model can reach: within speakers, a centralised CRNN has a test UAR of some
0.85 with 0.4 (results/builtin), 0.77 with 0.25, and 0.9 with 0.5."""

SYNTHETIC_EMOTIONS = tuple(_EMOTIONS)
"""The paper's seven."""


def draw_delivery(emotion: str, speaker: Speaker, seed: int, rng: np.random.Generator) -> Delivery:
    """One utterance's delivery: strength x (the emotion's row + the speaker's habit) + what is left to chance."""
    habits = np.random.default_rng(derive_seed("habit", seed, speaker.speaker_id, emotion))
    habit = habits.standard_normal(len(_HABIT_SD)) * _HABIT_SD
    strength = habits.uniform(0.75, 1.25) * rng.uniform(*EXPRESSIVENESS)
    chance = rng.standard_normal(habit.size) * _UTTERANCE_SD
    return Delivery(*(strength * (np.array(_EMOTIONS[emotion]) + habit) + chance).tolist())
