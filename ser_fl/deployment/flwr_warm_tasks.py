"""Task processes that start warm: forked from one that has imported what they need, at once instead of in seconds.

The SuperExec of Flower 1.41 starts a new interpreter for every message, which imports torch and all else: some seconds
of a core. Its warm executor is for Kubernetes, and for other tasks. So this replaces `SubprocessExecutor.launch` in the
SuperExec's process by Python's own fork server. The hook may go when `test_flower_starts_an_interpreter_for_every_task`
fails.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.forkserver import ensure_running
from typing import Any
from unittest.mock import patch

_FORK_SERVER = get_context("forkserver")
_PARTS = {
    "flwr-clientapp": ("flwr.supernode.cli.flwr_clientapp", "flwr_clientapp"),
    "flwr-serverapp": ("flwr.superlink.cli.flwr_serverapp", "flwr_serverapp"),
}
_PRELOADED = (
    "ser_fl.federation.flower.client_app",
    "ser_fl.federation.flower.server_app",
    "torch._dynamo",  # what torch imports in the first step of an optimiser
    *(module for module, _ in _PARTS.values()),
)


def start_tasks_warm() -> None:
    """Let this process, a SuperExec, fork its tasks; they run the ser_fl installed here, whatever the app brings."""
    from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

    _FORK_SERVER.set_forkserver_preload(list(_PRELOADED))
    ensure_running()  # not with the first task, which would wait for the imports
    cold = SubprocessExecutor.launch

    def launch(executor: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
        command = TASK_TYPE_TO_COMMAND[spec.task_type]
        if command not in _PARTS or spec.runtime_dependency_install:
            return cold(executor, spec)
        arguments = [command, TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address]
        arguments += ["--token", spec.token]
        if spec.insecure:
            arguments.append("--insecure")
        elif spec.root_certificates_path is not None:
            arguments += ["--root-certificates", spec.root_certificates_path]
        if spec.parent_pid is not None:
            arguments += ["--parent-pid", str(spec.parent_pid)]
        # a daemon: it ends with this process, which waits for none
        _FORK_SERVER.Process(target=become, args=(arguments,), daemon=True).start()
        return LaunchResult.accepted()

    patch.object(SubprocessExecutor, "launch", launch).start()


def become(arguments: Sequence[str]) -> None:
    """Run one of Flower's task programs, in a process that was forked for it."""
    sys.argv = list(arguments)
    module, function = _PARTS[arguments[0]]
    program: Any = getattr(import_module(module), function)
    program()
