"""What of a configuration may leave this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ser_fl.runs.redaction import is_private, is_secret, last_name


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without secrets, and with folders of this machine cut to their last name."""
    public: dict[str, Any] = {}
    for key, value in config.items():
        if is_secret(key):
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
    return _last_name(value) if isinstance(value, (str, Path)) and is_private(value) else value


def _last_name(value: Any) -> Any:
    return last_name(value) if isinstance(value, (str, Path)) else value
