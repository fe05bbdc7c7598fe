"""When to kill, and what came of it."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

NUM_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Timeline:
    """Of a run that nobody disturbed, in seconds since its command was started."""

    commits: tuple[float, ...]
    """Of its rounds."""
    summary: float
    """When the summary was written."""
    end: float
    """When its command had ended."""

    def moment(self, number: int, chance: random.Random) -> Moment:
        """A moment anywhere in the run, at uniform chance.

        One in four is behind the last round's commit, and every other one of these before the summary is there.
        """
        is_tail = number % 4 == 3
        seconds = chance.uniform(self.commits[-1] if is_tail else 0, self.summary if number % 8 == 3 else self.end)
        after = bisect_right(self.commits, seconds)
        return Moment(after, seconds - (self.commits[after - 1] if after else 0))


@dataclass(frozen=True, slots=True)
class Moment:
    """Tied to the last commit before it: start-up takes much longer on a busy machine."""

    after_round: int
    """Committed rounds; 0 counts from the start of the command."""
    delay_s: float


def chance_of(where: str, seed: int, number: int) -> random.Random:
    """A generator of its own for each moment, so that they can be made in any order."""
    return random.Random(f"{where} {seed} {number}")


@dataclass(slots=True, kw_only=True)
class Kill:
    """One moment, and what came of it."""

    number: int
    executor: str
    tracking: str
    seconds: float
    """Since the command was started."""
    during: str
    committed: int
    """Rounds that were, at the kill."""
    exit_codes: tuple[int | None, int | None]
    """Of the command that was disturbed, and of the one that went on."""
    rounds_afterwards: tuple[int, ...]
    """That the command that went on says it has made."""
    lost: tuple[str, ...]
    """Files whose bits, but for seconds, are not those of the run that was never killed."""
    left_over: tuple[str, ...] = ()
    """Files that nobody needs."""
    wandb_ids: tuple[str, ...] | None = None
    """Of all folders of the offline tracker."""
    cost_s: float = math.nan
    """Of both commands and what was between them, beyond what an undisturbed one takes."""
    said: str = ""
    """Last line of the command that was disturbed, where it was not killed itself."""

    @property
    def problems(self) -> list[str]:
        """All that should not be."""
        found = [f"{file} differs" for file in self.lost] + [f"{file} is left over" for file in self.left_over]
        if self.exit_codes[1] != 0:
            found.append(f"exit code {self.exit_codes[1]} when it went on")
        if self.rounds_afterwards != tuple(range(self.committed + 1, NUM_ROUNDS + 1)):
            found.append(f"rounds {list(self.rounds_afterwards)} were made after {self.committed} had been committed")
        if self.wandb_ids is not None and len(self.wandb_ids) != 1:
            found.append(f"{len(self.wandb_ids)} W&B runs")
        return found

    @property
    def line(self) -> str:
        """For whoever watches."""
        where = f"{self.executor}, {self.tracking}" if self.tracking != "none" else self.executor
        result = "; ".join(self.problems) or "nothing lost"
        return (
            f"{self.number:3d}  {where:<22}{self.seconds:6.1f} s  {self.during:<18}cost {self.cost_s:6.1f} s  {result}"
        )


def phase(committed: int, has_begun: bool, is_concluded: bool) -> str:
    """Where in a run a moment is."""
    if is_concluded:
        return "after the summary"
    if committed == NUM_ROUNDS:
        return "test and summary"
    return f"round {committed + 1}" if has_begun else "start"


def median(values: Sequence[float]) -> float:
    """NaN of none."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan
