"""Settings as they are written, on a command line and in YAML files of anybody's making.

Those that are text, by the schema's types, are taken as typed: none is read as a number, a list or a date. On a command
line they are quoted for Hydra's grammar; in YAML files plain scalars become strings: ``010``, ``12:30``, ``1e3``,
``no`` and ``exp #2`` are what they look like.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from ser_fl.config.schema import CONFIG_SCHEMA
from ser_fl.config.values import PATH
from ser_fl.errors import UserError, one_line, shown
from ser_fl.runs.redaction import is_place, recall

Names = tuple[str, ...]
"""From the top down: ``("data", "labels", "02")``."""
_CLOSING = {"'": "'", '"': '"', "[": "]", "{": "}", "(": ")"}
UNFIT = (ValueError, RecursionError, AttributeError, KeyError)
"""What PyYAML raises, beside its own errors, for values that are not what their tag says."""
_IMPLICIT = ("str", "int", "float", "bool", "null", "timestamp")
_LARGEST_FILE = 1 << 20
_MOST_VALUES = 100_000
"""Of a file, aliases counted as often as they would be written out: a run's config.yaml has a hundred."""
_DEEPEST = 50
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


def type_at(schema: object, path: Names) -> object:
    """The annotated type of a setting; None where the schema knows of none."""
    for name in path:
        below = kind_of(schema).below
        schema = below.get(name, below.get(""))
    return schema


def assignments(schema: object, key: str, value: str, quote: Callable[[str], str]) -> list[tuple[Names, str]]:
    """What ``key=value`` sets, in Hydra's syntax: one setting, or each entry of a mapping whose keys are the user's."""
    path = tuple(key.split("."))
    for length in range(1, len(path)):
        if kind_of(type_at(schema, path[:length])).is_mapping:
            path = (*path[:length], ".".join(path[length:]))  # a key of the user's own may have a dot
            break
    hint, inside = type_at(schema, path), value.strip()
    if len(path) > 1 and "name" in kind_of(hint).below and re.fullmatch(r"\w+(,\w+)*", inside) and inside != "null":
        value = inside = ",".join(f"{{name: {name}}}" for name in inside.split(","))  # other settings may follow
    if len(path) == 1 and kind_of(hint).below and not kind_of(hint).is_mapping and not inside.startswith("{"):
        raise UserError(f"{key} holds several settings, got {shown(value)}: set them one by one, {key}.SETTING=VALUE")
    if not (kind_of(hint).is_mapping and inside.startswith("{") and inside.endswith("}") and inside != "{}"):
        return [(path, _typed(hint, value, quote))]
    hint = type_at(schema, (*path, ""))
    return [((*path, _unquoted(name)), _typed(hint, _unquoted(text), quote)) for name, text in _entries(inside)]


def sweep_values(schema: object, key: str, value: str) -> list[str]:
    r"""The values that commas separate in a sweep, for settings that hold text; the value itself for all others. In a
    text a comma is written ``\,``; in a path none separates.
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


def literal_yaml(text: str, hint: object, *, escape: bool = False) -> str:
    """A YAML document, from `bounded_yaml`, in which whatever its annotated type, such as the settings' dataclass,
    takes for text is a string; a `yaml.YAMLError` where it is none. With ``escape``, ``${`` in a text is no
    interpolation either.
    """
    import yaml

    document = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if document is None or not _mark(document, hint, escape):
        return text
    return yaml.serialize(document, allow_unicode=True)


def _mark(node: Any, hint: object, escape: bool) -> bool:
    """Make strings of scalars that are text; whether there were any."""
    import yaml

    kind = kind_of(hint)
    if isinstance(node, yaml.MappingNode):
        keys = [_mark(name, str, False) for name, _ in node.value] if kind.is_mapping else []
        others = kind.below.get("")
        values = [_mark(value, kind.below.get(str(name.value), others), escape) for name, value in node.value]
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


def read_settings(file: Path, schema: object) -> dict[str, Any]:
    """Settings of a YAML file of anybody's making, with text as it stands there.

    Folders are those that this machine remembers. A corpus that it does not know stays as written, since only who opens
    it needs it; an unknown cache becomes the default one. A `UserError` tells of a missing file, or one that is no
    configuration or of another version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not file.is_file():
        raise UserError(f"no such configuration: {file}")
    try:
        text = literal_yaml(bounded_yaml(file), schema, escape=True)
        content = OmegaConf.load(StringIO(text))  # by a safe loader: it makes no objects
        plain = [OmegaConf.to_container(content)]
        for value in plain:  # which grows, by what each holds
            # ${oc.env:...} would take a secret of this machine into the records.
            if isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{", value):
                raise UserError(f"{file} has {shown(value)}: write the value itself")
            plain.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        settings = OmegaConf.to_container(content, resolve=True)
    except UserError:
        raise
    except (YAMLError, OmegaConfBaseException, OSError, *UNFIT) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file} is not a configuration: it holds a {type(settings).__name__}")
    if (version := settings.pop("schema", CONFIG_SCHEMA)) != CONFIG_SCHEMA:
        raise UserError(f"{file} has schema {shown(version)}, this version reads {CONFIG_SCHEMA}: train again")
    for name in {"hydra", "defaults"} & settings.keys():
        raise UserError(f"{file} has {name}, which a resolved configuration has not: use --config-dir")
    if isinstance(data := settings.get("data"), dict):
        for name in ("root", "cache_dir"):
            if (written := data.get(name)) and is_place(written):
                data[name] = recall(written) or (written if name == "root" else None)
        if isinstance(roots := data.get("roots"), dict):
            data["roots"] = {name: (is_place(folder) and recall(folder)) or folder for name, folder in roots.items()}
    for stage, name in ((settings, "init_from"), (settings.get("frontend"), "path")):
        if isinstance(stage, dict) and is_place(written := stage.get(name)):
            stage[name] = recall(written) or written
    return {str(key): value for key, value in settings.items()}


def bounded_yaml(file: Path) -> str:
    """The text of a YAML file; a `UserError` where it would fill the memory: large, deep, or aliases of aliases."""
    import yaml

    if (size := file.stat().st_size) > _LARGEST_FILE:
        raise UserError(f"{file} has {size} bytes: that is no configuration")
    text, loader = file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    num_values, of_anchors, opened = 0, dict[str, int](), list[tuple[str, int]]()
    for event in yaml.parse(text, Loader=loader):
        anchor = str(getattr(event, "anchor", None))
        if isinstance(event, yaml.AliasEvent):
            num_values += of_anchors.get(anchor, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, num_values))
            of_anchors[anchor] = _MOST_VALUES + 1  # of a value that holds itself
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            of_anchors[anchor] = num_values - before
        elif isinstance(event, yaml.ScalarEvent):
            num_values += 1
            of_anchors[anchor] = 1
        if num_values > _MOST_VALUES or len(opened) > _DEEPEST:
            raise UserError(
                f"{file} holds more than {_MOST_VALUES} values, one that holds itself, or lists more than {_DEEPEST} "
                "deep: that is no configuration"
            )
    return text


def first_line(error: BaseException) -> str:
    """The first line of what a library says."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return one_line(str(error.__cause__ or error).strip().split("\n")[0], 300)
