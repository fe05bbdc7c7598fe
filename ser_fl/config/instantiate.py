"""The objects that a configuration names by ``_target_``: here somebody's code is imported and called."""

from __future__ import annotations

import sys
from functools import update_wrapper
from pathlib import Path
from typing import Any

from ser_fl.config.objects import ObjectConfig
from ser_fl.config.schema import Config
from ser_fl.errors import UserError, one_line


def instantiated(own: ObjectConfig, **more: Any) -> Any:
    """The object, whose package may lie in the working directory.

    Raises:
        UserError: it cannot be imported, or does not take its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return instantiate(own.plain(), _convert_="all", **more)
    except InstantiationException as error:
        raise UserError(f"{own.target} cannot be made: {one_line(str(error.__cause__ or error), 600)}") from error


def instantiated_objects(config: Config) -> dict[str, Any]:
    """What `ser_fl.train` takes as objects, by its argument's name, where the configuration names some."""
    found = {
        "network": config.model,
        "objective": config.objective,
        "algorithm": config.federation.algorithm,
        "aggregation": config.federation.aggregation,
    }
    objects = {name: own for name, own in found.items() if isinstance(own, ObjectConfig)}
    made = {name: instantiated(own, _partial_=name == "network") for name, own in objects.items()}
    if network := made.get("network"):  # whoever knows the number of classes builds it
        update_wrapper(network, network.func)
    if config.callbacks:
        made["callbacks"] = [instantiated(callback) for callback in config.callbacks]
    return made
