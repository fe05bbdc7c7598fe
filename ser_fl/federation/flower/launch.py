"""Starting an experiment on Flower: on a SuperLink, or in its simulation, on Ray with a node for every speaker."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import replace
from importlib.util import find_spec
from threading import Event
from typing import TYPE_CHECKING, Any

from ser_fl.config.schema import Config
from ser_fl.errors import UserError
from ser_fl.federation.flower import QUIET
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.rounds import Hooks
from ser_fl.runs.folder import RunFolder

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid


def launch(config: Config, own: OwnObjects, hooks: Hooks) -> RunFolder:
    """Run an experiment on Flower; a `UserError` where it is not installed. What else is raised is as for `serve`, and
    `Stopped`, by a signal that the preemption of the hooks listens to.
    """
    if find_spec("flwr") is None:
        raise UserError("executor=flower needs the extra `flower`: pip install 'ser-fl[flower]'")
    for switch, off in QUIET.items():
        os.environ.setdefault(switch, off)  # read by Flower when it is imported
    if config.executor.superlink is None:
        return simulate(config, own, hooks)
    from ser_fl.federation.flower.submission import submit

    return submit(config)


def simulate(config: Config, own: OwnObjects, hooks: Hooks) -> RunFolder:
    """Run an experiment on simulated nodes, each with `executor.client_cpus` cores and `executor.client_gpus` GPUs. Ray
    starts here, with `executor.workers` clients at a time, or is the cluster of ``RAY_ADDRESS``.
    """
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from ser_fl.federation.flower.client_app import all_speakers, make_client_app, simulated_host
    from ser_fl.federation.flower.server_app import serve

    speakers = all_speakers(config)
    config = replace(config, executor=replace(config.executor, num_nodes=len(speakers)))
    executor = config.executor
    outcome, given_up, app = list[RunFolder | BaseException](), Event(), ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # in a thread of its own, of which Flower hands on no more than an `Exception`
        try:
            outcome.append(serve(config, grid, hooks, own, given_up))
        except BaseException as error:
            outcome.append(error)

    ray: dict[str, Any] = {}  # a cluster that runs already has its own settings
    if executor.workers != "auto" and not os.environ.get("RAY_ADDRESS"):
        ray["num_cpus"] = math.ceil(executor.workers * executor.client_cpus)
    resources: dict[str, Any] = {"num_cpus": executor.client_cpus, "num_gpus": executor.client_gpus}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the coming end of `run_simulation`, every time
        try:
            run_simulation(
                server_app=app,
                client_app=make_client_app(lambda context: simulated_host(config, speakers, context)),
                num_supernodes=len(speakers),
                backend_config={"client_resources": resources, "init_args": ray},
            )
        finally:
            given_up.set()  # where we are interrupted: else the server would wait for answers until its deadline
    (ended,) = outcome
    if isinstance(ended, BaseException):
        raise ended
    return ended
