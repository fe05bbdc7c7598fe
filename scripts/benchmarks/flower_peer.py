"""The same federation in Flower's simulation: a ClientApp around the plain loop that anybody would write.

Every block of rounds is a process of its own, since Ray stays in the one that starts it. Flower is given all it needs
and nothing that it does not: as many actors as there are cores, one thread each; examples already standardised, kept in
an actor's memory; FedAvg without evaluation rounds; no dashboard, no telemetry, no logging to the driver.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plain_loop import PlainLoop
from ser_fl.data.features import Examples
from ser_fl.runs.environment import keep_freed_memory
from ser_fl.runs.records import State

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from benchmarks.workload import Workload

HOW_TO_INSTALL = (
    "Flower is not installed, so it is not measured against: pip install --constraint constraints.txt -e '.[bench]'"
)
SET_UP = (
    "run_simulation with Ray on 2 CPUs, 1 CPU and 1 thread a client, FedAvg over all nodes (fraction_evaluate=0), "
    "ClientApp of the Message API around the contiguous plain loop in fp32, standardised examples kept in each actor, "
    "telemetry, dashboard and log_to_driver off; time between the server's evaluate_fn calls, first round left out"
)
_SWITCHED_OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def is_installed() -> bool:
    """Whether Flower and Ray are there."""
    return find_spec("flwr") is not None and find_spec("ray") is not None


def save(workload: Workload, folder: Path) -> None:
    """What an actor reads once: the experiment and every client's examples."""
    examples = {client: (examples.features_NFL, examples.labels_N) for client, examples in workload.examples().items()}
    content = (workload.config, len(workload.prepared.store.classes), examples)
    (folder / "workload.pickle").write_bytes(pickle.dumps(content))


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation did."""

    first_s: float
    """Until the end of the first round, start-up included."""
    later_s: list[float]
    """Seconds of each further round."""
    state: State
    """The global model at the end."""


def play(folder: Path, num_rounds: int, workers: int = 2) -> Simulated:
    """Rounds of what `save` left in a folder.

    Raises:
        RuntimeError: Flower failed; its last words.
    """
    with tempfile.TemporaryDirectory() as home:
        told = Path(home) / "simulated.pickle"
        command = "import sys; from benchmarks.flower_peer import simulate; simulate(*sys.argv[1:])"
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
        environment = os.environ | _SWITCHED_OFF | {"FLWR_HOME": home, "PYTHONPATH": os.pathsep.join(paths)}
        started = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-c", command, str(folder), str(num_rounds), str(workers), str(told)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if ended.returncode or not told.exists():
            raise RuntimeError(f"Flower's simulation failed:\n{ended.stderr[-3000:]}")
        moments, state = pickle.loads(told.read_bytes())
    return Simulated(moments[1] - started, [after - before for before, after in pairwise(moments[1:])], state)


def simulate(folder: str, num_rounds: str, workers: str, told: str) -> None:
    """In a process of its own: the rounds. Leaves in ``told`` when each had its model, and the last one."""
    import logging

    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from ser_fl.models.networks import build_network

    logging.getLogger("flwr").setLevel(logging.ERROR)
    config, num_classes, examples = pickle.loads((Path(folder) / "workload.pickle").read_bytes())
    num_clients = len(examples)
    moments: list[float] = []

    class AllOrNothing(FedAvg):
        """FedAvg that accepts no failed client, so that no round is shorter than it should be."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            failed = [str(reply.error) for reply in replies if reply.has_error()]
            if failed or len(replies) != num_clients:
                raise RuntimeError(f"{len(replies)} of {num_clients} replies: {failed[:1]}")
            return super().aggregate_train(server_round, replies)

    server_app, client_app = ServerApp(), ClientApp()
    client_app.train()(train)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = AllOrNothing(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=num_clients, min_available_nodes=num_clients
        )
        result = strategy.start(
            grid,
            ArrayRecord(build_network(config.model, num_classes, seed=config.seed).state_dict()),
            num_rounds=int(num_rounds),
            train_config=ConfigRecord({"folder": folder}),
            evaluate_fn=lambda server_round, arrays: moments.append(time.perf_counter()),
        )
        Path(told).write_bytes(pickle.dumps((moments, result.arrays.to_torch_state_dict())))

    run_simulation(
        server_app,
        client_app,
        num_supernodes=num_clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {
                "num_cpus": int(workers),
                "logging_level": "error",
                "log_to_driver": False,
                "include_dashboard": False,
            },
        },
    )


def train(message: Message, context: Context) -> Message:
    """One client-round of the contiguous plain loop."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    settings: Mapping[str, Any] = message.content["config"]
    loop = _loop_of_this_actor(str(settings["folder"]))
    client_id = list(loop.examples)[int(context.node_config["partition-id"])]
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    state, loss = loop.client_round(arrays.to_torch_state_dict(), client_id, int(settings["server-round"]))
    figures = MetricRecord({"loss": loss, "num-examples": len(loop.examples[client_id])})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": figures}), reply_to=message)


@lru_cache(maxsize=1)
def _loop_of_this_actor(folder: str) -> PlainLoop:
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()  # as our workers do, and no NVML in every step of Adam, either
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    config, num_classes, examples = pickle.loads((Path(folder) / "workload.pickle").read_bytes())
    held = {client: Examples(features_NFL, labels_N) for client, (features_NFL, labels_N) in examples.items()}
    return PlainLoop(config, held, num_classes, written="contiguous")
