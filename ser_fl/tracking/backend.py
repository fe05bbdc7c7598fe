"""Somewhere to show a run: what W&B and TensorBoard have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord


class Backend(Protocol):
    """Somewhere to show a run."""

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Figures of one round and of its clients."""
        ...

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        """Figures of attacks on the selected model."""
        ...

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """The content of ``summary.json``."""
        ...

    def finish(self) -> None:
        """Send what is left and close."""
        ...
