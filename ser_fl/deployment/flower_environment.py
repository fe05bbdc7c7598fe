"""Whether the right Flower is installed, and the environment that its programs are started in."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ser_fl.errors import UserError

FLOWER = "1.41.0"
"""Programs, ports and flags change from one minor version to the next; the code here is for this one."""
_POLL_S = "0.5"
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


NOTHING_OUTGOING = Outgoing()


def require_flower() -> None:
    """Check that the right Flower is installed.

    Raises:
        UserError: it is not, with the command that installs it.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise UserError("a federation across machines needs Flower: pip install 'ser-fl[flower]'") from None
    if found != FLOWER:
        raise UserError(f"Flower {FLOWER} is needed, {found} is installed: pip install 'ser-fl[flower]'")


def flower_environment(
    home: Path, outgoing: Outgoing = NOTHING_OUTGOING, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment of a Flower program: this process's, without the Flower settings in it.

    Args:
        home: FLWR_HOME, where Flower keeps connections and unpacked apps.
        outgoing: what it may do on the internet.
        extra: variables that come last.
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
