"""Speed and memory as ratios, measured in one run against a peer or a limit.

python scripts/bench.py SUITE [SUITE ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure, machine

SUITES = ("rounds", "attacks", "features", "memory", "startup", "scaling", "soak", "autoattack")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run suites and print a table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured, after each figure")
    chosen = parser.parse_args(arguments)
    print(machine())
    print(f"{'figure':<88}{'value':>10}{'bar':>14}")
    measured: list[Figure] = []
    for figure in run(chosen.suites):
        measured.append(figure)
        print(line(figure), flush=True)
        if chosen.json:
            write(chosen.json, measured)
    return int(any(figure.holds is False for figure in measured))


def run(suites: Sequence[str]) -> Iterator[Figure]:
    """Figures as they come. A suite is imported when it is its turn, since it may need what is not installed."""
    for suite in suites:
        yield from importlib.import_module(f"benchmarks.{suite}").figures()


def line(figure: Figure) -> str:
    """A figure in the table."""
    bar = "" if figure.bar is None else f"{'<=' if figure.reach == 'at most' else '>='} {figure.bar:g}"
    missed = "  missed" if figure.holds is False else ""
    return f"{figure.name:<88}{figure.value:>10.3g}{bar:>14}{missed}"


def write(file: Path, figures: Sequence[Figure]) -> None:
    """The whole file each time, so that a run that is cut short leaves what it has measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps([figure.as_json() for figure in figures], indent=1) + "\n")
    temporary.replace(file)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; suites set what they need
    sys.exit(main())
