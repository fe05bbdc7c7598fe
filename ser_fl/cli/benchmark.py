"""`ser-fl benchmark`: attack a trained run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ser_fl.runs.environment import collection_paused, keep_freed_memory
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import CLEAN, NO_DEFENCE
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
    """Attack, and print the records and what the benchmark doubts of itself; in the run's ``log.txt`` too."""
    from ser_fl.cli.terminal import bars, journal, note, say
    from ser_fl.cli.tracked_run import add_to_tracked_run

    keep_freed_memory()
    with collection_paused():
        from ser_fl.robustness.benchmark import benchmark_run

    run = RunFolder(writable_run(config.run))
    with journal(filter(None, (config.root,))) as open_journal:
        with bars() as shown:
            records = benchmark_run(config, on_attack=shown.attacks, on_features=shown.features)
        folder, speech = records.folder, records.speech
        assert folder is not None and speech is not None
        open_journal(run.root)
        if folder == run:  # what is tracked is tracked by attack, of the run's own test part
            add_to_tracked_run(run, "attacks", lambda tracker: tracker.log_attacks(records, asdict(config)))
        for line in speech.words:
            note(line)
        print_attacks(records, speech)
        print_sanity_report(folder)
        say(f"records: {folder.attacks}")


def print_attacks(records: Sequence[AttackRecord], speech: SpeechRecord) -> None:
    """A line for every record."""
    from ser_fl.cli.terminal import console, say
    from ser_fl.report.markup import MISSING, Table, print_table
    from ser_fl.report.wording import budget, enrolment_explained

    synthetic = ", SYNTHETIC speech" if speech.synthetic else ""
    rows = [
        (
            f"{record.attack}, adaptive" if record.knowledge == "adaptive" else record.attack,
            *(() if record.attack == CLEAN else (budget(record),)),
            *(() if record.defence == NO_DEFENCE else (record.defence,)),
        )
        for record in records
    ]
    table = Table(
        title=f"UAR under attack, {speech.corpus}, part {speech.part}{synthetic}",
        header=("attack, budget, defence", "n", "clean UAR", "robust UAR", "95 %", "accuracy", "success"),
        rows=tuple(
            (
                ", ".join(labels),
                str(record.num_examples),
                f"{record.clean_uar:.3f}",
                f"{record.robust_uar:.3f}",
                MISSING if record.uar_interval is None else "{:.2f}–{:.2f}".format(*record.uar_interval),
                MISSING if record.robust_accuracy is None else f"{record.robust_accuracy:.3f}",
                MISSING if record.attack == CLEAN else f"{record.attack_success_rate:.1%}",
            )
            for labels, record in zip(rows, records, strict=True)
        ),
        caption="The attacker knows the model; of the defence only where adaptive.",
    )
    print_table(table, console)
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
