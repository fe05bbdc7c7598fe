"""Looking at a corpus before trusting it: does it hold what its authors published, and is the audio sound?

T samples.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ser_fl.data.audio import UnusableAudio, header_of
from ser_fl.data.corpora import CorpusInfo, FileCorpus
from ser_fl.data.headers import missing_bytes, surplus_bytes
from ser_fl.data.shortcuts import acoustic_facts, facts_of_table, shortcuts
from ser_fl.data.utterance import Corpus, SkippedFile, Utterance
from ser_fl.errors import UserError

SILENT_PEAK = 1e-3
"""A file whose samples all stay below this (-60 dBFS) is silent."""
FULL_SCALE = 0.999
CLIPPED_RUN = 4
"""So many samples in a row at full scale, on one side, are clipping; a peak normalised to full scale has fewer."""
EQUAL_LENGTH_SHARE = 0.02
EQUAL_LENGTH_FILES = 5
"""Speech hardly ever has one length: so many files, and this share of all, may have been cut there."""
EQUAL_LENGTH_EXCESS = 5
"""And so many times as many as have a length nearby: in some corpora, cut by video frames, all lengths recur."""
EQUAL_LENGTH_PLAIN = 0.2
"""A length of this share of all files needs no comparison."""
LONG_S, SHORT_S = 30.0, 0.05
"""No utterance of the known corpora is longer: such a file is a recording of several. No syllable is shorter."""
_ROUNDING_S = 0.1
_NEARBY = 4
_SHOWN = 8

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a corpus that its user should know."""

    kind: str
    """"counts", "missing", "unreadable", "silent", "clipped", "cut_off", "surplus", "equal_length", "length",
    "duplicate", "mixed", "spelling" or "shortcut"."""
    text: str
    """One line."""
    utterance_ids: tuple[str, ...] = ()
    """All utterances it is about; the text names the first few."""


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
    emotions: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    """Utterances by speaker and emotion; every emotion is in every row."""
    durations: tuple[DurationRow, ...]
    """A row an emotion, and a last one named "all"; files that cannot be read are not in it."""
    sample_rates_hz: Mapping[int, int]
    """Number of files by sampling rate."""
    unreadable: tuple[str, ...]
    """Utterances whose files cannot be used; those of them that were left out on opening are in none of the counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurement:
    utterance_id: str
    emotion: str
    sample_rate_hz: int
    duration_s: float
    peak: float
    full_scale_run: int
    """Most samples in a row at full scale, on one side."""
    is_cut_off: bool
    """Its header announces more than there is."""
    has_surplus: bool
    """There is more than its header announces."""
    digest: bytes
    """Of the samples and the sampling rate: equal for equal sound, whatever the file format."""
    num_channels: int
    facts: Mapping[str, float]
    """From `acoustic_facts`."""


def describe(corpus: Corpus) -> Description:
    """Counts by speaker and emotion, durations by emotion, and sampling rates; reads every file once."""
    emotions, counts = _count(corpus.utterances)
    readable, unreadable = _measure_all(corpus)
    rows = []
    for emotion in (*emotions, None):
        durations_s = [measurement.duration_s for measurement in readable if emotion in (None, measurement.emotion)]
        if durations_s:
            percentiles = np.percentile(durations_s, [0, 5, 50, 95, 100]).tolist()
            rows.append(DurationRow(emotion or "all", len(durations_s), float(np.sum(durations_s)), *percentiles))
    return Description(
        emotions=emotions,
        counts=counts,
        durations=tuple(rows),
        sample_rates_hz=dict(sorted(Counter(measurement.sample_rate_hz for measurement in readable).items())),
        unreadable=tuple(sorted(file.utterance_id for file in unreadable)),
    )


def check(corpus: FileCorpus, info: CorpusInfo) -> list[Finding]:
    """Compare a corpus with what was published about it, and look for faulty audio; reads every file once. A corpus is
    best opened with ``on_unreadable="skip"``, so that all unreadable files are reported.

    Returns:
        Findings: counts that differ, speakers who lack an emotion (a client without that class), and files that are
        unreadable, silent, clipped, cut off, very long, suspiciously of one length, or of equal sound; different
        sampling rates or channels; and facts of the recordings that tell the emotion. Empty if all is well.
    """
    readable, unreadable = _measure_all(corpus)
    findings = _compare_counts(corpus, info)
    _, counts = _count(corpus.utterances)
    lacking = {who: [emotion for emotion, count in row.items() if not count] for who, row in counts.items()}
    if names := [f"{who} ({', '.join(emotions)})" for who, emotions in lacking.items() if emotions]:
        findings.append(Finding("missing", f"{len(names)} of {len(counts)} speakers lack an emotion: {_some(names)}"))
    if remote := sorted(path.name for path in corpus.root.rglob(".*.icloud")):
        text = f"{len(remote)} files are in iCloud and not on this machine; download them: {_some(remote)}"
        findings.append(Finding("missing", text))
    for reason, ids in _grouped((file.reason, file.utterance_id) for file in unreadable).items():
        text = f"{ids[0]}: {reason}" if len(ids) == 1 else f"{len(ids)} files: {reason}: {_some(ids)}"
        findings.append(Finding("unreadable", text, tuple(ids)))
    silent = f"are silent (no sample reaches {SILENT_PEAK:g})"
    faults = [
        ("silent", silent, [m for m in readable if m.peak < SILENT_PEAK]),
        ("clipped", "are clipped (flat at full scale)", [m for m in readable if m.full_scale_run >= CLIPPED_RUN]),
        ("cut_off", "are cut off: their headers announce more", [m for m in readable if m.is_cut_off]),
        ("surplus", "hold more than their headers announce, which is not read", [m for m in readable if m.has_surplus]),
    ]
    for length_s, group in _equal_lengths(readable):
        faults.append(("equal_length", f"are exactly {length_s:.3f} s long: cut off there?", group))
    longest_s = max((measurement.duration_s for measurement in readable), default=0.0)
    too_long = (
        f"last longer than {LONG_S:g} s, up to {longest_s:.0f} s: of each the front end takes the first seconds alone "
        "(frontend.duration_s), unless data.segment_s=S makes utterances of S seconds of it"
    )
    faults.append(("length", too_long, [m for m in readable if m.duration_s > LONG_S]))
    too_short = f"last less than {SHORT_S:g} s, which is no word: the front end repeats them"
    faults.append(("length", too_short, [m for m in readable if m.duration_s < SHORT_S]))
    same = _grouped((m.digest, m) for m in readable if m.peak >= SILENT_PEAK)  # sameness of silence says nothing
    faults += [("duplicate", "hold the same audio", group) for group in same.values() if len(group) > 1]
    for kind, verdict, faulty in faults:
        if names := [measurement.utterance_id for measurement in faulty]:
            findings.append(Finding(kind, f"{len(names)} files {verdict}: {_some(names)}", tuple(names)))
    for what, unit, counted in (
        ("sampling rates", " Hz", Counter(measurement.sample_rate_hz for measurement in readable)),
        ("numbers of channels", "", Counter(measurement.num_channels for measurement in readable)),
    ):
        if len(counted) > 1:
            found = ", ".join(f"{value}{unit} ({count} files)" for value, count in sorted(counted.items()))
            findings.append(Finding("mixed", f"the files have different {what}: {found}"))
    spelt = _grouped((name.casefold(), name) for name in counts)
    if alike := [" and ".join(map(repr, names)) for names in spelt.values() if len(names) > 1]:
        findings.append(Finding("spelling", f"speakers whose names differ by case only are different: {_some(alike)}"))
    measured = {measurement.utterance_id: measurement for measurement in readable}
    utterances = [utterance for utterance in corpus.utterances if utterance.utterance_id in measured]
    facts = facts_of_table(utterances)
    facts["sample rate"] = [measurement.sample_rate_hz for measurement in readable]
    facts["channels"] = [measurement.num_channels for measurement in readable]
    for name in readable[0].facts if readable else ():
        facts[name] = [measurement.facts[name] for measurement in readable]
    return findings + [Finding("shortcut", str(found)) for found in shortcuts(utterances, facts) if found.suspicious]


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


def _compare_counts(corpus: FileCorpus, info: CorpusInfo) -> list[Finding]:
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
            f"{name} {found.get(name, 0)} of {n}".strip()
            for name, n in expected.items()
            if n not in (None, found.get(name, 0))
        ]
        if different:
            findings.append(Finding("counts", f"{what} (found of published): {_some(different)}"))
    return findings


def _equal_lengths(measurements: Sequence[_Measurement]) -> Iterator[tuple[float, list[_Measurement]]]:
    """Lengths that far more files have than lengths nearby, to the sample, and those files."""
    groups = _grouped((measurement.duration_s, measurement) for measurement in measurements)
    lengths_s = sorted(groups)
    counts = [len(groups[length_s]) for length_s in lengths_s]
    least = max(EQUAL_LENGTH_FILES, EQUAL_LENGTH_SHARE * len(measurements))
    for place, (length_s, count) in enumerate(zip(lengths_s, counts, strict=True)):
        nearby = [*counts[max(place - _NEARBY, 0) : place], *counts[place + 1 : place + 1 + _NEARBY]]
        expected = min(EQUAL_LENGTH_EXCESS * float(np.mean(nearby or [0])), EQUAL_LENGTH_PLAIN * len(measurements))
        if count >= max(least, expected):
            yield length_s, groups[length_s]


def _count(utterances: Sequence[Utterance]) -> tuple[tuple[str, ...], dict[str, dict[str, int]]]:
    """The emotions, and utterances by speaker and emotion, both in alphabetical order."""
    emotions = tuple(sorted({utterance.emotion for utterance in utterances}))
    counts = {speaker: dict.fromkeys(emotions, 0) for speaker in sorted({u.speaker for u in utterances})}
    for utterance in utterances:
        counts[utterance.speaker][utterance.emotion] += 1
    return emotions, counts


def _measure_all(corpus: Corpus) -> tuple[list[_Measurement], list[SkippedFile]]:
    """Every file read once, by a pool of threads: those that can be used, and those that cannot."""

    def measure(utterance: Utterance) -> _Measurement | SkippedFile:
        try:
            waveform_T, sample_rate_hz = corpus.read(utterance)
        except UserError as error:
            reason = error.reason if isinstance(error, UnusableAudio) else str(error)
            return SkippedFile(utterance.utterance_id, reason)
        samples_T = waveform_T.numpy()
        path, duration_s = utterance.path, len(samples_T) / sample_rate_hz
        announced_s, num_channels = (duration_s, 1) if path is None else header_of(path)
        return _Measurement(
            utterance_id=utterance.utterance_id,
            emotion=utterance.emotion,
            sample_rate_hz=sample_rate_hz,
            duration_s=duration_s,
            peak=float(np.abs(samples_T).max()),
            full_scale_run=max(_longest_run(samples_T >= FULL_SCALE), _longest_run(samples_T <= -FULL_SCALE)),
            is_cut_off=path is not None and (missing_bytes(path) > 0 or announced_s > duration_s + _ROUNDING_S),
            has_surplus=path is not None and surplus_bytes(path) > 0,
            digest=hashlib.blake2b(samples_T.tobytes(), digest_size=16, person=str(sample_rate_hz).encode()).digest(),
            num_channels=num_channels,
            facts=acoustic_facts(samples_T, sample_rate_hz),
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = list(pool.map(measure, corpus.utterances))
    readable = [file for file in measured if isinstance(file, _Measurement)]
    return readable, [*corpus.skipped, *(file for file in measured if isinstance(file, SkippedFile))]


def _longest_run(flags_T: NDArray[np.bool_]) -> int:
    """Most flags in a row that are set."""
    edges = np.flatnonzero(np.diff(flags_T, prepend=False, append=False))  # where runs begin and end, in turns
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
