"""Certificates and node keys of a federation: made once, in one folder, then handed out machine by machine.

A key that is there is never written over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser_fl.deployment.flower_environment import require_flower
from ser_fl.deployment.key_folder import KeyFolder
from ser_fl.errors import UserError

_CA_DAYS = 3650
_MOST_DAYS = 36500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKeys:
    """What a call of `make_keys` wrote."""

    ca: bool
    hosts: tuple[str, ...]
    """Hosts of a new server certificate; empty where the old one was kept."""
    nodes: tuple[str, ...]


def make_keys(root: Path, hosts: Sequence[str] = (), nodes: Sequence[str] = (), days: int = 365) -> MadeKeys:
    """Make what a federation lacks: a root certificate, a server certificate for `hosts`, a key pair a node.

    Called again on the same folder it adds nodes; further hosts are put beside those of the server certificate, which
    keeps its key. The root certificate is valid for ten years at least, the server's for `days`.

    Raises:
        UserError: a key is there already, or a host, a name or `days` cannot be used.
    """
    require_flower()
    from ser_fl.deployment.certificates import general_name, make_node_key, make_root, make_server

    folder = KeyFolder(root)
    for host in hosts:
        general_name(host)
    _check(folder, hosts, nodes, days)
    for private in (root, folder.ca_key.parent, folder.server.parent, folder.nodes):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private != root:
            private.chmod(0o700)
    new_ca = not folder.ca.exists()
    if new_ca:
        make_root(folder, max(days, _CA_DAYS))
    certified = make_server(folder, hosts, days) if hosts or not folder.server.exists() else ()
    for name in nodes:
        make_node_key(folder, name)
    return MadeKeys(ca=new_ca, hosts=certified, nodes=tuple(nodes))


def handed_out(folder: KeyFolder, made: MadeKeys) -> Iterator[str]:
    """A line for each machine: which files go there, into a folder of the same layout."""
    if made.hosts:
        yield f"the link ({', '.join(made.hosts)}): {folder.ca}, {folder.server.parent}/, {folder.nodes}/*.pub"
    elif made.nodes:
        yield f"the link: {', '.join(str(folder.public(name)) for name in made.nodes)}; start it again to admit them"
    for name in made.nodes:
        yield f"the machine of {name}: {folder.ca}, {folder.node(name)}"
    if made.ca:
        yield f"no other machine: {folder.ca_key} (it makes certificates of the link)"


def _check(folder: KeyFolder, hosts: Sequence[str], nodes: Sequence[str], days: int) -> None:
    """Refuse what cannot be made, before anything is written."""
    if not 1 <= days <= _MOST_DAYS:
        raise UserError(f"--days must be between 1 and {_MOST_DAYS}, got {days}")
    for name in nodes:
        if not _NAME.fullmatch(name) or name.endswith(".pub"):
            raise UserError(f"a node's name is made of letters, digits, '_', '-' and '.', at most 64, got {name!r}")
        if nodes.count(name) > 1:
            raise UserError(f"--nodes names {name} twice")
        for key in (folder.node(name), folder.public(name)):
            if key.exists():
                raise UserError(
                    f"{key} is there already and is never written over: remove it first, or leave {name} out"
                )
    if folder.ca.exists() and not folder.ca_key.exists() and (hosts or not (nodes or folder.server.exists())):
        raise UserError(f"a server certificate needs {folder.ca_key}: go to the machine where the keys were made")
    if folder.ca.exists() and folder.server.exists() and not (hosts or nodes):
        raise UserError(f"{folder.ca} is there already: say what to add, with --nodes or --host")
