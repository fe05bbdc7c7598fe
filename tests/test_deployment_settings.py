"""What a link and a node are told before anything is started, and who may ask a link for what."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from ser_fl.deployment import certificates
from ser_fl.deployment import flower_environment as flower
from ser_fl.deployment.daemon import StateFolder, free_port
from ser_fl.deployment.flower_environment import (
    Outgoing,
    answers,
    flower_environment,
    join_address,
    split_address,
)
from ser_fl.deployment.flwr_gate import Gate
from ser_fl.deployment.keys import KeyFolder, make_keys
from ser_fl.deployment.link import Link
from ser_fl.deployment.node import Node, node_config
from ser_fl.errors import UserError
from ser_fl.flower_home import write_home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", nodes=["site0"])
    return tmp_path / "keys"


def ask(path: str, client: str, server: str, kind: str = "http", *authorisations: bytes) -> int | str:
    """What becomes of a call at the gate: "passed", or a status."""
    said: list[MutableMapping[str, Any]] = []

    async def app(*_: object) -> None:
        said.append({"status": "passed"})

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("a refused call is not read")

    scope = {"type": kind, "path": path, "client": (client, 40000), "server": (server, 9092)}
    scope |= {"headers": [(b"host", b"h"), *((b"authorization", said) for said in authorisations)]}
    asyncio.run(Gate(app, "secret")(scope, receive, send))
    return said[0].get("status") or said[0]["type"]


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("203.0.113.7", "203.0.113.7"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_the_links_own_machine_may_ask_for_everything_with_the_credential(client: str, server: str) -> None:
    for path in ("/v1/runtime/acquire-task", "/v1/fleet/pull-messages", "/health"):
        assert ask(path, client, server) == "passed"
    for path in ("/v1/control/start-run", "/v1/control/list-runs", "/docs", "/v1/responses", "/v1/runtime"):
        assert ask(path, client, server, "http", b"Bearer secret") == "passed"
        for given in ([], [b"Bearer "], [b"Bearer secre"], [b"secret"], [b"Bearer secret", b"Bearer secret"]):
            assert ask(path, client, server, "http", *given) == 401, (path, given)
    assert ask("/v1/control/stream-logs", client, server, "websocket") == "websocket.close"


@pytest.mark.parametrize(
    ("client", "server"), [("203.0.113.8", "203.0.113.7"), ("203.0.113.8", "127.0.0.1"), ("::ffff:203.0.113.8", "::1")]
)
def test_another_machine_may_ask_what_nodes_ask_and_nothing_else(client: str, server: str) -> None:
    for path in ("/v1/fleet/pull-messages", "/v1/fleet/activate-node", "/health"):
        assert ask(path, client, server) == "passed"
    for path in (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/health/../v1/control/start-run",
        "//v1/fleet/pull-messages",
        "/docs",
        "/openapi.json",
        "/",
    ):
        assert ask(path, client, server, "http", b"Bearer secret") == 403, path
    assert ask("/v1/control/stream-logs", client, server, "websocket", b"Bearer secret") == "websocket.close"


def test_flower_is_told_to_stay_offline_whatever_the_caller_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_LOG_LEVEL", "ERROR")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.setenv("no_proxy", "example.org")
    environment = flower_environment(Path("/home"))
    flower_settings = {name: value for name, value in environment.items() if name.startswith("FLWR_")}
    assert flower_settings == {
        "FLWR_HOME": "/home",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    }
    assert environment["OMP_NUM_THREADS"] == "3" and environment["PYTHONPATH"] == "somewhere"
    assert environment["no_proxy"] == "example.org,127.0.0.1,localhost,::1"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    asked = flower_environment(Path("/home"), Outgoing(telemetry=True, update_check=True), {"FLWR_LOG_LEVEL": "DEBUG"})
    assert (asked["FLWR_TELEMETRY_ENABLED"], asked["FLWR_DISABLE_UPDATE_CHECK"]) == ("1", "0")
    assert asked["FLWR_LOG_LEVEL"] == "DEBUG"


def test_without_flower_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(flower, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'ser-fl\[flower\]'"):
        make_keys(tmp_path / "keys")
    monkeypatch.setattr(flower, "version", lambda _: "1.42.0")
    with pytest.raises(UserError, match=r"1\.41\.0 is needed, 1\.42\.0 is installed"):
        make_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("address", "parts"), [("localhost:9092", ("localhost", 9092)), ("[::1]:1", ("::1", 1)), ("h:65535", ("h", 65535))]
)
def test_addresses_are_taken_apart_and_put_together(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts and join_address(*parts) == address


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":9092", "h:0", "h:65536", "https://h:1", "h:1x", "h:²"]
)
def test_what_is_no_address_is_refused(folder: Path, address: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        Node(folder, "site0", link=address).start()


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "two words",
        "it's",
        'a "b"',
        'it\'s "both"',
        "key=value other='x'",
        "x.toml",
        "back\\slash",
        "ä€😀",
        "a\nb",
    ],
)
def test_flower_reads_the_settings_of_a_node_as_they_were_given(folder: Path, tmp_path: Path, name: str) -> None:
    from flwr.common.config import parse_config_args

    data = tmp_path / name
    data.mkdir()
    config = node_config(data, ["A", name], data / "c")
    node = Node(folder, "site0", link="h:1", config=config, state_folder=tmp_path / "state")
    node.state.claim()
    read = parse_config_args([str(node._write_config())])
    node.state.release()
    own = {"policy": str(KeyFolder(folder).policy("site0")), "state": str(tmp_path / "state")}
    assert read == {"data-root": str(data), "speakers": f"A,{name}", "cache-dir": str(data / "c"), **own}


def test_paths_are_made_absolute_and_what_is_left_out_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert node_config(Path(), ["A", "B"], Path("cache")) == {
        "data-root": str(tmp_path),
        "speakers": "A,B",
        "cache-dir": str(tmp_path / "cache"),
    }
    assert node_config(None, [], None) == {}


def test_settings_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder: .*absent"):
        node_config(tmp_path / "absent", [], None)
    with pytest.raises(UserError, match=r"got 'A,,B'"):
        node_config(None, ["A", "", "B"], None)
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    latin.mkdir()
    with pytest.raises(UserError, match="not UTF-8") as refused:
        node_config(latin, [], None)
    str(refused.value).encode()


def test_flower_finds_the_link_by_the_connection_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.cli.flower_config import read_superlink_connection

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "a home"))
    monkeypatch.chdir(tmp_path)
    write_home(tmp_path / "a home", "127.0.0.1:9092", Path("it's ca.crt"), None)
    for name in (None, "ser_fl"):
        connection = read_superlink_connection(name)
        assert connection.address == "127.0.0.1:9092" and not connection.insecure
        assert connection.root_certificates == str(tmp_path / "it's ca.crt")
    assert list(tomllib.loads((tmp_path / "a home" / "config.toml").read_text())["superlink"]) == ["default", "ser_fl"]


def test_flower_sends_the_credential_that_lies_with_the_connection(tmp_path: Path) -> None:
    from flwr.cli.auth_plugin import OidcCliPlugin
    from flwr.cli.constant import AUTHN_TYPE_STORE_KEY
    from flwr.supercore.credential_store import FileCredentialStore

    given, home = tmp_path / "credential", tmp_path / "home"
    for secret in ("of-the-link", "another"):
        given.write_text(f"{secret}\n")
        write_home(home, "[::1]:9092", tmp_path / "ca.crt", given)
        assert (home / "credentials.yaml").stat().st_mode & 0o777 == 0o600
        plugin = OidcCliPlugin("[::1]:9092")
        plugin.store = FileCredentialStore(home / "credentials.yaml")
        assert plugin.store.get(AUTHN_TYPE_STORE_KEY % "[::1]:9092") == b"oidc"
        plugin.load_tokens()
        assert dict(plugin.write_tokens_to_metadata([]))["flwr-oidc-access-token"] == secret
    given.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        write_home(home, "[::1]:9092", tmp_path / "ca.crt", given)
    with pytest.raises(UserError, match="cannot be read"):
        write_home(home, "[::1]:9092", tmp_path / "ca.crt", tmp_path / "absent")


def test_a_link_that_cannot_start_as_it_stands_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is for localhost, .*, not 203\.0\.113\.7: .*--host 203\.0\.113\.7` adds it"):
        Link(folder, host="203.0.113.7").start()
    make_keys(folder, ["203.0.113.7"])
    with pytest.raises(UserError, match=r"cannot listen on 203\.0\.113\.7 port 9092"):  # no address of this machine
        Link(folder, host="203.0.113.7").start()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1 port .*in use"),
    ):
        Link(folder, port=other.getsockname()[1]).start()
    with pytest.raises(UserError, match="--port must be between 1 and 65535, got 70000"):
        Link(folder, port=70000).start()
    credential = KeyFolder(folder).credential
    credential.chmod(0o640)
    with pytest.raises(UserError, match="link/credential can be read by others"):
        Link(folder).start()
    credential.unlink()
    with pytest.raises(UserError, match=r"link/credential is missing: `ser-fl federation keys .*` makes it"):
        Link(folder).start()
    make_keys(folder)
    KeyFolder(folder).public("site0").unlink()
    with pytest.raises(UserError, match=r"no public key \(NAME\.pub\)"):
        Link(folder).start()
    with monkeypatch.context() as later:
        later.setattr(certificates, "datetime", _InTwoYears)
        with pytest.raises(UserError, match=r"server\.pem ended 36[5-7] days ago"):
            Link(folder).start()
    KeyFolder(folder).ca.write_text("damaged")
    with pytest.raises(UserError, match=r"ca\.crt is no certificate"):
        Link(folder).start()
    with pytest.raises(UserError, match=r"ca\.crt is no certificate"):
        Node(folder, "site0", link="localhost:9092").start()


class _InTwoYears(certificates.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return super().now(tz) + certificates.timedelta(days=2 * 365)


@contextmanager
def claimed_by_another(root: Path, hold: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that claims a state folder."""
    code = (
        "import sys, time, subprocess; from pathlib import Path; from ser_fl.deployment.daemon import StateFolder\n"
        f"state = StateFolder(Path({str(root)!r}), 'link'); state.claim(); {hold}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_state_folder_has_one_daemon_at_a_time(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state", "link")
    with claimed_by_another(state.root, "print('claimed', flush=True); time.sleep(60)") as other:
        assert state.pid.read_text() == f"{other.pid}\n"
        with pytest.raises(UserError, match=rf"a link runs on .*state already \(process {other.pid}\): stop it first"):
            state.claim()
    state.claim()
    assert state.pid.read_text() == f"{os.getpid()}\n"
    assert state.root.stat().st_mode & 0o777 == 0o700
    state.release()
    assert state.pid.read_text() == ""
    state.claim()
    state.release()


def test_parts_that_outlive_a_killed_daemon_are_waited_for(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state", "link")
    hold = "subprocess.Popen(['sleep', '2'], pass_fds=(state.lock,), stdout=2); print('left', flush=True)"
    with claimed_by_another(state.root, hold) as other:
        other.wait()
        began = time.monotonic()
        state.claim()
        assert time.monotonic() - began > 0.5
        state.release()


def test_nothing_answers_where_no_link_is(folder: Path) -> None:
    assert not answers(f"127.0.0.1:{free_port()}", KeyFolder(folder).ca)


def test_the_commands_load_neither_torch_nor_flower() -> None:
    code = "import sys; from ser_fl.deployment import keys, link, node; print({'torch', 'flwr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
