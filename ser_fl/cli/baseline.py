"""`ser-fl baseline`: what a plain classifier reaches on the split of a run, or of settings."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

from ser_fl.errors import UserError
from ser_fl.runs.environment import collection_paused

_OWN = ("run", "features", "root")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        help="run=RUN [root=DIR], or settings of train: data=CORPUS data.root=DIR split=... normalisation=... "
        "run_dir=DIR; features=logmel|opensmile",
    )


def run(arguments: Namespace) -> None:
    """Train, write ``baseline.json`` and print its table."""
    from ser_fl.cli.terminal import bars, console, say
    from ser_fl.config.compose import compose
    from ser_fl.report.baselines import baseline_table, own_table
    from ser_fl.report.markup import print_table
    from ser_fl.report.reader import read_run

    with collection_paused():
        from ser_fl.baselines import baseline, own_folder
        from ser_fl.runs.folder import RunFolder
        from ser_fl.runs.zoo import writable_run

    own: dict[str, Any] = {
        name: value for name, _, value in (s.partition("=") for s in arguments.settings) if name in _OWN
    }
    others = [setting for setting in arguments.settings if setting.partition("=")[0] not in _OWN]
    if "run" in own and others:
        raise UserError(f"all but root=DIR and features= comes from the run, got {others[0]}: leave it or run= out")
    if "run" not in own and "root" in own:
        raise UserError("root=DIR goes with run=RUN, got it alone: write data=CORPUS data.root=DIR")
    given = own.pop("run", None)
    config = None if given else compose(others)
    folder = own_folder(config) if config else writable_run(given)
    with bars() as shown:
        found = baseline(replace(config, run_dir=str(folder)) if config else folder, **own, on_features=shown.features)
    print_table((baseline_table([read_run(folder)]) if given else None) or own_table(found), console)
    say(f"figures: {RunFolder(folder).baseline}")
