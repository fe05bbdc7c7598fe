"""Who of the connected nodes holds which speakers: found by asking, at the start and when somebody is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Generic, TypeVar

import torch
from flwr.app import RecordDict

from ser_fl.config.schema import Config, dump
from ser_fl.data.client_manifest import ClientManifest, Sizes, digest_of_all
from ser_fl.data.clients import capped
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.splits import PARTS, check_parts, settle_split
from ser_fl.data.utterance import SkippedFile
from ser_fl.errors import UserError, one_line
from ser_fl.federation.flower.messaging import Exchange, GivenUp
from ser_fl.federation.flower.replies import Enrolled, Refusal, Speakers, checked
from ser_fl.federation.flower.serialisation import WireError, put_json, take, take_json

_LOOK_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a node said: checked content, and tensors that are yet to be taken."""

    content: T
    records: RecordDict


@dataclass(slots=True)
class Nodes:
    """The nodes of an experiment, and what they hold.

    A node is known by its speakers: one that was started anew is found by them, whatever its key.
    """

    exchange: Exchange
    config: Config
    """As nodes are told it: the split is settled by names as soon as their speakers are known."""
    classes: tuple[str, ...] = ()
    num_examples: dict[str, int] = field(default_factory=dict)
    """Training utterances of each client: what its updates are weighted by."""
    sizes: Sizes = field(default_factory=dict)
    _node_of: dict[str, int] = field(default_factory=dict)
    """By speaker."""
    _speaker_of: dict[str, str] = field(default_factory=dict)
    """By client: somebody whose utterances it trains on."""

    def of_client(self, client_id: str) -> int:
        """The node where a client is."""
        return self._node_of[self._speaker_of[client_id]]

    def of_speaker(self, speaker: str) -> int:
        """The node where a speaker's utterances are."""
        return self._node_of[speaker]

    def question(self, **content: Any) -> RecordDict:
        """A message with the experiment in it, so that a node need not remember any."""
        records = RecordDict()
        put_json(records, {"config": told_settings(self.config), "classes": self.classes, **content})
        return records

    def ask(
        self, message_type: str, questions: Mapping[int, RecordDict], kind: type[T], number: int = 0
    ) -> Iterator[tuple[int, Answer[T] | str]]:
        """Each node's answer, or why there is none that can be used, in the order in which they come."""
        for node, records in self.exchange.ask(message_type, questions, number):
            if isinstance(records, str):
                yield node, records
                continue
            try:
                content = take_json(records)
                del content["protocol"]
                if content.keys() == {"error"}:
                    yield node, checked(Refusal, content).reason
                else:
                    yield node, Answer(checked(kind, content), records)
            except WireError as error:
                yield node, one_line(f"its answer cannot be used: {error}")

    def enrol(self, num_nodes: int, patience_s: float) -> ClientManifest:
        """Wait for nodes, ask who is there and what they hold, and settle the experiment by it.

        Raises:
            UserError: too few nodes, one that cannot take part, or data that make no experiment.
        """
        nodes = self._wait_for(num_nodes, patience_s)
        sexes, emotions, skipped = dict[str, str | None](), set[str](), list[SkippedFile]()
        for node, answer in self._ask_all("query.speakers", nodes, Speakers):
            for facts in answer.content.speakers:
                if facts.speaker in self._node_of:
                    raise UserError(
                        f"two nodes hold speaker {facts.speaker!r}: each speaker's data must be at one node"
                    )
                self._node_of[facts.speaker] = node
                sexes[facts.speaker] = facts.sex
                emotions |= set(facts.emotions)
            if count := answer.content.skipped:
                skipped.append(SkippedFile(f"{count} files of a node", "named in the log of the node"))
        self.classes = tuple(sorted(emotions))
        if len(self.classes) < 2:
            raise UserError(f"the nodes hold one emotion only ({', '.join(self.classes)}): a classifier needs two")
        self.config = replace(self.config, split=settle_split(sexes, self.config.split))
        return self._add_up(nodes, tuple(skipped))

    def refresh(self) -> set[int]:
        """The nodes that are connected; new ones take over the speakers of those that are gone."""
        connected = set(self.exchange.grid.get_node_ids())
        known = set(self._node_of.values())
        if gone := known - connected:
            questions = {node: self.question() for node in sorted(connected - known)}
            for node, answer in self.ask("query.speakers", questions, Speakers):
                if isinstance(answer, str):
                    continue
                for facts in answer.content.speakers:
                    if self._node_of.get(facts.speaker) in gone:
                        self._node_of[facts.speaker] = node
        return connected

    def _wait_for(self, num_nodes: int, patience_s: float) -> list[int]:
        begun = time.monotonic()
        while len(nodes := sorted(self.exchange.grid.get_node_ids())) < num_nodes:
            if time.monotonic() - begun > patience_s:
                raise UserError(
                    f"executor.num_nodes asks for {num_nodes} nodes, {len(nodes)} are connected after "
                    f"{patience_s:g} s (executor.wait_s): start the others, or ask for fewer"
                )
            if self.exchange.given_up.wait(_LOOK_S):
                raise GivenUp
        return nodes

    def _ask_all(self, message_type: str, nodes: Sequence[int], kind: type[T]) -> Iterator[tuple[int, Answer[T]]]:
        """Answers in the order of the nodes; at the start, nobody may be missing."""
        questions = {node: self.question() for node in nodes}
        answers = dict(self.ask(message_type, questions, kind))
        for node in nodes:
            answer = answers[node]
            if isinstance(answer, str):
                raise UserError(f"a node cannot take part: {answer}")
            yield node, answer

    def _add_up(self, nodes: Sequence[int], skipped: tuple[SkippedFile, ...]) -> ClientManifest:
        statistics: dict[str, FeatureStatistics] = {}
        digests: dict[str, str] = {}
        self.sizes = {part: {} for part in PARTS}
        for node, answer in self._ask_all("query.enrol", nodes, Enrolled):
            content, own = answer.content, [name for name, holder in self._node_of.items() if holder == node]
            told = {*content.digests, *(name for sizes in content.sizes.values() for name in sizes)}
            if told - set(own) or content.sizes.keys() != set(PARTS) or content.clients.keys() != content.frames.keys():
                raise UserError("a node cannot take part: it answers for speakers that it did not name")
            digests |= content.digests
            for part in PARTS:
                self.sizes[part] |= content.sizes[part]
            for client in content.clients:
                if client in statistics:
                    raise UserError(f"two nodes hold data of {client!r}, which is one client: give them to one node")
                statistics[client] = self._statistics(answer.records, client, content.frames[client])
                self.num_examples[client] = content.clients[client]
                self._speaker_of[client] = client if client in own else own[0]
        check_parts({part: sum(self.sizes[part].values()) for part in PARTS}, self.config.split)
        client_ids = capped(sorted(statistics), self.config.clients)
        sums = reduce(FeatureStatistics.merge, (statistics[client] for client in client_ids))
        standardisation = Standardisation.from_statistics(sums, self.config.frontend)
        return ClientManifest(
            classes=self.classes,
            client_ids=client_ids,
            sizes={part: dict(sorted(self.sizes[part].items())) for part in PARTS},
            standardisation=standardisation,
            digest=digest_of_all(digests, client_ids, standardisation),
            skipped=skipped,
        )

    def _statistics(self, records: RecordDict, client: str, frames: int) -> FeatureStatistics:
        like = {name: torch.empty(self.config.frontend.num_mels, dtype=torch.float64) for name in _SUMS}
        try:
            sums = take(records, f"statistics/{client}", like=like)
            if not all(torch.isfinite(tensor).all() for tensor in sums.values()):
                raise WireError("its sums over features are not finite")
        except WireError as error:
            raise UserError(f"client {client!r} cannot take part: {error}") from None
        return FeatureStatistics(frames, **sums)


_SUMS = ("sum_F", "sum_of_squares_F", "maximum_F")


def told_settings(config: Config) -> dict[str, Any]:
    """The experiment as nodes are told it: with nothing in it of the server's own folders and accounts."""
    settings = dump(config)
    settings |= {"run_dir": None, "resume": False, "profile": False}
    settings["tracking"] = {"backend": "none", "mode": "offline", "project": "", "entity": None, "group": None}
    settings["data"] |= {"root": None, "cache_dir": None}
    shared = {key: settings["executor"][key] for key in ("threads", "accelerator", "engine")}
    settings["executor"] = {"name": "serial", "workers": "auto", **shared}
    return settings
