"""Where the certificates and keys of a federation lie, and who may read them.

    DIR/ca.crt               root certificate: to every machine
    DIR/private/ca.key       its key: stays where it was made
    DIR/link/server.pem      certificate of the link, and its key server.key: to the link's machine
    DIR/nodes/NAME           private key of a node: to that node's machine, nowhere else
    DIR/nodes/NAME.pub       its public key: to the link's machine, which knows a node by it

A machine has those that it was given. Private files have mode 0600, in folders of mode 0700.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The folder of a federation."""

    root: Path

    @property
    def ca(self) -> Path:
        return self.root / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.root / "private" / "ca.key"

    @property
    def server(self) -> Path:
        return self.root / "link" / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.root / "link" / "server.key"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes"

    def node(self, name: str) -> Path:
        """Private key of a node."""
        return self.nodes / name

    def public(self, name: str) -> Path:
        """Public key of a node."""
        return self.nodes / f"{name}.pub"

    @property
    def public_keys(self) -> dict[str, Path]:
        """Public keys by name of node."""
        return {file.stem: file for file in sorted(self.nodes.glob("*.pub"))}

    def state(self, name: str) -> Path:
        """Folder for what a daemon keeps while it runs, where none is named."""
        return self.root / "state" / name


def require_private(key: Path, *, made_by: str) -> None:
    """Refuse a private key that is missing, or that others on the machine can read.

    Raises:
        UserError: it is, with the way out.
    """
    if not key.is_file():
        raise UserError(f"{key} is missing: {made_by}")
    if key.stat().st_mode & 0o077:
        raise UserError(f"{key} can be read by others on this machine: chmod 600 {key}")


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 whole, or not at all where one is there.

    Raises:
        UserError: one is there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        raise UserError(f"{path} is there already and is never written over") from None
    finally:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
