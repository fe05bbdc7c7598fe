"""A training on the terminal, and as a job of a sweep that Hydra's launchers call: here, beside, or on a cluster."""

from __future__ import annotations

import math
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_fl.errors import RoundFailed, UserError
from ser_fl.files import write_json
from ser_fl.runs.environment import collection_paused, keep_freed_memory
from ser_fl.runs.preemption import Preemption, Stopped

if TYPE_CHECKING:
    from ser_fl.config.schema import Config
    from ser_fl.runs.folder import RunFolder
    from ser_fl.runs.records import ProfileRecord, RoundRecord


def train_visibly(config: Config, preemption: Preemption) -> RunFolder:
    """Train with a line for every round and progress bars; at the end, if asked for, where the time went."""
    from ser_fl.cli.terminal import bars, console

    keep_freed_memory()
    with collection_paused():
        from ser_fl.api import train
        from ser_fl.federation.checkpoint import as_begun
        from ser_fl.federation.rounds import Hooks

    config = as_begun(config)

    def on_profile(profile: ProfileRecord) -> None:
        from ser_fl.report.markup import print_table
        from ser_fl.report.tables import profile_table

        print_table(profile_table(profile), console)

    with bars() as shown:

        def on_round(record: RoundRecord) -> None:
            shown.report(config.title, record.round, config.federation.num_rounds)
            line = record.line(config.title)
            console.print(line, highlight=False, markup=False, style="red" if record.failures else "")

        hooks = Hooks(on_round=on_round, on_features=shown.features, on_profile=on_profile, preemption=preemption)
        return train(config, hooks=hooks)


def print_summary(run: RunFolder) -> None:
    """The test figures of a run and where it lies."""
    from ser_fl.cli.terminal import console, say

    summary = run.read_json(run.summary)
    test = summary["test"]
    note = " (synthetic corpus)" if summary["synthetic"] else ""
    corpora: dict[str, Any] = summary.get("corpora", {})
    note += f" (means of {len(corpora)} corpora)" if corpora else ""
    console.print(
        f"test UAR [bold]{test['uar']:.3f}[/bold], accuracy {test['accuracy']:.3f}, macro F1 {test['macro_f1']:.3f}"
        f"{note}; round {summary['selected_round']} selected, stopped: {summary['stopped']}",
        highlight=False,
    )
    for name, own in corpora.items():
        figures = f"UAR {own['uar']:.3f}, accuracy {own['accuracy']:.3f}, macro F1 {own['macro_f1']:.3f}"
        console.print(f"  {name}: {figures}, of {len(own['classes'])} emotions", highlight=False, markup=False)
    if summary["shared"] is not None:
        console.print(f"test part {summary['shared']['words']}", highlight=False, markup=False)
    if summary["normalisation"] is not None:
        console.print(summary["normalisation"], highlight=False, markup=False)
    say(f"run folder: {run.root}")


def placed(config: Config, study: str, number: str, group: str) -> Config:
    """A run of a sweep, with a new folder in `run_dir`, or among those of its name. W&B shows the sweep as a
    group, unless the configuration has one.
    """
    own = f"{number}-{config.seed}"
    folder = Path(config.run_dir) / own if config.run_dir else config.runs_folder / f"{study}-{own}"
    tracking = replace(config.tracking, group=config.tracking.group or group)
    return replace(config, run_dir=str(folder), tracking=tracking)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a job leaves to whoever started the sweep, in a file below the sweep's folder."""

    number: int
    folder: str
    failure: str | None = "it was stopped"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What Hydra calls with the settings of each run; its result is what a sweeper maximises."""

    study: str
    """Name of the sweep: when it started."""
    notes: str
    """Folder that each job leaves a `Note` in."""
    configs: tuple[Config, ...]
    """Of the jobs, by number; empty where a sweeper chooses them as it goes."""
    command: tuple[str, ...]
    """What the user called, for the runs' records."""

    def __call__(self, settings: Any) -> float:
        """Train; the selected round's validation score, or NaN of a run that failed, or that nobody validated."""
        from hydra.core.hydra_config import HydraConfig

        from ser_fl.config.compose import parsed

        sys.argv = list(self.command)
        hydra = HydraConfig.get()
        number = int(hydra.job.num)
        if self.configs:
            config = self.configs[number]
        else:
            chosen = parsed(settings)
            group = Path(chosen.run_dir).name if chosen.run_dir else f"{chosen.title}-{self.study}"
            config = placed(chosen, self.study, f"{number + 1:03d}", group)
        note, file = Note(number=number, folder=str(config.run_dir)), Path(self.notes) / "jobs" / f"{number}.json"
        write_json(file, note)
        try:
            run = _train(config, hydra.launcher)
        except (UserError, RoundFailed) as failure:
            write_json(file, replace(note, failure=str(failure)))
            return math.nan
        write_json(file, replace(note, failure=None))
        if hydra.launcher._target_.endswith(".BasicLauncher"):
            print_summary(run)
        score = run.read_json(run.summary)["selection_score"]
        return math.nan if score is None else float(score)


def _train(config: Config, launcher: Any) -> RunFolder:
    """Train; as a job of submitit's always from the last checkpoint, whoever queued it again. The signal that its time
    is up ends the round, then goes to submitit, which queues the job again; left alone it would do so amid the round.
    """
    preemption, number = Preemption(), None
    if "submitit" in launcher._target_:
        from submitit import JobEnvironment

        number, config = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"], replace(config, resume=True)
        preemption = Preemption({number: grace_s(launcher)})
    try:
        with preemption.listening():
            return train_visibly(config, preemption)
    except Stopped:
        if number is not None and callable(answer := signal.getsignal(number)):
            answer(number, None)
        raise


def grace_s(launcher: Any) -> float:
    """What a round has left after the signal that a job's time is up; submitit gives a local job 30 s."""
    return 0.75 * float(launcher.get("signal_delay_s", 30))
