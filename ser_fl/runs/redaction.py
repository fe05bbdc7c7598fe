"""What is kept out of records, logs and trackers: folders of this machine, and secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

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
    """A text such as a traceback, with absolute paths cut to their last names, and without the environment's secrets.

    Args:
        text: of any length. A path with blanks is known as one where it is quoted, as system errors and tracebacks do.
        folders: whose names may hold blanks without quotes; of what lies below, the path from their last name on stays.

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
    return {key: _public_value(value, key) for key, value in config.items() if not is_secret(key)}


def _public_value(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return public_config(value)
    if isinstance(value, (list, tuple)):
        return [_public_value(item) for item in value]
    is_folder = isinstance(value, (str, Path)) and (key == "root" or is_private(value))
    return last_name(value) if is_folder else value
