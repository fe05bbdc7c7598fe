"""Run inside a daemon's process: one of Flower's programs, with what it lacks for being left on.

It ends when the process that started it ends, and it has this package's hooks into Flower, each in a file ``flwr_*.py``
that says what it is for and which version of Flower it is made for.

    python -m ser_fl.deployment.program PARENT_PID superlink|supernode|superexec ARGUMENT ...
"""

import os
import signal
import sys
import threading
import time
from importlib import import_module

from ser_fl.deployment.flwr_foreign_apps import refuse_foreign_apps
from ser_fl.deployment.flwr_gate import close_gate
from ser_fl.deployment.flwr_overdue_replies import send_overdue_replies
from ser_fl.deployment.flwr_patience import keep_calling
from ser_fl.deployment.flwr_warm_tasks import start_tasks_warm

_PROGRAMS = {
    "superlink": ("flwr.superlink.cli.flower_superlink", (close_gate,)),
    "supernode": ("flwr.supernode.cli.flower_supernode", (send_overdue_replies, keep_calling, refuse_foreign_apps)),
    "superexec": ("flwr.supercore.cli.flower_superexec", (start_tasks_warm,)),
}
"""Where each is, in a function that is called as the module, and what it lacks."""
_LOOK_S = 0.5
_GRACE_S = 6


def main() -> None:
    """Become the program that the command line names."""
    parent, program, *arguments = sys.argv[1:]
    _end_with(int(parent))
    name, hooks = _PROGRAMS[program]
    for hook in hooks:
        hook()
    sys.argv = [f"flower-{program}", *arguments]
    getattr(import_module(name), f"flower_{program}")()


def _end_with(parent: int) -> None:
    """End this process when `parent` is no longer its parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main()
