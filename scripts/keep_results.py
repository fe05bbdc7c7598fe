"""Copy what tables are made of from run folders to results/: settings, versions and records; no audio, no weights.

python scripts/keep_results.py [--weights] RUN [RUN ...] results/nemo/within

Of 1,000 rounds and more those that were not validated are left out of rounds.jsonl; their seconds are added to the
next round that is kept. With --weights the model comes too: for runs that a command of the documentation attacks.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

KEPT = (
    "config.yaml",
    "environment.json",
    "rounds.jsonl",
    "summary.json",
    "attacks.json",
    "transfer.json",
    "baseline.json",
    "profile.json",
    "crossval.json",
    "crossval.md",
)
WEIGHTS = ("model.json", "model.safetensors")
MANY_ROUNDS = 1000


def main(runs: list[Path], target: Path, *, weights: bool = False) -> None:
    """Copy each run to a folder of its name, with its clean figures on other speech."""
    names = (*KEPT, *WEIGHTS) if weights else KEPT
    for run in runs:
        files = (*(run / name for name in names), *run.glob("evaluations/*/*.json"))
        for file in filter(Path.is_file, files):
            kept = target / run.name / file.relative_to(run)
            kept.parent.mkdir(parents=True, exist_ok=True)
            if file.name == "rounds.jsonl":
                kept.write_text(thin(file.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copyfile(file, kept)


def thin(text: str) -> str:
    """All rounds, or of many the first, the last, those that were validated and those with failures."""
    lines = text.splitlines()
    if len(lines) < MANY_ROUNDS:
        return text
    rounds: list[dict[str, Any]] = [json.loads(line) for line in lines]
    kept, seconds = [], 0.0
    for place, entry in enumerate(rounds):
        seconds += entry["seconds"]
        told = entry["failures"] or {entry["uar"], entry.get("robust_uar")} != {None}
        if told or place in (0, len(rounds) - 1):
            kept.append({**entry, "seconds": seconds})
            seconds = 0.0
    return "".join(json.dumps(entry) + "\n" for entry in kept)


if __name__ == "__main__":
    *sources, destination = (Path(word) for word in sys.argv[1:] if word != "--weights")
    main(sources, destination, weights="--weights" in sys.argv)
