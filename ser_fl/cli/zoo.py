"""`ser-fl zoo`: the trained models that come with the package, and the card of one."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ser_fl.report.markup import Table
from ser_fl.report.reader import RunRecords
from ser_fl.runs.environment import collection_paused


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the card of this model (default: list them all)")


def run(arguments: Namespace) -> None:
    """Print the list, or a card, of models that are as they were published."""
    from ser_fl.cli.terminal import console, say
    from ser_fl.report.markup import print_table
    from ser_fl.runs.zoo import CARD, PREFIX, readable_run, zoo_names

    if arguments.name:
        folder = readable_run(PREFIX + arguments.name.removeprefix(PREFIX))
        say((folder / CARD).read_text(encoding="utf-8").rstrip())
        return
    if not zoo_names():
        say("this package holds no trained model; python scripts/zoo.py in a checkout adds one")
        return
    print_table(zoo_table([readable_run(PREFIX + name) for name in zoo_names()]), console)


def zoo_table(folders: list[Path]) -> Table:
    """What the records of some models say, a row a model."""
    from ser_fl.report.wording import percent

    with collection_paused():
        from ser_fl.data.corpora import CORPORA
        from ser_fl.report.reader import read_run

    rows = []
    for folder in folders:
        run = read_run(folder)
        info = CORPORA.get(str(run.setting("data.name")))
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        facts = (run.corpus, run.split, info.licence if info else "none")
        rows.append((folder.name, percent(run.test.uar), _worst_case(run), *facts, f"{size:.1f}"))
    return Table(
        title="Models that come with ser_fl",
        header=("Name", "Clean UAR", "Worst case", "Corpus", "Split", "Licence of the data", "MB"),
        rows=tuple(rows),
        caption="UAR in per cent on the test part of each model's own corpus, without test-time defence; worst case: "
        "over the attacks on record. A model is under the licence of its data too. `ser-fl zoo NAME` prints its card; "
        "run=NAME takes it wherever a command takes a run.",
    )


def _worst_case(run: RunRecords) -> str:
    """The lowest in L-infinity at the largest budget that every attack of the record was run at."""
    from ser_fl.report.four_way import budget_key, reference_budgets
    from ser_fl.report.markup import MISSING
    from ser_fl.report.wording import budget, percent
    from ser_fl.runs.records import NO_DEFENCE, WORST_CASE

    budgets = reference_budgets([run])
    found = [
        record
        for record in run.attacks
        if record.attack == WORST_CASE and record.defence == NO_DEFENCE and budget_key(record) in budgets
    ]
    worst = min(found, key=lambda record: (record.norm != "inf", record.robust_uar), default=None)
    return f"{percent(worst.robust_uar)} ({budget(worst)})" if worst else MISSING
