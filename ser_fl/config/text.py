"""Settings that are text are taken as they are typed: no value of theirs is read as a number, a list or a date.

Which ones are text is told by the schema's types. On a command line their values are quoted for Hydra's grammar; in
YAML files plain scalars become strings: ``010``, ``12:30``, ``1e3``, ``no`` and ``exp #2`` are what they look like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

from ser_fl.config.values import PATH

Path = tuple[str, ...]
"""Names from the top down: ``("data", "labels", "02")``."""
Assignment = tuple[Path, str]
"""A setting and its value, in Hydra's syntax."""


def type_at(schema: object, path: Path) -> object:
    """The annotated type of a setting; None where the schema knows of none."""
    for name in path:
        schema = next(iter(_below(schema, name)), None)
    return schema


def _below(hint: object, name: str) -> Iterator[object]:
    for part in _alternatives(hint):
        if is_dataclass(part):
            yield from filter(None, [_types(cast(Hashable, part)).get(name)])
        elif get_origin(part) is dict:
            yield get_args(part)[1]


@cache
def _types(stage: Hashable) -> dict[str, object]:
    return get_type_hints(stage, include_extras=True)


def _alternatives(hint: object) -> list[object]:
    """The types that a value may have, without annotations."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _alternatives(parts[0])
    if origin in (Union, UnionType):
        return [alternative for part in parts for alternative in _alternatives(part)]
    return [hint]


def is_text(hint: object) -> bool:
    """Whether a scalar is text here, and nothing else: also a name that stands for a mapping with a ``name``."""
    alternatives = _alternatives(hint)
    is_named = any(is_dataclass(part) and is_text(type_at(part, ("name",))) for part in alternatives)
    return is_named or (str in alternatives and {int, float, bool}.isdisjoint(alternatives))


def is_nullable(hint: object) -> bool:
    """Whether ``null`` is no text here."""
    return NoneType in _alternatives(hint)


def is_mapping(hint: object) -> bool:
    """Whether keys are the user's own, which are text."""
    return any(get_origin(part) is dict for part in _alternatives(hint))


def item_of(hint: object) -> object:
    """The type of a list's items; None of no list."""
    return next((get_args(part)[0] for part in _alternatives(hint) if get_origin(part) is tuple), None)


def _is_path(hint: object) -> bool:
    return PATH in get_args(hint) or any(_is_path(part) for part in get_args(hint))


def assignments(schema: object, key: str, value: str, quote: Callable[[str], str]) -> list[Assignment]:
    """What ``key=value`` sets, with text quoted: one setting, or each entry of a mapping whose keys are the user's."""
    path = tuple(key.split("."))
    for length in range(1, len(path)):
        if is_mapping(type_at(schema, path[:length])):
            path = (*path[:length], ".".join(path[length:]))  # a key of the user's own may have a dot
            break
    hint, inside = type_at(schema, path), value.strip()
    if is_mapping(hint) and inside.startswith("{") and inside.endswith("}") and inside != "{}":
        entries = [entry.partition(":") for entry in split(inside[1:-1])]
        value_hint = type_at(schema, (*path, ""))
        return [
            ((*path, _unquoted(name.strip())), _typed(value_hint, _unquoted(text.strip()), quote))
            for name, _, text in entries
        ]
    return [(path, _typed(hint, value, quote))]


def sweep_values(schema: object, key: str, value: str) -> list[str]:
    r"""The values that commas separate in a sweep, for settings that hold text; the value itself for all others.

    A comma belongs to a text where ``\,`` is written, and to a path always.
    """
    path = tuple(key.split("."))
    hint = type_at(schema, path)
    if is_mapping(type_at(schema, path[:-1])) or _is_path(hint) or not (is_text(hint) or is_text(item_of(hint))):
        return [value]
    if value.startswith("choice(") and value.endswith(")"):
        value = value[len("choice(") : -1]
    return split(value) if item_of(hint) is not None else _at_commas(value)


def _at_commas(text: str) -> list[str]:
    return [part.replace("\0", ",") for part in text.replace("\\,", "\0").split(",")]


def _typed(hint: object, value: str, quote: Callable[[str], str]) -> str:
    """A value in Hydra's syntax."""
    inside = value.strip()
    if is_text(hint):
        return "null" if value == "null" and is_nullable(hint) else quote(value)
    if not is_text(item_of(hint)):
        return value
    if inside.startswith("[") and inside.endswith("]"):
        return f"[{','.join(_item(item_of(hint), part, quote) for part in split(inside[1:-1]))}]"
    return value if inside.startswith("{") else quote(value)


def _item(hint: object, part: str, quote: Callable[[str], str]) -> str:
    """An item of a list of texts, or of mappings with a name."""
    if is_dataclass(next(iter(_alternatives(hint)))) and part.startswith("{") and part.endswith("}"):
        entries = [entry.partition(":") for entry in split(part[1:-1])]
        typed = [f"{name}:{_typed(type_at(hint, (name.strip(),)), text.strip(), quote)}" for name, _, text in entries]
        return f"{{{','.join(typed)}}}"
    return quote(_unquoted(part))


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


_CLOSING = {"'": "'", '"': '"', "[": "]", "{": "}", "(": ")"}
_IMPLICIT = ("str", "int", "float", "bool", "null", "timestamp")


def escaped(text: str) -> str:
    """A text that OmegaConf takes literally where it holds ``${``."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def literal_yaml(text: str, schema: object, path: Sequence[str] = (), *, escape: bool = False) -> str:
    """A YAML document in which whatever the schema takes for text is a string.

    Args:
        text: of the file, which `refuse_bombs` has let pass.
        schema: the settings' dataclass.
        path: where in the settings the document stands.
        escape: whether ``${`` in a text is no interpolation either.

    Raises:
        yaml.YAMLError: it is none.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.compose(text, Loader=loader)
    if document is None:
        return text
    has_text = _mark(document, type_at(schema, tuple(path)), escape)
    return yaml.serialize(document, allow_unicode=True) if has_text else text


def _mark(node: Any, hint: object, escape: bool) -> bool:
    """Make strings of scalars that are text; whether there were any."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [_mark(name, str, False) for name, _ in node.value] if is_mapping(hint) else []
        values = [_mark(value, type_at(hint, (str(name.value),)), escape) for name, value in node.value]
        return any([*keys, *values])
    if isinstance(node, yaml.SequenceNode):
        items = [_mark(item, item_of(hint), escape) for item in node.value]
        return any(items)
    if not (is_text(hint) or is_text(item_of(hint))):
        return False
    if escape and "${" in node.value:
        node.value, node.style = escaped(node.value), '"'
        return True
    is_null = node.tag.endswith(":null") and (is_nullable(hint) or not node.value)
    if node.style or is_null or node.tag.rpartition(":")[2] not in _IMPLICIT:
        return False
    node.tag, node.style = "tag:yaml.org,2002:str", '"'
    return True
