"""How an emotion is spoken: what the prosody literature reports, as shifts from a speaker's neutral voice.

Signs and order of size follow Banse and Scherer (1996), "Acoustic profiles in vocal emotion expression",
Juslin and Laukka (2003), "Communication of emotions in vocal expression and music performance" (their Table 11),
and, for guilt, which neither measures, their findings on shame: a weaker, more even kin of sadness. The sizes
themselves are ours, tuned so that the corpus is neither trivial nor hopeless to a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ser_fl.data.synthetic.speakers import Speaker
from ser_fl.randomness import derive_seed


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an utterance changes in its speaker's neutral voice; all 0 is neutral."""

    pitch_st: float
    """F0 level, semitones."""
    range_pct: float
    """F0 range: how high the accents rise, percent."""
    slope_st: float
    """F0 from the first syllable to the last, semitones: the contour's line."""
    final_st: float
    """F0 over the last word, semitones: the contour's end."""
    tremor_st: float
    """Depth of a 6 Hz wobble of F0, semitones."""
    jitter_pct: float
    """Irregularity of single glottal cycles, percent of the period."""
    rate_pct: float
    """Syllables a second, percent."""
    drawl_pct: float
    """Lengthening of each word's last vowel, percent."""
    pause_s: float
    """Pause between words, seconds."""
    level_db: float
    """Intensity, dB."""
    stress_db: float
    """Intensity of stressed syllables above the others, dB."""
    fade_db: float
    """Intensity from the first syllable to the last, dB."""
    tilt_db: float
    """Spectral tilt of the voice, dB per octave above 500 Hz."""
    breath_db: float
    """Aspiration noise, dB."""


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
"""How strongly an utterance shows its emotion, drawn uniformly: at 0 all emotions sound alike.

The weak end sets how much emotions overlap, and so what a good model can reach: within speakers, a centralised CRNN has
a test UAR of some 0.85 with 0.4 (results/builtin), 0.77 with 0.25, and 0.9 with 0.5."""

SYNTHETIC_EMOTIONS = tuple(_EMOTIONS)
"""The paper's seven."""


def draw_delivery(emotion: str, speaker: Speaker, seed: int, rng: np.random.Generator) -> Delivery:
    """One utterance's delivery: strength x (the emotion's row + the speaker's habit) + what is left to chance."""
    habits = np.random.default_rng(derive_seed("habit", seed, speaker.speaker_id, emotion))
    habit = habits.standard_normal(len(fields(Delivery))) * _HABIT_SD
    strength = habits.uniform(0.75, 1.25) * rng.uniform(*EXPRESSIVENESS)
    chance = rng.standard_normal(habit.size) * _UTTERANCE_SD
    return Delivery(*(strength * (np.array(_EMOTIONS[emotion]) + habit) + chance).tolist())
