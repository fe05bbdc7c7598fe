"""Who of the connected nodes holds which speakers, and how they are asked: a message each, and a deadline for all."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, TypeVar

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ser_fl.config.schema import Config, dump
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.heard import Shared
from ser_fl.data.normalisation import Scale
from ser_fl.data.partitioning import capped
from ser_fl.data.prepared import ClientManifest, Sizes, digest_of_all
from ser_fl.data.splits import PARTS, SpeakerFacts, check_parts, settle_split
from ser_fl.data.utterance import SkippedFile
from ser_fl.errors import UserError, one_line
from ser_fl.federation.flower.serialisation import Enrolled, Speakers, WireError, put_json, take, take_reply

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
    num_examples: dict[str, int] = field(default_factory=dict)
    """Training utterances of each client: what its updates are weighted by."""
    manifest: ClientManifest = field(init=False)
    """What all of them hold, as soon as that is known."""
    speaker_of: dict[str, str] = field(default_factory=dict)
    """By client: somebody whose utterances it trains on."""
    _node_of: dict[str, int] = field(default_factory=dict)
    """By speaker."""

    def question(self, **content: Any) -> RecordDict:
        """A message with the experiment in it, so that a node need not remember any."""
        records = RecordDict()
        put_json(records, {"config": told_settings(self.config), "classes": self.classes, **content})
        return records

    def ask(
        self, message_type: str, questions: Mapping[int, RecordDict], kind: type[T], number: int = 0
    ) -> Iterator[tuple[int, Answer[T]]]:
        """Answers of this kind as they come, until the deadline; `number` is the round's, for Flower's books."""
        deadline_s = self.config.executor.deadline_s
        messages = [
            Message(question, node, message_type, ttl=deadline_s + 60, group_id=str(number))
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
            came = self._pull(list(waiting), kind)
            for asked, answer in came.items():
                yield waiting.pop(asked), answer
            if time.monotonic() - begun > deadline_s:
                break
            pause = _SHORTEST_S if came else min(1.5 * pause, _LONGEST_S)
            if waiting and self.given_up.wait(pause):
                raise GivenUp
        for node in waiting.values():
            yield node, f"no answer within {deadline_s:g} s (executor.deadline_s)"

    def _pull(self, waiting: list[str], kind: type[T]) -> dict[str, Answer[T]]:
        """Answers that are here, by the message that they answer; none that Flower cannot put together."""
        try:
            messages = list(self.grid.pull_messages(waiting))
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            if len(waiting) == 1:
                return {waiting[0]: one_line(f"its answer cannot be read: {type(error).__name__}: {error}")}
            return {key: answer for one in waiting for key, answer in self._pull([one], kind).items()}
        answers: dict[str, Answer[T]] = {}
        for message in messages:
            if message.has_error():
                told = message.error
                answer: Answer[T] = one_line(f"Flower says {told.reason or 'nothing'} (code {told.code})")
            else:
                try:
                    said = take_reply(message.content, kind)
                    answer = said if isinstance(said, str) else (said, message.content)
                except WireError as problem:
                    answer = one_line(f"its answer cannot be used: {problem}")
            answers[message.metadata.reply_to_message_id] = answer
        return {asked: answers[asked] for asked in waiting if asked in answers}

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
            at_node.setdefault(self._node_of[speaker], []).append(name)
        for node in at_node.keys() - connected:
            for name in at_node.pop(node):
                yield name, "its node is not connected"
        questions = {node: question(names) for node, names in at_node.items()}
        for node, answer in self.ask(message_type, questions, kind, number):
            for name in at_node[node]:
                yield name, answer

    def refresh(self) -> set[int]:
        """The nodes that are connected; new ones take over the speakers of those that are gone."""
        connected = set(self.grid.get_node_ids())
        known = set(self._node_of.values())
        if gone := known - connected:
            questions = {node: self.question() for node in sorted(connected - known)}
            for node, answer in self.ask("query.speakers", questions, Speakers):
                for facts in [] if isinstance(answer, str) else answer[0].speakers:
                    if self._node_of.get(facts.speaker) in gone:
                        self._node_of[facts.speaker] = node
        return connected

    def enrol(self, num_nodes: int, patience_s: float) -> ClientManifest:
        """Wait for nodes, ask who is there and what they hold, and settle the experiment by it. Too few nodes, one that
        cannot take part, or data that make no experiment are a `UserError`.
        """
        begun = time.monotonic()
        while len(nodes := sorted(self.grid.get_node_ids())) < num_nodes:
            if time.monotonic() - begun > patience_s:
                raise UserError(
                    f"executor.num_nodes asks for {num_nodes} nodes, {len(nodes)} are connected after "
                    f"{patience_s:g} s (executor.wait_s): start the others, or ask for fewer"
                )
            if self.given_up.wait(_LONGEST_S):
                raise GivenUp
        told, emotions, skipped = list[SpeakerFacts](), set[str](), list[SkippedFile]()
        for node, said, _ in self._ask_all("query.speakers", nodes, Speakers):
            for facts in said.speakers:
                if facts.speaker in self._node_of:
                    raise UserError(
                        f"two nodes hold speaker {facts.speaker!r}: each speaker's data must be at one node"
                    )
                self._node_of[facts.speaker] = node
                told.append(facts)
                emotions |= {*facts.emotions}
            if said.skipped:
                skipped.append(SkippedFile(f"{said.skipped} files of a node", "named in the log of the node"))
        self.classes = tuple(sorted(emotions))
        if len(self.classes) < 2:
            raise UserError(f"the nodes hold one emotion only ({', '.join(self.classes)}): a classifier needs two")
        self.config = replace(
            self.config, split=settle_split(sorted(told, key=lambda facts: facts.speaker), self.config.split)
        )
        self.manifest = self._add_up(nodes, tuple(skipped))
        return self.manifest

    def _ask_all(self, message_type: str, nodes: Sequence[int], kind: type[T]) -> Iterator[tuple[int, T, RecordDict]]:
        """Answers in the order of the nodes; at the start, nobody may be missing."""
        answers = dict(self.ask(message_type, {node: self.question() for node in nodes}, kind))
        for node in nodes:
            answer = answers[node]
            if isinstance(answer, str):
                raise UserError(f"a node cannot take part: {answer}")
            yield node, *answer

    def _add_up(self, nodes: Sequence[int], skipped: tuple[SkippedFile, ...]) -> ClientManifest:
        statistics, digests = dict[str, FeatureStatistics](), dict[str, str]()
        normalisation = self.config.normalisation
        is_told = normalisation.name == "pooled" or normalisation.share_mean
        sizes: Sizes = {part: {} for part in PARTS}
        sum_F = torch.empty(self.config.frontend.num_features, dtype=torch.float64)
        like = dict.fromkeys(("sum_F", "sum_of_squares_F", "maximum_F"), sum_F)
        for node, said, records in self._ask_all("query.enrol", nodes, Enrolled):
            own = [name for name, holder in self._node_of.items() if holder == node]
            told = {*said.digests, *(name for held in said.sizes.values() for name in held)}
            tellers = said.clients.keys() if is_told else set()
            fits = said.sizes.keys() == set(PARTS) and tellers == said.frames.keys()
            if not told <= set(own) or not fits or (said.clients and not own):
                raise UserError("a node cannot take part: it answers for speakers that it did not name")
            digests |= said.digests
            for part in PARTS:
                sizes[part] |= said.sizes[part]
            for client in said.clients:
                if client in self.num_examples:
                    raise UserError(f"two nodes hold data of {client!r}, which is one client: give them to one node")
                self.num_examples[client] = said.clients[client]
                self.speaker_of[client] = client if client in own else own[0]
                if not is_told:
                    continue
                try:
                    sums = take(records, f"statistics/{client}", like=like)
                    if not all(torch.isfinite(tensor).all() for tensor in sums.values()):
                        raise WireError("its sums over features are not finite")
                except WireError as error:
                    raise UserError(f"client {client!r} cannot take part: {error}") from None
                statistics[client] = FeatureStatistics(said.frames[client], **sums)
        in_parts = {part: sum(sizes[part].values()) for part in PARTS}
        check_parts(in_parts, self.config.split, self.config.selection.needs_validation)
        client_ids = capped(sorted(self.num_examples), self.config.clients)
        sums_of, fallback = [statistics[client] for client in client_ids if is_told], None
        if normalisation.name == "speaker":
            standardisation = Standardisation.of_scaled(self.config.frontend)
            fallback = Scale.average(map(Scale.of, sums_of)) if sums_of else None
        else:
            standardisation = Standardisation.from_statistics(sums_of, self.config.frontend)
        return ClientManifest(
            classes=self.classes,
            client_ids=client_ids,
            sizes={part: dict(sorted(sizes[part].items())) for part in PARTS},
            standardisation=standardisation,
            fallback=fallback,
            digest=digest_of_all(digests, client_ids, standardisation),
            skipped=skipped,
            shared=Shared(
                num_utterances=sum(sizes["test"].values()),
                speakers=len(sizes["test"].keys() & (sizes["train"].keys() | sizes["validation"].keys())),
                num_speakers=len(sizes["test"]),
            ),
        )


def told_settings(config: Config) -> dict[str, Any]:
    """The experiment as nodes are told it: with nothing in it of the server's own folders and accounts."""
    settings = dump(config)
    settings |= {"run_dir": None, "resume": False, "profile": False, "init_from": None, "run_name": None}
    settings["tracking"] = {"backend": "none", "mode": "offline", "project": "", "entity": None, "group": None}
    settings["data"] |= {"root": None, "cache_dir": None}
    shared = {key: settings["executor"][key] for key in ("threads", "accelerator", "engine")}
    settings["executor"] = {"name": "serial", "workers": "auto", **shared}
    return settings
