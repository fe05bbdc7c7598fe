"""Start-up: the help, and the first training batch with a warm feature cache, of processes seen from outside.

The first batch is seen by a Lightning callback that Lightning itself finds, as it finds everybody's: through an entry
point of an installed package, here a folder of two files on PYTHONPATH. So what runs is `ser-fl train`, with a Trainer,
which callbacks call for; without any it would have less to set up. SER_FL_BENCH_NEMO names the folder of nEMO, for the
figure on it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure

REPEATS = 5
HELP_BAR_S = 0.5
BATCH_BAR_S = 8.0

_CALLBACK = """
import os, sys, time

def callbacks():
    from lightning.pytorch import Callback

    class FirstBatch(Callback):
        def on_train_batch_start(self, *arguments):
            print(f"first batch {time.clock_gettime(time.CLOCK_MONOTONIC)} {time.process_time()}", flush=True)
            os._exit(0)

    return [FirstBatch()]
"""


def figures() -> Iterator[Figure]:
    """`ser-fl --help`, and first batches, serial: with precision=auto the measurement that it begins with included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield help_figure()
        yield first_batch(folder, "experiment=debug")
        yield first_batch(folder, "experiment=debug", "precision=auto", "model=crnn", "federation.batch_size=16")
        if nemo := os.environ.get("SER_FL_BENCH_NEMO"):
            yield first_batch(folder, "experiment=nemo_fl", f"data.root={nemo}", "tracking=none", "precision=auto")


def help_figure() -> Figure:
    """Seconds of `ser-fl --help` from start to end."""
    ser_fl(os.environ, "--help")  # compiles what has no byte code yet
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ser_fl(os.environ, "--help")
        seconds.append(time.perf_counter() - started)
    return figure("ser-fl --help", seconds, HELP_BAR_S)


def first_batch(folder: Path, *settings: str) -> Figure:
    """Seconds from the start of `ser-fl train` to the beginning of its first batch; the first run fills the cache."""
    environment = observed(folder) | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    seconds, processor = [], []
    for repeat in range(1 + REPEATS):
        run = folder / "-".join(settings).replace("/", "_") / str(repeat)
        started = time.clock_gettime(time.CLOCK_MONOTONIC)  # one clock for all processes
        printed = ser_fl(environment, "train", *settings, f"run_dir={run}", f"data.cache_dir={folder / 'cache'}")
        (line,) = (line for line in printed.splitlines() if line.startswith("first batch "))
        reached, used = map(float, line.split()[2:])
        if repeat:
            seconds.append(reached - started)
            processor.append(used)
    shown = " ".join(part for part in settings if not part.startswith("data.root="))
    name = f"ser-fl train {shown}, serial, first batch, warm cache"
    return figure(name, seconds, BATCH_BAR_S, processor_s=statistics.median(processor))


def ser_fl(environment: os._Environ[str] | dict[str, str], *arguments: str) -> str:
    """What the command prints; it must end well."""
    command = [sys.executable, "-m", "ser_fl", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def observed(folder: Path) -> dict[str, str]:
    """An environment in which Lightning finds the callback: a distribution with an entry point, on the path."""
    place = folder / "observer"
    if not place.exists():
        information = place / "first_batch-1.dist-info"
        information.mkdir(parents=True)
        (place / "first_batch.py").write_text(_CALLBACK)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: first_batch\nVersion: 1\n")
        (information / "entry_points.txt").write_text(
            "[lightning.pytorch.callbacks_factory]\nfirst_batch = first_batch:callbacks\n"
        )
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def figure(name: str, seconds: Sequence[float], bar: float, **detail: float) -> Figure:
    """The median in seconds, with the spread."""
    return Figure(
        name=f"{name}, s",
        value=statistics.median(seconds),
        bar=bar,
        detail={"lowest": min(seconds), "highest": max(seconds), "repeats": len(seconds)} | detail,
    )
