"""The same rounds on Flower: a ServerApp and a ClientApp around the functions that the local loop calls.

Tensors cross between hosts as safetensors, all else as JSON, both checked before they are used. Audio and features stay
where they are; the server sees names of speakers, counts, sums over features and confidences, models and confusion
matrices.
"""

import os
from importlib.util import find_spec

from ser_fl.config.schema import Config
from ser_fl.errors import UserError
from ser_fl.federation.hooks import Hooks
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.runs.folder import RunFolder

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Unless the environment says this, Flower and Ray call home, and install packages while they run."""


def launch(config: Config, own: OwnObjects, hooks: Hooks) -> RunFolder:
    """Run an experiment on Flower; a `UserError` where it is not installed. What else is raised is as for `serve`, and
    `Stopped`, by a signal that the preemption of the hooks listens to.
    """
    if find_spec("flwr") is None:
        raise UserError("executor=flower needs the extra `flower`: pip install 'ser-fl[flower]'")
    for switch, off in QUIET.items():
        os.environ.setdefault(switch, off)  # read by Flower when it is imported
    if config.executor.superlink is None:
        from ser_fl.federation.flower.server_app import simulate

        return simulate(config, own, hooks)
    from ser_fl.federation.flower.submission import submit

    return submit(config)
