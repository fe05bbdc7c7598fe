"""The built-in corpus as every other stage sees it."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ser_fl.data.synthetic.articulation import SENTENCES, articulate
from ser_fl.data.synthetic.delivery import SYNTHETIC_EMOTIONS, draw_delivery
from ser_fl.data.synthetic.speakers import Speaker, make_speaker
from ser_fl.data.synthetic.synthesiser import synthesise
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

    Made on the fly, a few milliseconds an utterance. Each utterance has a generator of its own, keyed by
    (seed, speaker, emotion, number): it stays the same whatever the size of the corpus. Sentence and emotion are
    independent. It is for demonstrations and tests: a figure measured on it says nothing about real speech.

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
        self,
        num_speakers: int = 12,
        utterances_per_emotion: int = 10,
        seed: int = 0,
        sample_rate_hz: int = 16000,
    ) -> None:
        _check("num_speakers", num_speakers, 1, MAX_SPEAKERS)
        _check("utterances_per_emotion", utterances_per_emotion, 1, MAX_UTTERANCES_PER_EMOTION)
        _check("sample_rate_hz", sample_rate_hz, *SAMPLE_RATES_HZ)
        if seed < 0:
            raise UserError(f"seed of the built-in corpus must be 0 or above, got {seed}")
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        num_male = num_speakers // 2
        speaker_ids = [f"f{number:02d}" for number in range(1, num_speakers - num_male + 1)]
        speaker_ids += [f"m{number:02d}" for number in range(1, num_male + 1)]
        self.speakers = {speaker_id: make_speaker(speaker_id, seed) for speaker_id in speaker_ids}
        self.utterances = tuple(
            _utterance(speaker, emotion, number)
            for speaker in self.speakers.values()
            for emotion in SYNTHETIC_EMOTIONS
            for number in range(1, utterances_per_emotion + 1)
        )

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        """Waveform of shape (T,), float32 in [-0.95, 0.95], some 2 to 4 seconds long, and its sampling rate in Hz."""
        speaker = self.speakers[utterance.speaker]
        rng = np.random.default_rng(derive_seed("utterance", self.seed, utterance.utterance_id))
        delivery = draw_delivery(utterance.emotion, speaker, self.seed, rng)
        sentence = SENTENCES[_sentence_index(int(utterance.utterance_id[-2:]))]
        curves = articulate(sentence, speaker, delivery, rng)
        waveform_T = synthesise(curves, speaker, delivery, self.sample_rate_hz, rng)
        return torch.from_numpy(waveform_T), self.sample_rate_hz

    def content_digest(self, utterance: Utterance) -> bytes:
        """Digest of all that the waveform depends on: the synthesiser's version, the keys, the settings."""
        content = (SYNTHESISER_VERSION, self.seed, utterance.utterance_id, self.sample_rate_hz)
        return blake2b(repr(content).encode(), digest_size=16).digest()


def _utterance(speaker: Speaker, emotion: str, number: int) -> Utterance:
    return Utterance(
        utterance_id=f"{speaker.speaker_id}/{emotion}/{number:02d}",
        emotion=emotion,
        speaker=speaker.speaker_id,
        sex=speaker.sex,
        text=f"s{_sentence_index(number) + 1:02d}",
    )


def _sentence_index(number: int) -> int:
    """All emotions go through the sentences in the same order."""
    return (number - 1) % len(SENTENCES)


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} of the built-in corpus must be {low} to {high}, got {value}")
