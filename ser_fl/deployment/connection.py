"""Finding the link: its address, the connection file by which ``flwr`` finds it, and whether it answers."""

from __future__ import annotations

import ssl
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from ser_fl.errors import UserError
from ser_fl.files import write_bytes

CONNECTION = "ser_fl"
"""Name of the connection: ``flwr run APP ser_fl``."""
_ANSWER_S = 5.0


def write_connection(home: Path, address: str, ca: Path) -> Path:
    """Write Flower's ``config.toml``, by which ``flwr`` with this FLWR_HOME finds the link.

    Args:
        home: the FLWR_HOME.
        address: host:port of the link, on its own machine or through a tunnel.
        ca: the federation's root certificate.
    """
    import tomli_w

    connection = {"address": address, "root-certificates": str(ca.absolute())}
    file = home / "config.toml"
    write_bytes(file, tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}}).encode())
    return file


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 address stands in brackets.

    Raises:
        UserError: it is something else.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"the link's address is HOST:PORT, as localhost:9092, got {address!r}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def answers(address: str, ca: Path) -> bool:
    """Whether a healthy link is there.

    Raises:
        UserError: what answers is not of this federation, or its certificate has ended or is for other hosts.
    """
    host, port = split_address(address)
    connection = HTTPSConnection(host, port, timeout=_ANSWER_S, context=ssl.create_default_context(cafile=ca))
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"the certificate of {address} is not accepted with {ca}: {error.verify_message}"
            " (`ser-fl federation keys DIR --host HOST` makes one for further hosts)"
        ) from None
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
