"""A corpus against what its authors published, and its audio against the usual faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ser_fl.data.corpora import CorpusInfo, FileCorpus
from ser_fl.data.inspection.measurement import Measurement, measure_all
from ser_fl.data.utterance import Utterance, classes_of

SILENT_PEAK = 1e-3
"""A file whose samples all stay below this (-60 dBFS) is silent."""
CLIPPED_RUN = 4
"""So many samples in a row at full scale, on one side, are clipping; a peak normalised to full scale has fewer."""
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
    readable = [m for m in measurements if m.error is None]
    unreadable = [(m.error, m.utterance.utterance_id) for m in measurements if m.error is not None]
    silent = f"silent (no sample reaches {SILENT_PEAK:g})"
    return [
        *_count_findings(corpus, info),
        *_missing_emotions(corpus.utterances),
        *_unreadable([*((file.reason, file.utterance_id) for file in corpus.skipped), *unreadable]),
        *_faults("silent", silent, [m for m in readable if m.peak < SILENT_PEAK]),
        *_faults("clipped", "clipped (flat at full scale)", [m for m in readable if m.full_scale_run >= CLIPPED_RUN]),
        *_faults("cut_off", "cut off: their headers announce more", [m for m in readable if m.missing_bytes]),
        *_equal_lengths(readable),
        *_duplicates(readable),
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


def _count_findings(corpus: FileCorpus, info: CorpusInfo) -> list[Finding]:
    """Differences from the published counts. None proves a fault: the folder may hold a subset on purpose."""
    published, utterances = info.published_counts, corpus.utterances
    if published.num_utterances is None:
        return []
    if dict(corpus.labels) != dict(info.label_map):
        return [Finding("counts", "the labels are not mapped as published: counts are not compared")]
    speakers = Counter(utterance.speaker for utterance in utterances)
    of_each = {f"{name} {emotion}": n for name in sorted(speakers) for emotion, n in published.of_each_speaker.items()}
    compared: dict[str, tuple[Mapping[str, int], Mapping[str, int | None]]] = {
        "utterances": ({"": len(utterances)}, {"": published.num_utterances}),
        "speakers": ({"": len(speakers)}, {"": published.num_speakers}),
        "utterances by emotion": (Counter(utterance.emotion for utterance in utterances), {**published.per_emotion}),
        "utterances by speaker": (speakers, {**published.per_speaker}),
        "utterances by speaker and emotion": (Counter(f"{u.speaker} {u.emotion}" for u in utterances), {**of_each}),
    }
    findings = []
    for what, (found, expected) in compared.items():
        different = [
            (name, found.get(name, 0), n) for name, n in expected.items() if n not in (None, found.get(name, 0))
        ]
        if different:
            shown = _some([f"{name} {count} of {n}".strip() for name, count, n in different])
            findings.append(Finding("counts", f"{what} (found of published): {shown}"))
    return findings


def _missing_emotions(utterances: tuple[Utterance, ...]) -> list[Finding]:
    """Speakers who lack an emotion that others have: a client without that class."""
    emotions = classes_of(utterances)
    had: dict[str, set[str]] = {}
    for utterance in utterances:
        had.setdefault(utterance.speaker, set()).add(utterance.emotion)
    lacking = [
        f"{speaker} ({', '.join(emotion for emotion in emotions if emotion not in had[speaker])})"
        for speaker in sorted(had)
        if len(had[speaker]) < len(emotions)
    ]
    text = f"{len(lacking)} of {len(had)} speakers lack an emotion: {_some(lacking)}"
    return [Finding("missing", text)] if lacking else []


def _unreadable(files: Iterable[tuple[str, str]]) -> list[Finding]:
    """One finding for all files that cannot be used for the same reason, from pairs of reason and utterance id."""
    groups: dict[str, list[str]] = {}
    for reason, utterance_id in files:
        groups.setdefault(reason, []).append(utterance_id)
    return [
        Finding(
            "unreadable",
            f"{ids[0]}: {reason}" if len(ids) == 1 else f"{len(ids)} files: {reason}: {_some(ids)}",
            tuple(ids),
        )
        for reason, ids in groups.items()
    ]


def _faults(kind: str, adjective: str, measurements: Sequence[Measurement]) -> list[Finding]:
    ids = [measurement.utterance.utterance_id for measurement in measurements]
    return [Finding(kind, f"{len(ids)} files are {adjective}: {_some(ids)}", tuple(ids))] if ids else []


def _equal_lengths(measurements: Sequence[Measurement]) -> list[Finding]:
    """Lengths that far more files have than lengths nearby, to the sample."""
    groups: dict[float, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.duration_s, []).append(measurement)
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
    groups: dict[bytes, list[str]] = {}
    for measurement in measurements:
        if measurement.peak >= SILENT_PEAK:
            groups.setdefault(measurement.digest, []).append(measurement.utterance.utterance_id)
    return [
        Finding("duplicate", f"{len(ids)} files hold the same audio: {_some(ids)}", tuple(ids))
        for ids in groups.values()
        if len(ids) > 1
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
