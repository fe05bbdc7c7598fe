"""`ser-fl leaderboard`: the table of entries; `ser-fl leaderboard add`: make one."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.environment import collection_paused

_OWN = ("name", "authors", "defence", "remarks", "licence", "data.root")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "given",
        nargs="*",
        metavar="FOLDER",
        help="entries, or folders of several (default: those of this version); or: add RUN [ENTRY] authors=NAME "
        "data.root=DIR [name=NAME] [defence=NAME] [remarks=TEXT] [licence=TEXT] makes an entry of a benchmarked run",
    )
    parser.add_argument("--markdown", action="store_true", help="print the page of the documentation")
    parser.add_argument("--json", action="store_true", help="print all that the entries say, the best first")


def run(arguments: Namespace) -> None:
    """Print the table, or make an entry."""
    from ser_fl.cli.terminal import console, say

    if arguments.given[:1] == ["add"]:
        _add(arguments.given[1:])
        return
    with collection_paused():
        from ser_fl.files import to_json
        from ser_fl.leaderboard.table import default_folder, page, read_entries, tables
        from ser_fl.report.markup import print_table
    entries = read_entries([Path(folder) for folder in arguments.given] or [default_folder()])
    if arguments.json:
        say(to_json(entries, indent=1).rstrip())
    elif arguments.markdown:
        say(page(entries).rstrip())
    else:
        for table in tables(entries):
            print_table(table, console)


def _add(given: list[str]) -> None:
    from ser_fl.cli.terminal import bars, say

    settings = dict(each.split("=", 1) for each in given if "=" in each)
    folders = [each for each in given if "=" not in each]
    if unknown := [name for name in settings if name not in _OWN]:
        raise unknown_name("setting", unknown[0], _OWN)
    if not folders or len(folders) > 2:
        raise UserError("say which run: ser-fl leaderboard add RUN [ENTRY] authors=NAME data.root=DIR")
    with collection_paused():
        from ser_fl.leaderboard.submission import Submission, add
        from ser_fl.leaderboard.table import default_folder
    name = settings.pop("name", Path(folders[-1].removeprefix("zoo:")).name)
    folder = Path(folders[1]) if len(folders) == 2 else default_folder() / name
    root = settings.pop("data.root", None)
    if not settings.get("authors"):
        raise UserError("say whose entry it is: authors=NAME")
    with bars() as shown:
        entry = add(folders[0], folder, Submission(name=name, **settings), root=root, on_features=shown.features)
    say(f"{folder}: {entry.name}, {entry.test.track}, clean UAR {entry.test.clean_uar:.3f}; ser-fl verify {folder}")
