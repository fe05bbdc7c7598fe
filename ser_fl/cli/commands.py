"""What the subcommands of `ser-fl` do and print."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ser_fl.errors import UserError
from ser_fl.runs.environment import collection_paused, keep_freed_memory
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import Preemption

if TYPE_CHECKING:
    from ser_fl.config.robustness import BenchmarkConfig
    from ser_fl.config.schema import Config
    from ser_fl.runs.records import AttackRecord, ProfileRecord, RoundRecord

console = Console()


class Bars:
    """Progress bars by name; a bar appears with its first report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, object] = {}

    def report(self, name: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""
        self._show(name, done, total, {})

    def attacks(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None:
        """One bar for all attacks, named after the one that runs."""
        self._show("attacks", done, total, {"description": name, "seconds_left": seconds_left})

    def _show(self, name: str, done: int, total: int, fields: dict[str, Any]) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total, **fields)  # type: ignore[arg-type]

    def features(self, done: int, total: int) -> None:
        """Progress of the front end."""
        self.report("features", done, total)


class TimeLeft(TimeRemainingColumn):
    """The time left as a bar's owner says it, or as it has gone so far."""

    def render(self, task: Task) -> Text:
        """As ``0:01:30``."""
        if (seconds := task.fields.get("seconds_left")) is None:
            return super().render(task)
        return Text(str(timedelta(seconds=round(seconds))), style="progress.remaining")


@contextmanager
def bars() -> Iterator[Bars]:
    """Live progress on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeLeft(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress)


def run_train(arguments: Namespace) -> None:
    """`ser-fl train`."""
    from ser_fl.config.compose import compose

    preemption = Preemption()
    with preemption.listening():
        file, settings = training_settings(arguments)
        print_summary(train_visibly(compose(settings, config_file=file), preemption))


def training_settings(arguments: Namespace) -> tuple[Path | None, list[str]]:
    """The configuration to start from, and what is set on top of it."""
    settings = list(arguments.settings)
    if not arguments.config:
        return None, settings
    return Path(arguments.config), ["run_dir=null", "resume=false", *settings]  # a repetition is a run of its own


def train_visibly(config: Config, preemption: Preemption | None = None) -> RunFolder:
    """Train with a line for every round and progress bars; at the end, if asked for, where the time went.

    Raises:
        Stopped: SIGTERM or SIGUSR1 came.
    """
    keep_freed_memory()
    with collection_paused():
        from ser_fl.federation.session import train

    with bars() as shown:

        def on_round(record: RoundRecord) -> None:
            shown.report(config.experiment, record.round, config.federation.num_rounds)
            console.print(
                record.line(config.experiment),
                highlight=False,
                markup=False,
                style="red" if record.failures else "",
            )

        return train(
            config,
            on_round=on_round,
            on_features=shown.features,
            on_profile=print_profile,
            preemption=preemption,
        )


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
    console.print(f"run folder: {run.root}", highlight=False, soft_wrap=True)


def run_benchmark(arguments: Namespace) -> None:
    """`ser-fl benchmark`."""
    from ser_fl.config.compose import compose_benchmark

    config = compose_benchmark(list(arguments.settings))
    records = benchmark_visibly(config)
    run = RunFolder(Path(config.run))
    print_attacks(records, synthetic=bool(run.read_json(run.model).get("synthetic")))
    print_sanity_report(run)


def benchmark_visibly(config: BenchmarkConfig) -> list[AttackRecord]:
    """Attack a run with progress bars."""
    keep_freed_memory()
    with collection_paused():
        from ser_fl.robustness.benchmark import benchmark_run

    with bars() as shown:
        records = benchmark_run(config, on_attack=shown.attacks, on_features=shown.features)
    track_attacks(RunFolder(Path(config.run)), records)
    return records


def track_attacks(run: RunFolder, records: list[AttackRecord]) -> None:
    """Log the records to the run's own tracked run, where its checkpoint still says which.

    The records are on disk by then: whatever is wrong with tracking is a warning.
    """
    from ser_fl.config.compose import compose
    from ser_fl.config.schema import dump
    from ser_fl.federation.checkpoint import tracked_run
    from ser_fl.tracking import open_tracker

    state = tracked_run(run.checkpoint)
    if not state:
        return
    settings = dump(compose(config_file=run.config))
    try:
        tracker = open_tracker(settings, run, state)
    except UserError as error:
        console.print(f"[yellow]attacks are not tracked:[/yellow] {error}", highlight=False)
        return
    tracker.log_attacks(records)
    tracker.finish()


def print_attacks(records: list[AttackRecord], *, synthetic: bool) -> None:
    """A line for every record."""
    from ser_fl.report.wording import budget

    note = ", SYNTHETIC speech" if synthetic else ""
    table = Table(title=f"UAR under attack (attacker knows the model; of the defence only where adaptive{note})")
    for column in ("attack", "budget", "defence", "n", "clean UAR", "robust UAR", "95 %", "accuracy", "success"):
        table.add_column(column, justify="left" if column in ("attack", "defence") else "right")
    for record in records:
        table.add_row(
            f"{record.attack}, adaptive" if record.knowledge == "adaptive" else record.attack,
            budget(record),
            record.defence,
            str(record.num_examples),
            f"{record.clean_uar:.3f}",
            f"{record.robust_uar:.3f}",
            "–" if record.uar_interval is None else "{:.2f}–{:.2f}".format(*record.uar_interval),
            "–" if record.robust_accuracy is None else f"{record.robust_accuracy:.3f}",
            "–" if record.attack == "clean" else f"{record.attack_success_rate:.1%}",
        )
    console.print(table)


def run_transfer(arguments: Namespace) -> None:
    """`ser-fl transfer`."""
    from ser_fl.config.compose import compose_transfer
    from ser_fl.report.markup import print_table
    from ser_fl.report.transfer import transfer_tables

    config = compose_transfer([*arguments.runs, *arguments.settings])
    keep_freed_memory()
    with collection_paused():
        from ser_fl.robustness.transfer_runs import transfer_runs

    with bars() as shown:
        file, matrix = transfer_runs(config, on_attack=shown.attacks, on_features=shown.features)
    for table in transfer_tables(matrix):
        print_table(table, console)
    console.print(f"transfer matrix: {file}", highlight=False, soft_wrap=True)


def print_sanity_report(run: RunFolder) -> None:
    """What the benchmark doubts of itself, in words; nothing where it made no checks."""
    from ser_fl.robustness.sanity_checks.report import read_sanity_report

    found = read_sanity_report(run)
    if found is None:
        return
    console.print(found.headline, highlight=False, soft_wrap=True, markup=False)
    for doubt in found.doubts:
        console.print(f"{doubt.severity}: {doubt.check}. {doubt.words}", highlight=False, soft_wrap=True, markup=False)


def run_report(arguments: Namespace) -> None:
    """`ser-fl report`."""
    from ser_fl.report.four_way import four_way
    from ser_fl.report.markup import print_table, to_markdown
    from ser_fl.report.page import write_report
    from ser_fl.report.replications import replication_table, spread_table
    from ser_fl.report.runs import read_run
    from ser_fl.report.tables import summary_table
    from ser_fl.report.transfer import read_matrices, transfer_tables

    files = [Path(run) for run in arguments.runs if run.endswith(".json")]
    folders = [Path(run) for run in arguments.runs if not run.endswith(".json")]
    runs = [read_run(folder) for folder in folders]
    tables = [summary_table(runs), four_way(runs)] if any(run.attacks for run in runs) else [summary_table(runs)]
    tables += [table for table in (spread_table(runs), replication_table(runs)) if table is not None]
    tables += [table for matrix in read_matrices(folders, files) for table in transfer_tables(matrix)]
    if arguments.markdown:
        print("\n\n".join(to_markdown(table) for table in tables))
        return
    page = write_report(folders, Path(arguments.output) if arguments.output else None, transfers=files)
    for table in tables:
        print_table(table, console)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


def run_predict(arguments: Namespace) -> None:
    """`ser-fl predict`."""
    with collection_paused():
        from ser_fl.prediction import predict

    for prediction in predict(arguments.files, arguments.run, channel=arguments.channel):
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        shares = "  ".join(f"{emotion} {probability:.2f}" for emotion, probability in ranked)
        console.print(f"{prediction.path}  {shares}", highlight=False, soft_wrap=True, markup=False)


def run_corpus(arguments: Namespace) -> None:
    """`ser-fl corpus`."""
    from ser_fl.cli import corpus

    if arguments.action == "list":
        corpus.list_corpora(console)
    elif arguments.action == "check":
        corpus.check_corpus(console, arguments.name, arguments.root, arguments.channel)
    else:
        corpus.describe_corpus(console, arguments.name, arguments.root, arguments.channel)


def run_federation(arguments: Namespace) -> None:
    """`ser-fl federation`."""
    from ser_fl.cli import federation

    if arguments.action == "keys":
        federation.make_federation_keys(console, arguments.folder, arguments.host, arguments.nodes, arguments.days)
    elif arguments.action == "link":
        federation.run_link(console, arguments)
    else:
        federation.run_node(console, arguments)
