"""`ser-fl report`: tables, figures and a page from run folders."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, or a folder of several; also any transfer.json"
    )
    parser.add_argument("--output", metavar="FILE", help="the page (default: report.html in what is named first)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown instead")


def run(arguments: Namespace) -> None:
    """Write the page and print its tables, or print them as Markdown."""
    from ser_fl.cli.terminal import console, say
    from ser_fl.cli.tracked_run import add_to_tracked_run
    from ser_fl.report.baselines import baseline_table, without_baseline
    from ser_fl.report.checks import failures_in_words
    from ser_fl.report.folds import fold_tables
    from ser_fl.report.four_way import four_way
    from ser_fl.report.markup import print_table, to_markdown
    from ser_fl.report.page import write_report
    from ser_fl.report.reader import read_matrices, read_run, run_folders
    from ser_fl.report.replications import not_pooled, replication_table, spread_table
    from ser_fl.report.tables import summary_table, transfer_tables
    from ser_fl.report.wording import labelled
    from ser_fl.runs.folder import RunFolder
    from ser_fl.runs.zoo import writable_run

    given = [writable_run(run) for run in arguments.runs]
    files = [path for path in given if path.suffix == ".json" and path.name != "crossval.json"]
    folders = run_folders([path for path in given if path not in files])
    runs = [read_run(folder) for folder in folders]
    tables = [summary_table(runs), four_way(runs)] if any(run.attacks for run in runs) else [summary_table(runs)]
    pooled = (baseline_table(runs), *fold_tables(runs), spread_table(runs), replication_table(runs))
    tables += [table for table in pooled if table is not None]
    notes = [*not_pooled(runs), *(f"no baseline: `{command}`" for _, command in without_baseline(runs))]
    tables += [four_way([other]) for run in runs for other in run.others]
    tables += [table for matrix in read_matrices(folders, files) for table in transfer_tables(matrix)]
    if arguments.markdown:
        print("\n\n".join([*map(to_markdown, tables), *notes]))
        return
    output = arguments.output and Path(arguments.output)
    wholes = {(path.parent if path.stem == "crossval" else path).resolve() for path in given}
    if not output and folders and (whole := folders[0].parent).resolve() in wholes:
        output = RunFolder(whole).report  # beside the runs
    page = write_report(folders, output or None, transfers=files)
    for table in tables:
        print_table(table, console)
    for label, run in labelled(runs):
        whose = "" if len(runs) == 1 else f"{label.replace(chr(10), ', ')}: "
        notes += [whose + line for line in (failures_in_words(run.sanity_report) if run.sanity_report else ())]
    for line in notes:
        say(line)
    say(f"report: {page}")
    for run in runs if len(runs) == 1 else ():
        own = RunFolder(run.root)
        if run.setting("tracking.backend") == "wandb" and page.resolve() == own.report.resolve():
            add_to_tracked_run(own, "report", lambda tracker: tracker.log_report())
