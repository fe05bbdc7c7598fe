"""Signals that end a run early: the round in flight is finished if there is time, all else stops at once.

A scheduler says beforehand that a job's time is up, so the round in flight, often minutes of work, may still be
committed; one that is not done within the grace is given up. Either way the last checkpoint is good, and the run that
goes on from it has the bits of the one that was never stopped.
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

GRACE_S: Mapping[int, float] = {signal.SIGUSR1: 90.0, signal.SIGTERM: 20.0}
"""Seconds that a round has left after each signal. `scripts/slurm_train.sh` lets SLURM send SIGUSR1 120 s before the
end; SIGTERM comes 30 s before SIGKILL with SLURM's default KillWait."""
LEFT_TO_THE_PARENT = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})
"""Signals that a terminal or a scheduler sends to every process of a job, where the parent is to answer them."""


class Stopped(BaseException):
    """A signal ended the run, which can go on from its last checkpoint. No `Exception`, lest a client that trains as it
    is raised takes it for a failure of its own.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


class Preemption:
    """What a signal does to a run: raise `Stopped`, at once or when the round is committed. ``grace_s`` are the
    signals, and how many seconds a round may go on after each.
    """

    def __init__(self, grace_s: Mapping[int, float] = GRACE_S) -> None:
        self._grace_s = grace_s
        self._in_round = False
        self._pending: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer signals inside, in the main thread alone; afterwards the handlers of before are back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in self._grace_s}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def round(self) -> Iterator[None]:
        """A first signal inside waits for the end, for as long as its grace; a second one does not."""
        self._in_round = True
        try:
            yield
        finally:
            self._in_round = False
        if self._pending is not None:
            raise Stopped(self._pending)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._in_round or self._pending is not None:
            raise Stopped(number)
        self._pending = number
        # Also for what comes after the round: a tracker that cannot reach its server would wait for minutes.
        signal.setitimer(signal.ITIMER_REAL, self._grace_s[number])
        said = f"the round is finished if it ends within {self._grace_s[number]:g} s; a second signal stops at once"
        os.write(2, f"ser-fl: {signal.Signals(number).name}: {said}\n".encode())  # a handler may not print

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        assert self._pending is not None
        raise Stopped(self._pending)
