"""What is told to a link's Flower beside its daemons, by Flower's own clients in a process of their own.

Of the link: ``python -m ser_fl.deployment.registration keys ADDRESS KEY_FOLDER``.
Of a node: ``python -m ser_fl.deployment.registration rejoin LINK CA_FILE PRIVATE_KEY NODE_ID``.
"""

import sys
from contextlib import suppress
from pathlib import Path

from ser_fl.deployment.keys import KeyFolder

_MANY = 1000
"""Runs, newest first, that are looked through; Flower shows 20."""


def keys(address: str, folder: str) -> int:
    """Have a link that has just started know the public keys of a folder, no more and no less, and run nothing.

    The runs that it was killed in are stopped: their server's part died with it. Flower would start those that had none
    yet, beside what is submitted to go on with them, and nodes would work on messages that nobody waits for. Returns 0,
    or 2 and one line for a key that was withdrawn before; Flower never takes it again.
    """
    import httpx
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.common.constant import Status
    from flwr.proto import control_pb2
    from flwr.supercore.constant import NodeStatus
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    at = KeyFolder(Path(folder))
    given = {name: try_load_public_key(file) for name, file in at.public_keys.items()}
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    with ControlHttpClient.from_server_address(address, False, at.ca.read_bytes(), [version]) as client:
        for run_id, run in client.ListRuns(control_pb2.ListRunsRequest(limit=_MANY)).run_dict.items():
            if run.status.status != Status.FINISHED:
                with suppress(httpx.HTTPStatusError):  # it has just been found out that its server's part is gone
                    client.StopRun(control_pb2.StopRunRequest(run_id=run_id))
        known = {node.public_key: node for node in client.ListNodes(control_pb2.ListNodesRequest()).nodes_info}
        for name, key in given.items():
            if key not in known:
                client.RegisterNode(control_pb2.RegisterNodeRequest(public_key=key, name=name))
            elif known[key].status == NodeStatus.UNREGISTERED:
                print(
                    f"the key of {name} was withdrawn from this link and cannot come back: make it a new key",
                    file=sys.stderr,
                )
                return 2
        for key, node in known.items():
            if key not in given.values() and node.status != NodeStatus.UNREGISTERED:
                client.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=node.node_id))
    return 0


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
    sys.exit(keys(*arguments) if action == "keys" else rejoin(*arguments))
