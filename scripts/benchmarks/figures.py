"""What a suite yields: a figure, the bar it should reach, and how it was measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

Measurement = Callable[[], object]
"""Something whose time is taken. Where it returns a number, that is its time in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a table."""

    name: str
    value: float
    bar: float | None = None
    """None: measured without a promise."""
    reach: Literal["at most", "at least"] = "at most"
    detail: dict[str, Any] = field(default_factory=dict)
    """Seconds, spread, sizes: what somebody would ask next."""

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.reach == "at most" else self.value >= self.bar

    def as_json(self) -> dict[str, Any]:
        """As in the file that ``--json`` writes."""
        content = asdict(self)
        return content | {"holds": self.holds, "on": machine()}


def alternately(measurements: Mapping[str, Measurement], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Seconds of each measurement, taken in turns, so that what else the machine does falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in measurements}
    for repeat in range(warm_ups + repeats):
        for name, measure in measurements.items():
            started = time.perf_counter()
            told = measure()
            taken = float(told) if isinstance(told, float) else time.perf_counter() - started
            if repeat >= warm_ups:
                seconds[name].append(taken)
    return seconds


def ratio(
    name: str,
    of: Sequence[float],
    to: Sequence[float],
    *,
    bar: float | None = None,
    reach: Literal["at most", "at least"] = "at most",
    **detail: Any,
) -> Figure:
    """Median of the ratios of measurements that were taken in turns, with their spread."""
    ratios = [mine / theirs for mine, theirs in zip(of, to, strict=True)]
    return Figure(
        name=name,
        value=statistics.median(ratios),
        bar=bar,
        reach=reach,
        detail={
            "median_s": [statistics.median(of), statistics.median(to)],
            "lowest": min(ratios),
            "highest": max(ratios),
            "repeats": len(ratios),
        }
        | detail,
    )


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Exponent of growth, seconds = c * size ** exponent, by least squares on logarithms, and c."""
    import numpy as np

    exponent, offset = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(exponent), float(np.exp(offset))


def machine() -> str:
    """Hardware and versions, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {found}" for name in ("torch", "lightning", "flwr") if (found := _version(name)))
    return f"{cores} cores of {_processor()}, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names: Iterator[str] = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
