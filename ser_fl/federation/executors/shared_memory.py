"""Memory that processes share: what is written there is not sent, and whoever reads it maps the same pages."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any, Self

import torch
from torch import Tensor

from ser_fl.runs.records import State

_ALIGNMENT = 64
"""Bytes: where a tensor may start."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a block a tensor lies, and how."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """Just behind its last byte."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


Layout = dict[str, Place]
"""A state without its values: small enough to be sent."""


def lay_out(state: Mapping[str, Tensor], start: int = 0) -> Layout:
    """Places for a state's tensors one after the other, each in the memory format that it has."""
    layout: Layout = {}
    for name, tensor in state.items():
        strides = torch.empty_like(tensor, device="meta").stride()
        layout[name] = Place(start, tensor.dtype, tuple(tensor.shape), strides)
        start = -(-layout[name].end // _ALIGNMENT) * _ALIGNMENT
    return layout


def end_of(layout: Layout) -> int:
    """Where a layout ends, in bytes, rounded up to where the next may start."""
    return max((-(-place.end // _ALIGNMENT) * _ALIGNMENT for place in layout.values()), default=0)


class Block:
    """Anonymous memory of a fixed size, shared with the processes that it is passed to when they are started.

    It has no name that could be left over: it is gone with the last process that holds it, however that one ends. The
    system gives a page of it when somebody writes there, so that a generous size costs nothing.
    """

    def __init__(self, size: int, handle: int | None = None) -> None:
        self.size = max(1, size)
        self._handle = _anonymous_file(self.size) if handle is None else handle
        weakref.finalize(self, os.close, self._handle)
        self.memory = mmap.mmap(self._handle, self.size)
        self._bytes = torch.frombuffer(self.memory, dtype=torch.uint8)

    @classmethod
    def holding(cls, content: bytes) -> Self:
        """A block of just this content."""
        block = cls(len(content))
        block.memory[: len(content)] = content
        return block

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (DupFd(self._handle), self.size)

    def write(self, state: State, start: int = 0) -> Layout:
        """Copy a state's tensors in, from byte ``start`` on.

        Raises:
            ValueError: they do not fit.
        """
        layout = lay_out(state, start)
        if (end := end_of(layout)) > self.size:
            raise ValueError(f"{end} bytes do not fit into {self.size} bytes of shared memory")
        for name, tensor in self.read(layout).items():
            tensor.copy_(state[name].detach())
        return layout

    def read(self, layout: Layout) -> State:
        """The state at these places: views, which change with what is written there next."""
        return {name: self._view(place) for name, place in layout.items()}

    def _view(self, place: Place) -> Tensor:
        flat = self._bytes[place.start : place.end].view(place.dtype)
        return flat.as_strided(place.shape, place.strides)


def _anonymous_file(size: int) -> int:
    """Handle of a file without a name: in memory or, where a system has no such files, on disk."""
    if hasattr(os, "memfd_create"):  # not in /dev/shm, which containers keep small
        handle = os.memfd_create("ser_fl")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.truncate(handle, size)
    return handle


def _opened(handle: Any, size: int) -> Block:
    return Block(size, handle.detach())
