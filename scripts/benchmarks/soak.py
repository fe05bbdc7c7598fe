"""A long run in one process: what grows with the rounds, and what is left behind at the end.

200 rounds of 20 clients on the built-in corpus, serial, tracked by W&B offline. A process of its own counts its memory,
open files and threads after every round, and what is in its temporary folder at the end. A run of two rounds comes
first, in the same process: what libraries open once and keep is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

ROUNDS, CLIENTS = 200, 20
WARM = 50
"""Rounds after which everything that is made once has been made."""
GROWTH_BAR = 1.02

_RUN = """
import json, os, sys, threading
from pathlib import Path
from ser_fl.config.compose import compose
from ser_fl.federation.hooks import Hooks
from ser_fl.api import train

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

samples = []

def on_round(record):
    samples.append([status("RssAnon"), len(os.listdir("/proc/self/fd")), threading.active_count()])

*settings, run_dir = sys.argv[1:]
train(compose([*settings, f"{run_dir} first", "federation.num_rounds=2"]))  # what libraries open once and keep
before = [status("RssAnon"), len(os.listdir("/proc/self/fd")), threading.active_count()]
train(compose([*settings, run_dir]), hooks=Hooks(on_round=on_round))
after = [status("RssAnon"), len(os.listdir("/proc/self/fd")), threading.active_count()]
print(json.dumps({"samples": samples, "before": before, "after": after}))
"""


def figures() -> Iterator[Figure]:
    """Growth of memory over rounds; files, threads and temporary files that are left over."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        told, checkpoint = _soak(folder)
        kilobytes, files, threads = zip(*told["samples"], strict=True)
        early, late = (statistics.median(part) for part in (kilobytes[WARM : WARM + 25], kilobytes[-25:]))
        detail = {
            "rounds": ROUNDS,
            "clients": CLIENTS,
            "MB after rounds": {
                str(n): round(kilobytes[n - 1] / 1024, 1) for n in (1, 10, 25, 50, 100, 150, 200) if n <= ROUNDS
            },
        }
        yield Figure(
            name=f"soak, {ROUNDS} rounds of {CLIENTS} clients: memory of the last 25 rounds / of 25 from round {WARM}",
            value=late / early,
            bar=GROWTH_BAR,
            detail=detail,
        )
        yield Figure(
            name="soak: open files more after the run than before it",
            value=told["after"][1] - told["before"][1],
            bar=0,
            detail={"while it runs": sorted(set(files)), "before": told["before"][1], "after": told["after"][1]},
        )
        yield Figure(
            name="soak: threads more after the last round than after the first",
            value=threads[-1] - threads[0],
            bar=0,
        )
        left = sorted(path.name for path in (folder / "tmp").rglob("*") if path.is_file())
        yield Figure(name="soak: temporary files left over", value=len(left), bar=0, detail={"left": left})
        yield Figure(name="soak: files of the checkpoint", value=len(checkpoint), bar=3, detail={"files": checkpoint})


def _soak(folder: Path) -> tuple[dict[str, Any], list[str]]:
    run = folder / "run"
    settings = [
        *("experiment=debug", "tracking=wandb", "tracking.mode=offline", f"data.num_speakers={CLIENTS}"),
        *("data.utterances_per_emotion=2", f"federation.num_rounds={ROUNDS}", "federation.patience=0"),
        *("objective=pgd", "objective.steps=1", "selection.robust_every=10", "selection.steps=1"),
        *(f"data.cache_dir={folder / 'cache'}", f"run_dir={run}"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *settings],
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told, sorted(path.name for path in (run / "checkpoint").iterdir())
