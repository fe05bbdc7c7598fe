"""The audit log of a node: a line of JSON for each question that it was asked, whole, and never more than some MB."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ser_fl.errors import one_line, shown

_LONGEST, _MOST, _LIMIT = 300, 50, 1e300
"""Characters of a text, entries of a list, and what a number stays below."""
_KEPT = 4
"""Full files that are kept: audit.jsonl.1, the newest, to .4."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One process at a time inside; the file is made, and holds nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class AuditLog:
    file: Path
    most_mb: float = 10
    """Size in MB at which a file is full."""

    def add(self, **entry: Any) -> None:
        """Append a line, with the time (UTC) first. What is too long is shortened. A line that a full disk has cut is
        ended before the next begins.
        """
        said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **_short(entry)}
        line = json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with locked(self.file.with_name(".audit.lock")):
            if self.file.exists() and self.file.stat().st_size + len(line) > self.most_mb * 1e6:
                for number in range(_KEPT, 0, -1):
                    newer = self.file if number == 1 else self.file.with_name(f"{self.file.name}.{number - 1}")
                    if newer.exists():
                        newer.replace(self.file.with_name(f"{self.file.name}.{number}"))
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    line = b"\n" + line
                os.write(handle, line)
            finally:
                os.close(handle)


def _short(value: object, depth: int = 3) -> Any:
    """What fits into a line: it may quote a stranger."""
    if isinstance(value, str):
        return one_line(value, _LONGEST)
    if isinstance(value, dict) and depth:
        return {one_line(str(name), _LONGEST): _short(inner, depth - 1) for name, inner in [*value.items()][:_MOST]}
    if isinstance(value, (list, tuple)) and depth:
        return [_short(inner, depth - 1) for inner in value[:_MOST]]
    is_number = isinstance(value, (int, float)) and abs(value) < _LIMIT  # false of NaN
    return value if value is None or is_number else shown(value)
