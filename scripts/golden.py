"""Golden runs: what a refactoring must leave as it is, bit for bit.

    python scripts/golden.py record FILE [--nemo DIR] [--only NAME ...]
    python scripts/golden.py compare BEFORE AFTER [--only NAME ...]

Runs the program's own commands and keeps of each run the digest of its weights, its rounds and its attack records,
without times. A later version is held against the file: `compare` prints every difference and ends with 1 if there is
one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

_TIMES = {"seconds", "library", "clean_accuracy", "robust_accuracy", "bytes_up", "bytes_down"}
"""Entries that may differ: times, which code ran, and what records of earlier versions lack."""
_TRAIN = ("tracking=none", "precision=32-true", "seed=3")
_BENCHMARK = ("epsilons=[0.02,0.05]", "curve_epsilons=[]", "max_examples=8", "steps=4", "restarts=2")


def ser_fl(*arguments: str) -> None:
    """Run a command of the program."""
    subprocess.run([sys.executable, "-m", "ser_fl", *arguments], check=True, stdout=subprocess.DEVNULL)


def digest_of(weights: Path) -> str:
    """One word for a file of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def without_times(value: Any) -> Any:
    """The same record, times left out."""
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in _TIMES}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def facts_of(run: Path) -> dict[str, Any]:
    """What is kept of a run folder."""
    facts: dict[str, Any] = {"weights": digest_of(run / "model.safetensors")}
    for name in ("rounds.jsonl", "clients.jsonl"):
        facts[name] = [without_times(json.loads(line)) for line in (run / name).read_text().splitlines()]
    for name in ("summary.json", "attacks.json", "transfer.json", "attacks/checks.json"):
        if (run / name).exists():
            facts[name] = without_times(json.loads((run / name).read_text()))
    return facts


def trained(run: Path, *settings: str) -> dict[str, Any]:
    """A training of the debug experiment, or of another that the settings name."""
    chosen = (
        settings if any(setting.startswith("experiment=") for setting in settings) else ("experiment=debug", *settings)
    )
    ser_fl("train", *chosen, *_TRAIN, f"run_dir={run}")
    return facts_of(run)


def resumed(run: Path) -> dict[str, Any]:
    """A training that is killed after its second round and goes on."""
    command = ["train", "experiment=debug", "federation.num_rounds=6", *_TRAIN, f"run_dir={run}"]
    process = subprocess.Popen([sys.executable, "-m", "ser_fl", *command], stdout=subprocess.DEVNULL)
    checkpoint = run / "checkpoint" / "checkpoint.json"
    while process.poll() is None and not (checkpoint.exists() and run_rounds(run) >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ser_fl(*command, "resume=true")
    return facts_of(run)


def run_rounds(run: Path) -> int:
    """Lines of ``rounds.jsonl``."""
    file = run / "rounds.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def benchmarked(run: Path, *settings: str) -> dict[str, Any]:
    """A debug model under attack."""
    trained(run)
    ser_fl("benchmark", f"run={run}", *settings)
    return facts_of(run)


def transferred(run: Path) -> dict[str, Any]:
    """An attack on one debug model shown to another."""
    trained(run)
    other = run.with_name("other")
    ser_fl("train", "experiment=debug", *_TRAIN[:2], "seed=4", f"run_dir={other}")
    ser_fl("transfer", str(run), str(other), "steps=4", "restarts=1")
    facts = facts_of(run)
    facts["transfer.json"].pop("models", None)
    return facts


def demonstrated(run: Path) -> dict[str, Any]:
    """Both runs of the demo."""
    ser_fl("demo", "--output", str(run))
    return {folder.parent.name: facts_of(folder.parent) for folder in sorted(run.glob("*/config.yaml"))}


def golden_runs(nemo: str | None) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """All of them by name."""
    objectives = ("pgd", "fast", "free", "trades")
    runs: dict[str, Callable[[Path], dict[str, Any]]] = {
        "debug": trained,
        "processes": lambda run: trained(run, "executor=processes", "executor.workers=2"),
        "flower": lambda run: trained(run, "executor=flower", "executor.num_nodes=2"),
        "adam": lambda run: trained(run, "federation=federated_adam"),
        "momentum": lambda run: trained(
            run, "federation.server_momentum=0.9", "federation.weight_average=0.5", "federation.keep_optimiser=true"
        ),
        "local_only": lambda run: trained(run, "federation=local_only"),
        "resumed": resumed,
        "logmel": lambda run: benchmarked(
            run, *_BENCHMARK, "attacks=[standard,mim,cw_l2,universal]", "adaptive=[pgd]", "eot_samples=3", "checks=true"
        ),
        "waveform": lambda run: benchmarked(
            run,
            *("domain=waveform", "snr_dbs=[30,10]", "max_examples=4", "steps=3", "restarts=1"),
            *("attacks=[pgd,apgd_ce,apgd_dlr,cw_l2,psychoacoustic]", "adaptive=[pgd]", "eot_samples=2"),
        ),
        "amplitude": lambda run: benchmarked(
            run, "domain=waveform", "amplitudes=[0.01]", "attacks=[pgd,apgd_ce]", "max_examples=4", "steps=3"
        ),
        "transfer": transferred,
        "demo": demonstrated,
    }
    for objective in objectives:
        settings = (f"objective={objective}", "objective.from_round=1")
        runs[objective] = lambda run, settings=settings: trained(run, *settings)  # type: ignore[misc]
    if nemo:
        small = ("federation.num_rounds=3", "federation.local_batches=4")
        runs["nemo_pgd"] = lambda run: trained(run, "experiment=nemo_fl_pgd", f"data.root={nemo}", *small)
    return runs


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two values are not the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in differences(before.get(key, "nothing"), after.get(key, "nothing"), f"{place}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for number, pair in enumerate(zip(before, after, strict=True))
            for line in differences(*pair, f"{place}/{number}")
        ]
    return [] if before == after else [f"{place}: {before!r:.200} is now {after!r:.200}"]


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--nemo", help="folder of nEMO")
    parser.add_argument("--only", nargs="+", default=[])
    arguments = parser.parse_args()
    if arguments.action == "compare":
        before, after = (json.loads(file.read_text()) for file in arguments.files)
        names = [name for name in after if not arguments.only or name in arguments.only]
        found = {name: differences(before[name], after[name]) for name in names if name in before}
        for name, lines in found.items():
            print(f"{name}: {'the same' if not lines else f'{len(lines)} differences'}")
            print("".join(f"  {line}\n" for line in lines[:20]), end="")
        return int(any(found.values()))
    (file,) = arguments.files
    facts = json.loads(file.read_text()) if file.exists() else {}
    for name, run in golden_runs(arguments.nemo).items():
        if arguments.only and name not in arguments.only:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            facts[name] = run(Path(folder) / "run")
        file.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
