"""Corpora by name, how one is opened, and what it then is: utterances whose files can be read, and the audio of each.

Readers take the layouts the authors publish, in any nesting and case, as WAV or FLAC; copies of one utterance are taken
once. What is not of the corpus is ignored. T samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.data.audio import check_channel, content_digest, duration_s, probe_audio, probe_header, read_audio
from ser_fl.data.corpora.folder import expand_home, on_disk
from ser_fl.data.corpora.info import CorpusInfo
from ser_fl.data.corpora.named_files import CREMAD, EMODB, EMOVO, RAVDESS, SAVEE, TESS
from ser_fl.data.corpora.tables import EMOZIONALMENTE, IEMOCAP, MANIFEST, NEMO
from ser_fl.data.utterance import SkippedFile, Utterance
from ser_fl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

_ALL = (CREMAD, EMODB, EMOVO, EMOZIONALMENTE, IEMOCAP, MANIFEST, NEMO, RAVDESS, SAVEE, TESS)
CORPORA: dict[str, CorpusInfo] = {info.name: info for info in _ALL}
"""Every corpus with a reader, by name: ``CORPORA["mine"] = CorpusInfo(...)`` makes ``data=mine`` known."""
ON_UNREADABLE = ("stop", "skip")
_AT_ONCE = 16
"""Files that a thread takes at a time: a header is read in less time than handing it over would take."""


@dataclass(slots=True, kw_only=True)
class FileCorpus:
    """Utterances of a corpus folder (a `ser_fl.data.utterance.Corpus`)."""

    name: str
    root: Path
    utterances: tuple[Utterance, ...]
    """Sorted by utterance_id; every file's header can be read."""
    channel: str
    labels: Mapping[str, str]
    """Original code to word, as used; codes that are not in it were left out."""
    skipped: tuple[SkippedFile, ...] = ()
    synthetic: bool = False
    _digests: dict[Path, bytes] = field(default_factory=dict, repr=False)
    """Of files with segments, each of which is read once for all of them."""

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        return read_audio(utterance.file, self.channel, utterance.span_s)

    def content_digest(self, utterance: Utterance) -> bytes:
        if utterance.span_s is None:
            return content_digest(utterance.file, self.channel)
        if utterance.file not in self._digests:
            self._digests[utterance.file] = content_digest(utterance.file, self.channel)
        return blake2b(self._digests[utterance.file] + repr(utterance.span_s).encode(), digest_size=16).digest()


def open_corpus(
    name: str,
    root: Path,
    *,
    channel: str = "first",
    on_unreadable: str = "stop",
    labels: Mapping[str, str] | None = None,
    to_hz: int | None = None,
    segment_s: float | None = None,
    root_name: str = "data.root",
) -> FileCorpus:
    """Open a corpus folder.

    Args:
        name: a name in `CORPORA`.
        root: the corpus folder; for "manifest" also the table itself; a leading ``~`` is the home folder.
        channel: "first", "second" or "mean", see `ser_fl.data.audio.CHANNELS`.
        on_unreadable: "stop" at files that cannot be read, or "skip" those and the ones whose samples cannot be used,
            and list them in `FileCorpus.skipped`; then every file is decoded here.
        labels: original code to word, instead of the corpus's own label map. Codes it lacks are left out; a manifest's
            labels that it lacks stay as they are.
        to_hz: with "skip", files whose sampling rate cannot be resampled to this one (Hz) are left out too.
        segment_s: longer files become several utterances, see `segments`.
        root_name: what the user calls the folder, for error messages.

    Returns:
        The corpus, its utterances sorted by id.

    Raises:
        UserError: the name or a setting is unknown, there is no such folder, nothing of the corpus is in it, two files
            claim to be one utterance, a table is faulty, or a file cannot be read.
    """
    if name not in CORPORA:
        raise unknown_name("corpus", name, CORPORA)
    info, root = CORPORA[name], expand_home(root)
    root = on_disk(Path(root.anchor), root.relative_to(root.anchor), {})
    if not root.exists():
        raise UserError(f"no such folder: {root}; set {root_name} to the folder of {info.title}")
    if name != "manifest" and not root.is_dir():
        raise UserError(f"{root} is a file: set {root_name} to the folder of {info.title}")
    utterances, words = info.scan(root, labels)
    check_channel(channel)
    if on_unreadable not in ON_UNREADABLE:
        raise unknown_name("data.on_unreadable", on_unreadable, ON_UNREADABLE)
    folder = root.parent if root.is_file() else root
    # Only to leave files out are they decoded: a run that stops at the first bad one meets it in the front end anyway.
    probe = probe_header if on_unreadable == "stop" else partial(probe_audio, channel=channel, to_hz=to_hz)

    def probe_some(start: int) -> list[str | None]:
        return [probe(utterance.file) for utterance in utterances[start : start + _AT_ONCE]]

    # On network file systems the wait is the cost, hence more threads than cores.
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        reasons = list(chain.from_iterable(pool.map(probe_some, range(0, len(utterances), _AT_ONCE))))
    probed = list(zip(utterances, reasons, strict=True))
    skipped = tuple(SkippedFile(utterance.utterance_id, reason) for utterance, reason in probed if reason is not None)
    if skipped and (on_unreadable == "stop" or len(skipped) == len(utterances)):
        first = skipped[0]
        if len(skipped) < len(utterances):
            way_out = "; data.on_unreadable=skip leaves them out"
        else:  # some reasons end in a way out of their own
            way_out = "" if ";" in first.reason else f"; is {root_name} right?"
        count = f"one of {len(skipped)} such files among {len(utterances)}"
        raise UserError(f"cannot read {folder / first.utterance_id}: {first.reason} ({count}){way_out}")
    kept = [utterance for utterance, reason in probed if reason is None]
    if segment_s is not None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            cut = pool.map(partial(segments, segment_s=segment_s), kept)
            kept = sorted(chain.from_iterable(cut), key=attrgetter("utterance_id"))
    return FileCorpus(name=name, root=folder, utterances=tuple(kept), channel=channel, labels=words, skipped=skipped)


def segments(utterance: Utterance, segment_s: float) -> list[Utterance]:
    """A file that is longer than so many seconds as utterances of that length, one after the other, with the ids
    FILE#0, FILE#1 and so on; else the utterance itself. All that is known of the file is true of each. A rest is an
    utterance too, shorter than the others; less than half of one is left out.
    """
    total_s = duration_s(utterance.file)
    if total_s <= segment_s:
        return [utterance]
    count = int(total_s / segment_s + 0.5)
    return [
        replace(
            utterance,
            utterance_id=f"{utterance.utterance_id}#{k:0{len(str(count - 1))}d}",
            span_s=(k * segment_s, min((k + 1) * segment_s, total_s)),
        )
        for k in range(count)
    ]
