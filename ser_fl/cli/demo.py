"""`ser-fl demo`: the paper's four-way comparison on the built-in synthetic corpus, in minutes. The two trainings and
their attacks run side by side, each in a process of its own.
"""

import time
from argparse import ArgumentParser, Namespace
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from queue import Empty, Queue

from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import RoundRecord

EXPERIMENTS = ("demo_fl", "demo_fl_pgd")
BENCHMARK = (
    "attacks=[fgsm,bim,pgd,cw_l2]",
    "epsilons=[0.05]",
    "curve_epsilons=[0.01,0.02,0.1,0.2]",
    "steps=10",
    "restarts=1",
    "adaptive=[pgd]",
    "eot_samples=4",
    "subsets={cw_l2: 14, adaptive: 42}",
)
"""Few steps and draws, since this is a demonstration; C&W on 14 utterances, two of each emotion, since ART's is slow,
and an attack that knows of the randomisation on 42.
"""
_POLL_S = 0.2

Event = tuple[str, int, int] | tuple[str, RoundRecord]
"""A progress report, or a committed round."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="folder for the two runs and the report (default: runs/demo/...)")


def run(arguments: Namespace) -> None:
    run_demo(arguments.output)


def run_demo(output: Path | None = None, overrides: tuple[str, ...] = ()) -> Path:
    """Train federated with and without adversarial training, attack both with and without randomisation, and return the
    path of the report. ``output`` is the folder for all (None: a new one below ``runs/demo``), ``overrides`` are of
    both trainings.
    """
    from ser_fl.cli.terminal import console, say
    from ser_fl.cli.training_job import print_summary
    from ser_fl.report.four_way import four_way
    from ser_fl.report.markup import print_table
    from ser_fl.report.page import write_report
    from ser_fl.report.reader import read_run

    started = time.perf_counter()
    folder = output or Path("runs") / "demo" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    console.print("[bold]Built-in corpus: synthetic speech, made by a source-filter synthesiser.[/bold]")
    folders = [folder / experiment for experiment in EXPERIMENTS]
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(folders), mp_context=context) as pool:
        events = manager.Queue()
        arms = [pool.submit(run_arm, run.name, run, overrides, events) for run in folders]
        _follow(arms, events)
    for run in folders:
        print_summary(RunFolder(run))
    page = write_report(folders, folder / "report.html")
    print_table(four_way([read_run(run) for run in folders]), console)
    say(f"{time.perf_counter() - started:.0f} s; report: {page}")
    return page


def run_arm(experiment: str, run: Path, overrides: tuple[str, ...], events: Queue[Event]) -> None:
    """One training and the attacks on it; what there is to show goes through ``events``."""
    from ser_fl.api import train
    from ser_fl.config.compose import compose, compose_benchmark
    from ser_fl.federation.hooks import Hooks
    from ser_fl.robustness.benchmark import benchmark_run

    config = compose([f"experiment={experiment}", *overrides, f"run_dir={run}"])

    def on_round(record: RoundRecord) -> None:
        events.put((experiment, record))
        events.put((f"{experiment} rounds", record.round, config.federation.num_rounds))

    hooks = Hooks(
        on_opening=lambda opening: events.put((f"{experiment} rounds", 0, config.federation.num_rounds)),
        on_round=on_round,
        on_features=lambda done, total: events.put((f"{experiment} features", done, total)),
    )
    train(config, hooks=hooks)
    benchmark_run(
        compose_benchmark([f"run={run}", *BENCHMARK]),
        on_attack=lambda name, done, total, seconds_left=None: events.put((f"{experiment} attacks", done, total)),
    )


def _follow(arms: list[Future[None]], events: Queue[Event]) -> None:
    """Show events until all arms are done; an arm's error is raised here."""
    from ser_fl.cli.terminal import bars, note

    with bars() as shown:
        is_over = False
        while not is_over:
            is_over = all(arm.done() for arm in arms)  # then what waits is the last
            with suppress(Empty):
                while True:
                    event = events.get(timeout=_POLL_S)
                    if isinstance(event[1], RoundRecord):
                        note(event[1].line(event[0]))
                    else:
                        shown.report(*event)
    for arm in arms:
        arm.result()
