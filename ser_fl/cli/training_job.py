"""A run of a sweep, as Hydra's launchers call it: in this process, in another, or on a cluster."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_fl.errors import RoundFailed, UserError
from ser_fl.files import write_json
from ser_fl.runs.preemption import Preemption, Stopped
from ser_fl.runs.validation import parse_json, record_of

if TYPE_CHECKING:
    from ser_fl.config.schema import Config
    from ser_fl.runs.folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run of a sweep lies, and which others it is shown with."""

    folder: str
    group: str
    """Of W&B."""

    @classmethod
    def of(cls, config: Config, study: str, number: str, group: str) -> Place:
        """The folder of a new run: in `run_dir`, or among those of its experiment."""
        own = f"{number}-{config.seed}"
        parent = Path(config.run_dir) / own if config.run_dir else Path("runs") / config.experiment / f"{study}-{own}"
        return cls(folder=str(parent), group=group)

    def taken_by(self, config: Config) -> Config:
        """The configuration of the run here; a group that it has stays."""
        tracking = replace(config.tracking, group=config.tracking.group or self.group)
        return replace(config, run_dir=self.folder, tracking=tracking)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a job leaves to whoever started the sweep."""

    number: int
    folder: str
    failure: str | None = "it was stopped"

    def write(self, notes: Path) -> None:
        """Keep it below the sweep's folder."""
        (notes / "jobs").mkdir(parents=True, exist_ok=True)
        write_json(notes / "jobs" / f"{self.number}.json", asdict(self))

    @classmethod
    def read_all(cls, notes: Path) -> Iterator[Note]:
        """Those that are there."""
        for file in (notes / "jobs").glob("*.json"):
            yield record_of(cls, parse_json(file.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What Hydra calls with the settings of each run; its result is what a sweeper maximises."""

    study: str
    """Name of the sweep: when it started."""
    notes: str
    """Folder that each job leaves a `Note` in."""
    places: tuple[Place, ...]
    """Of the jobs, by number; empty where a sweeper chooses them as it goes."""
    command: tuple[str, ...]
    """What the user called, for the runs' records."""

    def __call__(self, settings: Any) -> float:
        """Train; the selected round's validation score, or NaN of a run that failed.

        Raises:
            Stopped: a signal came that the launcher does not answer.
        """
        from hydra.core.hydra_config import HydraConfig

        from ser_fl.cli.training_output import print_summary
        from ser_fl.config.compose import plain
        from ser_fl.config.schema import parse

        sys.argv = list(self.command)
        hydra, config = HydraConfig.get(), parse(plain(settings))
        number = int(hydra.job.num)
        place = self.places[number] if self.places else self._next(config, number)
        note, notes = Note(number=number, folder=place.folder), Path(self.notes)
        note.write(notes)
        try:
            run = _train(place.taken_by(config), hydra.launcher)
        except (UserError, RoundFailed) as failure:
            replace(note, failure=str(failure)).write(notes)
            return math.nan
        replace(note, failure=None).write(notes)
        if hydra.launcher._target_.endswith(".BasicLauncher"):
            print_summary(run)
        return float(run.read_json(run.summary)["selection_score"])

    def _next(self, config: Config, number: int) -> Place:
        group = Path(config.run_dir).name if config.run_dir else f"{config.experiment}-{self.study}"
        return Place.of(config, self.study, f"{number + 1:03d}", group)


def _train(config: Config, launcher: Any) -> RunFolder:
    """Train; as a job of submitit's always from the last checkpoint, whoever queued it again.

    The signal that its time is up ends the round, and then goes to submitit, which queues the job again. Left to itself
    submitit would do so in the middle of the round.
    """
    from ser_fl.cli.training_output import train_visibly

    if "submitit" not in launcher._target_:
        preemption = Preemption()
        with preemption.listening():
            return train_visibly(config, preemption)
    from submitit import JobEnvironment

    number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
    preemption = Preemption({number: grace_s(launcher)})
    try:
        with preemption.listening():
            return train_visibly(replace(config, resume=True), preemption)
    except Stopped:
        answer = signal.getsignal(number)
        if callable(answer):
            answer(number, None)
        raise


def grace_s(launcher: Any) -> float:
    """What a round has left after the signal that a job's time is up; submitit gives a local job 30 s."""
    return 0.75 * float(launcher.get("signal_delay_s", 30))
