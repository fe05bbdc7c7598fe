"""Memory against the number of clients: real runs in processes of their own, whose anonymous memory is looked at.

Anonymous memory is what a process has written and no file holds: RssAnon and RssShmem of ``/proc/PID/status``, read
every two milliseconds by the parent, the largest value of a run. The features, which are mapped from their file, and
the libraries are left out: the system takes their pages back when it needs them. VmHWM would count them, and there is
no high-water mark without them. A peak that is over within two milliseconds is missed; to write a megabyte takes a
quarter of one.

The corpus is a manifest of short WAV files of noise, read as anybody's own would be.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure

_LOOK_EVERY_S = 0.002
_SAMPLE_RATE_HZ = 8000
_NUM_SAMPLES = 5000
"""Of a clip: 38 frames."""
_SETTINGS = (
    "tracking=none",
    "data=manifest",
    "split=published",
    "clients=iid",
    "model=crnn_small",
    f"frontend.sample_rate_hz={_SAMPLE_RATE_HZ}",
    "frontend.fmax_hz=4000",
    "frontend.num_mels=64",
    f"frontend.duration_s={_NUM_SAMPLES / _SAMPLE_RATE_HZ}",
    "federation.local_epochs=1",
    "federation.patience=0",
)
_TRAIN = "import sys; from ser_fl import train; from ser_fl.config.compose import compose; train(compose(sys.argv[1:]))"


def figures() -> Iterator[Figure]:
    """Growth with the number of clients, and ten thousand of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield _growth(folder, write_corpus(folder / "growth", num_train=4000))
        manifest = write_corpus(folder / "many", num_train=30_000)
        for keeps in (False, True):
            yield _many(folder, manifest, keeps_optimiser=keeps)


def _growth(folder: Path, manifest: Path) -> Figure:
    """A cohort of ten, 4,000 clips in all: 400 a client, or 4."""
    rounds, runs = 3, {}
    for num_clients in (10, 1000):
        settings = (f"clients.num_clients={num_clients}", f"federation.fraction_train={10 / num_clients}")
        run_dir = folder / f"of {num_clients}"
        peak_once(folder, manifest, run_dir / "first", *settings, "federation.num_rounds=1")  # makes the features
        runs[num_clients] = peak_once(folder, manifest, run_dir / "run", *settings, f"federation.num_rounds={rounds}")
    peaks = {clients: peak for clients, (peak, _) in runs.items()}
    return Figure(
        name="peak anonymous memory, 1,000 clients against 10, fixed cohort and total clips",
        value=peaks[1000] / peaks[10],
        bar=1.1,
        detail={
            "bytes": peaks,
            "seconds": {clients: seconds for clients, (_, seconds) in runs.items()},
            "cohort": 10,
            "training_clips": 4000,
            "rounds": rounds,
        },
    )


def _many(folder: Path, manifest: Path, *, keeps_optimiser: bool) -> Figure:
    """Ten thousand clients of three clips each, in rounds of fifty."""
    clients, cohort, rounds = 10_000, 50, 5
    run_dir = folder / ("with optimisers" if keeps_optimiser else "without optimisers")
    peak, seconds = peak_once(
        folder,
        manifest,
        run_dir,
        f"clients.num_clients={clients}",
        f"federation.fraction_train={cohort / clients}",
        f"federation.num_rounds={rounds}",
        f"federation.keep_optimiser={str(keeps_optimiser).lower()}",
    )
    kept = ", which keep their optimisers" if keeps_optimiser else ""
    return Figure(
        name=f"10,000 clients{kept}, cohort of 50: GB at peak",
        value=peak / 1e9,
        bar=None if keeps_optimiser else 4,
        detail={"rounds": rounds, "training_clips": 30_000, "seconds": seconds},
    )


def write_corpus(folder: Path, num_train: int, num_scored: int = 200) -> Path:
    """Noise in two emotions with a manifest beside it; a training part, and as many to validate on as to test."""
    folder.mkdir(parents=True)
    stream = np.random.default_rng(0)
    rows = []
    parts = ["train"] * num_train + ["validation"] * num_scored + ["test"] * num_scored
    for index, part in enumerate(parts):
        name = f"{index:06d}.wav"
        samples = stream.integers(-8000, 8000, _NUM_SAMPLES, dtype=np.int16)
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_SAMPLE_RATE_HZ)
            file.writeframes(samples.tobytes())
        rows.append((name, ("angry", "neutral")[index % 2], f"speaker{index // 3}", part))
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "emotion", "speaker", "split"), *rows])
    return manifest


def peak_once(folder: Path, manifest: Path, run_dir: Path, *settings: str) -> tuple[int, float]:
    """Largest anonymous memory of a training run, in bytes, and its seconds."""
    arguments = (*_SETTINGS, f"data.root={manifest}", f"data.cache_dir={folder / 'cache'}", f"run_dir={run_dir}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-c", _TRAIN, *arguments, *settings]
        with subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_bytes(process.pid))
                time.sleep(_LOOK_EVERY_S)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"a run failed: {said.read().decode()[-2000:]}")
    return peak, time.perf_counter() - started


def anonymous_bytes(process: int) -> int:
    """Anonymous memory of a process, 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
