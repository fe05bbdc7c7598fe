"""Certificates and node keys of a federation: made once, in one folder, then handed out machine by machine.

    DIR/ca.crt               root certificate: to every machine
    DIR/private/ca.key       its key: stays where it was made
    DIR/link/server.pem      certificate of the link, and its key server.key: to the link's machine
    DIR/nodes/NAME           private key of a node: to that node's machine, nowhere else
    DIR/nodes/NAME.pub       its public key: to the link's machine, which knows a node by it

Private files have mode 0600 in folders of mode 0700, and a key that is there is never written over.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.deployment.flower import require_flower
from ser_fl.errors import UserError
from ser_fl.files import write_bytes

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts of every server certificate: the link's own parts meet there."""
_CA_DAYS = 3650
_MOST_DAYS = 36500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*_.-]*")


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """Where each certificate and key of a federation lies; a machine has those it was given."""

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
    folder = KeyFolder(root)
    _check(folder, hosts, nodes, days)
    for private in (root, folder.ca_key.parent, folder.server.parent, folder.nodes):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private != root:
            private.chmod(0o700)
    new_ca = not folder.ca.exists()
    if new_ca:
        _make_ca(folder, max(days, _CA_DAYS))
    certified = _make_server_certificate(folder, hosts, days) if hosts or not folder.server.exists() else ()
    for name in nodes:
        _make_node_key(folder, name)
    return MadeKeys(ca=new_ca, hosts=certified, nodes=tuple(nodes))


def certified_hosts(certificate: Path) -> tuple[str, ...]:
    """Names and addresses that a server certificate is valid for."""
    from cryptography import x509

    names = _read_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def days_left(certificate: Path) -> float:
    """Days until a certificate ends; negative once it has."""
    return (_read_certificate(certificate).not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def require_valid(certificate: Path) -> None:
    """Refuse a certificate that is missing, damaged or over.

    Raises:
        UserError: it is, with the way out.
    """
    if (left := days_left(certificate)) < 0:
        raise UserError(
            f"{certificate} ended {math.ceil(-left)} days ago: `ser-fl federation keys DIR --host HOST` renews it"
        )


def require_private(key: Path, *, made_by: str) -> None:
    """Refuse a private key that is missing, or that others on the machine can read.

    Raises:
        UserError: it is, with the way out.
    """
    if not key.is_file():
        raise UserError(f"{key} is missing: {made_by}")
    if key.stat().st_mode & 0o077:
        raise UserError(f"{key} can be read by others on this machine: chmod 600 {key}")


def _check(folder: KeyFolder, hosts: Sequence[str], nodes: Sequence[str], days: int) -> None:
    """Everything that could be refused, before anything is written."""
    if not 1 <= days <= _MOST_DAYS:
        raise UserError(f"--days must be between 1 and {_MOST_DAYS}, got {days}")
    for host in hosts:
        _general_name(host)
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


def _make_ca(folder: KeyFolder, days: int) -> None:
    from cryptography import x509

    key = _private_key(folder.ca_key)
    name = _name("ser_fl federation CA")
    certificate = (
        _certificate(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _write_certificate(folder.ca, certificate, key)


def _make_server_certificate(folder: KeyFolder, hosts: Sequence[str], days: int) -> tuple[str, ...]:
    """Write the server certificate; hosts of the one before stay in it."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    before = certified_hosts(folder.server) if folder.server.exists() else ()
    names = tuple(dict.fromkeys((*LOOPBACK, *before, *hosts)))
    ca_key, key, issuer = _private_key(folder.ca_key), _private_key(folder.server_key), _read_certificate(folder.ca)
    ca_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _certificate(_name("ser_fl link"), issuer.subject, key, days)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(ca_identifier, critical=False)
    )
    _write_certificate(folder.server, certificate, ca_key)
    return names


def _make_node_key(folder: KeyFolder, name: str) -> None:
    """An EC P-384 key pair in OpenSSH format, as Flower reads it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(folder.node(name), private)
    write_bytes(folder.public(name), public + b" " + name.encode() + b"\n")


def _private_key(path: Path) -> EllipticCurvePrivateKey:
    """The key that lies there, or a new one put there."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if path.exists():
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is no private key that can be read ({error})") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UserError(f"{path} is no elliptic-curve key: it was not made by `ser-fl federation keys`")
        return key
    new = ec.generate_private_key(ec.SECP256R1())
    content = new.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(path, content)
    return new


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


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of machines differ
        .not_valid_after(now + timedelta(days=days))
    )


def _write_certificate(path: Path, certificate: x509.CertificateBuilder, ca_key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    write_bytes(path, certificate.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))


def _read_certificate(path: Path) -> x509.Certificate:
    from cryptography import x509

    if not path.is_file():
        raise UserError(f"{path} is missing: `ser-fl federation keys` makes it, then it goes to this machine")
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no certificate ({error})") from None


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    """An address or a name of a host, as a certificate holds it."""
    from cryptography import x509

    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not _HOST.fullmatch(host):
        raise UserError(f"--host takes a name or an IP address without a port, got {host!r}")
    return x509.DNSName(host)


def handed_out(folder: KeyFolder, made: MadeKeys) -> Iterator[str]:
    """What goes to which machine, into a folder of the same layout, a line each."""
    if made.hosts:
        yield f"the link ({', '.join(made.hosts)}): {folder.ca}, {folder.server.parent}/, {folder.nodes}/*.pub"
    elif made.nodes:
        yield f"the link: {', '.join(str(folder.public(name)) for name in made.nodes)}; start it again to admit them"
    for name in made.nodes:
        yield f"the machine of {name}: {folder.ca}, {folder.node(name)}"
    if made.ca:
        yield f"no other machine: {folder.ca_key} (it makes certificates of the link)"
