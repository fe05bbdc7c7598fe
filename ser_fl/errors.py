"""What a run can end with: a mistake that the user can put right, or a round that failed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake of the user's, told in one line: what was wrong, the value, the way out.

    The command line prints it on standard error and ends with exit code 2; anything else
    that is raised is our mistake and keeps its traceback.
    """


class RoundFailed(RuntimeError):
    """A round without enough updates; the message holds the clients' own errors."""


class DaemonStopped(RuntimeError):
    """A daemon that ended by itself; the message holds the end of its log."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Error for a name that is not in a catalogue: it lists the names that are.

    >>> str(unknown_name("model", "crn", ["crnn", "vgg15"]))
    "unknown model 'crn', did you mean 'crnn'? Known: crnn, vgg15"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else "."
    return UserError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
