"""Run beside a link: the public keys of a folder become the ones it knows, no more and no less.

    python -m ser_fl.deployment.registration ADDRESS KEY_FOLDER

Ends with exit code 0 and a line for each change, or with 2 and one line for a key that cannot be known again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.deployment.keys import KeyFolder
from ser_fl.errors import UserError

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient


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


def main() -> int:
    """Synchronise a link with a folder of public keys."""
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    address, folder = sys.argv[1], KeyFolder(Path(sys.argv[2]))
    keys = {name: try_load_public_key(file) for name, file in folder.public_keys.items()}
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    with ControlHttpClient.from_server_address(address, False, folder.ca.read_bytes(), [version]) as client:
        try:
            print("\n".join(synchronise(client, keys)))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
