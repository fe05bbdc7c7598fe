"""The global random states, which ART draws from: seeded while an attack runs, and as before afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ser_fl.devices import seeded_streams


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global random states, and put them back afterwards.

    Args:
        seed: any integer >= 0.
        device: the device that an attack runs on; other GPUs keep their states.
    """
    python_before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with seeded_streams(seed, device):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(python_before)
            np.random.set_state(numpy_before)  # noqa: NPY002
