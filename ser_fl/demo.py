"""`ser-fl demo`: the paper's four-way comparison on the built-in synthetic corpus, in minutes."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from ser_fl.commands import benchmark_visibly, console, print_summary, train_visibly
from ser_fl.compose import compose
from ser_fl.report.four_way import four_way
from ser_fl.report.markup import print_table
from ser_fl.report.page import write_report
from ser_fl.report.runs import read_run

EXPERIMENTS = ("demo_fl", "demo_fl_pgd")
_BENCHMARK = (
    "attacks=[fgsm,bim,pgd,cw_l2]",
    "epsilons=[0.05]",
    "curve_epsilons=[0.01,0.02,0.1,0.2]",
    "restarts=1",
    "steps=10",
    "subsets={cw_l2: 21}",
)


def run_demo(output: Path | None = None, overrides: tuple[str, ...] = ()) -> Path:
    """Train federated with and without adversarial training, attack both with and without randomisation, report.

    Args:
        output: folder for the two runs and the report; None makes one below ``runs/demo``.
        overrides: settings of both trainings.

    Returns:
        The path of the report.
    """
    started = time.perf_counter()
    folder = output or Path("runs") / "demo" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    console.print("[bold]Built-in corpus: synthetic speech, made by a source-filter synthesiser.[/bold]")
    folders = []
    for experiment in EXPERIMENTS:
        run = folder / experiment
        print_summary(train_visibly(compose([f"experiment={experiment}", *overrides, f"run_dir={run}"])))
        benchmark_visibly([f"run={run}", *_BENCHMARK])
        folders.append(run)
    page = write_report(folders, folder / "report.html")
    print_table(four_way([read_run(run) for run in folders]), console)
    console.print(f"{time.perf_counter() - started:.0f} s; report: {page}", highlight=False, soft_wrap=True)
    return page
