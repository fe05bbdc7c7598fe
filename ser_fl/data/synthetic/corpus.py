"""The built-in corpus as every other stage sees it."""

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ser_fl.data.synthetic.synthesiser import SENTENCES, articulate, synthesise
from ser_fl.data.synthetic.voices import SYNTHETIC_EMOTIONS, draw_delivery, make_speaker
from ser_fl.data.utterance import SkippedFile, Utterance
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed

SYNTHESISER_VERSION = 2
"""Raised with every change that alters a waveform: cached features of the old one are then no longer found."""

MAX_SPEAKERS = 198
MAX_UTTERANCES_PER_EMOTION = 99
SAMPLE_RATES_HZ = (8000, 48000)


class SyntheticCorpus:
    """Synthetic emotional "speech": the paper's seven emotions by virtual speakers, half of them female.

    Made on the fly, a few milliseconds an utterance, by a generator keyed by (seed, speaker, emotion, number): an
    utterance stays the same whatever the size of the corpus. All emotions go through the sentences in the same order.
    It is for demonstrations and tests: a figure measured on it says nothing about real speech.

    Args:
        num_speakers: 1 to 198; odd ones out are female.
        utterances_per_emotion: of each speaker, 1 to 99.
        seed: 0 or above; another seed gives other speakers and other utterances.
        sample_rate_hz: 8000 to 48000.

    Raises:
        UserError: a number is out of its range.
    """

    name = "builtin"
    synthetic = True
    utterances: tuple[Utterance, ...]
    skipped: tuple[SkippedFile, ...] = ()

    def __init__(
        self, num_speakers: int = 12, utterances_per_emotion: int = 10, seed: int = 0, sample_rate_hz: int = 16000
    ) -> None:
        for name, value, low, high in (
            ("num_speakers", num_speakers, 1, MAX_SPEAKERS),
            ("utterances_per_emotion", utterances_per_emotion, 1, MAX_UTTERANCES_PER_EMOTION),
            ("sample_rate_hz", sample_rate_hz, *SAMPLE_RATES_HZ),
        ):
            if not low <= value <= high:
                raise UserError(f"{name} of the built-in corpus must be {low} to {high}, got {value}")
        if seed < 0:
            raise UserError(f"seed of the built-in corpus must be 0 or above, got {seed}")
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        num_male = num_speakers // 2
        speakers = [(f"f{number:02d}", "female") for number in range(1, num_speakers - num_male + 1)]
        speakers += [(f"m{number:02d}", "male") for number in range(1, num_male + 1)]
        self.utterances = tuple(
            Utterance(
                utterance_id=f"{speaker}/{emotion}/{number:02d}",
                emotion=emotion,
                speaker=speaker,
                sex=sex,
                text=f"s{(number - 1) % len(SENTENCES) + 1:02d}",
                corpus=self.name,
            )
            for speaker, sex in speakers
            for emotion in SYNTHETIC_EMOTIONS
            for number in range(1, utterances_per_emotion + 1)
        )

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        """Waveform of shape (T,), float32 in [-0.95, 0.95], some 2 to 4 seconds long, and its sampling rate in Hz."""
        speaker = make_speaker(utterance.speaker, self.seed)
        rng = np.random.default_rng(derive_seed("utterance", self.seed, utterance.utterance_id))
        delivery = draw_delivery(utterance.emotion, speaker, self.seed, rng)
        sentence = SENTENCES[(int(utterance.utterance_id[-2:]) - 1) % len(SENTENCES)]
        curves = articulate(sentence, speaker, delivery, rng)
        waveform_T = synthesise(curves, speaker, delivery, self.sample_rate_hz, rng)
        return torch.from_numpy(waveform_T), self.sample_rate_hz

    def content_digest(self, utterance: Utterance) -> bytes:
        """Digest of all that the waveform depends on: the synthesiser's version, the keys, the settings."""
        content = (SYNTHESISER_VERSION, self.seed, utterance.utterance_id, self.sample_rate_hz)
        return blake2b(repr(content).encode(), digest_size=16).digest()
