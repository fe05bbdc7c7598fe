"""Reading every file of a corpus once, by a pool of threads, and measuring it. T samples."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ser_fl.data.audio import UnusableAudio, missing_bytes
from ser_fl.data.utterance import Corpus, Utterance
from ser_fl.errors import UserError

FULL_SCALE = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One file, as read."""

    utterance: Utterance
    error: str | None = None
    """Why it cannot be read; the rest is then without meaning."""
    num_samples: int = 0
    sample_rate_hz: int = 1
    peak: float = 0.0
    """Largest absolute sample."""
    full_scale_run: int = 0
    """Most samples in a row at full scale, on one side."""
    missing_bytes: int = 0
    """What a WAV file's header announces and the file lacks."""
    digest: bytes = b""
    """Of the samples and the sampling rate: equal for equal sound, whatever the file format."""

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate_hz


def measure_all(corpus: Corpus) -> list[Measurement]:
    """A measurement an utterance, in the corpus's order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda utterance: _measure(corpus, utterance), corpus.utterances))


def _measure(corpus: Corpus, utterance: Utterance) -> Measurement:
    try:
        waveform_T, sample_rate_hz = corpus.read(utterance)
    except UserError as error:
        return Measurement(utterance=utterance, error=error.reason if isinstance(error, UnusableAudio) else str(error))
    samples_T = waveform_T.numpy()
    return Measurement(
        utterance=utterance,
        num_samples=len(samples_T),
        sample_rate_hz=sample_rate_hz,
        peak=float(np.abs(samples_T).max()),
        full_scale_run=max(_longest_run(samples_T >= FULL_SCALE), _longest_run(samples_T <= -FULL_SCALE)),
        missing_bytes=0 if utterance.path is None else missing_bytes(utterance.path),
        digest=hashlib.blake2b(samples_T.tobytes(), digest_size=16, person=str(sample_rate_hz).encode()).digest(),
    )


def _longest_run(flags_T: NDArray[np.bool_]) -> int:
    """Most flags in a row that are set."""
    edges = np.flatnonzero(np.diff(flags_T, prepend=False, append=False))  # where runs begin and end, in turns
    return int((edges[1::2] - edges[::2]).max(initial=0))
