"""A gate before the SuperLink: from other machines only the calls of nodes pass.

Flower 1.41 serves nodes, submitters and its own parts on one port, and lets whoever reaches it register keys and start
runs, which is code on every node. It has no option for two addresses, and its extensions are of a private package. So
`uvicorn.run`, by which it serves, is replaced in the link's process. The hook may go when
`test_flower_lets_any_machine_give_orders` fails.
"""

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Any
from unittest.mock import patch

_STREAMS_S = 2
"""How long a stopping SuperLink waits for streams of logs."""

_Call = Callable[..., Awaitable[Any]]


class Gate:
    """An ASGI app that passes on what nodes may ask, and everything from this machine; the rest gets 403."""

    def __init__(self, app: _Call) -> None:
        self.app = app

    async def __call__(self, scope: Mapping[str, Any], receive: _Call, send: _Call) -> None:
        kind, path = scope["type"], scope.get("path", "")
        of_nodes = path == "/health" or path.startswith("/v1/fleet/")  # Flower checks their keys
        if kind == "lifespan" or of_nodes or is_from_here(scope["client"], scope["server"]):
            await self.app(scope, receive, send)
        elif kind == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the machine of the link\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_from_here(client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> bool:
    """Whether a caller is on this machine: on loopback, or calling from the very address it calls."""
    if client is None or server is None:
        return False
    addresses = (ip_address(host) for host, _ in (client, server))
    caller, called = (getattr(address, "ipv4_mapped", None) or address for address in addresses)
    return bool(caller.is_loopback or caller == called)


def close_gate() -> None:
    """Have uvicorn serve the app of this process behind the gate."""
    import uvicorn

    run = uvicorn.run

    def run_gated(app: _Call, **settings: Any) -> None:
        # a caller's address is the socket's, whatever its headers say; a line for every poll would fill the disk
        settings |= {"proxy_headers": False, "access_log": False, "timeout_graceful_shutdown": _STREAMS_S}
        run(Gate(app), **settings)

    patch.object(uvicorn, "run", run_gated).start()
