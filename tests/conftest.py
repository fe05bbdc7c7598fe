"""One thread a process: tests run side by side, and threads of several processes on few cores hinder each other."""

from __future__ import annotations

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many made-up inputs were tried, in worker processes too (tests/fuzz)."""
    reports = terminalreporter.stats.get("passed", [])
    tried = sum(count for report in reports for name, count in report.user_properties if name == "fuzz_cases")
    if tried:
        terminalreporter.write_line(f"fuzzing: {tried} cases, each with a result or one clear line")
