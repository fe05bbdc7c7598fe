"""Any other corpus, through a table: path, emotion, speaker, and where known text, sex, session, split.

``manifest.csv`` (commas or tabs) lies at the top of the folder its paths start from. Labels are taken in lower case, so
that "anger", "Anger" and "ANGER" are one class, and stay as they are unless ``data.labels`` maps them. DEMoS, whose
files need a signed licence, comes this way: when every label is one of its codes (col, dis, gio, pau, rab, sor, tri, or
neu) they are mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.emovo import ITALIAN_LABELS
from ser_fl.data.corpora.folder import read_table
from ser_fl.data.corpora.info import CorpusInfo, Recording
from ser_fl.data.corpora.labels import sex_of, split_of
from ser_fl.errors import UserError

DEMOS_LABELS = {**ITALIAN_LABELS, "col": "guilt"}
"""DEMoS's codes: "colpa" is guilt; the other seven are EMOVO's."""
REQUIRED = ("path", "emotion", "speaker")


def find(root: Path) -> Iterator[Recording]:
    """Utterances of the table at ``root``, a file or the folder of manifest.csv."""
    table = _table(root)
    with table.open("rb") as file:
        separator = "\t" if b"\t" in file.readline() else ","
    lines: dict[Path, int] = {}
    for line, row in read_table(table, separator=separator, required=REQUIRED):
        place = f"{table} line {line}"
        path = _below(table.parent, row["path"], place)
        if path in lines:
            raise UserError(f"{place} lists {row['path']} again, after line {lines[path]}: keep one of them")
        lines[path] = line
        yield Recording(
            path=path,
            key=path.as_posix(),
            code=row["emotion"],
            speaker=row["speaker"],
            sex=sex_of(row.get("sex", "")),
            session=row.get("session") or None,
            text=row.get("text") or None,
            split=_split(row.get("split", ""), place),
        )


def _table(root: Path) -> Path:
    if root.is_file():
        return root
    named = [path for path in sorted(root.iterdir()) if path.name.lower() in ("manifest.csv", "manifest.tsv")]
    if not named:
        raise UserError(f"no manifest.csv in {root}: a table with the columns {', '.join(REQUIRED)}")
    return named[0]


def _below(folder: Path, written: str, place: str) -> Path:
    """The file a row names. The written path may not leave the folder.

    Links in the folder may, since on clusters a corpus is often a folder of links: whoever owns the folder made them,
    while a table comes from anywhere.
    """
    if any(not character.isprintable() for character in written):
        raise UserError(f"{place} names {written!r}: a path of printable characters is wanted")
    relative = os.path.relpath(folder / written.replace("\\", "/"), folder)
    if relative == ".." or relative.startswith("../"):
        raise UserError(f"{place} names {written}, outside the manifest's folder: move or link the audio below it")
    return folder / relative


def _split(word: str, place: str) -> str | None:
    split = split_of(word)
    if word and split is None:
        raise UserError(f"{place} has the split {word!r}: use train, validation or test")
    return split


INFO = CorpusInfo(
    name="manifest",
    title="a manifest",
    licence="yours",
    url="",
    label_map={},
    example=f"a table with the columns {', '.join(REQUIRED)}",
    find=find,
    recognised_labels={"DEMoS": DEMOS_LABELS},
)
