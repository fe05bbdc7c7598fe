"""What is known of a corpus before it is read: its labels, its published counts, and how its files are found."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ser_fl.data.corpora.folder import refuse_difference
from ser_fl.data.utterance import Utterance, plain
from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCounts:
    """What the corpus's authors report, in words of the default label map; empty or None where they do not."""

    num_utterances: int | None = None
    num_speakers: int | None = None
    per_emotion: Mapping[str, int] = field(default_factory=dict)
    per_speaker: Mapping[str, int] = field(default_factory=dict)
    of_each_speaker: Mapping[str, int] = field(default_factory=dict)
    """Utterances of each emotion by each speaker, for corpora in which every speaker recorded the same."""


def pairs(text: str) -> dict[str, str]:
    """A small table, such as a label map: "W=anger L=boredom"."""
    return dict(pair.split("=") for pair in text.split())


def counts(text: str) -> dict[str, int]:
    """A small table of counts: "anger=127 boredom=81"."""
    return {name: int(count) for name, count in pairs(text).items()}


def balanced_counts(speakers: Sequence[str], of_each_speaker: Mapping[str, int]) -> PublishedCounts:
    """Counts of a corpus in which every speaker recorded the same.

    >>> balanced_counts(["f1", "m1"], {"anger": 14, "neutral": 7}).per_emotion
    {'anger': 28, 'neutral': 14}
    """
    of_one = sum(of_each_speaker.values())
    return PublishedCounts(
        num_utterances=of_one * len(speakers),
        num_speakers=len(speakers),
        per_emotion={emotion: count * len(speakers) for emotion, count in of_each_speaker.items()},
        per_speaker=dict.fromkeys(speakers, of_one),
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
    find: Callable[[Path], Iterable[Utterance]]
    """The reader: every utterance below a folder, as the corpus tells of it. Its `emotion` is the corpus's code, in any
    case, its `utterance_id` the corpus's own name of it: two files with one are copies. A file that a table names may
    be missing."""
    recognised_labels: Mapping[str, Mapping[str, str]] | None = None
    """For tables with labels of their own, which stay as they are: label maps by the name of the corpus they belong to,
    each for tables all of whose labels are in it."""
    texts_in: str = ""
    """Where texts stand, for corpora that may come without."""
    published_counts: PublishedCounts = field(default_factory=PublishedCounts)

    def scan(self, root: Path, labels: Mapping[str, str] | None = None) -> tuple[list[Utterance], Mapping[str, str]]:
        """All utterances below a folder, sorted by id, and the label map in force: ``labels`` (see `open_corpus`) or
        its own. Copies are dropped: corpora are often unpacked twice, or one folder inside the other.

        Raises:
            UserError: nothing was found, two files claim to be one utterance, or a label is unknown.
        """
        found: dict[str, Utterance] = {}
        for each in self.find(root):
            first = found.setdefault(each.utterance_id, each)
            facts, others = (replace(one, emotion=one.emotion.lower(), path=None) for one in (first, each))
            refuse_difference(first.file, each.file, each.utterance_id, alike=facts == others)
        if not found:
            raise UserError(f"no utterance of {self.title} below {root}: looked for {self.example}")
        words = self._words(list(found.values()), labels)
        emotion_of = {code.lower(): word for code, word in words.items()}
        folder = root.parent if root.is_file() else root
        utterances = [
            replace(
                each,
                utterance_id=Path(os.path.relpath(each.file, folder)).as_posix(),
                emotion=emotion_of[each.emotion.lower()],
                recording="" if each.recording == each.utterance_id else each.recording,
                corpus=self.name,
            )
            for each in found.values()
            if each.emotion.lower() in emotion_of
        ]
        if not utterances:
            raise UserError(f"no utterance below {root} has one of the labels {', '.join(words)}: change data.labels")
        return sorted(utterances, key=lambda utterance: utterance.utterance_id), words

    def _words(self, found: Sequence[Utterance], labels: Mapping[str, str] | None) -> Mapping[str, str]:
        """The label map in force, checked."""
        if labels is not None:
            given, labels = labels, {plain(code): plain(word) for code, word in labels.items()}
            if blank := [code for code, word in labels.items() if not word]:
                raise UserError(f"data.labels: the word for {blank[0]!r} is blank; leave the code out instead")
            if len(labels) < len(given):
                raise UserError(f"data.labels: two of {', '.join(map(ascii, given))} look the same: keep one of them")
        if self.recognised_labels is not None:
            words = self._words_of_table(sorted({each.emotion.lower() for each in found}), labels)
        else:
            known = sorted({*self.label_map, *self.left_out})
            if unknown := [code for code in labels or () if code not in known]:
                raise UserError(
                    f"data.labels: {self.title} has no code {unknown[0]!r}, its codes are {', '.join(known)}"
                )
            known_lower = {code.lower() for code in known}
            for each in found:
                if each.emotion.lower() not in known_lower:
                    where = f"unknown emotion {each.emotion!r} of {each.file}"
                    raise UserError(f"{where}: {self.title} has {', '.join(known)}")
            words = self.label_map if labels is None else labels
        spellings: dict[str, str] = {}
        for word in words.values():
            if word != (first := spellings.setdefault(word.lower(), word)):  # they would become two classes
                raise UserError(f"the labels {first!r} and {word!r} differ by case only: use one in data.labels")
        return words

    def _words_of_table(self, codes: Sequence[str], labels: Mapping[str, str] | None) -> Mapping[str, str]:
        if labels is None:
            mapped = next((known for known in (self.recognised_labels or {}).values() if {*codes} <= {*known}), {})
        else:
            mapped = {code.lower(): word for code, word in labels.items()}
            if len(mapped) < len(labels):
                raise UserError(f"data.labels: two of {', '.join(labels)} differ by case only, and case is ignored")
            if unknown := [code for code in mapped if code not in codes]:
                told = f"the table has no label {unknown[0]!r}, its labels are {', '.join(codes)}"
                raise UserError(f"data.labels: {told}")
        return {code: mapped.get(code, code) for code in codes}
