"""The run that is killed: its command, how far it has come, and whether another one has the same bits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kills.moments import NUM_ROUNDS, Moment, Timeline, phase
from ser_fl.files import write_json
from ser_fl.runs.folder import RunFolder

SETTINGS = (
    "experiment=debug",
    "data.num_speakers=3",
    "data.utterances_per_emotion=4",
    "precision=32-true",
    "objective=pgd",
    "objective.steps=7",
    f"federation.num_rounds={NUM_ROUNDS}",
    "federation.fraction_train=0.7",
    "federation.keep_optimiser=true",
    "optimiser.learning_rate=0.01",
)
"""Two of three clients a round, optimisers and server momentum that are carried on, a model selected on the way."""
EPOCHS = {"local": "federation.local_epochs=24", "flower": "federation.local_epochs=4"}
"""So that a round takes seconds."""
OFFLINE = ("tracking=wandb", "tracking.mode=offline")
PATIENCE_S = 900.0
_LOOK_S = 0.01
_ROUND = re.compile(r"^debug  round +(\d+)  ", re.MULTILINE)


@dataclass(slots=True)
class Command:
    """A command of ours in a process group of its own, and the run folder that it works on."""

    process: subprocess.Popen[bytes]
    output: Path
    run: RunFolder
    begun: float

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.begun

    @property
    def committed(self) -> int:
        """Rounds that are."""
        latest = self.run.checkpoint / "latest.json"
        return int(json.loads(latest.read_text())["round"]) if latest.exists() else 0

    @property
    def phase(self) -> str:
        """Where it is."""
        return phase(self.committed, self.run.config.exists(), self.run.summary.exists())

    @property
    def rounds(self) -> tuple[int, ...]:
        """That it says it has made."""
        return tuple(int(number) for number in _ROUND.findall(self.said))

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        return self.process.wait(PATIENCE_S)

    def reaches(self, moment: Moment) -> bool:
        """Wait for a moment; False where it had ended before."""
        since = self.begun if moment.after_round == 0 else None
        while self.process.poll() is None:
            if since is None and self.committed >= moment.after_round:
                since = time.monotonic()
            if since is not None and time.monotonic() - since >= moment.delay_s:
                return True
            if self.seconds > PATIENCE_S:
                raise TimeoutError(f"no end of {self.output} within {PATIENCE_S:g} s")
            time.sleep(_LOOK_S)
        return False


@contextmanager
def started(run: Path, *settings: str) -> Iterator[Command]:
    """``ser-fl train`` on a run folder; ended by force where it has not ended by itself."""
    output = run.with_name(f"{run.name}.log")
    arguments = [sys.executable, "-m", "ser_fl", "train", *SETTINGS, f"run_dir={run}", *settings]
    run.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as log:
        log.truncate(0)
        begun = time.monotonic()
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield Command(process, output, RunFolder(run), begun)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def undisturbed(run: Path, *settings: str) -> Timeline:
    """Make a run that nobody disturbs, once, and say when its rounds were committed."""
    file = run.with_name(f"{run.name}.timeline.json")
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8"))
        return Timeline(tuple(content["commits"]), content["summary"], content["end"])
    commits: list[float] = []
    summary: list[float] = []
    with started(run, *settings, "resume=true") as command:
        while command.process.poll() is None:
            commits += [command.seconds] * (command.committed - len(commits))
            summary += [command.seconds] * (command.run.summary.exists() and not summary)
            time.sleep(_LOOK_S)
        end = command.seconds
    if command.process.returncode != 0 or len(set(commits)) != NUM_ROUNDS or not summary:
        raise SystemExit(f"the run that nobody disturbs has failed: see {command.output}")
    write_json(file, {"commits": commits, "summary": summary[0], "end": end})
    return Timeline(tuple(commits), summary[0], end)


def differences(run: RunFolder, whole: RunFolder) -> tuple[str, ...]:
    """Names of files that are missing or whose bits, but for seconds, differ."""
    return tuple(
        mine.name
        for mine, other in zip(_compared(run), _compared(whole), strict=True)
        if mine.name != other.name or not mine.exists() or _content(mine) != _content(other)
    )


def left_over(run: RunFolder, whole: RunFolder) -> tuple[str, ...]:
    """Files that an undisturbed run does not leave."""
    return tuple(sorted(_files(run) - _files(whole)))


def wandb_ids(run: RunFolder) -> tuple[str, ...]:
    """Of all folders of the offline tracker."""
    return tuple(sorted({folder.name.split("run-")[1].split("-")[1] for folder in run.root.glob("wandb/*run-*")}))


def _compared(run: RunFolder) -> Sequence[Path]:
    selected = [run.checkpoint / name for name in _tensors(run)]
    return (run.rounds, run.clients, run.summary, run.weights, run.model, *selected)


def _tensors(run: RunFolder) -> list[str]:
    latest = run.checkpoint / "latest.json"
    files: dict[str, str] = (
        json.loads(latest.read_text())["files"] if latest.exists() else {"current": "-", "best": "-"}
    )
    return sorted(files.values())


def _content(file: Path) -> Any:
    if file.name == "summary.json":  # nodes tell a server less of what the test part shares than one machine knows
        with suppress(ValueError, KeyError, TypeError):
            summary = json.loads(file.read_bytes())
            known = ("num_utterances", "speakers", "num_speakers")
            return summary | {"shared": {name: summary["shared"][name] for name in known}}
    if file.suffix != ".jsonl":
        return file.read_bytes()
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _files(run: RunFolder) -> set[str]:
    found = (file.relative_to(run.root) for file in run.root.rglob("*") if file.is_file())
    return {str(file) for file in found if file.parts[0] != "wandb"}
