"""A stopwatch that knows what is being done: each moment counts for one part of the work."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

ClientPart = Literal["data", "forward", "backward", "optimiser", "attack", "trainer", "client"]
"""What a client does in a round.

data: read, standardise, shuffle, augment, move to the device. forward: the pass of a training step, with its loss.
backward and optimiser: the rest of the step. attack: crafting adversarial utterances, with the passes that it takes.
trainer: Lightning or the loop around these, callbacks and the epoch's metrics included. client: the rest, such as
building the network and copying its weights.
"""
ServerPart = Literal["aggregation", "evaluation", "tracking", "records", "waiting", "other"]
"""What the server does in a round.

aggregation: checking updates and averaging them. evaluation: of the validation part, under attack too. tracking: W&B or
TensorBoard. records: the run folder's files and the checkpoint. waiting: for worker processes. other: the rest.
"""
Part = ClientPart | ServerPart


Watch = Callable[[Part], AbstractContextManager[None]]
"""What the work is handed, so that it can say what it is doing: inside ``with watch("data"):`` all counts for
that part, not for the one around it."""
_NOTHING = nullcontext()
UNWATCHED: Watch = lambda part: _NOTHING  # noqa: E731
"""Nobody measures."""


class Stopwatch:
    """Measures, by its `part`. Its parts add up to the time since `restart`, to the nanosecond.

    Lightning's SimpleProfiler cannot stand in for it: its actions lie in one another (their sum was 2.3 times the wall
    time of a fit of 120 batches), it knows no attack within a training step, and it waits for no device. It cost 0.05
    ms a batch, this 0.03 (`ser_fl.training.trainer.FitProfiler`).

    ``rest`` is the part that counts where no other is named; ``synchronise`` waits for what was only handed to a
    device, before ``clock``, in nanoseconds and never falling, is read.
    """

    def __init__(
        self, rest: Part, synchronise: Callable[[], None] | None = None, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._rest, self._synchronise, self._clock = rest, synchronise, clock
        self.restart()

    def restart(self) -> None:
        """Begin anew, at nothing, in no part."""
        self._spent = Counter[str]()
        self._within: list[Part] = [self._rest]
        self._since = self._clock()

    def read(self) -> dict[str, int]:
        """Nanoseconds by part since `restart`."""
        self._charge()
        return dict(self._spent)

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: Part) -> None:
        """Begin a part; the one around it waits until `leave`."""
        if name != self._within[-1]:
            self._charge()
        self._within.append(name)

    def leave(self) -> None:
        if self._within[-1] != self._within[-2]:
            self._charge()
        self._within.pop()

    def _charge(self) -> None:
        if self._synchronise is not None:
            self._synchronise()
        now, name = self._clock(), self._within[-1]
        self._spent[name] += now - self._since
        self._since = now
