"""Flower's simulation: nodes that are processes of a Ray cluster, one for every speaker of the corpus."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from ser_fl.config.schema import Config
from ser_fl.data.node_partition import Host
from ser_fl.data.prepared import open_configured_corpus
from ser_fl.federation.flower.client_app import make_client_app
from ser_fl.federation.flower.server_app import serve
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.rounds import Hooks
from ser_fl.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class SimulatedHosts:
    """The k-th of so many nodes holds the k-th speaker; all read the one corpus."""

    root: str | None
    cache_dir: str | None
    speakers: tuple[str, ...]

    def __call__(self, context: Context) -> Host:
        """The host that a simulated node is."""
        return Host(self.root, self.cache_dir, (self.speakers[int(context.node_config["partition-id"])],))


def simulate(config: Config, own: OwnObjects, hooks: Hooks) -> RunFolder:
    """Run an experiment on simulated nodes, each with `executor.client_cpus` cores and `executor.client_gpus` GPUs.

    Ray starts on this machine, with `executor.workers` clients at a time, or is the cluster of ``RAY_ADDRESS``.

    Raises:
        UserError: the settings or the data do not fit.
        RoundFailed: too few clients came back in a round.
        Stopped: a signal that the preemption of the hooks listens to.
    """
    speakers = sorted({utterance.speaker for utterance in open_configured_corpus(config).utterances})
    hosts = SimulatedHosts(config.data.root, config.data.cache_dir, tuple(speakers))
    all_nodes = replace(config.executor, num_nodes=len(speakers))
    config = replace(config, executor=all_nodes)
    outcome: list[RunFolder | BaseException] = []
    given_up = Event()

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # in a thread of its own, of which Flower hands on no more than an `Exception`
        try:
            outcome.append(serve(config, grid, hooks, own, given_up))
        except BaseException as error:
            outcome.append(error)

    resources: dict[str, Any] = {"num_cpus": config.executor.client_cpus, "num_gpus": config.executor.client_gpus}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the coming end of `run_simulation`, every time
        try:
            run_simulation(
                server_app=app,
                client_app=make_client_app(hosts),
                num_supernodes=len(speakers),
                backend_config={"client_resources": resources, "init_args": _ray_settings(config)},
            )
        finally:
            given_up.set()  # where we are interrupted: else the server would wait for answers until its deadline
    (ended,) = outcome
    if isinstance(ended, BaseException):
        raise ended
    return ended


def _ray_settings(config: Config) -> dict[str, Any]:
    """For ``ray.init``: a cluster that runs already has its own."""
    if os.environ.get("RAY_ADDRESS"):
        return {}
    workers = config.executor.workers
    return {} if workers == "auto" else {"num_cpus": math.ceil(workers * config.executor.client_cpus)}
