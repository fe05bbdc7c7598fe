"""Where corpora and caches lie on this machine: remembered beside the run folders, never in them.

A run's ``config.yaml`` is shared and published, so it says ``place:NAME-1a2b3c4d`` for an absolute folder. Which folder
that is stands in a file of the user's own, ``$XDG_STATE_HOME/ser_fl/places/NAME-1a2b3c4d`` (``~/.local/state``): here
the run can be repeated and attacked as it is, elsewhere by naming the folder again. The digits are drawn: nothing about
a folder but its last name can be told from them.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path

from ser_fl.files import user_folder, write_bytes
from ser_fl.runs.redaction import is_private, last_name

_LOG = logging.getLogger(__name__)
_MARK = "place:"


def is_place(written: str | None) -> bool:
    """Whether a setting names a remembered folder."""
    return written is not None and written.startswith(_MARK)


def remember(folder: str) -> str:
    """What to write in place of a folder: a relative one itself, for an absolute one a name that this machine knows."""
    if not is_private(folder) or is_place(folder):
        return folder
    whole = os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
    kept = _folder()
    for file in sorted(kept.glob("*")) if kept.is_dir() else ():
        if _read(file) == whole:
            return _MARK + file.name
    readable = re.sub(r"[^\w.-]+", "_", last_name(whole)).lstrip(".") or "folder"
    name = f"{readable}-{secrets.token_hex(4)}"
    try:
        write_bytes(kept / name, whole.encode(errors="surrogateescape"))
    except OSError as error:
        _LOG.warning("the run's folders cannot be remembered (%s): name them again to repeat it", error.strerror)
    return _MARK + name


def recall(written: str) -> str | None:
    """The folder of such a name; None where this machine does not know it."""
    name = written.removeprefix(_MARK)
    return None if name != Path(name).name or name.startswith(".") else _read(_folder() / name)


def _folder() -> Path:
    return user_folder("XDG_STATE_HOME", ".local/state") / "places"


def _read(file: Path) -> str | None:
    try:
        folder = file.read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    return folder if os.path.isabs(folder) else None  # noqa: PTH117
