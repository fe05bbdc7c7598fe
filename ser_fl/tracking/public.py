"""What of a configuration may leave this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET_WORDS = ("key", "token", "password", "secret")


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without secrets, and with folders of this machine cut to their last name."""
    public: dict[str, Any] = {}
    for key, value in config.items():
        if any(key.lower() == word or key.lower().endswith(f"_{word}") for word in _SECRET_WORDS):
            continue
        if isinstance(value, Mapping):
            public[key] = public_config(value)
        elif isinstance(value, (list, tuple)):
            public[key] = [_public_value(item) for item in value]
        else:
            public[key] = _last_name(value) if key == "root" else _public_value(value)
    return public


def _public_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public_config(value)
    is_folder = isinstance(value, Path) or (isinstance(value, str) and Path(value).expanduser().is_absolute())
    return _last_name(value) if is_folder else value


def _last_name(value: Any) -> Any:
    return Path(value).name if isinstance(value, (str, Path)) else value
