"""A corpus against what its authors published, and its audio against the usual faults."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ser_fl.data.corpora import CorpusInfo, FileCorpus
from ser_fl.data.inspection.measurement import Measurement, measure_all
from ser_fl.data.utterance import SkippedFile, Utterance, classes_of

SILENT_PEAK = 1e-3
"""A file whose samples all stay below this (-60 dBFS) is silent."""
EQUAL_LENGTH_SHARE = 0.02
EQUAL_LENGTH_FILES = 5
"""Speech hardly ever has one length: so many files, and this share of all, may have been cut there."""
EQUAL_LENGTH_EXCESS = 5
"""And so many times as many as have a length nearby: in some corpora, cut by video frames, all lengths recur."""
EQUAL_LENGTH_PLAIN = 0.2
"""A length of this share of all files needs no comparison."""
_NEARBY = 4
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a corpus that its user should know."""

    kind: str
    """"counts", "missing", "unreadable", "silent", "clipped", "cut_off", "equal_length" or "duplicate"."""
    text: str
    """One line."""
    utterance_ids: tuple[str, ...] = ()
    """All utterances it is about; the text names the first few."""


def check(corpus: FileCorpus, info: CorpusInfo) -> list[Finding]:
    """Compare a corpus with what was published about it, and look for faulty audio; reads every file once.

    Args:
        corpus: Best opened with ``on_unreadable="skip"``, so that all unreadable files are reported.
        info: Its entry in `ser_fl.data.corpora.CORPORA`.

    Returns:
        Findings: counts that differ, speakers who lack an emotion, and files that are unreadable, silent, clipped, cut
        off, suspiciously of one length, or of equal sound. Empty if all is well.
    """
    measurements = measure_all(corpus)
    readable = [measurement for measurement in measurements if measurement.error is None]
    return [
        *_count_findings(corpus, info),
        *_missing_emotions(corpus.utterances),
        *_unreadable(corpus, measurements),
        *_faults(
            "silent", f"silent (no sample reaches {SILENT_PEAK:g})", [m for m in readable if m.peak < SILENT_PEAK]
        ),
        *_faults("clipped", "clipped (flat at full scale)", [m for m in readable if m.clipped]),
        *_faults("cut_off", "cut off: their headers announce more", [m for m in readable if m.missing_bytes]),
        *_equal_lengths(readable),
        *_duplicates(readable),
    ]


def _count_findings(corpus: FileCorpus, info: CorpusInfo) -> list[Finding]:
    """Differences from the published counts. None proves a fault: the folder may hold a subset on purpose."""
    published = info.published_counts
    if published.num_utterances is None:
        return []
    if dict(corpus.labels) != dict(info.label_map):
        return [Finding("counts", "the labels are not mapped as published: counts are not compared")]
    utterances = corpus.utterances
    speakers = Counter(utterance.speaker for utterance in utterances)
    emotions = Counter(utterance.emotion for utterance in utterances)
    pairs = Counter((utterance.speaker, utterance.emotion) for utterance in utterances)
    of_speakers = [(speaker, speakers[speaker], n) for speaker, n in published.per_speaker.items()]
    of_pairs = [
        (f"{speaker} {emotion}", pairs[speaker, emotion], n)
        for speaker in sorted(speakers)
        for emotion, n in published.of_each_speaker.items()
    ]
    return [
        *_differences("utterances", [("", len(utterances), published.num_utterances)]),
        *_differences("speakers", [("", len(speakers), published.num_speakers)]),
        *_differences(
            "utterances by emotion", [(name, emotions[name], n) for name, n in published.per_emotion.items()]
        ),
        *_differences("utterances by speaker", of_speakers),
        *_differences("utterances by speaker and emotion", of_pairs),
    ]


def not_published(info: CorpusInfo) -> tuple[str, ...]:
    """Which counts a corpus's authors did not publish, so that `check` cannot compare them."""
    counts = info.published_counts
    known = {
        "of all utterances": counts.num_utterances,
        "by emotion": counts.per_emotion,
        "by speaker": counts.per_speaker,
        "by speaker and emotion": counts.of_each_speaker,
    }
    return tuple(name for name, published in known.items() if not published)


def _differences(what: str, counts: Sequence[tuple[str, int, int | None]]) -> list[Finding]:
    """One finding for all (name, found, published) that differ."""
    different = [f"{name} {found} of {n}".strip() for name, found, n in counts if n is not None and found != n]
    return [Finding("counts", f"{what} (found of published): {_some(different)}")] if different else []


def _missing_emotions(utterances: tuple[Utterance, ...]) -> list[Finding]:
    """Speakers who lack an emotion that others have: a client without that class."""
    emotions = classes_of(utterances)
    had: dict[str, set[str]] = defaultdict(set)
    for utterance in utterances:
        had[utterance.speaker].add(utterance.emotion)
    lacking = {
        speaker: [emotion for emotion in emotions if emotion not in had[speaker]]
        for speaker in sorted(had)
        if len(had[speaker]) < len(emotions)
    }
    if not lacking:
        return []
    shown = _some([f"{speaker} ({', '.join(missing)})" for speaker, missing in lacking.items()])
    return [Finding("missing", f"{len(lacking)} of {len(had)} speakers lack an emotion: {shown}")]


def _unreadable(corpus: FileCorpus, measurements: Iterable[Measurement]) -> list[Finding]:
    """One finding for all files that cannot be used for the same reason."""
    failed = [SkippedFile(m.utterance.utterance_id, m.error) for m in measurements if m.error is not None]
    ids: dict[str, list[str]] = defaultdict(list)
    for file in (*corpus.skipped, *failed):
        ids[file.reason].append(file.utterance_id)
    return [Finding("unreadable", _unreadable_text(reason, names), tuple(names)) for reason, names in ids.items()]


def _unreadable_text(reason: str, ids: Sequence[str]) -> str:
    return f"{ids[0]}: {reason}" if len(ids) == 1 else f"{len(ids)} files: {reason}: {_some(ids)}"


def _faults(kind: str, adjective: str, measurements: Sequence[Measurement]) -> list[Finding]:
    if not measurements:
        return []
    ids = _ids(measurements)
    return [Finding(kind, f"{len(ids)} files are {adjective}: {_some(ids)}", tuple(ids))]


def _equal_lengths(measurements: Sequence[Measurement]) -> list[Finding]:
    """Lengths that far more files have than lengths nearby, to the sample."""
    groups: dict[float, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.duration_s].append(measurement)
    lengths_s = sorted(groups)
    counts = [len(groups[length_s]) for length_s in lengths_s]
    least = max(EQUAL_LENGTH_FILES, EQUAL_LENGTH_SHARE * len(measurements))
    found = []
    for place, (length_s, count) in enumerate(zip(lengths_s, counts, strict=True)):
        nearby = [*counts[max(place - _NEARBY, 0) : place], *counts[place + 1 : place + 1 + _NEARBY]]
        expected = min(EQUAL_LENGTH_EXCESS * float(np.mean(nearby or [0])), EQUAL_LENGTH_PLAIN * len(measurements))
        if count >= max(least, expected):
            found += _faults("equal_length", f"exactly {length_s:.3f} s long: cut off there?", groups[length_s])
    return found


def _duplicates(measurements: Iterable[Measurement]) -> list[Finding]:
    """Groups of files with the same samples; silent ones apart, whose sameness says nothing."""
    groups: dict[bytes, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        if measurement.peak >= SILENT_PEAK:
            groups[measurement.digest].append(measurement)
    return [
        Finding("duplicate", f"{len(group)} files hold the same audio: {_some(_ids(group))}", tuple(_ids(group)))
        for group in groups.values()
        if len(group) > 1
    ]


def _ids(measurements: Iterable[Measurement]) -> list[str]:
    return [measurement.utterance.utterance_id for measurement in measurements]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
