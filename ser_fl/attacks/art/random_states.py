"""The one hook into modules of ART: random states of its decision attacks, which no seed reaches.

ART's HopSkipJump, BoundaryAttack and BrendelBethgeAttack make an ``np.random.RandomState()`` each, which the operating
system seeds, and would give another result in every run. ART 1.20.1, which pyproject.toml pins, and all before it do.
A test fails once they no longer do: then this file can go.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

_MODULES = ("hop_skip_jump", "boundary", "brendel_bethge")


@contextmanager
def random_states_from_the_global_one() -> Iterator[None]:
    """Let these attacks seed their random states from NumPy's global one; NumPy itself stays as it is.

    For as long as it lasts they see a NumPy of their own, which differs in `RandomState` alone.
    """
    random = SimpleNamespace(**vars(np.random) | {"RandomState": _random_state})
    numpy: Any = SimpleNamespace(**vars(np) | {"random": random})
    names = (f"art.attacks.evasion.{name}" for name in _MODULES)
    modules: list[Any] = [sys.modules[name] for name in names if name in sys.modules]
    try:
        for module in modules:
            module.np = numpy
        yield
    finally:
        for module in modules:
            module.np = np


def _random_state(seed: Any = None) -> np.random.RandomState:
    return np.random.RandomState(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002
