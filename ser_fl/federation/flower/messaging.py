"""Questions to many nodes at once: one message each, answers as they come, and a deadline for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ser_fl.errors import one_line

_SHORTEST_S, _LONGEST_S = 0.02, 0.5
"""Between two looks for answers: at first often, since a simulation answers in milliseconds."""

Answer = RecordDict | str
"""What a node said, or why it said nothing."""


class GivenUp(BaseException):
    """The process ends: no `Exception`, so that no client's failure is made of it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Sends messages through a grid and collects what comes back."""

    grid: Grid
    deadline_s: float
    """An answer that takes longer is not waited for, and dropped when it comes."""
    given_up: Event = field(default_factory=Event)
    """Set by another thread when nobody will answer any more."""

    def ask(self, message_type: str, questions: Mapping[int, RecordDict], number: int) -> Iterator[tuple[int, Answer]]:
        """Each node's answer, in the order in which they come.

        Args:
            message_type: which function of the ClientApp answers.
            questions: by node.
            number: the round, for Flower's own books.
        """
        messages = [
            Message(question, node, message_type, ttl=self.deadline_s + 60, group_id=str(number))
            for node, question in questions.items()
        ]
        sent = set(self.grid.push_messages(messages))
        waiting: dict[str, int] = {}
        for message, node in zip(messages, questions, strict=True):
            if message.metadata.message_id in sent:
                waiting[message.metadata.message_id] = node
            else:
                yield node, "the message could not be sent: its node is not connected, or the message is too large"
        begun, pause = time.monotonic(), _SHORTEST_S
        while waiting:
            came = self._pull(list(waiting))
            for asked, answer in came.items():
                yield waiting.pop(asked), answer
            if time.monotonic() - begun > self.deadline_s:
                break
            pause = _SHORTEST_S if came else min(1.5 * pause, _LONGEST_S)
            if waiting and self.given_up.wait(pause):
                raise GivenUp
        for node in waiting.values():
            yield node, f"no answer within {self.deadline_s:g} s (executor.deadline_s)"

    def _pull(self, waiting: list[str]) -> dict[str, Answer]:
        """Answers that are here, by the message that they answer.

        Where one is so damaged that Flower cannot put it together, the others still count.
        """
        try:
            messages = list(self.grid.pull_messages(waiting))
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            if len(waiting) == 1:
                return {waiting[0]: one_line(f"its answer cannot be read: {type(error).__name__}: {error}")}
            return {key: answer for one in waiting for key, answer in self._pull([one]).items()}
        answers = {message.metadata.reply_to_message_id: _content(message) for message in messages}
        return {asked: answers[asked] for asked in waiting if asked in answers}


def _content(message: Message) -> Answer:
    if message.has_error():
        error = message.error
        return one_line(f"Flower says {error.reason or 'nothing'} (code {error.code})")
    return message.content
