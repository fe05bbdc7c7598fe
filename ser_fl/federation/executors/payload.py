"""What a worker process is given once, when it starts: the clients, and how this process does its arithmetic."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, fields
from typing import Self

import torch

from ser_fl.errors import UserError
from ser_fl.federation.client import Clients


@dataclass(frozen=True, slots=True)
class CuDNN:
    """Switches of the library that a GPU's convolutions go through."""

    enabled: bool
    benchmark: bool
    deterministic: bool
    allow_tf32: bool

    @classmethod
    def here(cls) -> Self:
        """As they are in this process."""
        return cls(**{each.name: getattr(torch.backends.cudnn, each.name) for each in fields(cls)})

    def adopt(self) -> None:
        """Set them in this process."""
        for name, value in asdict(self).items():
            setattr(torch.backends.cudnn, name, value)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Switches of torch that a result's bits depend on."""

    threads: int
    matmul_precision: str
    deterministic: bool
    warn_only: bool
    cudnn: CuDNN

    @classmethod
    def here(cls) -> Self:
        """As they are in this process."""
        return cls(
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            CuDNN.here(),
        )

    def adopt(self) -> None:
        """Set them in this process."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        self.cudnn.adopt()


def pack(clients: Clients) -> bytes:
    """Clients and arithmetic for worker processes; features stay in their file.

    Raises:
        UserError: a callback cannot be pickled.
    """
    for callback in clients.callbacks:
        try:
            pickle.dumps(callback)
        except Exception as error:
            raise UserError(
                f"callback {type(callback).__name__} cannot be sent to a worker process ({error}): define it at the "
                "top of a module and let it hold nothing open, or use executor=serial"
            ) from None
    return pickle.dumps((clients, Arithmetic.here()))


def unpack(payload: bytes | memoryview) -> Clients:
    """The clients; arithmetic is from now on as it was in the process that packed them."""
    clients, arithmetic = pickle.loads(payload)  # from our own process, over memory that no other can reach
    assert isinstance(clients, Clients) and isinstance(arithmetic, Arithmetic)
    arithmetic.adopt()
    return clients
