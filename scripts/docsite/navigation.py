"""What the site's navigation lists: every page that is there, in the order of a reader's needs."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from docsite.markdown import title_of

SECTIONS = {
    "tutorial": "Tutorials",
    "how-to": "How-to",
    "explanation": "Explanation",
    "results": "Results",
    "leaderboard": "Leaderboard",
    "reference": "Reference",
}
"""Folders of docs/ in order; one that is not here follows under its own name."""
FIRST = (
    "tutorial/first-federation.md",
    "tutorial/first-attack.md",
    "tutorial/own-corpus.md",
    "tutorial/notebook.md",
    "reference/commands.md",
    "reference/settings/index.md",
    "reference/main-settings.md",
    "reference/settings/experiments.md",
    "reference/settings/benchmark.md",
    "reference/settings/transfer.md",
    "reference/api/index.md",
)
"""Pages that come before the others of their section, in this order; the others go by title."""


def navigation(texts: Mapping[str, str]) -> list[dict[str, object]]:
    """The navigation of pages, given by path with their texts."""
    nav: list[dict[str, object]] = [{"Home": "index.md"}]
    folders = dict.fromkeys([*SECTIONS, *sorted(PurePosixPath(page).parts[0] for page in texts if "/" in page)])
    inside = {folder: [page for page in texts if page.startswith(f"{folder}/")] for folder in folders}
    nav += [
        {SECTIONS.get(name, name.capitalize()): _section(name, pages, texts)} for name, pages in inside.items() if pages
    ]
    nav += [{_title(page, texts): page} for page in sorted(texts) if "/" not in page and page != "index.md"]
    return nav


def _section(folder: str, pages: Iterable[str], texts: Mapping[str, str]) -> list[object]:
    pages = list(pages)
    index = [page for page in pages if page == f"{folder}/index.md"]
    rows: list[tuple[tuple[int, str], object]] = []
    for page in pages:
        inside = PurePosixPath(page).relative_to(folder)
        if len(inside.parts) == 1 and page not in index:
            rows.append((_rank(page, texts), {_title(page, texts): page}))
    for name in sorted({PurePosixPath(page).relative_to(folder).parts[0] for page in pages}):
        below = f"{folder}/{name}"
        if inner := _section(below, [page for page in pages if page.startswith(f"{below}/")], texts):
            head = f"{below}/index.md"
            title = _title(head, texts) if head in texts else name.replace("_", " ").capitalize()
            rows.append((_rank(head, texts) if head in texts else (len(FIRST), title.lower()), {title: inner}))
    return [*index, *(entry for _, entry in sorted(rows, key=lambda row: row[0]))]


def _rank(page: str, texts: Mapping[str, str]) -> tuple[int, str]:
    place = FIRST.index(page) if page in FIRST else len(FIRST)
    return place, _title(page, texts).lower()


def _title(page: str, texts: Mapping[str, str]) -> str:
    if page == "glossary.md":
        return "Glossary"
    return title_of(texts[page], PurePosixPath(page).stem).removeprefix("Settings: ")
