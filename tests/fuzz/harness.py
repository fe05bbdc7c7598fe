"""How made-up inputs are tried: each ends in a result or in one clear line, in time, and changes nothing it reads.

Cases are drawn from a fixed seed and kept nowhere, so that every machine tries the same ones.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from ser_fl.errors import UserError

THOROUGH = {
    "manifests": 900,
    "trees": 400,
    "overrides": 250,
    "settings of benchmarks": 250,
    "files of settings": 450,
    "run folders": 600,
    "figures": 30,
    "models and checkpoints": 600,
    "audio": 1400,
    "updates": 1000,
    "answers of nodes": 3300,
    "questions to nodes": 200,
    "questions to a node with a policy": 2500,
}
"""Cases of each kind in `make test-slow`."""
assert sum(THOROUGH.values()) >= 7500
LONGEST_LINE = 2000
LONGEST_CASE_S = 60
"""A guard against hangs: the slowest honest case takes a hundredth of it."""


class Hangs(BaseException):
    """Not an `Exception`, so that nothing that is tried can catch it."""


Case = TypeVar("Case")
Result = TypeVar("Result")


def cases_of(kind: str, *, quick: int) -> pytest.MarkDecorator:
    """Runs a test twice: with few cases in `make test`, and with those of `THOROUGH` in `make test-slow`."""
    thorough = pytest.param(THOROUGH[kind], marks=(pytest.mark.slow, pytest.mark.fuzz), id="thorough")
    return pytest.mark.parametrize("num_cases", [pytest.param(quick, id="quick"), thorough])


@pytest.fixture
def explore(num_cases: int, record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Tries a function on so many cases of a strategy, each within `LONGEST_CASE_S`."""

    def run(cases: SearchStrategy[Case], try_case: Callable[[Case], None]) -> None:
        tried = 0

        @settings(
            max_examples=num_cases,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # shrinking takes minutes where a case takes a tenth of a second
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def try_one(case: Case) -> None:
            nonlocal tried
            try:
                with in_time(case):
                    try_case(case)
            except Hangs as hang:
                pytest.fail(str(hang), pytrace=False)
            tried += 1

        try_one()
        record_property("fuzz_cases", tried)
        assert tried >= num_cases

    return run


@contextmanager
def in_time(case: object) -> Iterator[None]:
    """Raise where a case hangs."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"no end within {LONGEST_CASE_S} s: {repr(case)[:2000]}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def result_or_line(call: Callable[..., Result], *args: Any, **settings: Any) -> Result | None:
    """The result of a call, or None where it was refused in one clear line."""
    try:
        return call(*args, **settings)
    except UserError as error:
        check_line(str(error))
        return None


def check_line(line: str) -> None:
    """One line that says something, fit for a terminal and a log."""
    assert line.strip() and line.isprintable() and len(line) <= LONGEST_LINE, line[:4000]


def digest(folder: Path) -> str:
    """Of every name, kind and byte below a folder."""
    total = hashlib.blake2b()
    for path in sorted(folder.rglob("*")):
        total.update(os.fsencode(path))
        if stat.S_ISREG(path.lstat().st_mode):
            total.update(path.read_bytes())
    return total.hexdigest()
