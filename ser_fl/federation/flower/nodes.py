"""Who of the connected nodes holds which speakers, and how they are asked: a message each, and a deadline for all."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from threading import Event
from typing import Any, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ser_fl.config.schema import Config, dump
from ser_fl.data.prepared import ClientManifest
from ser_fl.errors import UserError, one_line
from ser_fl.federation.flower.holding import Holding
from ser_fl.federation.flower.serialisation import Enrolled, Speakers, WireError, asked_in, put_json, take_reply
from ser_fl.runs.parties import LeftOut, shown_names
from ser_fl.runs.records import Offence

_LOG = logging.getLogger(__name__)
_SHORTEST_S, _LONGEST_S = 0.02, 0.5
"""Between two looks for answers: at first often, since a simulation answers in milliseconds."""

T = TypeVar("T")
Answer = tuple[T, RecordDict] | str
"""What a node said, checked, with tensors that are yet to be taken; or why it said nothing that can be used."""


class GivenUp(BaseException):
    """The process ends: no `Exception`, so that no client's failure is made of it."""


@dataclass(slots=True)
class Nodes:
    """The nodes of an experiment, known by their speakers: a restarted one is found by them, whatever its key."""

    grid: Grid
    config: Config
    """As nodes are told it: the split is settled by names as soon as their speakers are known."""
    given_up: Event = field(default_factory=Event)
    """Set by another thread when nobody will answer any more."""
    classes: tuple[str, ...] = ()
    manifest: ClientManifest = field(init=False)
    """What all of them hold, as soon as that is known."""
    speaker_of: dict[str, str] = field(default_factory=dict)
    """By client: somebody whose utterances it trains on."""
    node_of: dict[str, int] = field(default_factory=dict)
    """By speaker."""
    holdings: dict[int, Holding] = field(default_factory=dict)
    """What each node told when it was enrolled."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Nodes that were not enrolled, or not let in later, in the order in which that was found."""
    run: str = field(default_factory=lambda: token_hex(8))
    """What tells answers to this run from those to others."""

    def question(self, kind: str, number: int = 0, **content: Any) -> RecordDict:
        """A message with the experiment in it, so that a node need not remember any; the number is the round's."""
        records, asked = RecordDict(), {"run": self.run, "kind": kind, "number": number}
        settings = told_settings(self.config)
        put_json(records, {"config": settings, "classes": self.classes, "asked": asked, **content})
        return records

    def leave_out(self, node: int, reason: str) -> None:
        """A node takes part in nothing (more); a `UserError` where the settings say that nobody is left out."""
        if not self.config.federation.strikes:
            raise UserError(f"a node cannot take part: {reason} (node {node})")
        names = tuple(sorted(speaker for speaker, holder in self.node_of.items() if holder == node))
        self.left_out.append(LeftOut(names=names, node=str(node), reason=one_line(reason)))
        _LOG.warning("%s", self.left_out[-1])
        self.node_of = {speaker: holder for speaker, holder in self.node_of.items() if holder != node}

    def ask(
        self, message_type: str, questions: Mapping[int, RecordDict], kind: type[T], number: int = 0
    ) -> Iterator[tuple[int, Answer[T]]]:
        """Answers of this kind to these very questions as they come, until the deadline; `number` is the round's, for
        Flower's books.
        """
        deadline_s = self.config.executor.deadline_s
        messages = [
            Message(question, node, message_type, ttl=deadline_s + 60, group_id=str(number))
            for node, question in questions.items()
        ]
        sent = set(self.grid.push_messages(messages))
        waiting, asked = dict[str, int](), dict[str, dict[str, Any]]()
        for message, node in zip(messages, questions, strict=True):
            if message.metadata.message_id in sent:
                waiting[message.metadata.message_id] = node
                asked[message.metadata.message_id] = asked_in(message.content)
            else:
                yield node, "the message could not be sent: its node is not connected, or the message is too large"
        begun, pause = time.monotonic(), _SHORTEST_S
        while waiting:
            came = self._pull({one: asked[one] for one in waiting}, kind)
            for one, answer in came.items():
                yield waiting.pop(one), answer
            if time.monotonic() - begun > deadline_s:
                break
            pause = _SHORTEST_S if came else min(1.5 * pause, _LONGEST_S)
            if waiting and self.given_up.wait(pause):
                raise GivenUp
        for node in waiting.values():
            yield node, f"no answer within {deadline_s:g} s (executor.deadline_s)"

    def _pull(self, waiting: Mapping[str, Mapping[str, Any]], kind: type[T]) -> dict[str, Answer[T]]:
        """Answers that are here, by the message that they answer; none that Flower cannot put together."""
        try:
            messages = list(self.grid.pull_messages(list(waiting)))
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            if len(waiting) == 1:
                reason = one_line(f"its answer cannot be read: {type(error).__name__}: {error}")
                return {one: Offence(reason) for one in waiting}
            alone = (self._pull({one: asked}, kind) for one, asked in waiting.items())
            return {one: answer for pulled in alone for one, answer in pulled.items()}
        answers: dict[str, Answer[T]] = {}
        for message in messages:
            if message.has_error():
                told = message.error
                answer: Answer[T] = one_line(f"Flower says {told.reason or 'nothing'} (code {told.code})")
            else:
                try:
                    said = take_reply(message.content, kind, waiting[message.metadata.reply_to_message_id])
                    answer = said if isinstance(said, str) else (said, message.content)
                except WireError as problem:
                    answer = Offence(one_line(f"its answer cannot be used: {problem}"))
            answers[message.metadata.reply_to_message_id] = answer
        return {one: answers[one] for one in waiting if one in answers}

    def ask_holders(
        self,
        message_type: str,
        speakers: Mapping[str, str],
        question: Callable[[list[str]], RecordDict],
        kind: type[T],
        number: int,
    ) -> Iterator[tuple[str, Answer[T]]]:
        """The answers of the nodes where clients or speakers are, each under the names asked for. `speakers` says for
        each name who is at the node; `question` is made for the names at one node.
        """
        connected = self.refresh()
        at_node: dict[int, list[str]] = {}
        for name, speaker in speakers.items():
            at_node.setdefault(self.node_of[speaker], []).append(name)
        for node in at_node.keys() - connected:
            for name in at_node.pop(node):
                yield name, "its node is not connected"
        questions = {node: question(names) for node, names in at_node.items()}
        for node, answer in self.ask(message_type, questions, kind, number):
            for name in at_node[node]:
                yield name, answer

    def refresh(self) -> set[int]:
        """The nodes that are connected; new ones take over the speakers of those that are gone."""
        connected, refused = set(self.grid.get_node_ids()), {left.node for left in self.left_out}
        known = set(self.node_of.values())
        if gone := known - connected:
            new = [node for node in sorted(connected - known) if str(node) not in refused]
            questions = {node: self.question("query.speakers") for node in new}
            for node, answer in self.ask("query.speakers", questions, Speakers):
                named = [] if isinstance(answer, str) else [facts.speaker for facts in answer[0].speakers]
                if taken := [name for name in named if self.node_of.get(name) in gone]:
                    self._let_in(node, taken)
        return connected

    def _let_in(self, node: int, speakers: Sequence[str]) -> None:
        """Give a new node the speakers of nodes that are gone, if its data are the same."""
        question = {node: self.question("query.enrol")}
        for _, answer in self.ask("query.enrol", question, Enrolled):
            if isinstance(answer, str):
                _LOG.warning("node %d cannot take over %s yet: %s", node, shown_names(speakers), answer)
                continue
            try:
                told = Holding.of(*answer, self.config)
                for speaker in speakers:
                    told.check_same(speaker, self.holdings[self.node_of[speaker]])
            except WireError as problem:
                names = tuple(map(str, speakers))
                reason = one_line(f"it names speakers of a node that is gone, and {problem}")
                self.left_out.append(LeftOut(names=names, node=str(node), reason=reason))
                _LOG.warning("%s", self.left_out[-1])
                continue
            self.holdings[node] = told
            self.node_of |= dict.fromkeys(speakers, node)


def told_settings(config: Config) -> dict[str, Any]:
    """The experiment as nodes are told it: with nothing in it of the server's own folders and accounts."""
    settings = dump(config)
    settings |= {"run_dir": None, "resume": False, "profile": False, "init_from": None, "run_name": None}
    settings["tracking"] = {"backend": "none", "mode": "offline", "project": "", "entity": None, "group": None}
    settings["data"] |= {"root": None, "cache_dir": None}
    shared = {key: settings["executor"][key] for key in ("threads", "accelerator", "engine")}
    settings["executor"] = {"name": "serial", "workers": "auto", **shared}
    return settings
