"""A table of plain text, shown in the terminal or in Markdown; ``templates/table.html.j2`` shows it in HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

MISSING = "–"
"""What stands in a cell that has no figure."""

_WIDEST = 16
"""Characters of a terminal column that are kept together; longer words are broken."""
# Whatever Markdown would read as markup; an underscore within a word is none, and "C&W" is not an entity.
_MARKDOWN = re.compile(r"[\\`*\[\]<|~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of plain text, nothing escaped; a line break in a cell is a line break in every rendering."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    num_labels: int = 1
    """Leading columns that hold words; those after them hold figures and are set to the right."""


def to_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown: title, rows, caption."""
    rules = [":---" if column < table.num_labels else "---:" for column in range(len(table.header))]
    lines = [tuple(_markdown(cell) for cell in row) for row in (table.header, *table.rows)]
    body = [f"| {' | '.join(line)} |" for line in (lines[0], tuple(rules), *lines[1:])]
    parts = (f"**{_markdown(table.title)}**", "\n".join(body), _markdown(table.caption))
    return "\n\n".join(part for part in parts if part) + "\n"


def print_table(table: Table, console: Console) -> None:
    """Print the table; one that is too wide for the terminal runs over its edge, so that no column is lost."""
    shown = _to_rich(table)
    least = console.measure(shown).minimum
    console.print(shown, width=max(console.width, least), crop=False)


def _to_rich(table: Table) -> RichTable:
    """The labels of a row share one column, to spare room for figures."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        title=Text(table.title),
        caption=Text(table.caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    labels = table.num_labels
    header, *rows = ((", ".join(row[:labels]), *row[labels:]) for row in (table.header, *table.rows))
    for column, cell in enumerate(header):
        # In a narrow terminal cells go on in the next line; without the least width, rich would cut figures short.
        words = [word for row in (header, *rows) for word in row[column].split()]
        longest = max(map(len, words), default=0)
        shown.add_column(Text(cell), justify="right" if column else "left", min_width=min(longest, _WIDEST))
    for row in rows:
        # Text, not str: names from files must not be read as rich's own markup.
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text).replace("\n", "<br>")
