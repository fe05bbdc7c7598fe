"""Where a node's policy is enforced: between a message that came and what would be computed for it.

A node remembers on its own disk, in ``policy.json`` of its state folder, which views of its corpus it has answered for
(a view is everything that decides whose clips are in which part, and what is computed of them) and how many answers it
gave in this hour. Its sums over features are kept beside it: a second question gets the same bytes.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from ser_fl.config.frontend import AnyFrontend, GE2EConfig, TransformersConfig
from ser_fl.config.policy import FrontEndKind, Policy, read_policy
from ser_fl.config.schema import Config, dump
from ser_fl.config.values import ObjectConfig
from ser_fl.data.prepared import Host
from ser_fl.errors import UserError, shown
from ser_fl.federation.flower.serialisation import take
from ser_fl.files import flattened, from_safetensors, parse_json, record_of, to_safetensors, write_bytes, write_json
from ser_fl.models.networks import build_network
from ser_fl.runs.audit import AuditLog, locked
from ser_fl.runs.records import State

_HOUR_S = 3600
_OF_A_VIEW = ("data", "frontend", "split", "clients", "normalisation", "enrolment")
_ASKED = ("round", "clients", "part", "attacked", "temperature")
"""What a message asks for beside an experiment: none of it is data."""


class Refused(UserError):
    """What a node's policy does not allow."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the policy of this node: {message}")


@dataclass(kw_only=True)
class View:
    """A view of a corpus that was answered for."""

    corpus: str
    data: str
    """Digest of the names, emotions and parts of its utterances."""
    statistics: bool


@dataclass(kw_only=True)
class Memory:
    """What a node remembers of its answers."""

    schema: int = 1
    hour: int = 0
    answers: int = 0
    """In this hour."""
    views: dict[str, View] = field(default_factory=dict)


class Guard:
    """The policy, state and audit log of one node."""

    def __init__(self, policy: Policy, state: Path) -> None:
        self.policy, self.state = policy, state
        self.audit = AuditLog(state / "audit.jsonl", policy.most_audit_mb)
        self._memory, self._lock = state / "policy.json", state / ".policy.lock"

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> "Guard | None":
        """As the node was started: ``policy`` and ``state`` of its configuration. None where it has no policy: in a
        simulation. A `UserError` where the policy cannot be read: then nothing is answered.
        """
        if "policy" not in node_config:
            return None
        state = Path(str(node_config["state"]))
        try:
            return cls(read_policy(Path(str(node_config["policy"]))), state)
        except UserError as error:
            AuditLog(state / "audit.jsonl").add(allowed=False, why=str(error))
            raise

    def bounded(self, host: Host) -> Host:
        """The host, who leaves out clients and speakers that have too little to be told of."""
        return replace(host, least_utterances=self.policy.least_utterances, least_scored=self.policy.least_scored)

    def receive(self, message: Message) -> None:
        """Count a message, and refuse it for its size, or because there were too many."""
        policy = self.policy
        if policy.least_noise is not None:
            raise Refused(f"it asks for noise (least_noise: {policy.least_noise:g}), and this ser_fl adds none")
        if (size := size_of(message.content)) > policy.most_message_mb * 1e6:
            raise Refused(f"a message of {size / 1e6:.1f} MB, of {policy.most_message_mb:g} MB at most")
        with locked(self._lock):
            memory = self._remembered()
            if memory.hour != (hour := int(time.time() // _HOUR_S)):
                memory.hour, memory.answers = hour, 0
            if memory.answers >= policy.most_answers_per_hour:
                raise Refused(f"{policy.most_answers_per_hour} answers in this hour, which are all there may be")
            memory.answers += 1
            write_json(self._memory, asdict(memory))

    def admit(self, kind: str, config: Config, content: Mapping[str, Any], records: RecordDict) -> None:
        """Refuse what the policy does not allow of an experiment, before anything is computed for it."""
        policy, federation = self.policy, config.federation
        model = "one of its own" if isinstance(config.model, ObjectConfig) else config.model.name
        for key, asked, allowed in (
            ("front_ends", kind_of(config.frontend), policy.front_ends),
            ("splits", config.split.name, policy.splits),
            ("models", model, policy.models),
        ):
            if asked not in allowed:
                raise Refused(f"{key}: {shown(asked)} is none of {', '.join(allowed)}")
        limits = {
            "most_rounds": max(federation.num_rounds, _number(content.get("round", 0))),
            "most_local_epochs": federation.local_epochs,
            "most_threads": config.executor.threads,
            "most_parameters": _parameters(config, content, records),
        }
        for key, number in limits.items():
            if number > (most := getattr(policy, key)):
                raise Refused(f"{key}: {number}, of {most} at most")
        if kind != "query.speakers":
            with locked(self._lock):
                self._settle(kind, config, self._remembered())

    def _settle(self, kind: str, config: Config, memory: Memory) -> None:
        """Refuse an answer about a view of the corpus that is one too many."""
        view, corpus = view_of(config)
        if view in memory.views:
            return
        if kind != "query.enrol":
            raise Refused("it has not enrolled with these settings (data, front end, split, clients, normalisation)")
        others = [each for each in memory.views.values() if each.corpus == corpus]
        if len(others) >= self.policy.most_views:
            raise Refused(
                "it has enrolled with other settings (data, front end, split, clients, normalisation) before, and "
                f"most_views is {self.policy.most_views}"
            )
        tells = config.normalisation.name == "pooled" or config.normalisation.share_mean
        if tells and (self.policy.statistics == "never" or any(each.statistics for each in others)):
            raise Refused(
                f"statistics: {self.policy.statistics}, and it has been asked for sums over features of another view: "
                "normalisation=speaker needs none"
            )

    def keep(self, config: Config, said: Mapping[str, Any], tensors: dict[str, State]) -> dict[str, State]:
        """An answer to an enrolment is remembered; asked again, the same sums are told. `Refused` where the recordings
        have changed since.
        """
        view, corpus = view_of(config)
        digest = blake2b(json.dumps(said["digests"], sort_keys=True).encode(), digest_size=16).hexdigest()
        kept = self.state / f"statistics-{view}.safetensors"
        with locked(self._lock):
            memory = self._remembered()
            self._settle("query.enrol", config, memory)  # another process may have answered meanwhile
            if (known := memory.views.get(view)) is None:
                if tensors:
                    write_bytes(kept, to_safetensors(flattened(tensors)))
                memory.views[view] = View(corpus=corpus, data=digest, statistics=bool(tensors))
                write_json(self._memory, asdict(memory))
                return tensors
        if known.data != digest:
            raise Refused(
                f"other recordings than it has answered for: its owner may remove {self._memory.name}, once it is "
                "clear that sums of both tell of nobody"
            )
        if tensors:
            told = from_safetensors(kept.read_bytes())
            return {name: {key: told[f"{name}/{key}"] for key in state} for name, state in tensors.items()}
        return tensors

    @contextmanager
    def memory_limited(self) -> Iterator[None]:
        """Where the policy says so, allocations of this process fail inside once they exceed its limit."""
        if self.policy.most_memory_gb is None:
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        taken = int(next(line.split()[1] for line in _status() if line.startswith("VmData"))) * 1024
        most = taken + int(self.policy.most_memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def log(self, message: Message, content: Mapping[str, Any], answer: RecordDict, why: Exception | None) -> None:
        """One line of the audit log: what was asked, and what was answered, without any data."""
        settings = content.get("config")
        asked = {name: content[name] for name in _ASKED if name in content}
        if isinstance(settings, dict):
            stages = {name: settings.get(name) for name in ("frontend", "split", "model", "clients", "normalisation")}
            asked |= {
                f"{name}.name": stage.get("name", stage.get("by"))
                for name, stage in stages.items()
                if isinstance(stage, dict)
            }
        metadata = message.metadata
        self.audit.add(
            run=str(metadata.run_id),
            type=metadata.message_type,
            asked=asked,
            bytes_in=size_of(message.content),
            bytes_out=size_of(answer),
            allowed=not isinstance(why, Refused),
            why=None if why is None else str(why),
        )

    def _remembered(self) -> Memory:
        if not self._memory.exists():
            return Memory()
        try:
            return record_of(Memory, parse_json(self._memory.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise Refused(f"{self._memory.name} of its state folder cannot be read ({error})") from None


def view_of(config: Config) -> tuple[str, str]:
    """Digests of a view of a corpus, and of the corpus alone."""
    settings = dump(config)
    root = settings["data"]["root"]
    corpus = str(Path(root).resolve()) if root else config.data.name
    kept = {name: settings[name] for name in _OF_A_VIEW}
    kept["data"] = {**settings["data"], "root": corpus, "cache_dir": None}
    view, of = (blake2b(repr(each).encode(), digest_size=12).hexdigest() for each in (sorted(kept.items()), corpus))
    return view, of


def kind_of(frontend: AnyFrontend) -> FrontEndKind:
    """As a policy calls it."""
    if isinstance(frontend, GE2EConfig):
        return "ge2e"
    return "transformers" if isinstance(frontend, TransformersConfig) else "log_mel"


def size_of(records: RecordDict) -> int:
    """Bytes of what is in a message."""
    arrays = (array for record in records.values() if isinstance(record, ArrayRecord) for array in record.values())
    texts = (
        value
        for record in records.values()
        if isinstance(record, ConfigRecord)
        for value in record.values()
        if isinstance(value, (str, bytes))
    )
    return sum(len(array.data) for array in arrays) + sum(map(len, texts))


def _parameters(config: Config, content: Mapping[str, Any], records: RecordDict) -> int:
    """Of the network that the settings describe, without its memory, or of the model that came, if that has more."""
    try:
        with torch.device("meta"):
            network = build_network(config.model, len(content["classes"]) or 2, seed=0, frontend=config.frontend)
    except RuntimeError:  # more than there are addresses
        return sys.maxsize
    came = sum(tensor.numel() for tensor in take(records, "model").values()) if "model" in records else 0
    return max(came, sum(parameter.numel() for parameter in network.parameters()))


def _number(given: object) -> int:
    if type(given) is not int:
        raise UserError(f"the round must be a whole number, got {shown(given)}")
    return given


def _status() -> list[str]:
    return Path("/proc/self/status").read_text(encoding="ascii").splitlines()
