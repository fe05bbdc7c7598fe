"""Small pieces of Markdown that generated pages are made of."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the repository."""
FENCE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)\s*$", re.DOTALL | re.MULTILINE)


def title_of(text: str, otherwise: str) -> str:
    """The first heading of a page, without its markup."""
    found = re.search(r"^# (.+)$", FENCE.sub("", text), re.MULTILINE)
    return found[1].replace("`", "").strip() if found else otherwise


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, whose cells hold no line ends; upright bars are kept."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def first_paragraph(text: str) -> str:
    """What a docstring begins with, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split())


def escaped(text: str) -> str:
    """Plain text, in which only what stands in backticks is markup."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([_*<])", r"\\\1", part) for part in parts)


def linked_papers(text: str) -> str:
    """Text in which "arXiv 1706.06083" leads there."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
