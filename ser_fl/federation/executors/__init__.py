"""Where the clients of a round run: in this process, or side by side in worker processes.

Executors differ in time alone: a client's update depends on its task and on the seed, and outcomes come in the order of
the cohort, so that every executor, with any number of workers, gives the same bits.
"""

from __future__ import annotations

import os

from ser_fl.config.schema import ExecutorConfig
from ser_fl.devices import CPU, devices_of
from ser_fl.federation.client import Clients
from ser_fl.federation.executors.executor import Executor
from ser_fl.federation.executors.processes import ProcessExecutor
from ser_fl.federation.executors.serial import SerialExecutor

__all__ = ["Executor", "count_workers", "open_executor"]


def open_executor(clients: Clients, cohort_size: int) -> Executor:
    """The configured executor. Worker processes start with the first round.

    Raises:
        UserError: a callback cannot be sent to a worker process.
    """
    config = clients.config.executor
    if config.name == "serial":
        return SerialExecutor(clients)
    return ProcessExecutor(clients, count_workers(config, cohort_size))


def count_workers(config: ExecutorConfig, cohort_size: int) -> int:
    """Worker processes for rounds of so many clients: as many as asked for, else one a GPU, or as have cores."""
    if config.workers != "auto":
        return min(config.workers, cohort_size)
    devices = devices_of(config.accelerator)
    wanted = _cores() // config.threads if devices == (CPU,) else len(devices)
    return max(1, min(wanted, cohort_size))


def _cores() -> int:
    """Cores that this process may run on: a cluster's job has often fewer than its machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
