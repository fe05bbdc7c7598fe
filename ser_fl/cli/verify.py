"""`ser-fl verify`: score an entry of the leaderboard again."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.environment import collection_paused, keep_freed_memory

_OWN = ("data.root", "max_examples", "attacks")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("entry", metavar="ENTRY", help="folder of the entry")
    parser.add_argument(
        "settings",
        nargs="*",
        help="data.root=DIR of the corpus; max_examples=K attacks fewer utterances; attacks=[NAME,...] more attacks",
    )


def run(arguments: Namespace) -> None:
    """Say what was checked, a line each; whatever does not hold is a `UserError`."""
    from ser_fl.cli.terminal import bars, say

    given = {}
    for setting in arguments.settings:
        key, sign, value = setting.partition("=")
        if key not in _OWN or not sign:
            raise unknown_name("setting", key, _OWN)
        given[key] = value
    number = given.get("max_examples")
    if number is not None and not (number.isdecimal() and int(number)):
        raise UserError(f"max_examples must be a whole number from 1 up, got {number}")
    keep_freed_memory()
    with collection_paused():
        from ser_fl.leaderboard.verification import verify
    with bars() as shown:
        for line in verify(
            Path(arguments.entry),
            root=given.get("data.root"),
            max_examples=None if number is None else int(number),
            attacks=[name.strip() for name in given.get("attacks", "").strip("[]").split(",") if name.strip()],
            on_features=shown.features,
            on_attack=shown.attacks,
        ):
            say(line)
    say(f"{arguments.entry} is what it says")
