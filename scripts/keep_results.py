"""Copy the small files of run folders to results/: records, configuration and weights up to 5 MB, no audio.

python scripts/keep_results.py [--no-weights] RUN [RUN ...] results/nemo/within
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

KEPT = (
    "config.yaml",
    "environment.json",
    "rounds.jsonl",
    "clients.jsonl",
    "summary.json",
    "model.json",
    "model.safetensors",
    "attacks.json",
    "transfer.json",
    "baseline.json",
    "profile.json",
)
LARGEST = 5_000_000
WEIGHTS = ("model.json", "model.safetensors")


def main(runs: list[Path], target: Path, left_out: tuple[str, ...] = ()) -> None:
    """Copy each run to a folder of its name."""
    for run in runs:
        folder = target / run.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in (name for name in KEPT if name not in left_out):
            file = run / name
            if file.is_file() and file.stat().st_size <= LARGEST:
                shutil.copyfile(file, folder / name)


if __name__ == "__main__":
    *sources, destination = (Path(word) for word in sys.argv[1:] if word != "--no-weights")
    main(sources, destination, WEIGHTS if "--no-weights" in sys.argv else ())
