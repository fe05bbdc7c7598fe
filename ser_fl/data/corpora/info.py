"""What is known of a corpus before it is read: its labels, its published counts, and how its files are found."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a reader finds: an utterance with its original emotion code."""

    path: Path
    """The audio file; where a table names it, it may be missing."""
    key: str
    """The corpus's own name of the utterance: two files with one key are copies."""
    code: str
    """Emotion as the corpus writes it, in the case of the label map."""
    speaker: str
    sex: str | None = None
    session: str | None = None
    text: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCounts:
    """Utterances as the corpus's authors report them, in words of the default label map; empty where not published."""

    per_emotion: Mapping[str, int] = field(default_factory=dict)
    per_speaker: Mapping[str, int] = field(default_factory=dict)
    of_each_speaker: Mapping[str, int] = field(default_factory=dict)
    """Per emotion, for corpora in which every speaker recorded the same."""


def balanced_counts(speakers: Sequence[str], of_each_speaker: Mapping[str, int]) -> PublishedCounts:
    """Counts of a corpus in which every speaker recorded the same.

    >>> balanced_counts(["f1", "m1"], {"anger": 14, "neutral": 7}).per_emotion
    {'anger': 28, 'neutral': 14}
    """
    return PublishedCounts(
        per_emotion={emotion: count * len(speakers) for emotion, count in of_each_speaker.items()},
        per_speaker={speaker: sum(of_each_speaker.values()) for speaker in speakers},
        of_each_speaker=of_each_speaker,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusInfo:
    """A corpus: where it comes from, what its labels mean, how many utterances it should have, and its reader."""

    name: str
    title: str
    licence: str
    url: str
    label_map: Mapping[str, str]
    """Original code to word of `EMOTIONS`; utterances with other codes of the corpus are left out."""
    left_out: tuple[str, ...] = ()
    """Codes of the corpus that the default label map leaves out."""
    example: str
    """What the reader looks for, for the error when there is none."""
    find: Callable[[Path], Iterable[Recording]]
    guess_labels: Callable[[frozenset[str]], Mapping[str, str]] | None = None
    """For tables with labels of their own: the map for these codes; codes it lacks stay as they are."""
    published_counts: PublishedCounts = field(default_factory=PublishedCounts)
    num_speakers: int | None = None
    num_utterances: int | None = None

    def scan(self, root: Path) -> list[Utterance]:
        """All utterances below a folder, with the default labels, sorted by id; see `scan_with`."""
        return self.scan_with(root, None)[0]

    def scan_with(self, root: Path, labels: Mapping[str, str] | None) -> tuple[list[Utterance], Mapping[str, str]]:
        """All utterances below a folder, sorted by id, and the label map in force.

        Args:
            root: The corpus folder.
            labels: Code to word, instead of `label_map`; codes it lacks are left out (of a manifest: kept).

        Raises:
            UserError: nothing was found, two files claim to be one utterance, or a label is unknown.
        """
        recordings = _once_each(self.find(root))
        if not recordings:
            raise UserError(f"no utterance of {self.title} below {root}: looked for {self.example}")
        words = self._words(recordings, labels)
        folder = root.parent if root.is_file() else root
        utterances = [_utterance(recording, words, folder) for recording in recordings if recording.code in words]
        if not utterances:
            raise UserError(f"no utterance below {root} has one of the labels {', '.join(words)}: change data.labels")
        return sorted(utterances, key=lambda utterance: utterance.utterance_id), words

    def _words(self, recordings: Iterable[Recording], labels: Mapping[str, str] | None) -> Mapping[str, str]:
        """The label map in force, checked."""
        first = {recording.code: recording.path for recording in reversed(list(recordings))}
        if blank := [code for code, word in (labels or {}).items() if not word.strip()]:
            raise UserError(f"data.labels: the word for {blank[0]!r} is blank; leave the code out instead")
        if self.guess_labels is not None:
            mapped = self.guess_labels(frozenset(first)) if labels is None else labels
            return {code: mapped.get(code, code) for code in sorted(first)}
        known = sorted({*self.label_map, *self.left_out})
        if unknown := [code for code in labels or () if code not in known]:
            raise UserError(f"data.labels: {self.title} has no code {unknown[0]!r}, its codes are {', '.join(known)}")
        if unknown := [code for code in first if code not in known]:
            where = first[unknown[0]]
            raise UserError(f"unknown emotion {unknown[0]!r} of {where}: {self.title} has {', '.join(known)}")
        return self.label_map if labels is None else labels


def _once_each(recordings: Iterable[Recording]) -> list[Recording]:
    """Drop copies: corpora are often unpacked twice, or one folder inside the other.

    Raises:
        UserError: two files bear one key and differ.
    """
    kept: dict[str, Recording] = {}
    for recording in recordings:
        first = kept.setdefault(recording.key, recording)
        if first is recording:
            continue
        same = (first.code, first.speaker) == (recording.code, recording.speaker)
        if not same or not _same_bytes(first.path, recording.path):
            raise UserError(
                f"{first.path} and {recording.path} are both utterance {recording.key!r} and differ: remove one of them"
            )
    return list(kept.values())


def _same_bytes(first: Path, second: Path) -> bool:
    if first == second:
        return True
    return first.exists() and second.exists() and filecmp.cmp(first, second, shallow=False)


def _utterance(recording: Recording, words: Mapping[str, str], folder: Path) -> Utterance:
    return Utterance(
        utterance_id=Path(os.path.relpath(recording.path, folder)).as_posix(),
        emotion=words[recording.code].strip(),
        speaker=recording.speaker,
        path=recording.path,
        sex=recording.sex,
        session=recording.session,
        text=recording.text,
        split=recording.split,
    )
