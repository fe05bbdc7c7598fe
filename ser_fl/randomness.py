"""Random streams that are passed in: each is derived from what it is for, such as (seed, round, client)."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any keys: the same on every machine, unrelated for different keys.

    >>> derive_seed(1, "round", 2) == derive_seed(1, "round", 2) != derive_seed(1, "round", 3)
    True
    """
    digest = blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: int | str) -> Generator:
    """A generator on the CPU, seeded by `derive_seed`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*keys))
