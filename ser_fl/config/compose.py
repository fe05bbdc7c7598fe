"""From command-line overrides to a checked `Config`, through Hydra's groups in ``configs/``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser_fl.config.robustness import BenchmarkConfig, TransferConfig, parse_benchmark, parse_transfer
from ser_fl.config.schema import CONFIG_SCHEMA, Config, parse
from ser_fl.config.yaml_limits import refuse_bombs
from ser_fl.errors import UserError, one_line, shown, unknown_name
from ser_fl.runs.path_aliases import is_place, recall

_LONGEST_OVERRIDE = 10_000


def configs_dir() -> Path:
    """The folder of YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


_NO_GROUPS = ("sweep",)
"""Folders of ``configs/`` that hold something else than settings to choose: sweeps of W&B."""


def groups() -> dict[str, list[str]]:
    """Names that each group offers: ``{"model": ["crnn", ...], ...}``."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(configs_dir().iterdir())
        if folder.is_dir() and folder.name not in _NO_GROUPS
    }


def compose(overrides: Sequence[str] = (), *, config_file: Path | None = None) -> Config:
    """The configuration that overrides such as ``data=nemo federation.num_rounds=5`` ask for.

    Args:
        overrides: Hydra overrides, ``group=name`` or ``group.setting=value``.
        config_file: a resolved ``config.yaml`` to start from in place of the defaults; then overrides set values only.

    Raises:
        UserError: an unknown group, name or setting (the known ones are listed), or a value out of range.
    """
    return parse(_from_file(config_file, overrides) if config_file else _from_groups(overrides))


def compose_benchmark(overrides: Sequence[str]) -> BenchmarkConfig:
    """The settings of `ser-fl benchmark`: ``configs/benchmark.yaml`` and overrides such as ``attacks=[fgsm,pgd]``.

    Raises:
        UserError: an unknown setting (the known ones are listed), or a value out of range.
    """
    settings = _from_defaults("benchmark", overrides, example="run=RUN")
    if not any(override.startswith("run=") for override in overrides):
        raise UserError("say which run: ser-fl benchmark run=RUN")
    return parse_benchmark(settings)


def compose_transfer(arguments: Sequence[str]) -> TransferConfig:
    """The settings of `ser-fl transfer`: runs, ``configs/transfer.yaml``, and overrides such as ``epsilon=0.1``.

    Args:
        arguments: what begins with a word and ``=`` is an override, everything else a run; a run's folder of such a
            name is written with a ``./`` before it.

    Raises:
        UserError: fewer than two runs, an unknown setting (the known ones are listed), or a value out of range.
    """
    overrides = [argument for argument in arguments if re.match(r"[\w.]+=", argument)]
    runs = [argument for argument in arguments if argument not in overrides]
    return parse_transfer({**_from_defaults("transfer", overrides, example="epsilon=0.1"), "runs": runs})


def _from_defaults(name: str, overrides: Sequence[str], *, example: str) -> dict[str, Any]:
    """Settings of ``configs/<name>.yaml`` and overrides, whose names are checked."""
    from omegaconf import OmegaConf

    file = configs_dir() / f"{name}.yaml"
    known = [str(setting) for setting in OmegaConf.load(file)]
    for override in overrides:
        key, _ = _key_and_value(override, example)
        if key.split(".")[0] not in known:
            raise unknown_name("setting", key, known)
    return _from_file(file, overrides)


def _key_and_value(override: str, example: str) -> tuple[str, str]:
    key, separator, value = override.partition("=")
    if not separator:
        raise UserError(f"{shown(override)} is not a setting: write key=value, such as {example}")
    if len(override) > _LONGEST_OVERRIDE:
        raise UserError(f"the value of {shown(key)} has {len(value)} characters, expected {_LONGEST_OVERRIDE} at most")
    return key, value


def _from_groups(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_names(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(configs_dir().resolve()), version_base="1.3"):
            composed = hydra_compose("train", overrides=[_for_hydra(override) for override in overrides])
        settings: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        if several := re.match(r"Ambiguous value for argument '(.+?)'", str(error)):
            raise UserError(f"{several[1]} has several values: write [...] around a list, or -m for a sweep") from None
        key = re.search(r"full_key: (\S+)", str(error.__cause__ or error))
        if key is None or not any(override.startswith(f"{key[1]}=") for override in overrides):
            raise UserError(_first_line(error)) from None
        raise _unknown_here(key[1], overrides) from None
    return settings


FREE_TEXT = ("data.root", "data.cache_dir", "run_dir", "root", "out")
"""Settings whose values are taken as they are, whatever Hydra's grammar makes of their characters."""


def _for_hydra(override: str) -> str:
    key, _, value = override.partition("=")
    if key in FREE_TEXT and value not in ("null", "") and value[0] not in "'\"":
        return f"{key}='{value}'" if "'" not in value else f'{key}="{value}"'
    if key.startswith("data.labels."):
        return f"++{override}"  # a mapping that takes any key
    return override


def _unknown_here(key: str, overrides: Sequence[str]) -> UserError:
    """Error for a setting that the chosen group entry lacks, such as ``model.hidden`` of a VGG."""
    node: Any = _from_groups([override for override in overrides if not override.startswith(f"{key}=")])
    *parents, _ = key.split(".")
    for place, parent in enumerate(parents):
        node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            return UserError(f"{'.'.join(parents[: place + 1])} holds one value and no settings, got {shown(key)}")
    return unknown_name("setting", key, [".".join([*parents, str(name)]) for name in node])


def _from_file(config_file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not config_file.is_file():
        raise UserError(f"no such configuration: {config_file}")
    for override in overrides:
        _key_and_value(override, "seed=2")
    free = dict(override.split("=", 1) for override in overrides if override.partition("=")[0] in FREE_TEXT)
    try:
        refuse_bombs(config_file)
        base = OmegaConf.load(config_file)  # by a safe loader: it makes no objects
        _refuse_interpolation(config_file, OmegaConf.to_container(base))
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist([o for o in overrides if o.split("=")[0] not in free]))
        for key, value in free.items():
            OmegaConf.update(merged, key, None if value == "null" else value)
        settings = OmegaConf.to_container(merged, resolve=True)
    except UserError:
        raise
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config_file} cannot be read: {_first_line(error)}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{config_file} is not a configuration: it holds a {type(settings).__name__}")
    schema = settings.pop("schema", CONFIG_SCHEMA)
    if schema != CONFIG_SCHEMA:
        raise UserError(f"{config_file} has schema {shown(schema)}, this version reads {CONFIG_SCHEMA}: train again")
    return _recalled({str(key): value for key, value in settings.items()})


def _refuse_interpolation(config_file: Path, value: Any) -> None:
    """A file holds values alone: ``${oc.env:...}`` would take a secret of this machine into the records."""
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{config_file} has {shown(value)}: write the value itself")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _refuse_interpolation(config_file, item)


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


def _check_names(overrides: Sequence[str]) -> None:
    """Find misspelt groups, names and settings before Hydra does, whose messages take many lines."""
    from omegaconf import OmegaConf

    known_groups = groups()
    for override in overrides:
        key, value = _key_and_value(override, "seed=2")
        if key in known_groups:
            if value.strip("'\"") not in known_groups[key]:
                raise unknown_name(key, value, known_groups[key])
        elif "." in key and (group := key.partition(".")[0].lstrip("+~")) in known_groups:
            settings = _settings_of(group)
            if key.removeprefix("+").split(".")[1] not in settings:
                raise unknown_name("setting", key, [f"{group}.{setting}" for setting in settings])
        else:
            top = [str(name) for name in OmegaConf.load(configs_dir() / "train.yaml") if name != "defaults"]
            if key not in top:
                raise unknown_name("setting", key, [*top, *known_groups])


def _settings_of(group: str) -> set[str]:
    from omegaconf import OmegaConf

    files = (configs_dir() / group).glob("*.yaml")
    return {str(name) for file in files for name in OmegaConf.load(file) if name != "defaults"}


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return one_line(str(error.__cause__ or error).strip().split("\n")[0], 300)
