"""What is replaced inside Flower: each hook is needed still, works, and is in the program that it is for.

A hook whose first test fails has become superfluous: it goes, with its file.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from flwr.app import Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode
from flwr.supercore import heartbeat
from flwr.supercore.constant import ExecutorType, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.main import create_app
from flwr.supernode import fleet_http_connection as connection
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeStateFactory

from ser_fl.deployment import flwr_gate, flwr_warm_tasks, program
from ser_fl.deployment.flwr_foreign_apps import refuse_foreign_apps, why_refused
from ser_fl.deployment.flwr_overdue_replies import send_overdue_replies
from ser_fl.deployment.flwr_patience import ANSWERED, keep_calling

pytestmark = pytest.mark.flower
RUN = 7


class Node:
    """A SuperNode's store, and what it sends to a link that has no message for it."""

    def __init__(self) -> None:
        factory = ObjectStoreFactory()
        self.store, self.state = factory.store(), NodeStateFactory(factory).state()
        self.sent: list[str] = []

    def question(self) -> Message:
        """What came from the link, for a task that has not taken it yet."""
        asked = Message(RecordDict(), dst_node_id=1, message_type="query")
        supernode._insert_message(asked, self.state, self.store)
        return asked

    def reply(self) -> None:
        """What a task puts there in answer to a message of the run."""
        supernode._insert_message(Message(Error(1, "no matter"), reply_to=self.question()), self.state, self.store)

    def pull(self) -> int | None:
        """Ask the link for a message: there is none."""
        nothing: Any = None
        return supernode._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: None,
            get_run=nothing,
            get_fab=nothing,
            pull_object=nothing,
            confirm_message_received=nothing,
            trusted_entities=None,
        )

    def push(self) -> None:
        """Send the replies that are there."""

        def send(message: Message, *_: Any) -> tuple[set[str], str]:
            self.sent.append(message.metadata.message_type)
            return set(), ""

        supernode._push_messages(state=self.state, object_store=self.store, send=send, push_object=lambda *_: None)


@pytest.fixture(autouse=True)
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where messages are made."""
    for name, number in {"_run_id": RUN, "_task_id": 1, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, number)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernode, "_pull_and_store_message", supernode._pull_and_store_message)
    send_overdue_replies()


def test_flower_leaves_a_reply_that_it_did_not_wait_for() -> None:
    """Why there is `send_overdue_replies`: remove it when this fails."""
    node = Node()
    node.reply()
    assert node.pull() is None


@pytest.mark.usefixtures("patched")
def test_a_reply_is_sent_although_no_message_came() -> None:
    node = Node()
    assert node.pull() is None
    node.reply()
    assert node.pull() == RUN
    node.push()
    assert node.sent == ["query"]
    assert node.pull() is None


@pytest.mark.usefixtures("patched")
def test_what_is_no_reply_that_waits_makes_nobody_wait_for_one() -> None:
    """Flower would wait for ever: sending begins with waiting until there is a reply."""
    node = Node()
    node.question()
    assert node.pull() is None
    node.reply()
    node.state.get_messages_legacy(is_reply=True)  # it is being sent
    assert node.pull() is None


def _refused_with(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://link/v1/fleet/pull-messages")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))


_HANDSHAKE = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")


def test_flower_gives_up_a_link_at_a_failed_handshake() -> None:
    """Why there is `flwr_patience`."""
    assert made_invoker().should_giveup(_HANDSHAKE)


def made_invoker() -> Any:
    module: Any = connection
    return module.make_simple_http_retry_invoker()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Flower's modules with the hook; its command is replaced by one whose connection ends at once."""
    program = import_module("flwr.supernode.cli.flower_supernode")
    client = vars(connection)["FleetHttpClient"]
    for place, name in (
        (connection, "make_simple_http_retry_invoker"),
        (connection, "HeartbeatSender"),
        (heartbeat, "HEARTBEAT_DEFAULT_INTERVAL"),
    ):
        monkeypatch.setattr(place, name, vars(place)[name])
    monkeypatch.setattr(client, "_unary_unary", lambda client, **call: call["request"])
    monkeypatch.setattr(program, "start_client_internal", lambda **settings: None)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    keep_calling()
    return program


@pytest.mark.usefixtures("patient")
def test_a_link_is_given_up_where_it_refuses_and_nowhere_else() -> None:
    invoker = made_invoker()
    assert not invoker.should_giveup(_HANDSHAKE) and not invoker.should_giveup(httpx.ReadError("reset"))
    assert not invoker.should_giveup(_refused_with(503)) and invoker.should_giveup(_refused_with(412))
    pauses = invoker.wait_gen_factory()
    assert [next(pauses) for _ in range(6)] == [1, 2, 4, 4, 4, 4]


@pytest.mark.usefixtures("patient")
def test_heartbeats_go_on_whatever_is_answered() -> None:
    module: Any = connection
    for problem in (_refused_with(500), _HANDSHAKE, RuntimeError("does not recognize this SuperNode")):

        def beat(problem: Exception = problem) -> bool:
            raise problem

        assert module.HeartbeatSender(beat).heartbeat_fn() is False
    sender = module.HeartbeatSender(lambda: True)
    assert sender.heartbeat_fn() is True
    pauses: list[float] = []
    sender._stop_event.wait = lambda pause_s: (pauses.append(pause_s), sender._stop_event.set())
    sender._run()
    assert 4 < pauses[0] < 7, "a silence of 15 s is one of several heartbeats"


def test_an_answer_leaves_a_sign_and_a_failure_none(patient: Any, tmp_path: Path) -> None:
    client = vars(connection)["FleetHttpClient"].__new__(vars(connection)["FleetHttpClient"])
    with pytest.raises(KeyError):
        client._unary_unary(nothing=True)
    assert not (tmp_path / "flwr" / ANSWERED).exists()
    assert client._unary_unary(request="answer") == "answer"
    assert (tmp_path / "flwr" / ANSWERED).exists()


def test_a_supernode_ends_with_its_connection(patient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's would live on with its second thread."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda *arguments: sent.append(arguments))
    patient.start_client_internal(server_address="link:1")
    assert sent == [(os.getpid(), signal.SIGTERM)]


_PROJECT = """
[project]
name = "any"
version = "1.0.0"
description = "Any."
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "x:app"
clientapp = "{client}"
"""
_OURS = "ser_fl.federation.flower.client_app:app"


def bundle(folder: Path, client: str = _OURS, **files: str) -> Fab:
    folder.mkdir(exist_ok=True)
    for name, text in {"pyproject.toml": _PROJECT.format(client=client), **files}.items():
        (folder / name).write_text(text)
    content = build_fab_from_disk(folder)
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


def take_app(node: Node, fab: Fab, node_config: dict[str, Any]) -> int | None:
    """A SuperNode is sent a message of a run with this app."""
    message = Message(RecordDict(), dst_node_id=1, message_type="query")
    message.metadata.__dict__["_message_id"] = message.object_id
    node.state.set_node_id(1)
    run = Run.create_empty(RUN)
    run.fab_hash = fab.hash_str
    return supernode._pull_and_store_message(
        state=node.state,
        object_store=node.store,
        node_config=node_config,
        receive=lambda: (message, get_object_tree(message)),
        get_run=lambda _: run,
        get_fab=lambda *_: fab,
        pull_object=lambda _, name: message.deflate() if name == message.object_id else RecordDict().deflate(),
        confirm_message_received=lambda *_: None,
        trusted_entities=None,
    )


def node_with(folder: Path, policy: str) -> dict[str, str]:
    file = folder / "site0.policy.yaml"
    file.write_text(policy)
    file.chmod(0o600)
    return {"policy": str(file), "state": str(folder / "state")}


def test_flower_runs_an_app_with_code_of_its_own(tmp_path: Path) -> None:
    """Why there is `refuse_foreign_apps`."""
    node = Node()
    take_app(node, bundle(tmp_path / "app", client="client:app", **{"client.py": "app = 1"}), {})
    assert node.state.get_run(RUN) is not None


@pytest.mark.parametrize("policy", ["schema: 1", "app: any"])
def test_a_node_refuses_an_app_with_code_unless_its_policy_takes_any(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode, "_pull_and_store_message", supernode._pull_and_store_message)
    refuse_foreign_apps()
    node, node_config = Node(), node_with(tmp_path, policy)
    foreign = bundle(tmp_path / "app", client="client:app", **{"client.py": "app = 1"})
    assert take_app(node, foreign, node_config) == RUN
    if policy == "app: any":
        assert node.state.get_run(RUN) is not None
        return
    assert node.state.get_run(RUN) is None
    (reply,) = node.state.get_messages_legacy(is_reply=True)
    assert reply.error.code == ErrorCode.INVALID_FAB and "this app brings 'client.py'" in reply.error.reason
    line = json.loads((tmp_path / "state" / "audit.jsonl").read_text())
    assert (line["type"], line["allowed"], line["run"]) == ("app", False, str(RUN))
    take_app(node, bundle(tmp_path / "ours", **{"run.toml": 'config = "x"'}), node_config)
    assert node.state.get_run(RUN) is not None


@pytest.mark.parametrize(
    ("client", "files", "said"),
    [
        (_OURS, {}, None),
        (_OURS, {"run.toml": "a = 1"}, None),
        (_OURS, {"torch.py": "evil = 1"}, "brings 'torch.py'"),
        (_OURS, {"notes.md": "x"}, "brings 'notes.md'"),
        ("os:system", {}, "this app runs {'clientapp': 'os:system'}"),
        ("ser_fl.federation.flower.server_app:app", {}, "this app runs"),
    ],
)
def test_only_our_app_without_code_may_run(
    tmp_path: Path, client: str, files: dict[str, str], said: str | None
) -> None:
    refused = why_refused(bundle(tmp_path / "app", client, **files).content, node_with(tmp_path, "schema: 1"))
    assert refused is None if said is None else said in str(refused)


def test_what_is_no_app_or_no_policy_is_refused(tmp_path: Path) -> None:
    good = bundle(tmp_path / "app").content
    assert "cannot be read" in str(why_refused(good[:-40], node_with(tmp_path, "schema: 1")))
    assert "cannot be read" in str(why_refused(good, node_with(tmp_path, "app: [")))
    twice = io.BytesIO(good)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("pyproject.toml", _PROJECT.format(client="os:system"))
    assert "brings 'pyproject.toml'" in str(why_refused(twice.getvalue(), node_with(tmp_path, "schema: 1")))


@pytest.mark.parametrize("path", ["/v1/control/register-node", "/v1/control/start-run", "/v1/runtime/acquire-task"])
def test_flower_lets_any_machine_give_orders(path: str) -> None:
    """Why there is `flwr_gate`."""
    app = create_app()

    async def status(served: Any) -> int:
        elsewhere = httpx.ASGITransport(served, client=("203.0.113.8", 40000))
        async with httpx.AsyncClient(transport=elsewhere, base_url="https://203.0.113.7") as client:
            return (await client.post(path, content=b"")).status_code

    assert asyncio.run(status(app)) != 403
    assert asyncio.run(status(flwr_gate.Gate(app, "secret"))) == 403


def test_flower_serves_all_on_one_address() -> None:
    """Why there is `flwr_gate`: by its own words the other addresses are gone."""
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink

    words = {action.dest: str(action.help) for action in _parse_args_run_superlink()._actions}
    assert words["control_api_address"].startswith("Deprecated") and words["fleet_api_address"].startswith("Deprecated")


def test_flower_starts_an_interpreter_for_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there is `flwr_warm_tasks`."""
    started: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda words, **_: started.append(words))
    assert set(ExecutorType) == {ExecutorType.SUBPROCESS, ExecutorType.KUBERNETES}
    SubprocessExecutor().launch(_spec())
    assert [words[0] for words in started] == ["flwr-clientapp"]


def test_tasks_are_forked_with_the_words_that_flower_would_have_started_them_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda words, **_: started.append(words))
    monkeypatch.setattr(SubprocessExecutor, "launch", SubprocessExecutor.launch)
    monkeypatch.setattr(flwr_warm_tasks, "ensure_running", lambda: None)

    class Forked:
        def __init__(self, *, target: object, args: tuple[list[str]], daemon: bool) -> None:
            started.append(args[0])

        def start(self) -> None:
            """Nothing is."""

    cold = SubprocessExecutor.launch
    flwr_warm_tasks.start_tasks_warm()
    monkeypatch.setattr(flwr_warm_tasks._FORK_SERVER, "Process", Forked)
    settings: dict[str, Any]
    for settings in ({}, {"insecure": False, "root_certificates_path": "ca.crt"}, {"parent_pid": 7}):
        cold(SubprocessExecutor(), _spec(**settings))
        SubprocessExecutor().launch(_spec(**settings))
        assert started[-1] == started[-2]
    SubprocessExecutor().launch(_spec(runtime_dependency_install=True))
    assert "--allow-runtime-dependency-installation" in started[-1], "as Flower does it, in a new interpreter"


def _spec(**changes: Any) -> ExecutionSpec:
    values: dict[str, Any] = {
        "task_type": TaskType.CLIENT_APP,
        "runtime_api_address": "127.0.0.1:1",
        "token": "t",
        "insecure": True,
        "root_certificates_path": None,
        "runtime_dependency_install": False,
        "parent_pid": None,
        "suppress_output": False,
        "task_id": 1,
    }
    return ExecutionSpec(**(values | changes))


@pytest.mark.parametrize("name", ["superlink", "supernode", "superexec"])
@pytest.mark.usefixtures("patient")
def test_each_program_is_started_with_its_hook(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = {
        "superlink": lambda: uvicorn.run,
        "supernode": lambda: supernode._pull_and_store_message,
        "superexec": lambda: SubprocessExecutor.launch,
    }[name]
    monkeypatch.setattr(uvicorn, "run", uvicorn.run)
    monkeypatch.setattr(supernode, "_pull_and_store_message", supernode._pull_and_store_message)
    monkeypatch.setattr(SubprocessExecutor, "launch", SubprocessExecutor.launch)
    monkeypatch.setattr(flwr_warm_tasks, "ensure_running", lambda: None)
    monkeypatch.setattr(program, "_end_with", lambda parent: None)
    flowers, found = replaced(), list[object]()
    module = import_module(program._PROGRAMS[name][0])  # a function of that name hides it
    monkeypatch.setattr(module, f"flower_{name}", lambda: found.append(replaced()))
    monkeypatch.setattr("sys.argv", ["program", "1", name])
    program.main()
    assert len(found) == 1 and found[0] is not flowers
