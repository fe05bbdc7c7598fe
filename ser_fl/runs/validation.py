"""What was read from JSON, held against the types it is annotated with: a file may be of anybody's making."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from ser_fl.errors import shown

_Form = TypeVar("_Form")
_WORDS: Mapping[type, str] = {str: "text", int: "a whole number", bool: "true or false"}


def parse_json(text: str) -> Any:
    """Content of a JSON document.

    Raises:
        ValueError: it is not JSON, nested too deeply, or holds a number or a text that could not be written again.
    """
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # half a character is no text
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


def record_of(kind: type[_Form], content: Any) -> _Form:
    """A dataclass from a mapping; what the class does not know is left aside.

    Raises:
        ValueError: no mapping, an entry is missing, or its value is of another type.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"must hold a mapping, got {shown(content)}")
    hints = _hints(cast(Hashable, kind))
    known = {name: conform(hint, content[name], name) for name, hint in hints.items() if name in content}
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(str(error).partition("() ")[2] or str(error)) from None


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def conform_known(content: Mapping[str, Any], forms: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping whose entries are as their annotations say, where they are there; others stay as they are.

    Raises:
        ValueError: an entry is of another type.
    """
    known = {key: conform(form, content[key], prefix + key) for key, form in forms.items() if key in content}
    return {**content, **known}


def conform(hint: Any, value: Any, name: str) -> Any:
    """A value of JSON as its annotation says: tuples for lists, NaN for a number that is null, as it is written.

    Args:
        hint: of JSON's own types, `Any`, tuples, mappings, dataclasses of them, literals, or any of these or None.
        value: what was read.
        name: for the error.

    Raises:
        ValueError: the value is of another type, or a number beyond 64 bits, which no figure of ours is.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is UnionType:
        if value is None and NoneType in parts:
            return None
        hint = next(part for part in parts if part is not NoneType)
        return conform(hint, value, name)
    if origin is Literal:
        if value in parts:
            return value
        raise ValueError(f"must hold one of {', '.join(parts)} as {name}, got {shown(value)}")
    if hint is float:
        return _number(value, name)
    if hint in _WORDS:
        if type(value) is hint and not (hint is int and abs(value) >= 1 << 63):
            return value
        raise ValueError(f"must hold {_WORDS[hint]} as {name}, got {shown(value)}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must hold a list as {name}, got {shown(value)}")
        items = enumerate(zip(_items(parts, value, name), value, strict=True))
        return tuple(conform(part, item, f"{name}.{place}") for place, (part, item) in items)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"must hold a mapping as {name}, got {shown(value)}")
        return {str(key): conform(parts[1], item, f"{name}.{key}") for key, item in value.items()}
    try:
        return record_of(hint, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _items(parts: tuple[Any, ...], value: Sequence[Any], name: str) -> Sequence[Any]:
    """The annotation of each item of a tuple."""
    if parts[-1] is Ellipsis:
        return parts[:1] * len(value)
    if len(parts) != len(value):
        raise ValueError(f"must hold {len(parts)} entries as {name}, got {len(value)}")
    return parts


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not abs(value) < 1 << 63:
        raise ValueError(f"must hold a number as {name}, got {shown(value)}")
    return value  # type: ignore[no-any-return]
