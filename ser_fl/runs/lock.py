"""One writer at a time for each run folder: a lock that the kernel frees when its process ends, however it ends.

The lock is `flock` on ``.lock`` in the folder; a file that a killed process left behind is held by nobody. On NFS it is
a lock of the server, which holds between hosts, unless the share is mounted with ``nolock`` or ``local_lock``: then it
holds between the processes of each host only. Where a file system has no locks (Lustre without ``-o flock``), a warning
says so, and nothing is locked.

The package filelock 4.2.11 would save 15 lines, but where `flock` is missing it falls back to a file that marks the
lock, which a process killed on another host leaves for ever, or raises for two of the three error codes; it knows a
removed file by its count of links, which NFS keeps at one; and it has nothing for `hold`, which locks an open file.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ser_fl.errors import UserError

LOCK = ".lock"
_LOG = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def claimed(folder: Path, *, new: bool = False) -> Iterator[None]:
    """Hold the folder's lock inside; a `UserError` where another process writes to it. A missing folder is made, and
    removed again if it stays empty; one that is there and should be ``new`` is a FileExistsError.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=not new)
    lock, is_ours = folder / LOCK, False
    while not is_ours:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # its last owner has just cleared the folder away, or the file
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                hold(handle)
                is_ours = os.path.samestat(lock.stat(), os.fstat(handle))
            except BlockingIOError:
                raise UserError(
                    f"{folder} is being written by another process: wait for its end, or take another folder"
                ) from None
            finally:
                if not is_ours:
                    os.close(handle)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # still held: whoever opened it meanwhile finds that it is no longer there
        os.close(handle)
        with suppress(OSError):  # something came of it
            for place in made:
                place.rmdir()


def hold(handle: int, *, wait: bool = False) -> None:
    """Lock an open file until it is closed, where the file system can; a BlockingIOError where others hold it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("this file system has no locks (%s): start no two runs in one folder", error.strerror)
