"""A table of plain text, shown in the terminal or in Markdown; ``templates/table.html.j2`` shows it in HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

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

    def escaped(text: str) -> str:
        return _MARKDOWN.sub(r"\\\g<0>", text).replace("\n", "<br>")

    header, *rows = (f"| {' | '.join(map(escaped, row))} |" for row in (table.header, *table.rows))
    rules = [":---" if column < table.num_labels else "---:" for column in range(len(table.header))]
    body = "\n".join((header, f"| {' | '.join(rules)} |", *rows))
    parts = (f"**{escaped(table.title)}**", body, escaped(table.caption))
    return "\n\n".join(part for part in parts if part) + "\n"


def print_table(table: Table, console: Console) -> None:
    """Print the table; one that is too wide for the terminal runs over its edge, so that no column is lost. To spare
    room, the labels of a row share one column, and two figures of a cell have no blanks between them and their stroke,
    or lie one below the other where that is still too wide. In a narrow terminal cells go on in the next line, but a
    figure stays whole.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    labels, gaps = table.num_labels, 2 * (len(table.header) - table.num_labels)
    for stroke in ("/", "/\n"):
        rows = [
            (", ".join(row[:labels]), *(cell.replace(" / ", stroke) for cell in row[labels:]))
            for row in (table.header, *table.rows)
        ]
        columns = list(zip(*rows, strict=True))
        wanted = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
        longest = [max((len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
        widths = [min(_WIDEST, length) for length in longest]
        if sum(widths) + gaps <= console.width:
            break
    for _ in range(min(console.width - gaps, sum(wanted)) - sum(widths)):
        widths[max(range(len(columns)), key=lambda column: wanted[column] - widths[column])] += 1
    shown = RichTable(
        title=Text(table.title),
        caption=Text(table.caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        width=sum(widths) + gaps,
    )
    for column, (cell, width) in enumerate(zip(rows[0], widths, strict=True)):
        shown.add_column(Text(cell), justify="right" if column else "left", width=width)
    for row in rows[1:]:
        # Text, not str: names from files must not be read as rich's own markup.
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown, crop=False)
