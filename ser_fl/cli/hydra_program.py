"""`ser-fl train` as a program of Hydra's: its multirun, launchers, sweepers and reports, on our settings. Hydra is
called as `hydra.main` would be, with our arguments in place of the process's own.
"""

import logging
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from ser_fl.cli.terminal import note, say
from ser_fl.cli.training_job import Note, TrainingJob, placed, print_summary
from ser_fl.config.compose import HYDRA_VERSION, compose, hydra_ready, parsed, told_in_a_line
from ser_fl.config.schema import Config
from ser_fl.errors import RoundFailed, UserError, unknown_name
from ser_fl.files import parse_json, record_of
from ser_fl.runs.environment import collection_paused
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import Stopped

MAX_NUM_TIMEOUT = 10
"""How often a job whose time is up is queued again; the launcher's own default is never, but our runs go on."""
_EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "joblib": "joblib", "optuna": "optuna"}
"""Plugins of Hydra's, and the extra that installs each."""
REPEATED = ("run_dir=null", "resume=false")
"""What does not come from the config.yaml of a run: a repetition is a run of its own."""
_QUIET = {
    "hydra.job.name": "ser-fl",
    "hydra.output_subdir": "null",
    "hydra/job_logging": "none",
    "hydra/hydra_logging": "none",
}
"""Settings of Hydra's in which we differ from it: it writes no folders and no logs of its own."""


def ask_hydra(arguments: Namespace, flags: Sequence[str]) -> None:
    """Let Hydra print what its flags ask for: settings, where they come from, completions."""
    given = [] if arguments.shell_completion else arguments.settings
    with told_in_a_line(), _ready(arguments, given) as (name, overrides):
        asked = arguments.settings if arguments.shell_completion else overrides
        _call_hydra(lambda settings: None, name, asked, {}, flags)


def train_once(arguments: Namespace, train: Callable[[Config], RunFolder]) -> RunFolder:
    """One run, as a job of Hydra's; whatever the training raises is raised here, as is a mistake in the settings."""
    command, runs, failures = list(sys.argv), list[RunFolder](), list[Exception]()

    def task(settings: Any) -> None:
        sys.argv = command  # which the run's records name
        try:
            runs.append(train(parsed(settings)))
        except Exception as failure:  # Hydra would print lines of its own
            failures.append(failure)

    with told_in_a_line(), _ready(arguments, arguments.settings) as (name, overrides):
        _call_hydra(task, name, overrides, {"hydra.run.dir": "."})
    for failure in failures:
        raise failure
    return runs[0]


def sweep(arguments: Namespace) -> None:
    """Train every combination, with the basic sweeper after all of them were checked, and say what came of each.

    Raises:
        UserError: a mistake in the settings of any job, before the first one starts.
        RoundFailed: some job failed; the others were trained.
        Stopped: SIGTERM or SIGUSR1 came.
    """
    study = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    notes = Path("runs") / ".multirun" / study
    with _ready(arguments, arguments.settings, is_sweep=True) as (name, overrides):
        with told_in_a_line():
            jobs, hydra = planned(name, overrides)
            check_launcher(hydra)
            configs = checked(jobs, study) if jobs else ()
        is_here = hydra.launcher._target_.endswith(".BasicLauncher")
        job = TrainingJob(study=study, notes=str(notes), configs=configs, command=tuple(sys.argv))
        ours: dict[str, object] = {"hydra.sweep.dir": notes, "hydra.sweep.subdir": "."}
        if "max_num_timeout" in hydra.launcher:
            ours["hydra.launcher.max_num_timeout"] = MAX_NUM_TIMEOUT
        if "Optuna" in hydra.sweeper._target_:
            ours["hydra.sweeper.direction"] = "maximize"
        reason = "it has left no word: see the launcher's logs"
        try:
            _call_hydra(job, name, overrides, ours, ["--multirun"])
        except (KeyboardInterrupt, Stopped):
            if not is_here:
                say("jobs that were submitted are left to run")
            raise
        except Exception as error:
            if is_here:
                raise
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
    left = {
        number: Note(number=number, folder=str(config.run_dir), failure=reason) for number, config in enumerate(configs)
    }
    for file in (notes / "jobs").glob("*.json"):
        note = record_of(Note, parse_json(file.read_text(encoding="utf-8")))
        left[note.number] = note
    ended = [note for _, note in sorted(left.items())]
    done = [note.folder for note in ended if note.failure is None]
    for folder in done if not is_here else ():
        print_summary(RunFolder(Path(folder)))
    if done:
        say(f"all together: ser-fl report {shlex.join(done)}")
    if reasons := [f"{note.folder}: {note.failure}" for note in ended if note.failure is not None]:
        raise RoundFailed("\n".join([f"{len(reasons)} of {len(left)} jobs failed:", *reasons]))


def _ready(
    arguments: Namespace, settings: Sequence[str], *, is_sweep: bool = False
) -> AbstractContextManager[tuple[str, list[str]]]:
    return hydra_ready(
        [*REPEATED, *settings] if arguments.config else settings,
        config_name=arguments.config_name,
        config_file=arguments.config,
        config_dir=arguments.config_dir,
        is_sweep=is_sweep,
    )


def _call_hydra(
    task: Callable[[Any], Any], name: str, overrides: Sequence[str], ours: dict[str, object], flags: Sequence[str] = ()
) -> None:
    """Run Hydra's program on the configuration of a name; its errors come as they are, not as its many lines. It looks
    at the process's arguments, and at a variable that keeps it from printing errors; loggers that it sets up are gone
    afterwards. ``ours`` are settings of its own that we choose, unless the user does.
    """
    import hydra

    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    ours = {key: value for key, value in (_QUIET | ours).items() if key not in given}
    argv, full, root = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    sys.argv = ["ser-fl", *flags, *overrides, *(f"{key}={value}" for key, value in ours.items())]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=None, config_name=name, version_base=HYDRA_VERSION)(task)()
    finally:
        sys.argv, root.handlers = argv, handlers
        root.setLevel(level)
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ |= {} if full is None else {"HYDRA_FULL_ERROR": full}


def planned(name: str, overrides: Sequence[str]) -> tuple[list[tuple[str, Config]], Any]:
    """The jobs of the basic sweeper, as what sets each apart and its configuration, and Hydra's own settings. Other
    sweepers choose as they go: no job is known beforehand.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import MissingConfigException

    with initialize(config_path=None, job_name="ser-fl", version_base=HYDRA_VERSION):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        given = parser.parse_overrides(list(overrides))
        single = [str(override.input_line) for override in given if not override.is_sweep_override()]
        try:
            hydra = hydra_compose(name, single, return_hydra_config=True).hydra
        except MissingConfigException as error:
            group, _, plugin = str(error.missing_cfg_file).rpartition("/")
            if plugin not in _EXTRAS:
                raise unknown_name(group, plugin, error.options or ()) from None
            extra = _EXTRAS[plugin]
            raise UserError(
                f"{error.missing_cfg_file} needs the extra `{extra}`: pip install 'ser-fl[{extra}]'"
            ) from None
        if not hydra.sweeper._target_.endswith(".BasicSweeper"):
            return [], hydra
        of_sweeper = parser.parse_overrides([f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()])
        choices: dict[str, list[str]] = {}
        for override in (*of_sweeper, *given):
            key = override.get_key_element()
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(
                    f"{key.lstrip('+')} names no values to run one after the other: write {key.lstrip('+')}=A,B or "
                    f"{key.lstrip('+')}=range(1,4), or take hydra/sweeper=optuna"
                )
            values = override.sweep_string_iterator() if override.is_sweep_override() else ()
            choices[key] = [f"{key}={value}" for value in values] or [str(override.input_line)]
        jobs = []
        for combination in product(*choices.values()):
            varied = [one.lstrip("+") for one, of in zip(combination, choices.values(), strict=True) if len(of) > 1]
            jobs.append((" ".join(varied), parsed(hydra_compose(name, list(combination)))))
        return jobs, hydra


def check_launcher(hydra: Any) -> None:
    """Refuse what a run cannot be: spread over tasks, or on a cluster that is not here."""
    for setting in ("nodes", "tasks_per_node"):
        if (given := hydra.launcher.get(setting, 1)) != 1:
            raise UserError(
                f"hydra.launcher.{setting} must be 1, got {given}: a run is one process, and one with several GPUs "
                "shares them among its own workers (executor=processes)"
            )
    if hydra.launcher._target_.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm needs SLURM's srun and sbatch, which are not here: submit from a login "
            "node, or take hydra/launcher=submitit_local"
        )


def checked(jobs: Sequence[tuple[str, Config]], study: str) -> tuple[Config, ...]:
    """Each job's configuration with a folder of its own, which it may start or go on in; says which.

    ``run_dir=DIR`` is the folder of them all: they lie in it as ``<number>-<seed>``, else as
    ``runs/<run_name>/<study>-<number>-<seed>``. W&B shows them as one group. With ``resume=true`` and no ``run_dir``,
    each goes on in the newest run of its configuration.
    """
    with collection_paused():
        from ser_fl.federation.checkpoint import newest_run, open_run

    first = jobs[0][1]
    runs = [newest_run(config) if first.resume and not first.run_dir else None for _, config in jobs]
    group = next((compose(config_file=RunFolder(run).config).tracking.group for run in runs if run), None)
    titles = "+".join(sorted({config.title for _, config in jobs}))
    group = group or (Path(first.run_dir).name if first.run_dir else f"{titles}-{study}")
    taken: dict[str, str] = {}
    configs = []
    for number, ((varied, chosen), run) in enumerate(zip(jobs, runs, strict=True), start=1):
        config = placed(chosen, study, f"{number:0{len(str(len(jobs)))}d}", group)
        config = config if run is None else replace(config, run_dir=str(run))
        with open_run(config):
            pass  # what would be refused then is refused now
        if (other := taken.setdefault(str(config.run_dir), varied)) is not varied:
            raise UserError(
                f"{other} and {varied} would both go on in {config.run_dir}, since their results are the same: take "
                "one of them"
            )
        configs.append(config)
    for number, ((varied, _), config) in enumerate(zip(jobs, configs, strict=True), start=1):
        note(f"job {number} of {len(jobs)}: {varied or 'as given'}, in {config.run_dir}")
    return tuple(configs)
