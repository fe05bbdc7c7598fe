"""What the first bytes of a file say it is, and whether the length that its header tells is that of the file."""

import codecs
import contextlib
import io
from pathlib import Path
from typing import BinaryIO

_DOWNLOAD = "download the file again"
_CONVERT = "convert it to WAV (ffmpeg -i IN OUT.wav)"
_TAGS = 4096
_NO_AUDIO: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself; fetch it with `git annex get`"),
    (0, b"<", f"a web page or XML; {_DOWNLOAD}"),
    (0, b"{\\rtf", f"a document; {_DOWNLOAD}"),
    (0, b"{", f"JSON; {_DOWNLOAD}"),
    (0, b"PK\3\4", "a ZIP archive; unpack it"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it"),
    (0, b"BZh", "a bzip2 archive; unpack it"),
    (0, b"\xfd7zXZ", "an xz archive; unpack it"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive; unpack it"),
    (0, b"Rar!", "a RAR archive; unpack it"),
    (257, b"ustar", "a tar archive; unpack it"),
    (0, b"\0\5\x16\7", "the macOS twin of a file (._NAME), not the file itself; name the file without ._"),
    (0, b"\0\5\x16\0", "a macOS AppleSingle file; copy the audio out of it again"),
    (0, b"\0\0\0\1Bud1", "a folder's settings of macOS (.DS_Store); remove it"),
    (0, b"book\0\0\0\0mark", "an alias of macOS, not the file itself; copy the file"),
    (0, b"L\0\0\0\1\x14\2\0", "a Windows shortcut, not the file itself; copy the file"),
    (0, b"%PDF", f"a PDF document; {_DOWNLOAD}"),
    (0, b"\x89PNG", f"a picture; {_DOWNLOAD}"),
    (0, b"\xff\xd8\xff", f"a picture; {_DOWNLOAD}"),
    (0, b"\x93NUMPY", "a NumPy array; write it as a WAV file"),
    (4, b"ftyp", f"MP4 (M4A), which libsndfile does not read; {_CONVERT}"),
    (8, b"AVI ", f"AVI, which libsndfile does not read; {_CONVERT}"),
    (0, b"wvpk", f"WavPack, which libsndfile does not read; {_CONVERT}"),
    (0, b"MThd", "MIDI, which is notes and no sound; take a recording"),
    (0, b"#!AMR", f"AMR, which libsndfile does not read; {_CONVERT}"),
    (0, b"0&\xb2u", f"Windows Media (WMA), which libsndfile does not read; {_CONVERT}"),
    (0, b"\x1aE\xdf\xa3", f"WebM or Matroska, which libsndfile does not read; {_CONVERT}"),
    (0, b"\xff\xf1", f"AAC, which libsndfile does not read; {_CONVERT}"),
    (0, b"\xff\xf9", f"AAC, which libsndfile does not read; {_CONVERT}"),
)
"""What often lies in the place of audio: where in the file it is known by which bytes, and what it is."""


def kind_of(head: bytes) -> str | None:
    """What a file is that is neither audio nor a table, by its first 512 bytes; None where they do not tell.

    >>> kind_of(b"<!DOCTYPE html>")
    'a web page or XML; download the file again'
    """
    begins = head.lstrip(b"\xef\xbb\xbf\t\n\r ")
    for place, magic, kind in _NO_AUDIO:
        if head.startswith(magic, place) or (not place and begins.startswith(magic)):
            return kind
    if not head:
        return f"empty; {_DOWNLOAD}"
    if not any(head):
        return f"a file of zeros; {_DOWNLOAD}"
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if is_wide or all(byte > 31 or byte in b"\t\n\r\f" for byte in head):
        with contextlib.suppress(UnicodeError):
            codecs.getincrementaldecoder("utf-16" if is_wide else "utf-8")().decode(head)
            return f"text; {_DOWNLOAD}"
    return None


def missing_bytes(path: Path) -> int:
    """How many bytes more a header announces than the file holds: it was cut off; 0 for FLAC and MP3, which tell when
    they are decoded. Headers of streams, of unknown length, announce 2 GB or more and do not count, nor do a few bytes,
    by which some programs err. An Ogg file without its last page lacks a byte at least.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        size = file.seek(0, io.SEEK_END)
        if head.startswith(b"OggS"):
            file.seek(max(0, size - (1 << 17)))  # pages are of 64 KB at most
            # Of a page: version, flags, 20 bytes, how many lengths, these, and what they are of.
            page = file.read().rpartition(b"OggS")[2]
            is_whole = len(page) > 22 and len(page) >= 23 + page[22] + sum(page[23 : 23 + page[22]])
            return 0 if is_whole and page[1] & 4 else 1
    announced = {
        b"RIFF": int.from_bytes(head[4:8], "little") + 8,
        b"FORM": int.from_bytes(head[4:8], "big") + 8,
        b".snd": int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big"),
        b"RF64": int.from_bytes(head[20:28], "little") + 8,
        b"riff": int.from_bytes(head[16:24], "little"),
        b"caff": int.from_bytes(head[(data := head.find(b"data")) + 4 : data + 12], "big") + data + 12,
    }.get(head[:4], 0)
    return announced - size if announced - size > 8 and announced < 0x7FFFF000 else 0


def surplus_bytes(path: Path) -> int:
    """How many bytes of a WAV file are neither samples nor other chunks: its header tells too few samples, as that of a
    recorder that lost its power. 0 where it is so little that it may be tags.
    """
    with path.open("rb") as file:
        _, announced, left = _walk(file)
    return left if announced and left > _TAGS else 0


def with_length(path: Path) -> bytes | None:
    """A WAV or AU file whose header tells a length of 0, though sound follows, with the length that there is: programs
    that write to a pipe leave it as it was before the first sample. None where that is not so.
    """
    with path.open("rb") as file:
        begin, announced, left = _walk(file)
        file.seek(0)
        head = file.read(12)
        if begin and not announced and left:
            place, length = begin - 4, left.to_bytes(4, "little")
        elif head.startswith(b".snd") and not any(head[8:]):
            place, length = 8, b"\xff" * 4
        else:
            return None
        file.seek(0)
        content = bytearray(file.read())
    content[place : place + 4] = length
    return bytes(content)


def _walk(file: BinaryIO) -> tuple[int, int, int]:
    """Of a WAV file: where its samples begin, how many bytes the header says they have, and how many bytes at its end
    are no chunks. Zeros for other files.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    begin = announced = 0
    place = 12 if file.read(4) == b"RIFF" else size
    while place + 8 <= size:
        file.seek(place)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        if not all(32 <= byte < 127 for byte in name):
            break
        place += 8
        if name == b"data":
            begin, announced = place, length
        place += length + length % 2
    return begin, announced, max(0, size - place) if begin else 0
