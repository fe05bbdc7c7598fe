"""What is told to a link's Flower beside its daemons, by Flower's own clients in a process of their own.

Of the link: ``python -m ser_fl.deployment.registration start ADDRESS KEY_FOLDER``, then with ``keys`` at each change.
Of a node: ``python -m ser_fl.deployment.registration rejoin LINK CA_FILE PRIVATE_KEY NODE_ID``.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ser_fl.deployment.keys import KeyFolder
from ser_fl.flower_home import read_credential

_MANY = 1000
"""Runs, newest first, that are looked through; Flower shows 20."""


def keys(address: str, folder: str, *, starts: bool) -> int:
    """Have a link know the public keys of a folder, no more and no less; a line on stdout tells of each change.

    With ``starts``, the runs that it was killed in are stopped: their server's part died with it. Flower would start
    those that had none yet, beside what is submitted to go on with them, and nodes would work on messages that nobody
    waits for. Returns 0, or 2 and a line on stderr for each key that cannot be used: Flower never takes one again that
    was withdrawn, and a file that is no key withdraws none.
    """
    import httpx
    from flwr.common.constant import Status
    from flwr.proto import control_pb2
    from flwr.supercore.constant import NodeStatus
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    at, problems = KeyFolder(Path(folder)), []
    given: dict[str, bytes | None] = {}
    for name, file in at.public_keys.items():
        given[name] = _public_key(file)
        if given[name] is None:
            problems.append(f"{file} is no public key that Flower can read")
    signed = (RuntimeVersionHttpInterceptor(component_name="flwr CLI"), _Credential(read_credential(at.credential)))
    with ControlHttpClient.from_server_address(address, False, at.ca.read_bytes(), signed) as client:
        if starts:
            for run_id, run in client.ListRuns(control_pb2.ListRunsRequest(limit=_MANY)).run_dict.items():
                if run.status.status != Status.FINISHED:
                    with suppress(httpx.HTTPStatusError):  # it has just been found out that its server's part is gone
                        client.StopRun(control_pb2.StopRunRequest(run_id=run_id))
        known = {node.public_key: node for node in client.ListNodes(control_pb2.ListNodesRequest()).nodes_info}
        for key, node in known.items():
            if key in given.values() or given.get(node.name, b"") is None or node.status == NodeStatus.UNREGISTERED:
                continue
            client.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=node.node_id))
            print(f"withdrawn: {node.name} takes part no more")
        for name, public in given.items():
            if public is not None and public not in known:
                client.RegisterNode(control_pb2.RegisterNodeRequest(public_key=public, name=name))
                print(f"admitted: {name}")
            elif public is not None and known[public].status == NodeStatus.UNREGISTERED:
                problems.append(
                    f"the key of {name} was withdrawn from this link and cannot come back: make it a new key"
                )
    print("; ".join(problems), end="", file=sys.stderr)
    return 2 if problems else 0


class _Credential:
    """What Flower's client sends with each call, so that the link takes orders."""

    def __init__(self, credential: str) -> None:
        self._authorisation = f"Bearer {credential}"

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        context.request.headers["Authorization"] = self._authorisation
        return call_next(context)


def _public_key(file: Path) -> bytes | None:
    """As Flower writes it; None where it would not read it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

    with suppress(OSError, ValueError, UnsupportedAlgorithm):
        key = load_ssh_public_key(file.read_bytes())
        if isinstance(key, ec.EllipticCurvePublicKey) and uses_nist_ec_curve(key):
            return public_key_to_bytes(key)
    return None


def rejoin(link: str, ca: str, private: str, node_id: str) -> int:
    """Tell the link that the SuperNode it believes to be online is no more.

    A killed SuperNode counts as online for a minute, and as long its key is refused. Only the holder of the key may say
    this, so that an unknown key is told apart. Returns 0 where the key may be tried again, 1 where the link does not
    know it.
    """
    import httpx
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = load_ssh_private_key(Path(private).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = (RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key()))
    with FleetHttpClient.from_server_address(link, False, Path(ca).read_bytes(), signed) as client:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=int(node_id)))
        except httpx.HTTPStatusError as error:
            return int(error.response.status_code == httpx.codes.UNAUTHORIZED)  # else: it is offline by now
    return 0


if __name__ == "__main__":
    action, *arguments = sys.argv[1:]
    sys.exit(rejoin(*arguments) if action == "rejoin" else keys(*arguments, starts=action == "start"))
