"""Corpora by name, and how one is opened.

Readers take the layouts the authors publish, in any nesting and case, as WAV or FLAC; copies of one utterance are taken
once. What is not of the corpus is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ser_fl.data.corpora import cremad, emodb, emovo, emozionalmente, iemocap, manifest, nemo, ravdess, savee, tess
from ser_fl.data.corpora.file_corpus import FileCorpus, keep_usable
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.corpora.info import CorpusInfo
from ser_fl.errors import UserError, unknown_name

_MODULES = (cremad, emodb, emovo, emozionalmente, iemocap, manifest, nemo, ravdess, savee, tess)
CORPORA: dict[str, CorpusInfo] = {module.INFO.name: module.INFO for module in _MODULES}
"""Every corpus with a reader, by name: ``CORPORA["mine"] = CorpusInfo(...)`` makes ``data=mine`` known."""


def open_corpus(
    name: str,
    root: Path,
    *,
    channel: str = "first",
    on_unreadable: str = "stop",
    labels: Mapping[str, str] | None = None,
    to_hz: int | None = None,
    root_name: str = "data.root",
) -> FileCorpus:
    """Open a corpus folder.

    Args:
        name: A name in `CORPORA`.
        root: The corpus folder; for "manifest" also the table itself; a leading ``~`` is the home folder.
        channel: "first", "second" or "mean", see `ser_fl.data.audio.CHANNELS`.
        on_unreadable: "stop" at files that cannot be read, or "skip" those and the ones whose samples cannot be used,
            and list them in `FileCorpus.skipped`; then every file is decoded here.
        labels: Original code to word, instead of the corpus's own label map. Codes it lacks are left out; a manifest's
            labels that it lacks stay as they are.
        to_hz: With "skip", files whose sampling rate cannot be resampled to this one (Hz) are left out too.
        root_name: What the user calls the folder, for error messages.

    Returns:
        The corpus, its utterances sorted by id.

    Raises:
        UserError: the name or a setting is unknown, there is no such folder, nothing of the corpus is in it, two files
            claim to be one utterance, a table is faulty, or a file cannot be read.
    """
    if name not in CORPORA:
        raise unknown_name("corpus", name, CORPORA)
    info, root = CORPORA[name], expand_home(root)
    if not root.exists():
        raise UserError(f"no such folder: {root}; set {root_name} to the folder of {info.title}")
    if name != "manifest" and not root.is_dir():
        raise UserError(f"{root} is a file: set {root_name} to the folder of {info.title}")
    utterances, words = info.scan(root, labels)
    folder = root.parent if root.is_file() else root
    found = FileCorpus(name=name, root=folder, utterances=tuple(utterances), channel=channel, labels=words)
    return keep_usable(found, on_unreadable=on_unreadable, to_hz=to_hz, root_name=root_name)
