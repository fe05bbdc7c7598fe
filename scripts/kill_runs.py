"""Kill a run of six rounds at random moments, let it go on, and write down what was lost.

python scripts/kill_runs.py local|flower [--moments 20] [--seed 1] [--json FILE] [--work FOLDER]

`local` kills `ser-fl train` with its workers; `flower` kills the link of a federation with its server's part, while
three nodes stay up. The file is written after every moment, and moments that are in it are not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kills.book import Book
from kills.moments import Kill


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the moments that are not on record, and print a line for each; 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=("local", "flower"))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: results/kills/WHERE.json")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="default: runs/kills/WHERE")
    chosen = parser.parse_args(arguments)
    work = (chosen.work or Path("runs", "kills", chosen.where)).absolute()
    book = Book(chosen.json or Path("results", "kills", f"{chosen.where}.json"), chosen.where, chosen.seed)
    missing = [number for number in range(chosen.moments) if number not in book.made]
    for kill in make(chosen.where, work, chosen.seed, missing):
        book.add(kill)
        print(kill.line, flush=True)
    print(book.last_line, flush=True)
    return int(bool(book.num_spoilt))


def make(where: str, work: Path, seed: int, numbers: Sequence[int]) -> Iterator[Kill]:
    """The kills of these numbers, as they come."""
    if where == "local":
        from kills.local import kills
    else:
        from kills.federation import kills
    return kills(work, seed, numbers)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
