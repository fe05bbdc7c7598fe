"""What a corpus holds, as plain tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ser_fl.data.inspection.measurement import measure_all
from ser_fl.data.utterance import Corpus, classes_of


@dataclass(frozen=True, slots=True, kw_only=True)
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
    counts: dict[str, dict[str, int]] = {}
    for utterance in sorted(corpus.utterances, key=lambda utterance: utterance.speaker):
        row = counts.setdefault(utterance.speaker, dict.fromkeys(emotions, 0))
        row[utterance.emotion] += 1
    measurements = measure_all(corpus)
    failed = [m.utterance.utterance_id for m in measurements if m.error is not None]
    readable = [measurement for measurement in measurements if measurement.error is None]
    by_emotion: dict[str, list[float]] = defaultdict(list)
    for measurement in readable:
        by_emotion[measurement.utterance.emotion].append(measurement.duration_s)
    rows = [_duration_row(emotion, by_emotion[emotion]) for emotion in emotions if by_emotion[emotion]]
    if readable:
        rows.append(_duration_row("all", [measurement.duration_s for measurement in readable]))
    return Description(
        emotions=emotions,
        counts=counts,
        durations=tuple(rows),
        sample_rates_hz=dict(sorted(Counter(measurement.sample_rate_hz for measurement in readable).items())),
        unreadable=tuple(sorted([*failed, *(file.utterance_id for file in corpus.skipped)])),
    )


def _duration_row(emotion: str, durations_s: Sequence[float]) -> DurationRow:
    shortest, p05, median, p95, longest = (float(value) for value in np.percentile(durations_s, [0, 5, 50, 95, 100]))
    return DurationRow(
        emotion=emotion,
        num_utterances=len(durations_s),
        total_s=float(np.sum(durations_s)),
        shortest_s=shortest,
        p05_s=p05,
        median_s=median,
        p95_s=p95,
        longest_s=longest,
    )
