"""Where the YAML groups of settings lie, and which there are."""

from collections import defaultdict
from pathlib import Path

from ser_fl.errors import UserError


def configs_dir() -> Path:
    """The folder of YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Names that each group offers, with those of a folder of the user's own: ``{"model": ["crnn", ...], ...}``."""
    found = defaultdict[str, set[str]](set)
    for file in (file for root in folders_of_groups(config_dir) for file in root.glob("*/*.yaml")):
        found[file.parent.name].add(file.stem)
    found.pop("sweep", None)  # files of W&B's
    return {name: sorted(found[name]) for name in sorted(found)}


def folders_of_groups(config_dir: Path | None = None) -> list[Path]:
    """Where they lie, the user's own before ours; a `UserError` where theirs is not there."""
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"no such folder of settings: {config_dir}")
    return [configs_dir()] if config_dir is None else [config_dir, configs_dir()]
