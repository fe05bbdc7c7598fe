"""A training on the terminal, and as a job of a sweep that Hydra's launchers call: here, beside, or on a cluster."""

from __future__ import annotations

import logging
import math
import os
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
    from ser_fl.federation.hooks import Opening
    from ser_fl.runs.folder import RunFolder
    from ser_fl.runs.records import ProfileRecord, RoundRecord

_LOG = logging.getLogger(__name__)


def train_visibly(config: Config, preemption: Preemption) -> RunFolder:
    """Train with a line for every round and progress bars; at the end, if asked for, where the time went. All that is
    said goes to the run's ``log.txt`` too.
    """
    from ser_fl.cli.terminal import bars, console, journal, note, say

    keep_freed_memory()
    with collection_paused():
        from ser_fl.api import train
        from ser_fl.federation.checkpoint import as_begun
        from ser_fl.federation.hooks import Hooks

    config, sending = as_begun(config), list[str]()

    def on_profile(profile: ProfileRecord) -> None:
        from ser_fl.report.markup import print_table
        from ser_fl.report.tables import profile_table

        print_table(profile_table(profile), console)

    folders = (*config.data.folders.values(), config.data.cache_dir)
    with journal(filter(None, folders)) as open_journal, bars() as shown:

        def on_opening(opening: Opening) -> None:
            open_journal(opening.run.root)
            sending.append(opening.sending)
            for line in banner(opening):
                note(line)
            shown.report(config.title, opening.round, config.federation.num_rounds)

        def on_round(record: RoundRecord) -> None:
            shown.report(config.title, record.round, config.federation.num_rounds)
            if record.failures:
                say(record.line(config.title), style="red")
            else:
                note(record.line(config.title))

        hooks = Hooks(
            on_opening=on_opening,
            on_round=on_round,
            on_features=shown.features,
            on_profile=on_profile,
            preemption=preemption,
        )
        run = train(config, hooks=hooks)
        for command in filter(None, sending):
            note(f"tracked offline; to send it: {command}")
        for line in _summary(run):
            _LOG.info(line)
    return run


def banner(opening: Opening) -> list[str]:
    """What a run is, before its first round."""
    from ser_fl.federation.cohort import cohort_size

    config, manifest = opening.config, opening.client_manifest
    sizes = {part: sum(held.values()) for part, held in manifest.sizes.items()}
    speakers = {speaker for held in manifest.sizes.values() for speaker in held}
    parts = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    synthetic = " (SYNTHETIC speech)" if config.data.synthetic else ""
    name = getattr(config.model, "name", None) or "of your own"
    kinds = ", ".join(dict.fromkeys(str(device).partition(":")[0] for device in opening.devices))
    each_round = cohort_size(len(manifest.client_ids), config.federation.fraction_train)
    done = f", {opening.round} done" if opening.round else ""
    counts = f"{sum(sizes.values()):,} utterances, {len(speakers)} speakers, {len(manifest.classes)} emotions"
    facts = {
        config.title: f"seed {config.seed}, {config.federation.num_rounds} rounds{done}",
        "corpus": f"{', '.join(config.data.corpora)}{synthetic}: {counts}",
        "split": f"{config.split.name}: {parts}",
        "clients": f"{len(manifest.client_ids)}, {each_round} a round",
        "model": f"{name}, {opening.num_parameters:,} parameters",
        "device": f"{kinds}, precision {config.precision}",
        "run folder": str(opening.run.root),
        "tracking": opening.tracked or "none (metrics.csv has every round)",
    }
    width = max(map(len, facts)) + 2
    return [f"{label:{width}}{fact}" for label, fact in facts.items()]


def print_summary(run: RunFolder) -> None:
    """The test figures of a run and where it lies."""
    from ser_fl.cli.terminal import console, say

    for line in _summary(run):
        console.print(line, highlight=False, markup=False)
    say(f"run folder: {run.root}")


def _summary(run: RunFolder) -> list[str]:
    summary = run.read_json(run.summary)
    test = summary["test"]
    note = " (synthetic corpus)" if summary["synthetic"] else ""
    corpora: dict[str, Any] = summary.get("corpora", {})
    note += f" (means of {len(corpora)} corpora)" if corpora else ""
    lines = [
        f"test UAR {test['uar']:.3f}, accuracy {test['accuracy']:.3f}, macro F1 {test['macro_f1']:.3f}"
        f"{note}; round {summary['selected_round']} selected, stopped: {summary['stopped']}"
    ]
    for name, own in corpora.items():
        figures = f"UAR {own['uar']:.3f}, accuracy {own['accuracy']:.3f}, macro F1 {own['macro_f1']:.3f}"
        lines.append(f"  {name}: {figures}, of {len(own['classes'])} emotions")
    lines += [f"test part {summary['shared']['words']}"] if summary["shared"] is not None else []
    return lines + ([summary["normalisation"]] if summary["normalisation"] is not None else [])


def placed(config: Config, study: str, number: str, group: str) -> Config:
    """A run of a sweep, with a new folder in `run_dir`, or among those of its name. W&B shows the sweep as a
    group, unless the configuration has one.
    """
    own = f"{number}-{config.seed}"
    folder = Path(config.run_dir) / own if config.run_dir else config.runs_folder / f"{study}-{own}"
    own_group = config.tracking.group or os.environ.get("WANDB_RUN_GROUP")
    tracking = replace(config.tracking, group=own_group or group)
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
