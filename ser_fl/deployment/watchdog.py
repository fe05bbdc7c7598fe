"""Whether a SuperNode and its link hear each other: what is watched is the connection, not the process."""

import time
from collections.abc import Callable
from pathlib import Path

from ser_fl.deployment.flower_environment import answers
from ser_fl.errors import UserError

_QUIET_S = 15.0
"""A SuperNode that works has an answer every 6 seconds at the latest; one that is cut off tries every 4."""
_PROBE_S = 2.0
_GRACE_S, _LONGEST_GRACE_S = 15.0, 240.0


class Watchdog:
    """Looks at the sign that a SuperNode leaves at each answer of its link (`ser_fl.deployment.flwr_patience`). Where
    it is silent, the watchdog calls the link itself, as strictly as a node does. A link that is away, or is another's,
    is waited for; a SuperNode that stays silent for a while although the right link answers is to be started again.
    That while doubles with every start that was in vain, up to four minutes. ``tell`` gets a line at each change.
    """

    def __init__(self, sign: Path, link: str, ca: Path, tell: Callable[[str], None]) -> None:
        self._sign, self._link, self._ca, self._tell = sign, link, ca, tell
        self._grace_s = _GRACE_S
        self._problem: str | None = None
        self.start_anew()

    def start_anew(self) -> None:
        """Count from now: the link has just accepted the SuperNode, or that was started again."""
        self._heard_at = self._probed_at = time.monotonic()
        self._answers_since: float | None = None
        self._seen = self._last_sign()

    def is_needed(self) -> bool:
        """Look once, and say whether the SuperNode is to be started again."""
        now, sign = time.monotonic(), self._last_sign()
        if sign != self._seen:
            if self._problem is not None:
                self._tell(f"connected again to {self._link}, after {now - self._heard_at:.0f} s")
            self._seen, self._heard_at, self._answers_since = sign, now, None
            self._problem, self._grace_s = None, _GRACE_S
            return False
        if now - self._heard_at < _QUIET_S or now - self._probed_at < _PROBE_S:
            return False
        self._probed_at = now
        if (problem := self._ask()) is not None:
            if problem != self._problem:
                self._tell(f"disconnected: {problem}: waiting for the link")
            self._problem, self._answers_since = problem, None
            return False
        self._answers_since = now if self._answers_since is None else self._answers_since
        if now - self._answers_since < self._grace_s:
            return False
        self._tell(f"{self._link} answers, but the SuperNode has not heard of it for {now - self._heard_at:.0f} s")
        self._problem = "the SuperNode did not hear of it"
        self._grace_s = min(2 * self._grace_s, _LONGEST_GRACE_S)
        return True

    def _ask(self) -> str | None:
        """What is wrong with the link, if anything."""
        try:
            return None if answers(self._link, self._ca) else f"{self._link} does not answer"
        except UserError as error:
            return str(error)

    def _last_sign(self) -> int:
        return self._sign.stat().st_mtime_ns if self._sign.exists() else 0
