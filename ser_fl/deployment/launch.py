"""Run inside a daemon's process: one of Flower's programs, with what it lacks for being left on.

It ends when the process that started it ends. The SuperLink serves nodes, submitters and its own parts on one port,
and lets whoever reaches it register keys and start runs, which is code on every node: here a gate leaves all but
the nodes' part, which their keys protect, to callers on the link's own machine.

    python -m ser_fl.deployment.launch PARENT_PID superlink|supernode|superexec ARGUMENT ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from ser_fl.deployment.flwr_overdue_replies import send_overdue_replies
from ser_fl.deployment.warm import start_tasks_warm

_PROGRAMS = {
    "superlink": ("flwr.superlink.cli.flower_superlink", "flower_superlink"),
    "supernode": ("flwr.supernode.cli.flower_supernode", "flower_supernode"),
    "superexec": ("flwr.supercore.cli.flower_superexec", "flower_superexec"),
}
_LOOK_S = 0.5
_GRACE_S = 6
_STREAMS_S = 2
"""How long a stopping SuperLink waits for streams of logs."""

_Message = MutableMapping[str, Any]
_App = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]


class Gate:
    """An ASGI app that passes on what nodes may ask, and everything from this machine; the rest gets 403."""

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan" or is_for_all(scope["path"]) or is_from_here(scope["client"], scope["server"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the machine of the link\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_for_all(path: str) -> bool:
    """Whether a path is for nodes, whose keys Flower then checks, or tells health alone."""
    return path == "/health" or path.startswith("/v1/fleet/")


def is_from_here(client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> bool:
    """Whether a caller is on this machine: on loopback, or calling from the very address it calls."""
    if client is None or server is None:
        return False
    caller, called = _address(client[0]), _address(server[0])
    return caller.is_loopback or caller == called


def _address(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _end_with(parent: int) -> None:
    """End this process when `parent` is no longer its parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _close_gate() -> None:
    """Have uvicorn serve the SuperLink behind the gate."""
    import uvicorn

    run = uvicorn.run

    def run_gated(app: _App, **settings: Any) -> None:
        # a caller's address is the socket's, whatever its headers say; a line for every poll would fill the disk
        settings |= {"proxy_headers": False, "access_log": False, "timeout_graceful_shutdown": _STREAMS_S}
        run(Gate(app), **settings)

    uvicorn.run = run_gated  # type: ignore[assignment]


def main() -> None:
    """Become the program that the command line names."""
    parent, program, *arguments = sys.argv[1:]
    _end_with(int(parent))
    if program == "superlink":
        _close_gate()
    if program == "supernode":
        send_overdue_replies()
    if program == "superexec":
        start_tasks_warm()
    sys.argv = [f"flower-{program}", *arguments]
    module, function = _PROGRAMS[program]
    getattr(import_module(module), function)()


if __name__ == "__main__":
    main()
