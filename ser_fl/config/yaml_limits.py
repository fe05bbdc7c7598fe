"""YAML files of anybody's making: what would fill the memory is refused before it is loaded."""

from __future__ import annotations

from pathlib import Path

from ser_fl.errors import UserError

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 100_000
"""Of a file, aliases counted as often as they would be written out: a run's config.yaml has a hundred."""
_DEEPEST = 50


def refuse_bombs(file: Path) -> None:
    """Raise `UserError` for YAML that would fill the memory: large, deep, or small with aliases of aliases."""
    import yaml

    if (size := file.stat().st_size) > _LARGEST_FILE:
        raise UserError(f"{file} has {size} bytes: that is no configuration")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    num_values, of_anchors, opened = 0, dict[str, int](), list[tuple[str, int]]()
    for event in yaml.parse(file.read_text(encoding="utf-8"), Loader=loader):
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
