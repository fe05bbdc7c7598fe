"""Replies that Flower's SuperNode did not wait for, by its own loop's functions and its own state."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeStateFactory

from ser_fl.deployment import launch
from ser_fl.deployment.flwr_overdue_replies import send_overdue_replies

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


def test_a_supernode_is_started_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    flowers, found = supernode._pull_and_store_message, list[object]()
    monkeypatch.setattr(supernode, "_pull_and_store_message", flowers)
    program = import_module("flwr.supernode.cli.flower_supernode")  # a function of that name hides it
    monkeypatch.setattr(program, "flower_supernode", lambda: found.append(supernode._pull_and_store_message))
    monkeypatch.setattr(launch, "_end_with", lambda parent: None)
    monkeypatch.setattr("sys.argv", ["launch", "1", "supernode"])
    launch.main()
    assert len(found) == 1 and found[0] is not flowers
