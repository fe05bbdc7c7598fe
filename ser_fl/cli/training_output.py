"""A training on the terminal: a line for every round, bars, and the figures at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ser_fl.cli.terminal import bars, console, say
from ser_fl.runs.environment import collection_paused, keep_freed_memory
from ser_fl.runs.folder import RunFolder

if TYPE_CHECKING:
    from ser_fl.config.schema import Config
    from ser_fl.runs.preemption import Preemption
    from ser_fl.runs.records import ProfileRecord, RoundRecord


def train_visibly(config: Config, preemption: Preemption | None = None) -> RunFolder:
    """Train with a line for every round and progress bars; at the end, if asked for, where the time went.

    Raises:
        Stopped: SIGTERM or SIGUSR1 came.
    """
    keep_freed_memory()
    with collection_paused():
        from ser_fl.federation.rounds import Hooks
        from ser_fl.federation.session import train

    with bars() as shown:

        def on_round(record: RoundRecord) -> None:
            shown.report(config.experiment, record.round, config.federation.num_rounds)
            line = record.line(config.experiment)
            console.print(line, highlight=False, markup=False, style="red" if record.failures else "")

        hooks = Hooks(on_round=on_round, on_profile=print_profile, preemption=preemption or Preemption())
        return train(config, hooks=hooks, on_features=shown.features)


def print_profile(profile: ProfileRecord) -> None:
    """Where the time of a run's rounds went."""
    from ser_fl.report.markup import print_table
    from ser_fl.report.time_spent import profile_table

    print_table(profile_table(profile), console)


def print_summary(run: RunFolder) -> None:
    """The test figures of a run and where it lies."""
    summary = run.read_json(run.summary)
    test = summary["test"]
    note = " (synthetic corpus)" if summary["synthetic"] else ""
    console.print(
        f"test UAR [bold]{test['uar']:.3f}[/bold], accuracy {test['accuracy']:.3f}, macro F1 {test['macro_f1']:.3f}"
        f"{note}; round {summary['selected_round']} selected, stopped: {summary['stopped']}",
        highlight=False,
    )
    say(f"run folder: {run.root}")
