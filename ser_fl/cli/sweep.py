"""Several runs from one command line: a setting may have several values, and each combination of values is a run.

The syntax is Hydra's: ``seed=1,2,3``, ``objective=clean,pgd`` (names of a group), ``seed=range(1,6)``,
``objective.epsilon=choice(0.05,0.1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path

from ser_fl.config.compose import FREE_TEXT, compose
from ser_fl.config.schema import Config
from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a sweep."""

    swept: tuple[str, ...]
    """What sets it apart from the others, as ``key=value``."""
    config: Config


def plan(settings: Sequence[str], *, config_file: Path | None, name: str) -> list[Job]:
    """The runs of a sweep, composed and checked, each in a folder of its own.

    ``run_dir=DIR`` is the folder of them all: they lie in it as ``<number>-<seed>``. Without it they lie where single
    runs do, as ``runs/<experiment>/<name>-<number>-<seed>``. W&B shows them as one group.

    Args:
        settings: what `compose` takes, and settings of several values.
        config_file: as in `compose`.
        name: of the sweep.

    Raises:
        UserError: what `compose` refuses, of the first job that has it.
    """
    combinations = list(product(*map(_values_of, settings)))
    varied = [len(_values_of(setting)) > 1 for setting in settings]
    configs = [compose(combination, config_file=config_file) for combination in combinations]
    experiments = sorted({config.experiment for config in configs})
    group = Path(configs[0].run_dir).name if configs[0].run_dir else f"{'+'.join(experiments)}-{name}"
    digits = len(str(len(configs)))
    return [
        Job(
            swept=tuple(setting for setting, varies in zip(combination, varied, strict=True) if varies),
            config=placed(
                config, _folder(config, f"{number:0{digits}d}-{config.seed}", name), config.tracking.group or group
            ),
        )
        for number, (combination, config) in enumerate(zip(combinations, configs, strict=True), start=1)
    ]


def name_of_now() -> str:
    """Name of a sweep that starts now: date and time, as in the folders of single runs."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def placed(config: Config, folder: Path, group: str | None) -> Config:
    """The configuration with a run folder and, where there is one, a W&B group."""
    tracking = replace(config.tracking, group=group or config.tracking.group)  # type: ignore[type-var]
    moved: Config = replace(config, run_dir=str(folder), tracking=tracking)  # type: ignore[type-var]
    return moved


def _folder(config: Config, own: str, name: str) -> Path:
    return Path(config.run_dir) / own if config.run_dir else Path("runs") / config.experiment / f"{name}-{own}"


def _values_of(setting: str) -> list[str]:
    """A setting once for each of its values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, separator, _ = setting.partition("=")
    if not separator or key in FREE_TEXT:  # a folder may have a comma in its name
        return [setting]
    try:
        override = OverridesParser.create().parse_override(setting)
        if not override.is_sweep_override():
            return [setting]
        if override.is_discrete_sweep():
            return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(f"{setting!r} cannot be read: {' '.join(str(error).split())}") from None
    raise UserError(f"{setting!r} names no values to run one after the other: write {key}=A,B or {key}=range(1,4)")
