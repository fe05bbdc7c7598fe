"""The root certificate of a federation and the link's, which it signs; imported where the extra `flower` is."""

import ipaddress
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ser_fl.errors import UserError
from ser_fl.files import write_bytes

_HOST = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*_.-]*")


def certify(
    certificate: Path, key: Path, days: int, *, ca: tuple[Path, Path] | None = None, hosts: Sequence[str] = ()
) -> None:
    """Write a certificate of the private key that lies there, or is put there, valid for some days. ``ca`` is the
    root's certificate and private key, for a server's certificate of ``hosts``; None makes a root's.
    """
    now, own, is_ca = datetime.now(UTC), _private_key(key), ca is None
    name = "ser_fl federation CA" if is_ca else "ser_fl link"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (subject, own) if ca is None else (_read(ca[0]).subject, _private_key(ca[1]))
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    uses = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    usage = x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **uses)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of machines differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
    )
    if not is_ca:
        made = (
            made.add_extension(x509.SubjectAlternativeName([general_name(host) for host in hosts]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
    write_bytes(certificate, made.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM))


def make_node_key(private: Path, public: Path) -> None:
    """Write an EC P-384 key pair in OpenSSH format, as Flower reads it."""
    key = ec.generate_private_key(ec.SECP384R1())
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    content = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_bytes(private, content, private=True)
    write_bytes(public, line + b" " + private.name.encode() + b"\n")


def certified_hosts(certificate: Path) -> tuple[str, ...]:
    """Names and addresses that a server certificate is valid for."""
    names = _read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def days_left(certificate: Path) -> float:
    """Days until a certificate ends; negative once it has."""
    return (_read(certificate).not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def require_valid(certificate: Path) -> None:
    """Refuse (`UserError`, with the way out) a certificate that is missing, damaged or over."""
    if (left := days_left(certificate)) < 0:
        raise UserError(
            f"{certificate} ended {math.ceil(-left)} days ago: `ser-fl federation keys DIR --host HOST` renews it"
        )


def general_name(host: str) -> x509.GeneralName:
    """An address or a name of a host, as a certificate holds it; a `UserError` where it is neither."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not _HOST.fullmatch(host):
        raise UserError(f"--host takes a name or an IP address without a port, got {host!r}")
    return x509.DNSName(host)


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        new = ec.generate_private_key(ec.SECP256R1())
        content = new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_bytes(path, content, private=True)
        return new
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no private key that can be read ({error})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} is no elliptic-curve key: it was not made by `ser-fl federation keys`")
    return key


def _read(path: Path) -> x509.Certificate:
    if not path.is_file():
        raise UserError(f"{path} is missing: `ser-fl federation keys` makes it, then it goes to this machine")
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no certificate ({error})") from None
