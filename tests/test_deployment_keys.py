"""Certificates and node keys: what they are good for, who can read them, and that none is ever written over."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ser_fl.cli.main import main
from ser_fl.deployment.certificates import certified_hosts, days_left
from ser_fl.deployment.keys import KeyFolder, make_keys, require_private
from ser_fl.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    """Keys for two nodes and a link with a name and an address of its own."""
    make_keys(tmp_path / "keys", ["link.example.org", "192.0.2.7"], ["site0", "site1"], days=30)
    return KeyFolder(tmp_path / "keys")


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


class Server:
    """A TLS server of one connection, with the certificate under test."""

    def __init__(self, folder: KeyFolder) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder.server, folder.server_key)
        self.listener = socket.create_server(("127.0.0.1", 0))

    def serve(self) -> None:
        client, _ = self.listener.accept()
        try:
            with self.context.wrap_socket(client, server_side=True) as secured:
                secured.recv(1)
        except ssl.SSLError:
            client.close()

    def greet(self, ca: Path, name: str) -> None:
        """A handshake with a client that trusts `ca` and looks for `name`, as strictly as Python can."""
        server = threading.Thread(target=self.serve)
        server.start()
        context = ssl.create_default_context(cafile=ca)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            with (
                socket.create_connection(self.listener.getsockname()) as plain,
                context.wrap_socket(plain, server_hostname=name),
            ):
                pass
        finally:
            server.join()


@pytest.fixture
def server(folder: KeyFolder) -> Iterator[Server]:
    made = Server(folder)
    yield made
    made.listener.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "link.example.org", "192.0.2.7"])
def test_a_client_with_the_root_certificate_accepts_the_link_under_each_of_its_names(
    folder: KeyFolder, server: Server, name: str
) -> None:
    server.greet(folder.ca, name)


def test_a_client_refuses_another_name_and_another_root(folder: KeyFolder, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        server.greet(folder.ca, "192.0.2.8")
    make_keys(tmp_path / "other", nodes=["site0"])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        server.greet(KeyFolder(tmp_path / "other").ca, "localhost")


def test_the_root_signs_and_the_link_only_serves(folder: KeyFolder) -> None:
    ca, link = (x509.load_pem_x509_certificate(file.read_bytes()) for file in (folder.ca, folder.server))
    link.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert link.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert certified_hosts(folder.server) == ("localhost", "link.example.org", "127.0.0.1", "::1", "192.0.2.7")
    assert 29 < days_left(folder.server) < 30
    assert days_left(folder.ca) > 3600


def test_private_files_are_for_their_owner_alone(folder: KeyFolder) -> None:
    private = [folder.ca_key, folder.server_key, folder.credential, folder.node("site0"), folder.node("site1")]
    assert [file.stat().st_mode & 0o777 for file in private] == [0o600] * 5
    for parent in {file.parent for file in private} | {folder.root}:
        assert parent.stat().st_mode & 0o777 == 0o700
    readable = {file for file in folder.root.rglob("*") if file.is_file() and file.stat().st_mode & 0o077}
    assert readable == {folder.ca, folder.server, folder.public("site0"), folder.public("site1")}


def test_node_keys_are_pairs_of_their_own_in_openssh_format(folder: KeyFolder) -> None:
    publics = set()
    for name, file in folder.public_keys.items():
        public = serialization.load_ssh_public_key(file.read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp384r1"
        assert load_private(folder.node(name)).public_key() == public
        publics.add(file.read_bytes().split()[1])
    assert list(folder.public_keys) == ["site0", "site1"] and len(publics) == 2


def test_a_key_is_never_written_over_and_nothing_else_is_made_either(folder: KeyFolder) -> None:
    before = contents(folder.root)
    with pytest.raises(UserError, match=r"nodes/site1 is there already"):
        make_keys(folder.root, ["further.example.org"], ["site2", "site1"])
    assert contents(folder.root) == before
    folder.node("site1").unlink()  # as on the machine of the link, which has the public key alone
    with pytest.raises(UserError, match=r"nodes/site1\.pub is there already"):
        make_keys(folder.root, nodes=["site1"])
    with pytest.raises(UserError, match="say what to add"):
        make_keys(folder.root)


def test_a_node_is_added_without_touching_what_is_there(folder: KeyFolder) -> None:
    before = contents(folder.root)
    shutil.rmtree(folder.ca_key.parent)  # its key is needed for certificates only
    lines = make_keys(folder.root, nodes=["site2"])
    after = contents(folder.root)
    assert [line.partition(":")[0] for line in lines] == ["the link", "the machine of site2"]
    assert set(after) - set(before) == {"nodes/site2", "nodes/site2.pub", "nodes/site2.policy.yaml"}
    assert all(after[name] == content for name, content in before.items() if name != "private/ca.key")


def test_further_hosts_join_the_old_ones_under_the_same_key_and_root(folder: KeyFolder) -> None:
    before = contents(folder.root)
    (line,) = make_keys(folder.root, ["further.example.org"])
    hosts = set(certified_hosts(folder.server))
    assert {"link.example.org", "192.0.2.7", "further.example.org", "localhost"} < hosts
    assert set(line[len("the link (") : line.index(")")].split(", ")) == hosts
    assert {name for name, content in contents(folder.root).items() if before[name] != content} == {"link/server.pem"}
    server = Server(folder)
    server.greet(folder.ca, "further.example.org")
    server.listener.close()


def test_a_call_that_was_cut_short_is_completed_with_the_keys_it_made(folder: KeyFolder) -> None:
    before = contents(folder.root)
    folder.server.unlink()
    make_keys(folder.root)
    after = contents(folder.root)
    assert after["link/server.key"] == before["link/server.key"]
    Server(folder).greet(folder.ca, "localhost")


@pytest.mark.parametrize(
    ("hosts", "nodes", "days", "said"),
    [
        (["10.0.0.7:9092"], [], 365, "without a port"),
        (["two words"], [], 365, "'two words'"),
        ([], ["../site0"], 365, r"letters, digits.*'\.\./site0'"),
        ([], [""], 365, "got ''"),
        ([], ["site0.pub"], 365, "got 'site0.pub'"),
        ([], ["site0", "site0"], 365, "site0 twice"),
        ([], ["site0"], 0, "--days must be between 1 and 36500, got 0"),
        ([], ["site0"], 10**12, "--days must be between 1 and 36500"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_made(
    tmp_path: Path, hosts: list[str], nodes: list[str], days: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make_keys(tmp_path / "keys", hosts, nodes, days)
    assert not (tmp_path / "keys").exists()


def test_a_new_certificate_needs_the_root_key(folder: KeyFolder) -> None:
    folder.ca_key.unlink()
    with pytest.raises(UserError, match=r"needs .*private/ca\.key"):
        make_keys(folder.root, ["further.example.org"])


def test_a_private_key_that_others_can_read_is_refused(folder: KeyFolder) -> None:
    require_private(folder.node("site0"), made_by="-")
    folder.node("site0").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        require_private(folder.node("site0"), made_by="-")
    with pytest.raises(UserError, match="missing: made by us"):
        require_private(folder.node("site9"), made_by="made by us")


def test_a_credential_is_made_once_for_each_link_and_again_where_it_was_removed(folder: KeyFolder) -> None:
    first = folder.credential.read_text()
    make_keys(folder.root, ["further.example.org"], ["site2"])
    assert folder.credential.read_text() == first and len(first.strip()) == 43
    folder.credential.unlink()
    (line,) = make_keys(folder.root)
    assert line.startswith("whoever may start runs") and str(folder.credential) in line
    assert folder.credential.read_text() != first and folder.credential.stat().st_mode & 0o777 == 0o600
    folder.credential.unlink()
    folder.server_key.unlink()  # as on a node's machine
    make_keys(folder.root, nodes=["site3"])
    assert not folder.credential.exists()


def test_who_gets_what_names_each_private_file_once(folder: KeyFolder) -> None:
    new = KeyFolder(folder.root.with_name("new"))
    lines = make_keys(new.root, nodes=["a", "b"])
    for private in (new.ca_key, new.credential, new.node("a"), new.node("b")):
        assert sum(line.split().count(str(private)) for line in lines) == 1, private


def test_the_command_says_it_in_lines_and_refuses_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = str(tmp_path / "keys")
    assert main(["federation", "keys", keys, "--host", "link.example.org", "--nodes", "site0,site1"]) == 0
    said = capsys.readouterr()
    assert (
        f"the machine of site1: {keys}/ca.crt, {keys}/nodes/site1.policy.yaml, {keys}/nodes/site1"
        in said.out.splitlines()
        and not said.err
    )
    assert main(["federation", "keys", keys, "--nodes", "site1"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "nodes/site1 is there already" in said.err and not said.out
