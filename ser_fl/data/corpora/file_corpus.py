"""A corpus of audio files: utterances whose files can be read, and the audio of each. T samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.data.audio import check_channel, content_digest, probe_audio, probe_header, read_audio
from ser_fl.data.utterance import SkippedFile, Utterance
from ser_fl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

ON_UNREADABLE = ("stop", "skip")
_AT_ONCE = 16
"""Files that a thread takes at a time: a header is read in less time than handing it over would take."""


@dataclass(slots=True, kw_only=True)
class FileCorpus:
    """Utterances of a corpus folder (a `ser_fl.data.utterance.Corpus`)."""

    name: str
    root: Path
    """The folder that utterance ids start from."""
    utterances: tuple[Utterance, ...]
    """Sorted by utterance_id; every file's header can be read."""
    channel: str
    labels: Mapping[str, str]
    """Original code to word, as used; codes that are not in it were left out."""
    skipped: tuple[SkippedFile, ...] = ()
    synthetic: bool = False

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        """Waveform of shape (T,), float32 in [-1, 1], and its sampling rate in Hz.

        Raises:
            UserError: the file cannot be read, or lacks the channel; it is named.
        """
        return read_audio(_path(utterance), self.channel)

    def content_digest(self, utterance: Utterance) -> bytes:
        """16 bytes from the file's bytes and the channel choice.

        Raises:
            UserError: the file cannot be read.
        """
        return content_digest(_path(utterance), self.channel)


def keep_usable(corpus: FileCorpus, *, on_unreadable: str, to_hz: int | None, root_name: str) -> FileCorpus:
    """The corpus of the utterances whose files have a readable header, or with "skip" of those that can be used.

    Raises:
        UserError: a file cannot be read and ``on_unreadable`` is "stop", or none can, or a setting is unknown.
    """
    check_channel(corpus.channel)
    if on_unreadable not in ON_UNREADABLE:
        raise unknown_name("data.on_unreadable", on_unreadable, ON_UNREADABLE)
    skipped = _probe(corpus, on_unreadable, to_hz)
    if skipped and (on_unreadable == "stop" or len(skipped) == len(corpus.utterances)):
        raise _refusal(corpus.root, skipped, len(corpus.utterances), root_name)
    lost = {file.utterance_id for file in skipped}
    kept = tuple(utterance for utterance in corpus.utterances if utterance.utterance_id not in lost)
    return replace(corpus, utterances=kept, skipped=skipped)


def _refusal(root: Path, unusable: Sequence[SkippedFile], num_files: int, root_name: str) -> UserError:
    """The error that names the first file, how many there are, and what can be done."""
    first = unusable[0]
    if len(unusable) < num_files:
        way_out = "; data.on_unreadable=skip leaves them out"
    else:  # some reasons end in a way out of their own
        way_out = "" if ";" in first.reason else f"; is {root_name} right?"
    count = f"one of {len(unusable)} such files among {num_files}"
    return UserError(f"cannot read {root / first.utterance_id}: {first.reason} ({count}){way_out}")


def _probe(corpus: FileCorpus, on_unreadable: str, to_hz: int | None) -> tuple[SkippedFile, ...]:
    """The files that cannot be used. On network file systems the wait is the cost, hence more threads than cores.

    Only to leave files out are they decoded: a run that stops at the first bad one meets it in the front end anyway.
    """
    probe = probe_header if on_unreadable == "stop" else partial(probe_audio, channel=corpus.channel, to_hz=to_hz)

    def probe_some(start: int) -> list[str | None]:
        return [probe(_path(utterance)) for utterance in corpus.utterances[start : start + _AT_ONCE]]

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        reasons = list(chain.from_iterable(pool.map(probe_some, range(0, len(corpus.utterances), _AT_ONCE))))
    pairs = zip(corpus.utterances, reasons, strict=True)
    return tuple(SkippedFile(utterance.utterance_id, reason) for utterance, reason in pairs if reason is not None)


def _path(utterance: Utterance) -> Path:
    assert utterance.path is not None, f"{utterance.utterance_id} is no file"
    return utterance.path
