"""Certificates and node keys of a federation: made once, in one folder, then handed out machine by machine.

    DIR/ca.crt               root certificate: to every machine
    DIR/private/ca.key       its key: stays where it was made
    DIR/link/server.pem      certificate of the link, and its key server.key: to the link's machine
    DIR/link/credential      lets one start and list runs: stays on the link's machine, for whoever may
    DIR/nodes/NAME           private key of a node: to that node's machine, nowhere else
    DIR/nodes/NAME.pub       its public key: to the link's machine, which knows a node by it
    DIR/nodes/NAME.policy.yaml  what a server may ask of it: to that node's machine, for its owner to change

A machine has those that it was given. Private files have mode 0600, in folders of mode 0700. A key that is there is
never written over.
"""

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from ser_fl.config.policy import DEFAULT
from ser_fl.deployment.flower_environment import require_flower
from ser_fl.errors import UserError
from ser_fl.files import write_bytes

_CA_DAYS = 3650
_MOST_DAYS = 36500
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts of every server certificate: the link's own parts meet there."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class KeyFolder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.ca = root / "ca.crt"
        self.ca_key = root / "private" / "ca.key"
        self.server = root / "link" / "server.pem"
        self.server_key = root / "link" / "server.key"
        self.credential = root / "link" / "credential"
        self.nodes = root / "nodes"

    def node(self, name: str) -> Path:
        return self.nodes / name

    def public(self, name: str) -> Path:
        return self.nodes / f"{name}.pub"

    def policy(self, name: str) -> Path:
        return self.nodes / f"{name}.policy.yaml"

    @property
    def public_keys(self) -> dict[str, Path]:
        return {file.stem: file for file in sorted(self.nodes.glob("*.pub"))}


def make_keys(root: Path, hosts: Sequence[str] = (), nodes: Sequence[str] = (), days: int = 365) -> list[str]:
    """Make what a federation lacks: a root certificate, a server certificate for `hosts`, a key pair and a policy a
    node. A line for each machine says which files go there, into a folder of the same layout.

    Called again it adds nodes, and puts further hosts beside those of the server certificate, which keeps its key. The
    root certificate is valid for ten years at least, the server's for `days`. Where the link's key lies without a
    credential, one is made.

    Raises:
        UserError: a key is there already, or a host, a name or `days` cannot be used. Nothing is written then.
    """
    require_flower()
    from ser_fl.deployment.certificates import certified_hosts, certify, general_name, make_node_key

    folder = KeyFolder(root)
    new_ca, new_server = not folder.ca.exists(), not folder.server.exists()
    new_credential = (new_server or folder.server_key.exists()) and not folder.credential.exists()
    for host in hosts:
        general_name(host)
    if not 1 <= days <= _MOST_DAYS:
        raise UserError(f"--days must be between 1 and {_MOST_DAYS}, got {days}")
    for name in nodes:
        if not _NAME.fullmatch(name) or name.endswith((".pub", ".policy.yaml")):
            raise UserError(f"a node's name is made of letters, digits, '_', '-' and '.', at most 64, got {name!r}")
        if nodes.count(name) > 1:
            raise UserError(f"--nodes names {name} twice")
        for key in (folder.node(name), folder.public(name), folder.policy(name)):
            if key.exists():
                raise UserError(
                    f"{key} is there already and is never written over: remove it first, or leave {name} out"
                )
    if not new_ca and not folder.ca_key.exists() and (hosts or (new_server and not nodes)):
        raise UserError(f"a server certificate needs {folder.ca_key}: go to the machine where the keys were made")
    if not (new_ca or new_server or new_credential or hosts or nodes):
        raise UserError(f"{folder.ca} is there already: say what to add, with --nodes or --host")
    for private in (root, folder.ca_key.parent, folder.server.parent, folder.nodes):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private != root:
            private.chmod(0o700)
    if new_ca:
        certify(folder.ca, folder.ca_key, max(days, _CA_DAYS))
    lines = []
    if hosts or new_server:
        before = () if new_server else certified_hosts(folder.server)
        certified = tuple(dict.fromkeys((*_LOOPBACK, *before, *hosts)))
        certify(folder.server, folder.server_key, days, ca=(folder.ca, folder.ca_key), hosts=certified)
        lines.append(f"the link ({', '.join(certified)}): {folder.ca}, {folder.server.parent}/, {folder.nodes}/*.pub")
    elif nodes:
        publics = ", ".join(str(folder.public(name)) for name in nodes)
        lines.append(f"the link: {publics}; it admits them at once")
    if new_credential:
        write_bytes(folder.credential, secrets.token_urlsafe(32).encode() + b"\n", private=True)
        lines.append(f"whoever may start runs, on the machine of the link: {folder.ca}, {folder.credential}")
    for name in nodes:
        make_node_key(folder.node(name), folder.public(name))
        write_policy(folder, name)
        lines.append(f"the machine of {name}: {folder.ca}, {folder.policy(name)}, {folder.node(name)}")
    if new_ca:
        lines.append(f"no other machine: {folder.ca_key} (it makes certificates of the link)")
    return lines


def write_policy(folder: KeyFolder, name: str) -> str:
    """Write a node's policy with safe defaults, and say so; a `UserError` where there is one, which is never written
    over.
    """
    file = folder.policy(name)
    if not _NAME.fullmatch(name):
        raise UserError(f"a node's name is made of letters, digits, '_', '-' and '.', at most 64, got {name!r}")
    try:
        write_bytes(file, DEFAULT.encode(), private=True)
    except FileExistsError:
        raise UserError(f"{file} is there already and is never written over: edit it, or remove it first") from None
    return f"the machine of {name}: {file}"


def require_private(key: Path, *, made_by: str) -> None:
    """Refuse (`UserError`, with the way out) a private key that is missing, or that others on the machine can read."""
    if not key.is_file():
        raise UserError(f"{key} is missing: {made_by}")
    if key.stat().st_mode & 0o077:
        raise UserError(f"{key} can be read by others on this machine: chmod 600 {key}")
