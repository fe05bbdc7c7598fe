"""Standard output and error that no terminal, pipe or disk can turn into a lost training."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EBADF)
"""The reader went away, the disk is full, the terminal hung up, the quota is used up, the stream is closed."""


class Unbreakable(io.FileIO):
    """A stream's bytes; where they cannot be written any more they are dropped, and the reason is kept."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self.lost = self.lost or error
            return memoryview(data).nbytes


@contextmanager
def unbreakable_streams() -> Iterator[Unbreakable]:
    """While the block runs, writing to standard output and error never fails. A character that the encoding lacks
    becomes `?` on output, an escape on error; a closed stream takes everything and keeps nothing. Yields standard
    output, which says at the end whether all of it arrived.
    """
    before = sys.stdout, sys.stderr
    output, sys.stdout = _replaced(sys.stdout, 1, "replace")
    _, sys.stderr = _replaced(sys.stderr, 2, "backslashreplace")
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _replaced(stream: TextIO | None, number: int, errors: str) -> tuple[Unbreakable, TextIO]:
    """A stream of the same descriptor and encoding; of none where the program was started without."""
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    try:
        raw = Unbreakable(number, "w", closefd=False)
    except OSError:
        raw = Unbreakable(os.devnull, "w")
    encoding = "utf-8" if stream is None else stream.encoding
    return raw, io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True)
