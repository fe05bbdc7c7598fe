"""One thread a process: tests run side by side, and threads of several processes on few cores hinder each other."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C. What has a
    # handler here has the default in processes started from here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_state() -> Iterator[None]:
    """What a machine remembers of runs (`ser_fl.runs.redaction`) stays among the tests."""
    folder = tempfile.mkdtemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many made-up inputs were tried, in worker processes too (tests/fuzz)."""
    reports = terminalreporter.stats.get("passed", [])
    tried = sum(count for report in reports for name, count in report.user_properties if name == "fuzz_cases")
    if tried:
        terminalreporter.write_line(f"fuzzing: {tried} cases, each with a result or one clear line")
