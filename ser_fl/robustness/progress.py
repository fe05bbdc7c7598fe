"""How far a benchmark is, and how long the rest will take at the pace so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from ser_fl.robustness.plan import Unit


class OnAttack(Protocol):
    """Told the attack that runs, how many utterances of all attacks are done, of how many, and the seconds left."""

    def __call__(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None: ...


def silent(name: str, done: int, total: int, seconds_left: float | None = None) -> None:
    """Tells nobody."""


class BenchmarkProgress:
    """Counts utterances and seconds.

    What is left is estimated from what an utterance has cost in the same attack, and for an attack that has not run yet
    from its steps, restarts and draws, at the pace of those that have.
    """

    def __init__(self, units: Sequence[Unit], on_attack: OnAttack) -> None:
        self._on_attack = on_attack
        self._left = {id(unit): len(unit.part) for unit in units}
        self._units = list(units)
        self._total = sum(self._left.values())
        self._seconds: dict[str, float] = defaultdict(float)
        self._work: dict[str, float] = defaultdict(float)

    def tell(self, unit: Unit) -> None:
        """Say where the benchmark is."""
        left = sum(self._left.values())
        self._on_attack(unit.label, self._total - left, self._total, self.seconds_left())

    def count(self, unit: Unit, utterances: int, seconds: float = 0.0) -> None:
        """Some utterances of a unit are done; 0 seconds are no measure of anything."""
        self._left[id(unit)] = max(0, self._left[id(unit)] - utterances)
        if seconds:
            self._seconds[_kind(unit)] += seconds
            self._work[_kind(unit)] += utterances * unit.effort

    def finish(self, unit: Unit) -> None:
        """A unit is done, whatever was counted."""
        self._left[id(unit)] = 0

    def seconds_left(self) -> float | None:
        """None before anything was measured, unless nothing is left."""
        if not any(self._left.values()):
            return 0.0
        if not self._work:
            return None
        usual = sum(self._seconds.values()) / sum(self._work.values())
        pace = {kind: self._seconds[kind] / work for kind, work in self._work.items()}
        return sum(self._left[id(unit)] * unit.effort * pace.get(_kind(unit), usual) for unit in self._units)


def _kind(unit: Unit) -> str:
    return f"{unit.attack.name} {unit.adaptive_to}"
