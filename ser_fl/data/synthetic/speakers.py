"""Virtual speakers: a vocal tract, a larynx and a temper each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ser_fl.randomness import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A neutral voice."""

    speaker_id: str
    sex: str
    tract_cm: float
    """Vocal-tract length; formants lie at 17.5 cm / tract_cm times those of an average man."""
    pitch_hz: float
    """F0 at rest."""
    range_st: float
    """Height of an F0 accent, semitones."""
    rate_hz: float
    """Syllables a second."""
    pause_s: float
    """Usual pause between words, seconds."""
    open_quotient: float
    """Share of a glottal cycle with the glottis open: small is a pressed voice."""
    breath_db: float
    """Aspiration noise relative to the pulses."""
    jitter_pct: float
    shimmer_pct: float
    tilt_db: float
    """Spectral tilt on top of the pulse's own, dB per octave above 500 Hz."""


# Tract lengths and F0 of adults: Fant (1960), Peterson and Barney (1952), Hillenbrand et al. (1995).
_TRACT_CM = {"female": (13.8, 15.6), "male": (16.2, 18.4)}
_PITCH_HZ = {"female": (175.0, 235.0), "male": (95.0, 140.0)}


def make_speaker(speaker_id: str, seed: int) -> Speaker:
    """The speaker of this id ("f01": female, "m01": male): the same whoever else is in the corpus."""
    rng = np.random.default_rng(derive_seed("speaker", seed, speaker_id))
    sex = "female" if speaker_id.startswith("f") else "male"
    return Speaker(
        speaker_id=speaker_id,
        sex=sex,
        tract_cm=rng.uniform(*_TRACT_CM[sex]),
        pitch_hz=rng.uniform(*_PITCH_HZ[sex]),
        range_st=rng.uniform(2.5, 4.5),
        rate_hz=rng.uniform(4.2, 5.2),
        pause_s=rng.uniform(0.06, 0.14),
        open_quotient=rng.uniform(0.5, 0.75),
        breath_db=rng.uniform(-34.0, -24.0),
        jitter_pct=rng.uniform(0.3, 0.8),
        shimmer_pct=rng.uniform(2.0, 5.0),
        tilt_db=rng.uniform(-2.0, 0.0),
    )
