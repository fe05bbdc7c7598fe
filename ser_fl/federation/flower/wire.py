"""What crosses between hosts, as Flower's records: tensors and JSON, never pickles, checked before they are used."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from ser_fl.records import State

PROTOCOL = 1
"""Version of what crosses: both sides must speak the same."""
_NPY = "numpy.ndarray"
_JSON = "message"
_TYPES = {
    torch.float32: np.dtype("<f4"),
    torch.float64: np.dtype("<f8"),
    torch.int64: np.dtype("<i8"),
}
"""Of tensors that a model, an optimiser or statistics have."""
_TORCH = {of_numpy: of_torch for of_torch, of_numpy in _TYPES.items()}
_LONGEST_JSON = 64 << 20


class WireError(ValueError):
    """What arrived is not what was agreed on."""


def put(records: RecordDict, name: str, state: Mapping[str, Tensor]) -> None:
    """Add tensors under a name.

    Raises:
        WireError: one is of a type that does not cross.
    """
    arrays: dict[str, Array] = {}
    for key, tensor in state.items():
        if tensor.dtype not in _TYPES:
            raise WireError(f"{key} is of type {tensor.dtype}, which does not cross")
        arrays[key] = Array(tensor.detach().cpu().contiguous().numpy())
    records[name] = ArrayRecord(arrays)


def take(records: RecordDict, name: str, *, like: Mapping[str, Tensor] | None = None) -> State:
    """The tensors under a name.

    Args:
        records: as they arrived.
        name: as they were put.
        like: names, shapes and types that they must have, checked before a byte is read; None takes what there is.

    Raises:
        WireError: there are none, or they are damaged, or not as agreed.
    """
    record = records.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"it has no tensors named {name!r}")
    if like is not None and record.keys() != like.keys():
        raise WireError(f"its state has other entries: {sorted(record.keys() ^ like.keys())[:3]}")
    return {key: _tensor(key, array, None if like is None else like[key]) for key, array in record.items()}


def _tensor(name: str, array: Array, like: Tensor | None) -> Tensor:
    """A tensor of its own memory, from bytes that are just as many as its shape and type need."""
    shape = tuple(array.shape)
    if like is not None and shape != tuple(like.shape):
        raise WireError(f"{name} has shape {shape}, expected {tuple(like.shape)}")
    if array.stype != _NPY:
        raise WireError(f"{name} is serialised as {array.stype!r}, expected {_NPY!r}")
    buffer = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(buffer)
        if version != (1, 0):
            raise ValueError(f"format {version}")
        in_file, is_fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    except Exception as error:  # numpy's reader of a header raises what its parser raises
        raise WireError(f"{name} is damaged: {type(error).__name__}") from None
    of_torch = _TORCH.get(dtype)
    if of_torch is None or (like is not None and of_torch != like.dtype):
        raise WireError(f"{name} is of type {dtype}, expected {'a known one' if like is None else like.dtype}")
    content = array.data[buffer.tell() :]
    if in_file != shape or is_fortran or len(content) != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise WireError(f"{name} has {len(content)} bytes, which do not fit shape {shape}")
    return torch.from_numpy(np.frombuffer(content, dtype=dtype).reshape(shape).copy())


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
        raise WireError(f"it speaks version {content.get('protocol')!r}, expected {PROTOCOL}: install the same ser-fl")
    return content
