"""`ser-fl benchmark`: attack a trained run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ser_fl.errors import UserError
from ser_fl.runs.environment import collection_paused, keep_freed_memory
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.zoo import writable_run

if TYPE_CHECKING:
    from ser_fl.config.robustness import BenchmarkConfig
    from ser_fl.runs.records import AttackRecord, SpeechRecord


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "settings", nargs="*", help="settings, as key=value; an unknown one lists the known ones; data=... as evaluate"
    )


def run(arguments: Namespace) -> None:
    from ser_fl.config.compose import compose_benchmark

    attack_visibly(compose_benchmark(arguments.settings))


def attack_visibly(config: BenchmarkConfig) -> None:
    """Attack, and print the records and what the benchmark doubts of itself."""
    from ser_fl.cli.terminal import bars, say

    keep_freed_memory()
    with collection_paused():
        from ser_fl.robustness.benchmark import benchmark_run

    with bars() as shown:
        records = benchmark_run(config, on_attack=shown.attacks, on_features=shown.features)
    run, folder, speech = RunFolder(writable_run(config.run)), records.folder, records.speech
    assert folder is not None and speech is not None
    if folder == run:  # what is tracked is tracked by attack, of the run's own test part
        _track_attacks(run, records)
    for line in speech.words:
        say(line)
    print_attacks(records, speech)
    print_sanity_report(folder)
    say(f"records: {folder.attacks}")


def _track_attacks(run: RunFolder, records: Sequence[AttackRecord]) -> None:
    """Log the records to the run's own tracked run, where its checkpoint still says which. They are on disk by then:
    whatever is wrong with tracking is a warning.
    """
    from ser_fl.cli.terminal import say
    from ser_fl.config.compose import compose
    from ser_fl.config.schema import dump
    from ser_fl.federation.checkpoint import tracked_run
    from ser_fl.tracking import open_tracker

    if not (state := tracked_run(run.checkpoint)):
        return
    settings = dump(compose(config_file=run.config))
    try:
        tracker = open_tracker(settings, run, state)
    except UserError as error:
        say(f"attacks are not tracked: {error}")
        return
    tracker.log_attacks(records)
    tracker.finish()


def print_attacks(records: Sequence[AttackRecord], speech: SpeechRecord) -> None:
    """A line for every record."""
    from rich.table import Table

    from ser_fl.cli.terminal import console, say
    from ser_fl.report.wording import budget, enrolment_explained

    note = ", SYNTHETIC speech" if speech.synthetic else ""
    knows = f"attacker knows the model; of the defence only where adaptive{note}"
    table = Table(title=f"UAR under attack, {speech.corpus}, part {speech.part} ({knows})")
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
    if explained := enrolment_explained(records):
        say(explained.strip())


def print_sanity_report(run: RunFolder) -> None:
    """What the benchmark doubts of itself: a line for each check that fails, with what that means, and the figures;
    nothing where it made no checks.
    """
    from ser_fl.cli.terminal import say
    from ser_fl.report.checks import failures_in_words
    from ser_fl.robustness.sanity_checks.report import read_sanity_report

    if found := read_sanity_report(run):
        for line in (found.headline, *failures_in_words(found)):
            say(line)
        for doubt in found.doubts:
            say(f"{doubt.severity}: {doubt.check}. {doubt.words}")
