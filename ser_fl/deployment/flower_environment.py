"""What Flower's programs are started with: the right Flower, an environment, and the way to the link."""

import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ser_fl.errors import UserError

FLOWER = "1.41.0"
"""Programs, ports and flags change from one minor version to the next; the code here is for this one."""
_POLL_S = "0.5"
_ANSWER_S = 5.0
_LOOPBACK = "127.0.0.1,localhost,::1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What Flower may do on the internet: nothing, unless asked."""

    telemetry: bool = False
    """Report to telemetry.flower.ai how it is used."""
    update_check: bool = False
    """Ask api.flower.ai whether there is a newer Flower."""
    install_dependencies: bool = False
    """Install the packages that an app names, for every run. Results then depend on which versions were newest."""


def require_flower() -> None:
    """Check that the right Flower is installed; else the `UserError` has the command that installs it."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise UserError("a federation across machines needs Flower: pip install 'ser-fl[flower]'") from None
    if found != FLOWER:
        raise UserError(f"Flower {FLOWER} is needed, {found} is installed: pip install 'ser-fl[flower]'")


def flower_environment(
    home: Path, outgoing: Outgoing = Outgoing(), extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment here for a Flower program, without Flower settings, and with `extra` variables. `home` is
    FLWR_HOME, where Flower keeps connections and unpacked apps.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    environment |= {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": str(int(outgoing.telemetry)),
        "FLWR_DISABLE_UPDATE_CHECK": str(int(not outgoing.update_check)),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": str(int(not outgoing.install_dependencies)),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _POLL_S,
        # Flower starts its task processes by bare name
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    for name in ("NO_PROXY", "no_proxy"):  # its parts meet on loopback, never through a proxy
        environment[name] = ",".join(filter(None, (os.environ.get(name), _LOOPBACK)))
    return environment | dict(extra or {})


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``, with an IPv6 address in brackets; a `UserError` for anything else."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"the link's address is HOST:PORT, as localhost:9092, got {address!r}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def answers(address: str, ca: Path) -> bool:
    """Whether a healthy link is there. A `UserError` says that what answers is not of this federation, or its
    certificate has ended or is for other hosts.
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
