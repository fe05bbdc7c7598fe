"""What pydantic finds wrong, in one line of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ser_fl.errors import UserError, shown, unknown_name

_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def one_line(error: ValidationError, settings: Mapping[str, Any]) -> UserError:
    """The first problem in words; unknown settings before missing ones, since a misspelt setting is both."""
    problem: Any = min(error.errors(), key=lambda found: found["type"] not in _UNKNOWN)
    path = [str(part) for part in problem["loc"] if "[" not in str(part)]  # without the branch of a union of types
    if len(path) > 1 and path[0] == "model":
        path.pop(1)  # the tag of the model union
    key, given = ".".join(path), problem["input"]
    if problem["type"] in _UNKNOWN:
        return unknown_name("setting", key, _siblings(path[:-1], settings, path[-1]))
    if problem["type"] == "value_error":
        return UserError(str(problem["ctx"]["error"]))
    if problem["type"] in ("missing", "missing_argument"):
        return UserError(f"setting {key} is missing: start from a file of configs/ or from a run's config.yaml")
    if problem["type"] == "union_tag_not_found":
        return UserError(f"setting {key}.name is missing: start from a file of configs/ or from a run's config.yaml")
    if problem["type"] == "union_tag_invalid":
        tags = re.findall(r"'(\w+)'", str(problem["ctx"]["expected_tags"]))
        return unknown_name("model", str(problem["ctx"]["tag"]), tags)
    if problem["type"] == "too_short" and problem["ctx"]["min_length"] == 1:
        return UserError(f"{key} must name one at least, got {shown(given)}")
    if problem["type"] == "literal_error":
        return unknown_name(key, str(given), re.findall(r"'([^']+)'", problem["ctx"]["expected"]))
    wanted = problem["msg"].removeprefix("Input should be ")
    return UserError(f"{key} must be {wanted}, got {shown(given)}")


def _siblings(path: Sequence[str], settings: Mapping[str, Any], wrong: str) -> list[str]:
    """Settings beside a wrong one, as they were given; one of a list may stand there without its list."""
    node: Any = settings
    for part in path:
        if isinstance(node, Sequence) and part.isdigit():
            node = node[int(part)]
        elif isinstance(node, Mapping):
            node = node.get(part, node)
    prefix = "".join(f"{part}." for part in path)
    return [prefix + str(name) for name in node if name != wrong] if isinstance(node, Mapping) else []
