"""What `flwr run` is told of an experiment."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, parse


def configured(run_config: Mapping[str, object]) -> Config:
    """The experiment of a run: ``config``, a whole configuration as JSON, or else ``settings``, overrides in a row.

    Raises:
        UserError: a setting is wrong.
    """
    if text := str(run_config.get("config", "")):
        return parse(json.loads(text))
    return compose(["executor=flower", *shlex.split(str(run_config.get("settings", "")))])
