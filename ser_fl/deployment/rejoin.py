"""Run beside a node: tell the link that the SuperNode it believes to be online is no more.

A SuperNode that was killed counts as online for a minute, and as long its key is refused. The link lets nobody but
the holder of the key say this, so a key that it does not know is told apart.

    python -m ser_fl.deployment.rejoin LINK CA_FILE PRIVATE_KEY NODE_ID

Ends with exit code 0 where the key may be tried again, with 1 where the link does not know it.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Declare a node offline."""
    import httpx
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    link, ca, private, node_id = sys.argv[1:]
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
    sys.exit(main())
