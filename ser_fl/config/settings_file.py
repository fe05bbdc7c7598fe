"""A file of settings of anybody's making, such as a run's ``config.yaml``: plain values, or what is wrong in a line."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

from ser_fl.config.schema import CONFIG_SCHEMA
from ser_fl.config.text import literal_yaml
from ser_fl.config.yaml_limits import refuse_bombs
from ser_fl.errors import UserError, one_line, shown
from ser_fl.runs.path_aliases import is_place, recall


def read_settings(file: Path, schema: object) -> dict[str, Any]:
    """Settings of a YAML file of anybody's making, with text as it stands there.

    Raises:
        UserError: there is no such file, it is no configuration, or one of another version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not file.is_file():
        raise UserError(f"no such configuration: {file}")
    try:
        refuse_bombs(file)
        text = literal_yaml(file.read_text(encoding="utf-8"), schema, escape=True)
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
    return _recalled({str(key): value for key, value in settings.items()})


def _refuse_interpolation(file: Path, value: Any) -> None:
    """A file holds values alone: ``${oc.env:...}`` would take a secret of this machine into the records."""
    if isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{", value):
        raise UserError(f"{file} has {shown(value)}: write the value itself")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _refuse_interpolation(file, item)


def _recalled(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the folders that this machine remembers; of a cache that it does not know, the default one.

    A corpus that it does not know stays as it is written: only who opens it needs it.
    """
    data = settings.get("data")
    if not isinstance(data, dict):
        return settings
    root, cache_dir = data.get("root"), data.get("cache_dir")
    recalled = dict(data)
    if isinstance(root, str) and is_place(root):
        recalled["root"] = recall(root) or root
    if isinstance(cache_dir, str) and is_place(cache_dir):
        recalled["cache_dir"] = recall(cache_dir)
    return {**settings, "data": recalled}


def first_line(error: BaseException) -> str:
    """The first line of what a library says."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return one_line(str(error.__cause__ or error).strip().split("\n")[0], 300)
