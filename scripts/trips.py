"""How far a reader has to travel: files and functions of ser_fl that one PGD benchmark and one training round run.

    python scripts/trips.py [benchmark] [round]

Counted with `sys.setprofile` over the main thread, on the debug experiment; importing modules does not count.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ser_fl

ROOT = str(Path(ser_fl.__file__).parent)


def trip_of(action: Callable[[], Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """Files and functions that an action runs."""
    files: set[str] = set()
    functions: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and code.co_name not in ("<module>", "<listcomp>"):
            if code.co_name.startswith("<") or code.co_qualname.split(".")[-1] != code.co_name:
                return
            files.add(code.co_filename)
            functions.add((code.co_filename, code.co_qualname))

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return files, functions


def main(names: list[str]) -> None:
    """Print both counts."""
    settings = ["experiment=debug", "federation.num_rounds=1", "tracking=none"]
    with tempfile.TemporaryDirectory() as folder:
        for run in ("warm", "run"):  # the first one imports
            config = ser_fl.compose([*settings, f"run_dir={folder}/{run}"])
            training = trip_of(partial(ser_fl.train, config))
        from ser_fl.config.compose import compose_benchmark
        from ser_fl.robustness.benchmark import benchmark_run

        asked = ["attacks=[pgd]", "epsilons=[0.05]", "curve_attacks=[]", "steps=3", "restarts=1", "checks=false"]
        for run in ("warm", "run"):
            attack = compose_benchmark([f"run={folder}/{run}", *asked])
            attacking = trip_of(partial(benchmark_run, attack))
    for name, (files, functions) in (("benchmark", attacking), ("round", training)):
        if not names or name in names:
            print(f"{name}: {len(files)} files, {len(functions)} functions")


if __name__ == "__main__":
    main(sys.argv[1:])
