"""Looking through a corpus folder: files by name, whatever the nesting and the case, and the tables among them."""

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
_SEXES = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
_SPLITS = {"train": "train", "training": "train", "test": "test"}
_SPLITS |= dict.fromkeys(("dev", "val", "valid", "validation"), "validation")


def expand_home(path: Path | str) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by the home folder, where there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, since Path.expanduser raises where there is none


def list_files(root: Path) -> list[Path]:
    """Files below a folder, shallow ones first, then by name. Hidden files (macOS leaves ``._`` twins behind) and
    ``__MACOSX`` are left out; links are followed, loops are not.
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
        The path itself where there is none. Copies elsewhere may have been filtered or cut: where they differ, and none
        is in the published place, it is a `UserError`.
        """
        has_suffix = published.suffix.lower() in AUDIO_SUFFIXES
        stem = (published.stem if has_suffix else published.name).lower()
        found = self._by_stem.get(stem, [])
        folder = published.parent.as_posix().lower()
        found = [path for path in found if path.parent.as_posix().lower() == folder] or found
        found = [path for path in found if path.name.lower() == published.name.lower()] or found
        for other in found[1:]:
            refuse_difference(found[0], other, stem)
        return found[0] if found else published


def refuse_difference(first: Path, second: Path, key: str, *, alike: bool = True) -> None:
    """Raise `UserError` unless two files that claim to be one utterance are equal, and what is known of them is too."""
    if alike and first == second:
        return
    if not (alike and first.exists() and second.exists() and filecmp.cmp(first, second, shallow=False)):
        raise UserError(f"{first} and {second} are both utterance {key!r} and differ: remove one of them")


def read_table(
    path: Path, *, separator: str, required: Iterable[str], quoted: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a text table (UTF-8): number, and fields by column name in lower case, blanks around both removed.
    ``quoted`` is False where quotation marks are text.

    Raises:
        UserError: the table cannot be read, lacks a required column, or a row lacks a required field; the line is
            named.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, skipinitialspace=quoted)
            rows = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path} ({error}): it must be UTF-8 text") from None
    columns = [name.lower() for name in rows[0][1]] if rows else []
    for name in required:
        if name not in columns:
            raise UserError(f"{path} lacks the column {name!r}: it has {', '.join(columns) or 'nothing'}")
    for line, fields in rows[1:]:
        place, lacking = f"{path} line {line}", len(columns) - len(fields)
        if not any(fields):
            continue
        if lacking < 0:
            raise UserError(f"{place} has {len(fields)} fields, not {len(columns)}: quote separators in text")
        row = dict(zip(columns, fields + [""] * lacking, strict=True))
        if missing := [name for name in required if not row[name]]:
            raise UserError(f"{place} has no {missing[0]!r}: fill the field or remove the line")
        yield line, row


def sex_of(word: str) -> str | None:
    """The usual spellings to "female" or "male", None for anything else.

    >>> sex_of("F"), sex_of("other")
    ('female', None)
    """
    return _SEXES.get(word.strip().lower())


def split_of(word: str) -> str | None:
    """The usual spellings to "train", "validation" or "test", None for anything else.

    >>> split_of("dev")
    'validation'
    """
    return _SPLITS.get(word.strip().lower())
