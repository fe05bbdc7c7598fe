"""The reference of commands: what each prints for ``--help``, asked of the program itself."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

from ser_fl.cli.main import COMMANDS

WIDTH = "88"


def help_of(*command: str) -> str:
    """What ``ser-fl COMMAND --help`` prints, in lines that fit a page."""
    plain = {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    asked = [sys.executable, "-m", "ser_fl", *command, "--help"]
    done = subprocess.run(asked, env=os.environ | plain, capture_output=True, text=True, check=True)
    return done.stdout.replace("python -m ser_fl", "ser-fl").replace("__main__.py", "ser-fl").rstrip()


def actions_of(text: str) -> list[str]:
    """Subcommands that a help text lists under ACTION."""
    listed = re.search(r"^  ACTION.*\n((?:    .*\n)+)", text, re.MULTILINE)
    return re.findall(r"^    (\w[\w-]*)", listed[1], re.MULTILINE) if listed else []


def sections() -> Iterator[str]:
    """Each command, and below it its subcommands."""
    for name in COMMANDS:
        text = help_of(name)
        yield f"## `ser-fl {name}` {{ #{name} }}\n\n```text\n{text}\n```\n"
        for action in actions_of(text):
            yield f"### `ser-fl {name} {action}` {{ #{name}-{action} }}\n\n```text\n{help_of(name, action)}\n```\n"


def pages() -> dict[str, str]:
    """The page of commands."""
    head = (
        "# Commands\n\n`ser-fl COMMAND --help` prints what is here. Every command ends with 0 when it did what was "
        "asked, 2 for a mistake in what was asked, told in one line, 1 for a round or a daemon that failed, 130 for "
        "Ctrl-C, and 75 for a training that a signal stopped: the same command with `resume=true` goes on.\n\n"
        "`train`, `crossval`, `benchmark`, `evaluate`, `baseline` and `transfer` take "
        "[settings](settings/index.md), `key=value`.\n"
    )
    return {"reference/commands.md": "\n".join([head, *sections()])}
