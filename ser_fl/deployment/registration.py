"""Run beside a link that has just started: it knows the public keys of a folder, no more and no less, and runs nothing.

    python -m ser_fl.deployment.registration ADDRESS KEY_FOLDER

Ends with exit code 0 and a line for each change, or with 2 and one line for a key that cannot be known again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.deployment.key_folder import KeyFolder
from ser_fl.errors import UserError

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

_MANY = 1000
"""Runs, newest first, that are looked through; Flower shows 20."""


def synchronise(client: ControlHttpClient, keys: Mapping[str, bytes]) -> list[str]:
    """Register keys that the link does not know, and withdraw those that have no file any more.

    Raises:
        UserError: a key was withdrawn before; Flower never takes it again.
    """
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
    from flwr.supercore.constant import NodeStatus

    known = {node.public_key: node for node in client.ListNodes(ListNodesRequest()).nodes_info}
    changes = []
    for name, key in keys.items():
        if key not in known:
            client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
            changes.append(f"registered {name}")
        elif known[key].status == NodeStatus.UNREGISTERED:
            raise UserError(f"the key of {name} was withdrawn from this link and cannot come back: make it a new key")
    for key, node in known.items():
        if key not in keys.values() and node.status != NodeStatus.UNREGISTERED:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            changes.append(f"withdrew {node.name or node.node_id}")
    return changes


def stop_unfinished(client: ControlHttpClient) -> list[str]:
    """Stop the runs that a link was killed in.

    Their server's part died with it. Flower would start the ones that had none yet, beside what is submitted to go
    on with them, and have nodes work on messages that nobody waits for.
    """
    import httpx
    from flwr.common.constant import Status
    from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest

    runs = client.ListRuns(ListRunsRequest(limit=_MANY)).run_dict
    unfinished = [run_id for run_id, run in sorted(runs.items()) if run.status.status != Status.FINISHED]
    for run_id in unfinished:
        with suppress(httpx.HTTPStatusError):  # it has just been found out that its server's part is gone
            client.StopRun(StopRunRequest(run_id=run_id))
    return [f"stopped run {run_id}" for run_id in unfinished]


def main() -> int:
    """Synchronise a link with a folder of public keys, and stop what it ran before."""
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    address, folder = sys.argv[1], KeyFolder(Path(sys.argv[2]))
    keys = {name: try_load_public_key(file) for name, file in folder.public_keys.items()}
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    with ControlHttpClient.from_server_address(address, False, folder.ca.read_bytes(), [version]) as client:
        try:
            print("\n".join([*stop_unfinished(client), *synchronise(client, keys)]))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
