"""What a run can end with: a mistake that the user can put right, or a round that failed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_VALUE = 200
"""Characters of a value in an error."""
LONGEST_LINE = 2000
"""Characters of an error: room for two paths and a list of all known names."""


class UserError(ValueError):
    """A mistake of the user's, told in one line: what was wrong, the value, the way out; exit code 2 on the command
    line. Anything else that is raised is our mistake and keeps its traceback. File names and contents may be of
    anybody's making: what is not fit for a terminal is escaped, and what is too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RoundFailed(RuntimeError):
    """A round without enough updates; the message holds the clients' own errors."""


class DaemonStopped(RuntimeError):
    """A daemon that ended by itself; the message holds the end of its log."""


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    r"""A text on one line, its unprintable characters escaped, shortened in the middle.

    >>> one_line("of two\n  lines\x1b[2J")
    'of two lines\\x1b[2J'
    """
    text = _middle_out(text, 4 * longest)  # at once, where it is of megabytes
    joined = " ".join(filter(None, map(str.strip, text.splitlines())))
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in joined)
    return _middle_out(escaped, longest)


def shown(value: object) -> str:
    """A value as an error writes it: as in Python, on one line, at most `LONGEST_VALUE` characters of it.

    >>> shown("ab")
    "'ab'"
    """
    try:
        return one_line(repr(value), LONGEST_VALUE)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists in lists
        return f"a very long {type(value).__name__}"


def _middle_out(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 2 - 3
    return f"{text[:end]} ... {text[-end:]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Error for a name that is not in a catalogue: it lists the names that are.

    >>> str(unknown_name("model", "crn", ["crnn", "vgg15"]))
    "unknown model 'crn', did you mean 'crnn'? Known: crnn, vgg15"
    """
    names = sorted(known)
    close = get_close_matches(name[:LONGEST_VALUE], names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else "."
    return UserError(f"unknown {one_line(kind, LONGEST_VALUE)} {shown(name)}{hint} Known: {', '.join(names)}")
