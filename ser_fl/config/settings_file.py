"""A file of settings of anybody's making, such as a run's ``config.yaml``: plain values, or what is wrong in a line."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

from ser_fl.config.schema import CONFIG_SCHEMA
from ser_fl.config.text import literal_yaml
from ser_fl.errors import UserError, one_line, shown
from ser_fl.runs.redaction import is_place, recall

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 100_000
"""Of a file, aliases counted as often as they would be written out: a run's config.yaml has a hundred."""
_DEEPEST = 50


def read_settings(file: Path, schema: object) -> dict[str, Any]:
    """Settings of a YAML file of anybody's making, with text as it stands there.

    Folders are those that this machine remembers. A corpus that it does not know stays as it is written, since only who
    opens it needs it; a cache that it does not know becomes the default one.

    Raises:
        UserError: there is no such file, it is no configuration, or one of another version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not file.is_file():
        raise UserError(f"no such configuration: {file}")
    try:
        text = literal_yaml(bounded_yaml(file), schema, escape=True)
        content = OmegaConf.load(StringIO(text))  # by a safe loader: it makes no objects
        _refuse_interpolation(file, OmegaConf.to_container(content))
        settings = OmegaConf.to_container(content, resolve=True)
    except UserError:
        raise
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file} is not a configuration: it holds a {type(settings).__name__}")
    version = settings.pop("schema", CONFIG_SCHEMA)
    if version != CONFIG_SCHEMA:
        raise UserError(f"{file} has schema {shown(version)}, this version reads {CONFIG_SCHEMA}: train again")
    for name in ("hydra", "defaults"):
        if name in settings:
            raise UserError(f"{file} has {name}, which a resolved configuration has not: use --config-dir")
    if isinstance(data := settings.get("data"), dict):
        if is_place(root := data.get("root")):
            data["root"] = recall(root) or root
        if is_place(cache_dir := data.get("cache_dir")):
            data["cache_dir"] = recall(cache_dir)
    return {str(key): value for key, value in settings.items()}


def _refuse_interpolation(file: Path, value: Any) -> None:
    """A file holds values alone: ``${oc.env:...}`` would take a secret of this machine into the records."""
    if isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{", value):
        raise UserError(f"{file} has {shown(value)}: write the value itself")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_interpolation(file, item)


def bounded_yaml(file: Path) -> str:
    """The text of a YAML file that may be of anybody's making.

    Raises:
        UserError: its values would fill the memory: it is large, deep, or small with aliases of aliases.
    """
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
