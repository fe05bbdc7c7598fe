"""A real federation on loopback: SuperLink, SuperNodes and an app, over TLS, with keys of our own making.

Every process started here carries a mark in its environment, which its children inherit: so what is left is seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from ser_fl.deployment.daemon import free_port
from ser_fl.deployment.flower_environment import Outgoing, flower_environment
from ser_fl.deployment.keys import KeyFolder, make_keys, write_policy
from ser_fl.deployment.link import Link
from ser_fl.deployment.node import Node
from ser_fl.errors import DaemonStopped, UserError

pytestmark = [pytest.mark.slow, pytest.mark.flower]
_PATIENCE_S = 300.0
_MARK = "SER_FL_TEST_MARK"


def wait_for(what: Callable[[], Any], name: str) -> Any:
    """What `what` answers, once it is true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (answer := what()):
        assert time.monotonic() < deadline, f"no {name} within {_PATIENCE_S} s"
        time.sleep(0.2)
    return answer


class Processes:
    """Commands of `ser-fl federation`, and all that descends from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.environment = os.environ | {_MARK: self.mark}

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a command; what it prints goes to a file of that name."""
        with (self.folder / name).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "ser_fl", "federation", *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

    def said(self, name: str) -> str:
        return (self.folder / name).read_text()

    def start_ready(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a command and wait for its first line."""
        process = self.start(name, *arguments)
        wait_for(lambda: "\n" in self.said(name), f"line of {name}")
        assert self.said(name).startswith("ready: "), self.said(name)
        return process

    def alive(self, *words: str) -> list[int]:
        """Processes of ours with these words on their command line; zombies do not count."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                # Flower's SuperExec hides its environment, but names a file of ours
                ours = str(self.folder).encode() in command or self.marked(process)
                if ours and command and {word.encode() for word in words} <= set(command.split(b"\0")):
                    found.append(int(process.name))
        return found

    def marked(self, process: Path) -> bool:
        """Whether a process inherited our environment, as far as it can be seen."""
        with contextlib.suppress(OSError):
            return f"{_MARK}={self.mark}".encode() in (process / "environ").read_bytes().split(b"\0")
        return False

    def kill(self, *words: str) -> None:
        (pid,) = self.alive(*words)
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    for pid in made.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A Flower app whose server asks every node for its settings and writes them down."""
    folder = tmp_path / "app"
    (folder / "asking").mkdir(parents=True)
    files = {
        "pyproject.toml": """
            [project]
            name = "asking"
            version = "1.0.0"
            license = "Apache-2.0"
            dependencies = ["flwr"]
            [tool.flwr.app]
            publisher = "tests"
            [tool.flwr.app.components]
            serverapp = "asking.server:app"
            clientapp = "asking.client:app"
            [tool.flwr.app.config]
            answers = ""
            nodes = 2
            """,
        "asking/__init__.py": "",
        "asking/server.py": """
            import json, time
            from pathlib import Path
            from flwr.app import Message, RecordDict
            from flwr.serverapp import ServerApp

            app = ServerApp()

            @app.main()
            def main(grid, context):
                while len(nodes := list(grid.get_node_ids())) < context.run_config["nodes"]:
                    time.sleep(0.2)
                asked = [Message(content=RecordDict(), dst_node_id=node, message_type="query") for node in nodes]
                replies = list(grid.send_and_receive(asked, timeout=100))
                told = [dict(reply.content["settings"]) for reply in replies if reply.has_content()]
                Path(context.run_config["answers"]).write_text(json.dumps(told))
            """,
        "asking/client.py": """
            from flwr.app import ConfigRecord, Message, RecordDict
            from flwr.clientapp import ClientApp

            app = ClientApp()

            @app.query()
            def query(message, context):
                ours = ("policy", "state")
                told = ConfigRecord({key: value for key, value in context.node_config.items() if key not in ours})
                return Message(content=RecordDict({"settings": told}), reply_to=message)
            """,
    }
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def run_flwr(home: Path, *arguments: str) -> str:
    """What `flwr` prints, as a submitter calls it."""
    done = subprocess.run(["flwr", *arguments], env=flower_environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settings_told(home: Path, app: Path, answers: Path) -> list[dict[str, str]]:
    """The settings of all nodes, as the app gets them; sorted."""
    run_flwr(home, "run", str(app), "ser_fl", "--stream", "-c", f'answers="{answers}"')
    told = json.loads(answers.read_text())
    answers.unlink()
    return sorted(told, key=lambda settings: settings.get("speakers", ""))


def run_any_app(keys: Path, name: str) -> None:
    """Let a node run an app with code of its own, as the one of this file is."""
    KeyFolder(keys).policy(name).write_text("app: any\n")


def statuses(home: Path) -> list[str]:
    listed = run_flwr(home, "supernode", "list", "ser_fl", "--format", "json")
    return sorted(node["status"] for node in json.loads(listed)["nodes"])


def test_a_federation_is_started_used_killed_and_stopped(processes: Processes, app: Path, tmp_path: Path) -> None:
    keys, port, answers = tmp_path / "keys", free_port(), tmp_path / "answers.json"
    make_keys(keys, nodes=["site0", "site1"])
    make_keys(tmp_path / "strange", nodes=["site2"])
    for name in ("site0", "site1"):
        run_any_app(keys, name)
    write_policy(KeyFolder(keys), "site2")
    home = keys / "state" / "link" / "flwr"
    data = tmp_path / 'it\'s the "corpus" of x.toml'
    data.mkdir()
    link = processes.start_ready("link", "link", keys, "--port", port)
    called = [f"--link=localhost:{port}", "--data", data]
    site0 = processes.start(
        "site0", "node", keys, "site0", *called, "--speakers", "Ä B,it's", "--cache", data / "cache"
    )
    site1 = processes.start("site1", "node", keys, "site1", f"--link=127.0.0.1:{port}")
    for name in ("site0", "site1"):
        wait_for(lambda name=name: "ready: " in processes.said(name), f"ready {name}")
    assert statuses(home) == ["online", "online"]

    told = [{}, {"data-root": str(data), "speakers": "Ä B,it's", "cache-dir": str(data / "cache")}]
    assert settings_told(home, app, answers) == told

    strange = KeyFolder(tmp_path / "strange")
    (keys / "nodes" / "site2").write_bytes(strange.node("site2").read_bytes())
    (keys / "nodes" / "site2").chmod(0o600)
    another_root = Node(strange.root, "site2", link=f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"certificate of 127\.0\.0\.1:.* is not accepted with .*strange/ca\.crt"):
        another_root.start(timeout_s=_PATIENCE_S)
    refused = processes.start("site2", "node", keys, "site2", f"--link=127.0.0.1:{port}")
    assert refused.wait(_PATIENCE_S) == 2
    assert processes.said("site2").startswith("ser-fl: the link does not know this node's key: ")
    assert processes.said("site2").count("\n") == 1

    link.kill()  # and its parts end with it
    link.wait()
    wait_for(lambda: not processes.alive("superlink"), "end of the SuperLink")
    processes.kill("supernode", str(keys / "nodes" / "site1"))  # its command is to start it again
    link = processes.start_ready("link", "link", keys, "--port", port)
    wait_for(lambda: "ready again: " in processes.said("site1"), "ready again site1")
    assert settings_told(home, app, answers) == told
    assert statuses(home) == ["online", "online"]
    assert site0.poll() is None and site1.poll() is None
    assert "site1 is started again" in processes.said("site1")

    for process in (site0, site1, link):
        process.terminate()
    for process in (site0, site1, link):
        assert process.wait(_PATIENCE_S) == 0
    assert [processes.said(name).splitlines()[-1] for name in ("link", "site0", "site1")] == ["stopped"] * 3
    assert processes.alive() == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_link_whose_part_dies_tells_the_end_of_its_log_and_leaves_nothing(
    processes: Processes, tmp_path: Path
) -> None:
    make_keys(tmp_path / "keys", nodes=["site0"])
    port = free_port()
    link = processes.start_ready("link", "link", tmp_path / "keys", "--port", port)
    processes.kill("superlink")
    assert link.wait(_PATIENCE_S) == 1
    said = processes.said("link")
    assert "ser-fl: the superlink has ended (exit code -9)" in said
    assert "Uvicorn running on https://127.0.0.1" in said
    assert processes.alive() == []


def test_a_node_waits_for_a_link_that_comes_later_and_goes_when_told(processes: Processes, tmp_path: Path) -> None:
    keys, port = tmp_path / "keys", free_port()
    make_keys(keys, nodes=["site0"])
    node = processes.start("node", "node", keys, "site0", "--link", f"127.0.0.1:{port}")
    wait_for(lambda: "does not answer yet" in processes.said("node"), "sign of waiting")
    with Link(keys, port=port):
        wait_for(lambda: "ready: " in processes.said("node"), "ready node")
    node.send_signal(signal.SIGINT)
    assert node.wait(_PATIENCE_S) == 0
    assert processes.alive() == []


def own_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])
    return None


def test_withdrawn_keys_are_refused_and_only_the_links_machine_gives_orders(tmp_path: Path) -> None:
    keys, port = KeyFolder(tmp_path / "keys"), free_port()
    make_keys(keys.root, nodes=["site0", "site1"])
    with Link(keys.root, port=port) as link:
        assert statuses(link.state.home) == ["registered", "registered"]
        with Node(keys.root, "site1", link=link.address) as node:
            assert statuses(link.state.home) == ["online", "registered"]
            daemons = list(node._daemons)
            daemons[0].ask_to_stop()
            time.sleep(0.2)  # in the middle of its clean-up it is asked again
        assert [daemon.process.returncode for daemon in daemons] == [0, 0]
        assert statuses(link.state.home) == ["offline", "registered"]  # it has said good-bye
    public = keys.public("site1").read_bytes()
    keys.public("site1").unlink()
    make_keys(keys.root, nodes=["site2"])
    with Link(keys.root, host="0.0.0.0", port=port) as link:
        assert statuses(link.state.home) == ["registered", "registered", "unregistered"]
        with pytest.raises(UserError, match="does not know this node's key"):
            Node(keys.root, "site1", link=link.address).start(timeout_s=_PATIENCE_S)
        if (address := own_address()) is not None:
            context = ssl.create_default_context(cafile=keys.ca)
            for path, status in (
                ("control/start-run", 403),
                ("control/register-node", 403),
                ("fleet/pull-messages", 415),
            ):
                for source in ("127.0.0.1", address):
                    connection = HTTPSConnection("127.0.0.1", port, context=context, source_address=(source, 0))
                    connection.request("POST", f"/v1/{path}", b"", {"X-Forwarded-For": "127.0.0.1"})
                    answered = connection.getresponse().status
                    connection.close()
                    assert (answered == 403) == (source == address and status == 403), (path, source, answered)
    keys.public("site1").write_bytes(public)
    with pytest.raises(UserError, match="key of site1 was withdrawn from this link and cannot come back"):
        Link(keys.root, port=port).start()


class Proxy:
    """What would leave the machine: a proxy that notes which hosts it is asked for, and lets nobody through."""

    def __init__(self) -> None:
        self.hosts: set[str] = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client:
                    self.hosts.add(client.recv(4096).split(b" ")[1].split(b":")[0].decode())

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        return dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), address)


def test_nothing_leaves_the_machine_unless_asked(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, port = tmp_path / "keys", free_port()
    make_keys(keys, nodes=["site0"])
    run_any_app(keys, "site0")
    proxy = Proxy()
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    with Link(keys, port=port) as link, Node(keys, "site0", link=link.address):
        run = ("run", str(app), "ser_fl", "--stream", "-c", f'nodes=1 answers="{tmp_path / "answers"}"')
        run_flwr(link.state.home, *run)
        assert json.loads((tmp_path / "answers").read_text()) == [{}]
    assert proxy.hosts == set()
    with Link(keys, port=port, outgoing=Outgoing(telemetry=True, update_check=True)):
        wait_for(lambda: {"telemetry.flower.ai", "api.flower.ai"} <= proxy.hosts, "call for the internet")
    proxy.listener.close()


def test_an_app_with_code_of_its_own_is_refused_over_tls(app: Path, tmp_path: Path) -> None:
    """By the policy that `keys` writes: the run's server gets an error, and the code has not even been stored."""
    keys, port = tmp_path / "keys", free_port()
    make_keys(keys, nodes=["site0"])
    with Link(keys, port=port) as link, Node(keys, "site0", link=link.address) as node:
        run = ("run", str(app), "ser_fl", "--stream", "-c", f'nodes=1 answers="{tmp_path / "answers"}"')
        run_flwr(link.state.home, *run)
        assert json.loads((tmp_path / "answers").read_text()) == []
        (line,) = (json.loads(line) for line in (node.state.root / "audit.jsonl").read_text().splitlines())
        assert line["type"] == "app" and line["allowed"] is False and "'asking/" in line["why"]
        assert not list(node.state.home.rglob("*.py"))


def test_a_node_that_flower_cannot_start_tells_the_end_of_its_log(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    make_keys(keys.root, nodes=["site0"])
    keys.node("site0").write_text("damaged")
    with pytest.raises(DaemonStopped, match=r"(?s)the supernode has ended \(exit code 1\).*Exit Code: 302"):
        Node(keys.root, "site0", link=f"127.0.0.1:{free_port()}").start(timeout_s=_PATIENCE_S)
