"""The global random states, which ART draws from: seeded while an attack runs, and as before afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ser_fl.devices import seeded_streams

_RandomState = np.random.RandomState


class _AnyRandomState(type):
    """Makes ``isinstance(state, np.random.RandomState)`` hold for states of the real class as well."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _RandomState)


class _DerivedRandomState(_RandomState, metaclass=_AnyRandomState):
    """A RandomState that, without a seed, takes one from the global state instead of the operating system.

    ART's HopSkipJump and BoundaryAttack make theirs so, and would give another result in every run.
    """

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global random states, and put them back afterwards.

    Args:
        seed: any integer >= 0.
        device: the device that an attack runs on; other GPUs keep their states.
    """
    python_before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002
    class_before = np.random.RandomState
    with seeded_streams(seed, device):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            np.random.RandomState = _DerivedRandomState  # type: ignore[misc]
            yield
        finally:
            np.random.RandomState = class_before  # type: ignore[misc]
            random.setstate(python_before)
            np.random.set_state(numpy_before)  # noqa: NPY002
