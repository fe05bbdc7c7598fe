"""`ser-fl train -m`: the runs of a sweep, one after the other in this process or as jobs of a cluster."""

from __future__ import annotations

import shlex
import signal
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.cli.commands import console, print_summary, train_visibly, training_settings
from ser_fl.cli.launcher import Cluster, read_cluster, split_settings
from ser_fl.cli.sweep import Job, name_of_now, placed, plan
from ser_fl.config.schema import Config, dump, parse
from ser_fl.errors import RoundFailed, UserError
from ser_fl.runs.environment import collection_paused
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import Preemption, Stopped

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


def run_multirun(arguments: Namespace) -> None:
    """Train every combination, after all of them were checked.

    Raises:
        UserError: a mistake in the settings of any job, before the first one starts.
        RoundFailed: some job failed; the others were trained.
        Stopped: SIGTERM or SIGUSR1 came.
    """
    config_file, settings = training_settings(arguments)
    for_launcher, for_runs = split_settings(settings)
    cluster, name = read_cluster(for_launcher), name_of_now()
    preemption = Preemption()
    with preemption.listening():
        jobs = checked(plan(for_runs, config_file=config_file, name=name), has_folder=_names_folder(for_runs))
        for number, job in enumerate(jobs, start=1):
            console.print(
                f"job {number} of {len(jobs)}: {' '.join(job.swept) or 'as given'}, in {job.config.run_dir}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        if cluster is None:
            failed = train_in_turn(jobs, preemption)
        else:
            failed = submit(jobs, cluster, Path("runs") / ".submitit" / name)
    done = [folder(job) for job in jobs if str(folder(job)) not in failed]
    if done:
        console.print(f"all together: ser-fl report {shlex.join(map(str, done))}", highlight=False, soft_wrap=True)
    if failed:
        reasons = "\n".join(f"{place}: {reason}" for place, reason in failed.items())
        raise RoundFailed(f"{len(failed)} of {len(jobs)} jobs failed:\n{reasons}")


def folder(job: Job) -> Path:
    """The run folder of a job."""
    return Path(str(job.config.run_dir))


def _names_folder(settings: Sequence[str]) -> bool:
    return any(setting.startswith("run_dir=") and setting != "run_dir=null" for setting in settings)


def checked(jobs: Sequence[Job], *, has_folder: bool) -> list[Job]:
    """The jobs, if each has a run folder to itself that it may start or go on in.

    With `resume=true` and no `run_dir`, each goes on in the newest run of its configuration.
    """
    with collection_paused():
        from ser_fl.federation.run_setup import open_run

    if jobs[0].config.resume and not has_folder:
        jobs = _taken_up(jobs)
    taken: dict[Path, Job] = {}
    for job in jobs:
        with open_run(job.config):
            pass  # what would be refused then is refused now
        if (other := taken.setdefault(folder(job), job)) is not job:
            raise UserError(
                f"{' '.join(other.swept)} and {' '.join(job.swept)} would both go on in {folder(job)}, since their "
                "results are the same: take one of them"
            )
    return list(jobs)


def _taken_up(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in the newest runs of their configurations; those that have none join the others' group."""
    from ser_fl.config.compose import compose
    from ser_fl.federation.run_setup import newest_run

    runs = [newest_run(job.config) for job in jobs]
    groups = [compose(config_file=RunFolder(run).config).tracking.group for run in runs if run]
    return [
        replace(job, config=placed(job.config, run or folder(job), next(iter(groups), None)))
        for job, run in zip(jobs, runs, strict=True)
    ]


def train_in_turn(jobs: Sequence[Job], preemption: Preemption) -> dict[str, str]:
    """Train in this process; returns what failed, by run folder, and why."""
    failed = {}
    for job in jobs:
        try:
            print_summary(train_visibly(job.config, preemption))
        except RoundFailed as failure:
            failed[str(folder(job))] = str(failure)
    return failed


class ClusterJob:
    """A run as submitit's job. It always goes on from its checkpoint, whoever queued it again."""

    def __init__(self, config: Config, grace_s: float) -> None:
        resumed: Config = replace(config, resume=True)  # type: ignore[type-var]
        self.settings = dump(resumed)
        self.grace_s = grace_s

    def __call__(self) -> None:
        """Train. The signal that the time is up ends the round, and then goes to submitit, which queues the job again.

        Left to itself submitit would do so in the middle of the round.
        """
        from submitit import JobEnvironment

        number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        preemption = Preemption({number: self.grace_s})
        try:
            with preemption.listening():
                print_summary(train_visibly(parse(self.settings), preemption))
        except Stopped:
            answer = signal.getsignal(number)
            if callable(answer):
                answer(number, None)
            raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(jobs: Sequence[Job], cluster: Cluster, files: Path) -> dict[str, str]:
    """Submit all at once, and wait; returns what failed, by run folder, and why."""
    executor = cluster.executor(files)
    with executor.batch():
        submitted = [executor.submit(ClusterJob(job.config, cluster.grace_s)) for job in jobs]
    ids = " ".join(str(handle.job_id) for handle in submitted)
    console.print(f"submitted: {ids}; logs in {files}", highlight=False, soft_wrap=True)
    failed = {}
    try:
        for job, handle in zip(jobs, submitted, strict=True):
            if (error := handle.exception()) is None:
                print_summary(RunFolder(folder(job)))
            else:
                failed[str(folder(job))] = f"job {handle.job_id}: {str(error).strip().splitlines()[-1]}"
    except (KeyboardInterrupt, Stopped):
        console.print(f"submitted jobs are left to run: {ids}", highlight=False, soft_wrap=True)
        raise
    return failed
