"""Records as data frames and as what a notebook shows; and how far a run is, there. pandas and IPython are imported by
what uses them.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import PosixPath
from typing import Any

from ser_fl.errors import UserError
from ser_fl.files import parse_json


def to_frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A pandas DataFrame with a row for each mapping; a `UserError` where pandas is missing."""
    try:
        import pandas
    except ImportError:
        raise UserError("data frames need pandas: pip install 'ser-fl[notebook]'") from None
    return pandas.DataFrame(list(rows))


class RoundsFile(PosixPath):
    """The path of a run's ``rounds.jsonl``, which can be called for what it holds."""

    def __call__(self) -> Any:
        """A pandas DataFrame with a row for each round, ``round`` its index: the entries of a `RoundRecord`. A line
        that was cut off is left out; a `UserError` says that there is no file, or no pandas.
        """
        try:
            text = self.read_text(encoding="utf-8")
            rows = [parse_json(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        except FileNotFoundError:
            raise UserError(f"{self} is not there: is {self.parent} the folder of a run?") from None
        except ValueError as error:
            raise UserError(f"{self} has a line that is not JSON ({error}): was it changed by hand?") from None
        frame = to_frame(rows)
        return frame.set_index("round") if rows else frame


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """A table as a notebook shows it, escaped; figures have three digits."""

    def cell(value: object) -> str:
        if value is None:
            return "–"
        return f"{value:.3f}" if isinstance(value, float) else escape(str(value))

    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell(each)}</td>' for each in row)}</tr>" for row in rows)
    told = f"<p>{escape(note)}</p>" if note else ""
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{told}"


def in_notebook() -> bool:
    """Whether this process answers a notebook's cells."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class NotebookProgress:
    """One bar below a cell, renewed in its place."""

    def __init__(self) -> None:
        self._shown: Any = None

    def __call__(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None:
        from IPython import display

        notebook: Any = display
        left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
        words = f"{escape(name)}: {done} of {total}{left}"
        bar = notebook.HTML(f'<progress max="{total}" value="{done}" aria-label="{escape(name)}"></progress> {words}')
        if self._shown is None:
            self._shown = notebook.display(bar, display_id=True)
        else:
            self._shown.update(bar)
