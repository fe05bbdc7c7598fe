"""What crosses between hosts: tensors as safetensors and JSON, never pickles, checked before they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from ser_fl.errors import one_line, shown
from ser_fl.files import from_safetensors, to_safetensors
from ser_fl.runs.records import State

PROTOCOL = 2
"""Version of what crosses: both sides must speak the same."""
_SAFETENSORS = "safetensors"
"""How tensors are serialised: all of a state as one array, since each array costs Flower some requests a host."""
_STATE = "state"
_JSON = "message"
_TYPES = (torch.float32, torch.float64, torch.int64)
"""Of tensors that a model, an optimiser or statistics have."""
_HEADER_BYTES = 4096
"""Room for the name, type and shape of a tensor."""
_LONGEST_JSON = 64 << 20
_LONGEST_REASON = 200


class WireError(ValueError):
    """What arrived is not what was agreed on, told in one line: it may quote what arrived."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def put(records: RecordDict, name: str, state: Mapping[str, Tensor]) -> None:
    """Add tensors under a name.

    Raises:
        WireError: one is of a type that does not cross.
    """
    for key, tensor in state.items():
        if tensor.dtype not in _TYPES:
            raise WireError(f"{key} is of type {tensor.dtype}, which does not cross")
    content = to_safetensors(state)
    records[name] = ArrayRecord({_STATE: Array("uint8", (len(content),), _SAFETENSORS, content)})


def take(records: RecordDict, name: str, *, like: Mapping[str, Tensor] | None = None) -> State:
    """The tensors under a name.

    Args:
        records: as they arrived.
        name: as they were put.
        like: names, shapes and types that they must have, in whose order they come; None takes what there is.

    Raises:
        WireError: there are none, or they are damaged, or not as agreed.
    """
    record = records.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"it has no tensors named {name!r}")
    content = _content(record)
    if like is not None and len(content) > (most := sum(_HEADER_BYTES + tensor.nbytes for tensor in like.values())):
        raise WireError(f"its tensors take {len(content)} bytes, expected {most} at most")
    try:
        tensors = from_safetensors(content)  # refuses what does not fit its own header, and copies
    except Exception as error:  # a type that torch does not know is a KeyError, and so on
        raise WireError(f"its tensors are damaged: {type(error).__name__}: {error}"[:_LONGEST_REASON]) from None
    if like is not None and tensors.keys() != like.keys():
        raise WireError(f"its state has other entries: {sorted(tensors.keys() ^ like.keys())[:3]}")
    for key, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise WireError(f"{key} is of type {tensor.dtype}, expected a known one")
        if like is not None:
            _compare(key, tensor, like[key])
    return tensors if like is None else {key: tensors[key] for key in like}


def _content(record: ArrayRecord) -> bytes:
    """The bytes of an array record of ours."""
    if list(record) != [_STATE]:
        raise WireError(f"it has arrays named {sorted(record)[:3]}, expected {_STATE!r} alone")
    array = record[_STATE]
    if array.stype != _SAFETENSORS:
        raise WireError(f"its tensors are serialised as {array.stype[:_LONGEST_REASON]!r}, expected {_SAFETENSORS!r}")
    return array.data


def _compare(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise WireError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}")
    if tensor.dtype != like.dtype:
        raise WireError(f"{name} is of type {tensor.dtype}, expected {like.dtype}")


def put_json(records: RecordDict, content: Mapping[str, Any]) -> None:
    """Add everything that is not a tensor."""
    records[_JSON] = ConfigRecord({"json": json.dumps({"protocol": PROTOCOL, **content}, allow_nan=True)})


def take_json(records: RecordDict) -> dict[str, Any]:
    """What `put_json` added.

    Raises:
        WireError: there is none, it is no JSON object, or of another version.
    """
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
    if content.get("protocol") != PROTOCOL:
        raise WireError(
            f"it speaks version {shown(content.get('protocol'))}, expected {PROTOCOL}: install the same ser-fl"
        )
    return content
