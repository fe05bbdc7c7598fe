"""What a corpus holds, as plain tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ser_fl.data.inspection.measurement import measure_all
from ser_fl.data.utterance import Corpus, classes_of


@dataclass(frozen=True, slots=True)
class DurationRow:
    """Durations in seconds of the utterances of one emotion."""

    emotion: str
    num_utterances: int
    total_s: float
    shortest_s: float
    p05_s: float
    median_s: float
    p95_s: float
    longest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a corpus holds."""

    emotions: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    """Utterances by speaker and emotion; every emotion is in every row."""
    durations: tuple[DurationRow, ...]
    """A row an emotion, and a last one named "all"; files that cannot be read are not in it."""
    sample_rates_hz: Mapping[int, int]
    """Number of files by sampling rate."""
    unreadable: tuple[str, ...]
    """Utterances whose files cannot be used; those of them that were left out on opening are in none of the counts."""


def describe(corpus: Corpus) -> Description:
    """Counts by speaker and emotion, durations by emotion, and sampling rates; reads every file once."""
    emotions = classes_of(corpus.utterances)
    counts = {speaker: dict.fromkeys(emotions, 0) for speaker in sorted({u.speaker for u in corpus.utterances})}
    for utterance in corpus.utterances:
        counts[utterance.speaker][utterance.emotion] += 1
    measurements = measure_all(corpus)
    readable = [measurement for measurement in measurements if measurement.error is None]
    rows = []
    for emotion in (*emotions, None):
        durations_s = [m.duration_s for m in readable if emotion in (None, m.utterance.emotion)]
        if durations_s:
            percentiles = np.percentile(durations_s, [0, 5, 50, 95, 100]).tolist()
            rows.append(DurationRow(emotion or "all", len(durations_s), float(np.sum(durations_s)), *percentiles))
    failed = [m.utterance.utterance_id for m in measurements if m.error is not None]
    return Description(
        emotions=emotions,
        counts=counts,
        durations=tuple(rows),
        sample_rates_hz=dict(sorted(Counter(measurement.sample_rate_hz for measurement in readable).items())),
        unreadable=tuple(sorted([*failed, *(file.utterance_id for file in corpus.skipped)])),
    )
