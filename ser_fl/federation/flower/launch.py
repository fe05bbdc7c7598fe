"""Starting an experiment on Flower: in its simulation, or on a SuperLink."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ser_fl.config.schema import Config
from ser_fl.errors import UserError
from ser_fl.federation.flower import QUIET
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.rounds import Hooks
from ser_fl.runs.folder import RunFolder


def launch(config: Config, own: OwnObjects, hooks: Hooks) -> RunFolder:
    """Run an experiment on Flower.

    Raises:
        UserError: Flower is not installed, or the settings, the nodes or their data do not fit.
        RoundFailed: too few clients came back in a round.
        Stopped: a signal that the preemption of the hooks listens to.
    """
    if find_spec("flwr") is None:
        raise UserError("executor=flower needs the extra `flower`: pip install 'ser-fl[flower]'")
    for switch, off in QUIET.items():
        os.environ.setdefault(switch, off)  # read by Flower when it is imported
    if config.executor.superlink is None:
        from ser_fl.federation.flower.simulation import simulate

        return simulate(config, own, hooks)
    from ser_fl.federation.flower.submission import submit

    return submit(config)
