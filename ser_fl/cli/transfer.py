"""`ser-fl transfer`: attack each of some runs, and show it to all of them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ser_fl.runs.environment import collection_paused, keep_freed_memory


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; RUN:CLIENT is a client's own model of a local-only run"
    )
    parser.add_argument(
        "settings", nargs="*", help="settings, as key=value; an unknown one lists the known ones; data=... as evaluate"
    )


def run(arguments: Namespace) -> None:
    """Make the matrix, and print it."""
    from ser_fl.cli.terminal import bars, console, say
    from ser_fl.config.compose import compose_transfer
    from ser_fl.report.markup import print_table
    from ser_fl.report.tables import transfer_tables

    config = compose_transfer([*arguments.runs, *arguments.settings])
    keep_freed_memory()
    with collection_paused():
        from ser_fl.robustness.transfer import transfer_runs

    with bars() as shown:
        file, matrix = transfer_runs(config, on_attack=shown.attacks, on_features=shown.features)
    for line in matrix.speech.words if matrix.speech else ():
        say(line)
    for table in transfer_tables(matrix):
        print_table(table, console)
    say(f"transfer matrix: {file}")
