"""What is kept out of records, logs and trackers: folders of this machine, and secrets.

A run's ``config.yaml`` is shared and published, so it says ``place:NAME-1a2b3c4d`` for an absolute folder. Which one
that is stands in ``$XDG_STATE_HOME/ser_fl/places/NAME-1a2b3c4d`` (``~/.local/state``): here the run can be repeated and
attacked as it is, elsewhere by naming the folder again. The digits are drawn: they tell nothing of the folder.
"""

import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from ser_fl.files import user_folder, write_bytes

_LOG = logging.getLogger(__name__)
_PLACE = "place:"
_SECRET_WORDS = ("key", "token", "password", "secret")
_SHORTEST_SECRET = 8
"""Characters: shorter values of such variables are words like "none"."""
_QUOTED = re.compile(r"""(["'])(~?/[^"'\n/]+/[^"'\n]*)\1""")
_BARE = re.compile(r"""(?<![\w./~-])~?(?:/[^\s/:;,'"()\[\]{}<>|=]+){2,}/?""")
_WINDOWS = re.compile(r"""(?<!\w)[A-Za-z]:\\[^\s:;,'"()\[\]{}<>|]+""")


def is_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret.

    >>> is_secret("WANDB_API_KEY"), is_secret("monkey")
    (True, False)
    """
    return any(name.lower() == word or name.lower().endswith(f"_{word}") for word in _SECRET_WORDS)


def is_private(folder: str | Path) -> bool:
    """Whether a path tells about this machine: absolute ones do, and those that begin with ``~``."""
    return os.path.isabs(os.path.expanduser(folder)) or PureWindowsPath(folder).is_absolute()  # noqa: PTH111, PTH117


def last_name(folder: str | Path) -> str:
    """The last name of a path, of either kind of system."""
    return PureWindowsPath(folder).name


def public_path(folder: str | Path) -> str:
    """A relative path as it is; only the last name of a private one."""
    return last_name(folder) if is_private(folder) else str(folder)


def public_text(text: str, folders: Iterable[str | Path] = ()) -> str:
    """A text such as a traceback, with absolute paths cut to their last names, and without the environment's secrets. A
    path with blanks is known as one where it is quoted, as system errors and tracebacks do, or below one of
    ``folders``, of which the path from their last name on stays.

    >>> public_text('File "/home/ann b/ser_fl/client.py", line 7: no /data/nemo/a.wav')
    'File "client.py", line 7: no a.wav'
    """
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    known = {os.path.abspath(os.path.expanduser(folder)) for folder in folders}  # noqa: PTH100, PTH111
    for path in sorted(known, key=len, reverse=True):
        if len(Path(path).parts) > 1:
            text = re.sub(rf"(?<![\w./~-]){re.escape(path)}(?=$|[^\w.-])", last_name(path).replace("\\", r"\\"), text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{last_name(found[2])}{found[1]}", text)
    return _WINDOWS.sub(lambda found: last_name(found[0]), _BARE.sub(lambda found: last_name(found[0]), text))


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without secrets, its folders of this machine cut to their last names."""

    def public(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return public_config(value)
        if isinstance(value, (list, tuple)):
            return [public(item) for item in value]
        is_folder = isinstance(value, (str, Path)) and (key == "root" or is_private(value))
        return last_name(value) if is_folder else value

    return {key: public(value, key) for key, value in config.items() if not is_secret(key)}


def is_place(written: object) -> TypeGuard[str]:
    """Whether a setting names a remembered folder."""
    return isinstance(written, str) and written.startswith(_PLACE)


def remember(folder: str) -> str:
    """What to write in place of a folder: a relative one itself, for an absolute one a name that this machine knows."""
    if not is_private(folder) or is_place(folder):
        return folder
    whole = os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
    places = user_folder("XDG_STATE_HOME", ".local/state") / "places"
    for known in sorted(places.glob("*")):
        if recall(known.name) == whole:
            return _PLACE + known.name
    readable = re.sub(r"[^\w.-]+", "_", last_name(whole)).lstrip(".") or "folder"
    name = f"{readable}-{secrets.token_hex(4)}"
    try:
        write_bytes(places / name, whole.encode(errors="surrogateescape"))
    except OSError as error:
        _LOG.warning("the run's folders cannot be remembered (%s): name them again to repeat it", error.strerror)
    return _PLACE + name


def recall(written: str) -> str | None:
    """The folder of such a name; None where this machine does not know it."""
    name = written.removeprefix(_PLACE)
    if name != Path(name).name or name.startswith("."):
        return None
    try:
        file = user_folder("XDG_STATE_HOME", ".local/state") / "places" / name
        folder = file.read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    return folder if os.path.isabs(folder) else None  # noqa: PTH117
