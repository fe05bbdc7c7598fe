"""Looking through a corpus folder: files by name, whatever the nesting and the case, and the tables among them."""

import codecs
import csv
import filecmp
import io
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from ser_fl.data.headers import kind_of
from ser_fl.data.utterance import has_unseen, plain
from ser_fl.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac")
"""Of corpora that name their files by a scheme; a manifest may name any format soundfile reads."""
_LOG = logging.getLogger(__name__)
_SEXES = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
_SPLITS = {"train": "train", "training": "train", "test": "test"}
_SPLITS |= dict.fromkeys(("dev", "val", "valid", "validation"), "validation")


def expand_home(path: Path | str) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by the home folder, where there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, since Path.expanduser raises where there is none


def list_files(root: Path) -> list[Path]:
    """Files below a folder, shallow ones first, then by name. Hidden files (macOS leaves ``._`` twins behind) and
    ``__MACOSX`` are left out; links are followed, loops are not. A `UserError` names a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list the folder {error.filename}: {(error.strerror or str(error)).lower()}") from None

    found: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
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
                self._by_stem[plain(path.stem).lower()].append(path)

    def find(self, published: Path) -> Path:
        """The file that lies at a path, or bears its name elsewhere, in any case; the ending may be missing or another.
        The path itself where there is none. Copies elsewhere may have been filtered or cut: where they differ, and none
        is in the published place, it is a `UserError`.
        """
        has_suffix = published.suffix.lower() in AUDIO_SUFFIXES
        stem = plain(published.stem if has_suffix else published.name).lower()
        found = self._by_stem.get(stem, [])
        folder = published.parent.as_posix().lower()
        found = [path for path in found if path.parent.as_posix().lower() == folder] or found
        found = [path for path in found if path.name.lower() == published.name.lower()] or found
        for other in found[1:]:
            refuse_difference(found[0], other, stem)
        return found[0] if found else published


def refuse_difference(first: Path, second: Path, key: str, *, alike: bool = True) -> None:
    """Raise `UserError` unless two files that claim to be one utterance are equal, and what is known of them is too."""
    if first == second:
        if not alike:
            raise UserError(f"{first} is told of twice, and not the same: mend the tables")
        return
    if not (alike and first.exists() and second.exists() and filecmp.cmp(first, second, shallow=False)):
        raise UserError(f"{first} and {second} are both utterance {key!r} and differ: remove one of them")


def on_disk(folder: Path, path: PurePath, listed: dict[Path, dict[str, list[str]]]) -> Path:
    """A path below a folder as it lies on the disk: as it is written where that is there, else the one that looks the
    same (`ser_fl.data.utterance.plain`), as macOS writes it and others do not. The written path where there is none.

    Args:
        folder: where it begins.
        path: what is written.
        listed: names in folders that were looked through; kept for the next call.

    Raises:
        UserError: several look the same.
    """
    if os.path.lexists(folder / path):
        return folder / path
    place = folder
    for part in path.parts:
        if not os.path.lexists(place / part):
            if place not in listed:
                listed[place] = {}
                with suppress(OSError):
                    for name in sorted(os.listdir(place)):  # noqa: PTH208, names alone
                        listed[place].setdefault(plain(name), []).append(name)
            alike = listed[place].get(plain(part), [part])
            if len(alike) > 1:
                names = " and ".join(map(ascii, alike))
                raise UserError(f"{folder / path}: {names} in {place} look the same: rename one")
            part = alike[0]
        place /= part
    return place


def read_table(path: Path, *, required: Sequence[str], quoted: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a text table: number, and fields by column name in lower case, blanks around both removed. The header
    tells what parts the fields: commas, semicolons, tabs or bars. ``quoted`` is False where quotation marks in fields
    parted by tabs are text.

    Raises:
        UserError: the table cannot be read, lacks a required column or has a column twice, or a row has too many fields
            or lacks a required one; the line is named.
    """
    text, above = text_of(path), 0
    separators: Sequence[str] = (",", ";", "\t", "|")
    if told := re.match(r"\s*sep=(\S|\t)[^\S\r\n]*(?:\r\n?|\n)", text, re.IGNORECASE):  # a spreadsheet's way
        text, above, separators = text[told.end() :], 1, [told[1]]
    tried = {separator: _rows(text, separator, quoted or separator != "\t") for separator in separators}
    headers = {separator: next(rows, (0, [], None)) for separator, rows in tried.items()}
    columns_by = {separator: [plain(name).lower() for name in names] for separator, (_, names, _) in headers.items()}
    separator = max(separators, key=lambda separator: len({*columns_by[separator]}.intersection(required)))
    columns = columns_by[separator]
    while columns and not columns[-1]:
        columns.pop()
    if (fault := headers[separator][2]) is not None:
        raise UserError(f"{path} line {above + 1}: {fault}")
    for name in required:
        if name not in columns:
            raise UserError(f"{path} lacks the column {name!r}: it has {', '.join(columns) or 'nothing'}")
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]!r} twice: keep one of them")
    unseen: list[str] = []
    for number, fields, fault in tried[separator]:
        place = f"{path} line {above + number}"
        if fault is not None:
            raise UserError(f"{place}: {fault}")
        if any(fields[len(columns) :]):
            raise UserError(f"{place} has {len(fields)} fields, not {len(columns)}: quote separators in text")
        row = dict(zip(columns, fields + [""] * len(columns), strict=False))
        if missing := [name for name in required if not plain(row[name])]:
            raise UserError(f"{place} has no {missing[0]!r}: fill the field or remove the line")
        unseen += [f"{field!a} in line {above + number}" for field in fields if has_unseen(field)]
        yield above + number, row
    if unseen:
        _LOG.warning("%s has invisible characters, which do not count: %d fields, %s", path, len(unseen), unseen[0])


def _rows(text: str, separator: str, quoted: bool) -> Iterator[tuple[int, list[str], str | None]]:
    """Rows of a table that are not blank: the number of the first line, and the fields without blanks around them; the
    last may be a fault instead.
    """
    if quoted:  # blanks may stand between a quotation mark and the end of the field
        text = re.sub(rf'" +(?=[{re.escape(separator)}\r\n])', '"', text)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=quoted,
        strict=True,
    )
    while True:
        number = reader.line_num + 1
        try:
            fields = [field.strip() for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield number, [], f"{error}: write quotation marks within a field twice"
            return
        if any(fields):
            yield number, fields, None


def text_of(path: Path) -> str:
    """A text file: UTF-8, or UTF-16 or UTF-32 by its mark; a `UserError` says what else it is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {(error.strerror or str(error)).lower()}") from None
    what, _, way_out = (kind_of(content[:512]) or "").partition("; ")
    if what not in ("", "text", "empty"):
        way_out = way_out if "fetch" in way_out else "save the table as CSV in UTF-8"
        raise UserError(f"cannot read the table {path}: it is {what}; {way_out}")
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = len((content[: error.start] + b".").splitlines())
        what = f"line {number} is no {encoding.removesuffix('-sig').upper()} (byte {content[error.start]:#04x})"
        raise UserError(f"cannot read the table {path}: {what}; save it as UTF-8, a spreadsheet as CSV UTF-8") from None
    if "\0" in text:
        raise UserError(f"cannot read the table {path}: it holds NUL characters; save it as UTF-8")
    return text


def sex_of(word: str) -> str | None:
    """The usual spellings to "female" or "male", None for anything else.

    >>> sex_of("F"), sex_of("other")
    ('female', None)
    """
    return _SEXES.get(plain(word).lower())


def split_of(word: str) -> str | None:
    """The usual spellings to "train", "validation" or "test", None for anything else.

    >>> split_of("dev")
    'validation'
    """
    return _SPLITS.get(plain(word).lower())
