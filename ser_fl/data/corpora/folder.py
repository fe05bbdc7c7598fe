"""Looking through a corpus folder: files by name, whatever the nesting and the case."""

from __future__ import annotations

import csv
import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from ser_fl.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac")
"""Of corpora that name their files by a scheme; a manifest may name any format soundfile reads."""


def expand_home(path: Path | str) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by the home folder, where there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, since Path.expanduser raises where there is none


def list_files(root: Path) -> list[Path]:
    """Files below a folder, shallow ones first, then by name.

    Hidden files (macOS leaves ``._`` twins behind) and ``__MACOSX`` are left out; links are followed, loops are not.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        found.extend(Path(folder, name) for name in names if not name.startswith("."))
    return sorted(found, key=lambda path: (len(path.parts), path.as_posix()))


def audio_files(root: Path) -> list[Path]:
    """The WAV and FLAC files below a folder, in the order of `list_files`."""
    return [path for path in list_files(root) if path.suffix.lower() in AUDIO_SUFFIXES]


def file_named(name: str, files: Iterable[Path]) -> Path | None:
    """The first file of that name, in any case."""
    return next((path for path in files if path.name.lower() == name), None)


class AudioIndex:
    """Finds the audio file that a table names: in its published place first, then anywhere."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            if path.suffix.lower() in AUDIO_SUFFIXES:
                self._by_stem[path.stem.lower()].append(path)

    def find(self, published: Path) -> Path:
        """The file that lies at a path, or bears its name elsewhere, in any case; the ending may be missing or another.

        Args:
            published: Where the corpus's authors put it: copies elsewhere may have been filtered or cut.

        Returns:
            The file, or ``published`` itself where there is none.

        Raises:
            UserError: none is in the published place, and those elsewhere differ.
        """
        has_suffix = published.suffix.lower() in AUDIO_SUFFIXES
        stem = (published.stem if has_suffix else published.name).lower()
        candidates = self._by_stem.get(stem, [])
        folder = published.parent.as_posix().lower()
        in_place = [path for path in candidates if path.parent.as_posix().lower() == folder]
        found = in_place or candidates
        found = [path for path in found if path.name.lower() == published.name.lower()] or found
        for other in found[1:]:
            refuse_difference(found[0], other, stem)
        return found[0] if found else published


def refuse_difference(first: Path, second: Path, key: str) -> None:
    """Raise `UserError` unless two files that claim to be one utterance are equal."""
    if first != second and not (first.exists() and second.exists() and filecmp.cmp(first, second, shallow=False)):
        raise both_claim(first, second, key)


def both_claim(first: Path, second: Path, key: str) -> UserError:
    """Error for two files that claim to be one utterance and differ."""
    return UserError(f"{first} and {second} are both utterance {key!r} and differ: remove one of them")


def read_table(
    path: Path, *, separator: str, required: Iterable[str], quoted: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a text table: number, and fields by column name in lower case, blanks around both removed.

    Args:
        path: UTF-8, with or without byte-order mark.
        separator: One character.
        required: Columns that must be there and filled.
        quoted: False where quotation marks are text.

    Raises:
        UserError: the table cannot be read, lacks a column, or a row lacks a required field; the line is named.
    """
    rows = _raw_rows(path, separator, quoted)
    _, header = next(rows, (0, []))
    columns = [name.lower() for name in header]
    for name in required:
        if name not in columns:
            raise UserError(f"{path} lacks the column {name!r}: it has {', '.join(columns) or 'nothing'}")
    for line, fields in rows:
        if not any(fields):
            continue
        if len(fields) > len(columns):
            raise UserError(
                f"{path} line {line} has {len(fields)} fields, not {len(columns)}: quote separators in text"
            )
        row = dict(zip(columns, fields + [""] * (len(columns) - len(fields)), strict=True))
        if missing := [name for name in required if not row[name]]:
            raise UserError(f"{path} line {line} has no {missing[0]!r}: fill the field or remove the line")
        yield line, row


def _raw_rows(path: Path, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, skipinitialspace=quoted)
            for fields in reader:
                yield reader.line_num, [field.strip() for field in fields]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path} ({error}): it must be UTF-8 text") from None
