"""How the server's part of a run tells whoever submitted it why it ends: by the last line that is ours in its log."""

from __future__ import annotations

from ser_fl.errors import RoundFailed, UserError

_OURS = "ser-fl: "
_FAILED = "the run has failed: "


def error_line(error: UserError | RoundFailed) -> str:
    """An error as a line of a log."""
    first, *others = (" ".join(line.split()) for line in str(error).splitlines())
    text = " ".join([first, "; ".join(others)]).rstrip()
    return f"{_OURS}{_FAILED if isinstance(error, RoundFailed) else ''}{text}"


def error_told_by(line: str) -> UserError | RoundFailed | None:
    """The error that a line of a log tells of; None where it tells of none."""
    if not line.startswith(_OURS):
        return None
    text = line.removeprefix(_OURS).strip()
    return RoundFailed(text.removeprefix(_FAILED)) if text.startswith(_FAILED) else UserError(text)
