"""What crosses between hosts: tensors as safetensors and JSON, never pickles, checked before anything of it is used."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from ser_fl.data.splits import Part, SpeakerFacts
from ser_fl.errors import one_line, shown
from ser_fl.files import check_same_form, from_safetensors, to_safetensors
from ser_fl.runs.records import ClientFigures, State

PROTOCOL = 4
"""Version of what crosses: both sides must speak the same."""
_SAFETENSORS = "safetensors"
"""How tensors are serialised: all of a state as one array, since each array costs Flower some requests a host."""
_STATE, _JSON = "state", "message"
_TYPES = (torch.float32, torch.float64, torch.int64)
"""Of tensors that a model, an optimiser or statistics have."""
_HEADER_BYTES = 4096
"""Room for the name, type and shape of a tensor."""
_LONGEST_JSON = 16 << 20
_MOST_SPEAKERS, _MOST_EMOTIONS, _MOST_TEXTS, _MOST_ROWS = 20_000, 100, 20_000, 1000
"""Of one node: more are refused before any of them is counted."""
_LONGEST_REASON = 200

T = TypeVar("T")


class WireError(ValueError):
    """What arrived is not what was agreed on, told in one line: it may quote what arrived."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def put(records: RecordDict, name: str, state: Mapping[str, Tensor]) -> None:
    """Add tensors under a name; a `WireError` for a type that does not cross."""
    for key, tensor in state.items():
        if tensor.dtype not in _TYPES:
            raise WireError(f"{key} is of type {tensor.dtype}, which does not cross")
    content = to_safetensors(state)
    records[name] = ArrayRecord({_STATE: Array("uint8", (len(content),), _SAFETENSORS, content)})


def take(
    records: RecordDict, name: str, *, like: Mapping[str, Tensor] | None = None, most_bytes: int | None = None
) -> State:
    """The tensors under a name, with the names, shapes and types of `like`, in its order, where it is given; a
    `WireError` where there are none, or they are damaged, or not as agreed. What is of more bytes is not even read.
    """
    record = records.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"it has no tensors named {name!r}")
    if list(record) != [_STATE]:
        raise WireError(f"it has arrays named {sorted(record)[:3]}, expected {_STATE!r} alone")
    stype, content = record[_STATE].stype, record[_STATE].data
    if stype != _SAFETENSORS:
        raise WireError(f"its tensors are serialised as {stype[:_LONGEST_REASON]!r}, expected {_SAFETENSORS!r}")
    if most_bytes is None and like is not None:
        most_bytes = wire_bytes(like)
    if most_bytes is not None and len(content) > most_bytes:
        raise WireError(f"its tensors take {len(content)} bytes, expected {most_bytes} at most")
    try:
        tensors = from_safetensors(content)  # refuses what does not fit its own header, and copies
    except Exception as error:  # a type that torch does not know is a KeyError, and so on
        raise WireError(f"its tensors are damaged: {type(error).__name__}: {error}"[:_LONGEST_REASON]) from None
    expected = tensors if like is None else like
    if unknown := [key for key, tensor in tensors.items() if tensor.dtype not in _TYPES]:
        raise WireError(f"{unknown[0]} is of type {tensors[unknown[0]].dtype}, expected a known one")
    try:
        check_same_form(tensors, expected)
    except ValueError as error:
        raise WireError(str(error)) from None
    return {key: tensors[key] for key in expected}


def wire_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes that tensors of these forms take at most."""
    return sum(_HEADER_BYTES + tensor.nbytes for tensor in state.values())


def put_json(records: RecordDict, content: Mapping[str, Any]) -> None:
    """Add everything that is not a tensor."""
    records[_JSON] = ConfigRecord({"json": json.dumps({"protocol": PROTOCOL, **content}, allow_nan=True)})


def take_json(records: RecordDict) -> dict[str, Any]:
    """What `put_json` added; a `WireError` where there is none, it is no JSON object, or of another version."""
    record = records.get(_JSON)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise WireError("it has no message")
    if len(text) > _LONGEST_JSON:
        raise WireError(f"its message has {len(text)} characters, more than {_LONGEST_JSON}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError("its message is not JSON") from None
    if not isinstance(content, dict):
        raise WireError("its message is not a JSON object")
    if (version := content.pop("protocol", None)) != PROTOCOL:
        raise WireError(f"it speaks version {shown(version)}, expected {PROTOCOL}: install the same ser-fl")
    return content


def asked_in(question: RecordDict) -> dict[str, Any]:
    """What the answer to a question must repeat, so that none of another round or run counts: run, kind and number, and
    a digest of the model as it arrived.
    """
    record = question.get("model")
    content = record[_STATE].data if isinstance(record, ArrayRecord) and _STATE in record else b""
    return {**take_json(question).get("asked", {}), "model": blake2b(content, digest_size=16).hexdigest()}


_reply = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))

Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1 << 53)]
Amount = Annotated[int, Field(ge=0, le=1 << 53)]
Sum = Annotated[float, Field(ge=0, le=1e300)]
_Speakers = Field(max_length=_MOST_SPEAKERS)
_Rows = Field(max_length=_MOST_ROWS)


@_reply
class Refusal:
    error: Annotated[str, Field(max_length=20_000)]

    @property
    def reason(self) -> str:
        """Its lines, fit for a terminal and a log, whatever the node sent."""
        return "\n".join(filter(None, map(one_line, self.error.splitlines()))) or "it gives no reason"


@_reply
class Speaker(SpeakerFacts):
    """What is told of one before an experiment begins."""

    speaker: Name
    sex: Name | None
    emotions: Annotated[dict[Name, Count], Field(max_length=_MOST_EMOTIONS)]
    texts: Annotated[dict[Name, list[Name]], Field(max_length=_MOST_TEXTS)]


@_reply
class Speakers:
    speakers: Annotated[list[Speaker], _Speakers]
    skipped: Amount


@_reply
class Enrolled:
    """Counts and digests; the sums over features are tensors."""

    clients: Annotated[dict[Name, Count], _Speakers]
    """Training utterances of each."""
    frames: Annotated[dict[Name, Count], _Speakers]
    """Of each client's training features."""
    sizes: dict[Part, Annotated[dict[Name, Count], _Speakers]]
    digests: Annotated[dict[Name, Name], _Speakers]


@_reply
class Figures(ClientFigures):
    """Of a client's update; its state is tensors. What makes no sense is refused where updates are."""


@_reply
class Updates:
    """By client; the error of one that failed."""

    updates: Annotated[dict[Name, Figures | Refusal], _Speakers]


@_reply
class Confusions:
    """By speaker: how often each true class (row) was predicted as each class."""

    confusions: Annotated[dict[Name, Annotated[list[list[Amount]], _Rows]], _Speakers]


@_reply
class Confidences:
    """By speaker: a row of sums for each temperature (`ser_fl.calibration.confidence_sums`)."""

    confidences: Annotated[dict[Name, Annotated[list[list[Sum]], _Rows]], _Speakers]


def take_reply(records: RecordDict, kind: type[T], asked: Mapping[str, Any]) -> T | str:
    """What a node says, in one of the forms above, or its reason for not saying it; a `WireError` for another form, or
    for the answer to another question than the one that was asked (`asked_in`).
    """
    content = take_json(records)
    told = content.pop("asked", None)
    is_refusal = content.keys() == {"error"}
    if not is_refusal and told != asked:
        told = told if isinstance(told, dict) else {}
        differing = [name for name in asked if told.get(name) != asked[name]] or sorted(told.keys() - asked)
        name = differing[0]
        raise WireError(f"it answers another question: of {name} {shown(told.get(name))}, asked was {asked.get(name)}")
    form: TypeAdapter[T | Refusal] = TypeAdapter(Refusal if is_refusal else kind)
    try:
        said = form.validate_json(json.dumps(content))  # as JSON: else objects would have to be of the class
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise WireError(f"{place or 'it'}: {problem['msg']}") from None
    return said.reason if isinstance(said, Refusal) else said
