"""Settings that are text are taken as they are typed: no value of theirs is read as a number, a list or a date.

Which ones are text is told by the schema's types. On a command line their values are quoted for Hydra's grammar; in
YAML files plain scalars become strings: ``010``, ``12:30``, ``1e3``, ``no`` and ``exp #2`` are what they look like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from ser_fl.config.values import PATH

Path = tuple[str, ...]
"""Names from the top down: ``("data", "labels", "02")``."""
_CLOSING = {"'": "'", '"': '"', "[": "]", "{": "}", "(": ")"}
_IMPLICIT = ("str", "int", "float", "bool", "null", "timestamp")


_type_hints = cache(get_type_hints)


class Kind(NamedTuple):
    """What a setting's annotated type says of it."""

    is_text: bool
    """Whether a scalar is text, and nothing else: also a name that stands for a mapping with a ``name``."""
    is_nullable: bool
    """Whether ``null`` is no text."""
    is_path: bool
    is_mapping: bool
    """Whether keys are the user's own, which are text."""
    below: Mapping[str, object]
    """Types of the settings below; of those with keys of the user's own, under the empty name."""
    item: object
    """Type of a list's items; None of no list."""


def kind_of(hint: object) -> Kind:
    """What an annotated type, or a union of them, says of a setting."""
    types = [hint]
    for part in types:  # which grows, by the types that each is made of
        if get_origin(part) is Annotated:
            types.append(get_args(part)[0])
        elif get_origin(part) in (Union, UnionType):
            types.extend(get_args(part))
    plain = [part for part in types if get_origin(part) not in (Annotated, Union, UnionType)]
    below: dict[str, object] = {}
    for part in reversed(plain):  # of two settings of one name the first one's counts
        if is_dataclass(part):
            below |= _type_hints(cast(Hashable, part), include_extras=True)
        elif get_origin(part) is dict:
            below[""] = get_args(part)[1]
    is_named = "name" in below and kind_of(below["name"]).is_text
    return Kind(
        is_text=is_named or (str in plain and {int, float, bool}.isdisjoint(plain)),
        is_nullable=NoneType in plain,
        is_path=any(PATH in get_args(part) for part in types),
        is_mapping="" in below,
        below=below,
        item=next((get_args(part)[0] for part in plain if get_origin(part) is tuple), None),
    )


def type_at(schema: object, path: Path) -> object:
    """The annotated type of a setting; None where the schema knows of none."""
    for name in path:
        below = kind_of(schema).below
        schema = below.get(name, below.get(""))
    return schema


def assignments(schema: object, key: str, value: str, quote: Callable[[str], str]) -> list[tuple[Path, str]]:
    """What ``key=value`` sets, with text quoted: one setting, or each entry of a mapping whose keys are the user's.

    Returns:
        Settings and their values, in Hydra's syntax.
    """
    path = tuple(key.split("."))
    for length in range(1, len(path)):
        if kind_of(type_at(schema, path[:length])).is_mapping:
            path = (*path[:length], ".".join(path[length:]))  # a key of the user's own may have a dot
            break
    hint, inside = type_at(schema, path), value.strip()
    if not (kind_of(hint).is_mapping and inside.startswith("{") and inside.endswith("}") and inside != "{}"):
        return [(path, _typed(hint, value, quote))]
    hint = type_at(schema, (*path, ""))
    return [((*path, _unquoted(name)), _typed(hint, _unquoted(text), quote)) for name, text in _entries(inside)]


def sweep_values(schema: object, key: str, value: str) -> list[str]:
    r"""The values that commas separate in a sweep, for settings that hold text; the value itself for all others.

    A comma belongs to a text where ``\,`` is written, and to a path always.
    """
    path = tuple(key.split("."))
    kind = kind_of(type_at(schema, path))
    is_entry = kind_of(type_at(schema, path[:-1])).is_mapping
    if is_entry or kind.is_path or not (kind.is_text or kind_of(kind.item).is_text):
        return [value]
    if value.startswith("choice(") and value.endswith(")"):
        value = value[len("choice(") : -1]
    if kind.item is not None:
        return split(value)
    return [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", value)]


def _typed(hint: object, value: str, quote: Callable[[str], str]) -> str:
    """A value in Hydra's syntax: a text, or a list of texts, or of mappings with a name."""
    kind, inside = kind_of(hint), value.strip()
    if kind.is_text:
        return "null" if value == "null" and kind.is_nullable else quote(value)
    item = kind_of(kind.item)
    if not item.is_text or inside.startswith("{"):
        return value
    if not (inside.startswith("[") and inside.endswith("]")):
        return quote(value)
    parts = split(inside[1:-1])
    for place, part in enumerate(parts):
        if item.below and part.startswith("{") and part.endswith("}"):
            typed = (f"{name}:{_typed(item.below.get(name), text, quote)}" for name, text in _entries(part))
            parts[place] = f"{{{','.join(typed)}}}"
        else:
            parts[place] = quote(_unquoted(part))
    return f"[{','.join(parts)}]"


def _entries(mapping: str) -> Iterator[tuple[str, str]]:
    """Names and values of ``{name: value, ...}``."""
    for name, _, text in (entry.partition(":") for entry in split(mapping[1:-1])):
        yield name.strip(), text.strip()


def _unquoted(text: str) -> str:
    """The inside of a text in quotes, which it needs for commas and for blanks at its ends."""
    return text[1:-1] if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] else text


def split(text: str) -> list[str]:
    """Parts between commas, but not those inside parts that begin with a quote or a bracket.

    >>> split("a, 'b, c', {d: 1, e: [2]}, it's")
    ['a', "'b, c'", '{d: 1, e: [2]}', "it's"]
    """
    parts, closing = [""], ""
    for char in text:
        begins = not parts[-1].strip()
        if char == "," and not closing:
            parts.append("")
            continue
        if closing and char == closing[-1]:
            closing = closing[:-1]
        elif closing[-1:] not in ("'", '"') and char in _CLOSING and (begins or closing):
            closing += _CLOSING[char]
        parts[-1] += char
    return [part.strip() for part in parts] if text.strip() else []


def escaped(text: str) -> str:
    """A text that OmegaConf takes literally where it holds ``${``."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def literal_yaml(text: str, schema: object, path: Path = (), *, escape: bool = False) -> str:
    """A YAML document in which whatever the schema takes for text is a string.

    Args:
        text: of the file, which `bounded_yaml` has let pass.
        schema: the settings' dataclass.
        path: where in the settings the document stands.
        escape: whether ``${`` in a text is no interpolation either.

    Raises:
        yaml.YAMLError: it is none.
    """
    import yaml

    document = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if document is None or not _mark(document, type_at(schema, path), escape):
        return text
    return yaml.serialize(document, allow_unicode=True)


def _mark(node: Any, hint: object, escape: bool) -> bool:
    """Make strings of scalars that are text; whether there were any."""
    import yaml

    kind = kind_of(hint)
    if isinstance(node, yaml.MappingNode):
        keys = [_mark(name, str, False) for name, _ in node.value] if kind.is_mapping else []
        values = [_mark(value, type_at(hint, (str(name.value),)), escape) for name, value in node.value]
        return any([*keys, *values])
    if isinstance(node, yaml.SequenceNode):
        items = [_mark(item, kind.item, escape) for item in node.value]
        return any(items)
    if not (kind.is_text or kind_of(kind.item).is_text):
        return False
    if escape and "${" in node.value:
        node.value, node.style = escaped(node.value), '"'
        return True
    is_null = node.tag.endswith(":null") and (kind.is_nullable or not node.value)
    if node.style or is_null or node.tag.rpartition(":")[2] not in _IMPLICIT:
        return False
    node.tag, node.style = "tag:yaml.org,2002:str", '"'
    return True
