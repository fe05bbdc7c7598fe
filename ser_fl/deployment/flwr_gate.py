"""A gate before the SuperLink: from other machines only the calls of nodes pass, and nobody gives orders without the
link's credential, on this machine either.

Flower 1.41 serves nodes, submitters and its own parts on one port, and lets whoever reaches it register keys and start
runs, which is code on every node. It has no option for two addresses; accounts, and its extensions, are of a private
package. But its command line sends a token with every call, once one has logged in, so a token is asked for here:
`uvicorn.run`, by which it serves, is replaced in the link's process. The hook may go when
`test_flower_lets_any_machine_give_orders` fails.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ser_fl.flower_home import read_credential

CREDENTIAL = "SER_FL_CREDENTIAL"
"""Variable that names the file of the credential to the link's process."""

_STREAMS_S = 2
"""How long a stopping SuperLink waits for streams of logs."""

_Call = Callable[..., Awaitable[Any]]


class Gate:
    """An ASGI app that passes on what nodes may ask; what Flower's own parts ask, who have secrets of their own, from
    this machine; and orders from this machine with the credential. The rest gets 401 or 403.
    """

    def __init__(self, app: _Call, credential: str) -> None:
        self.app = app
        self._authorised = b"Bearer " + credential.encode()

    async def __call__(self, scope: Mapping[str, Any], receive: _Call, send: _Call) -> None:
        kind, path = scope["type"], scope.get("path", "")
        of_nodes = path == "/health" or path.startswith("/v1/fleet/")  # Flower checks their keys
        refused = None
        if kind != "lifespan" and not of_nodes:
            if not is_from_here(scope["client"], scope["server"]):
                refused = 403, b"only from the machine of the link\n"
            elif not path.startswith("/v1/runtime/") and not self._is_authorised(scope["headers"]):
                refused = 401, b"only with the credential of the link\n"
        if refused is None:
            await self.app(scope, receive, send)
        elif kind == "http":
            status, body = refused
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_authorised(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        return len(given) == 1 and compare_digest(given[0], self._authorised)


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
        run(Gate(app, read_credential(Path(os.environ[CREDENTIAL]))), **settings)

    patch.object(uvicorn, "run", run_gated).start()
