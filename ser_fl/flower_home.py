"""A FLWR_HOME: the files by which ``flwr`` finds a link, and is let in."""

import base64
import json
from pathlib import Path

import tomli_w

from ser_fl.errors import UserError
from ser_fl.files import write_bytes

CONNECTION = "ser_fl"
"""Name of the connection to the link: ``flwr run APP ser_fl``."""


def write_home(home: Path, address: str, ca: Path | None, credential: Path | None) -> None:
    """Write Flower's ``config.toml`` for a link at an address, whose certificate ``ca`` has signed (None: it has none),
    and the link's credential where ``flwr login`` would have put one. Flower then sends it with every call.
    """
    trusted = {"insecure": True} if ca is None else {"root-certificates": str(ca.absolute())}
    connections = {"superlink": {"default": CONNECTION, CONNECTION: {"address": address, **trusted}}}
    write_bytes(home / "config.toml", tomli_w.dumps(connections).encode())
    if credential is None:
        return
    account = f"flower.account-auth.{address}"
    held = {"authn-type": "oidc", "oidc-access-token": read_credential(credential), "oidc-refresh-token": "none"}
    encoded = {f"{account}.{name}": base64.b64encode(value.encode()).decode() for name, value in held.items()}
    file = home / "credentials.yaml"
    file.unlink(missing_ok=True)
    write_bytes(file, json.dumps(encoded).encode(), private=True)  # JSON is YAML


def read_credential(file: Path) -> str:
    """What a link wants to hear from whoever starts or lists runs; a `UserError` where no such file can be read."""
    try:
        credential = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the credential of the link, {file}, cannot be read ({error})") from None
    if not credential:
        raise UserError(f"the credential of the link, {file}, is empty: remove it, `ser-fl federation keys` makes one")
    return credential
