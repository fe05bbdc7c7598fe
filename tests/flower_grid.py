"""A Flower grid in one process: messages go to ClientApps that are called where they are, with all of Flower's checks.

It stands in for a SuperLink where a test needs many rounds, faults at a given moment or hostile answers; the real one
is in tests/test_flower_deployed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ser_fl.runs.folder import RunFolder

Tamper = Callable[[Message, Message], Message | None]
"""(question, answer) -> what arrives, or None where nothing does."""


def as_they_are(question: Message, answer: Message) -> Message | None:
    return answer


@dataclass
class InProcessGrid(Grid):
    """Nodes by id; answers arrive in the reverse order of the questions."""

    app: ClientApp
    nodes: dict[int, dict[str, Any]]
    """Node configurations of those that are connected."""
    tamper: Tamper = as_they_are
    asked: list[Message] = field(default_factory=list)
    _answers: dict[str, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for question in messages:
            question.metadata.__dict__["_message_id"] = str(uuid4())
            self.asked.append(question)
            if (config := self.nodes.get(question.metadata.dst_node_id)) is None:
                continue
            context = Context(1, question.metadata.dst_node_id, config, RecordDict(), {})
            try:
                answer = self.app(question, context)
            except Exception as error:
                answer = Message(Error(2, str(error)), reply_to=question)
            arrived = self.tamper(question, answer)
            if arrived is not None:
                self._answers[question.metadata.message_id] = arrived
            ids.append(question.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        here = [key for key in reversed(list(message_ids)) if key in self._answers]
        return [self._answers.pop(key) for key in here]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def summary_of(run: RunFolder) -> dict[str, Any]:
    """Without what one machine can tell of the test part and a server of many cannot, shared texts and recordings, and
    without who answered together.
    """
    summary = run.read_json(run.summary)
    del summary["parties"]
    known = ("num_utterances", "speakers", "num_speakers")
    return summary | {"shared": {name: summary["shared"][name] for name in known}}
