"""What a built site must hold to: links and anchors lead somewhere, and no page loads anything from a network."""

from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
"""Tags that fetch, or that at least name, another file."""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str]] = []
        """Tag and address."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := given.get(key))}
        address = given.get("href" if tag == "a" else LOADED.get(tag, ""))
        if address:
            self.links.append((tag, address))


@cache
def read(file: Path) -> _Page:
    """The links and anchors of a page."""
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def problems(site: Path) -> Iterator[str]:
    """In words, what of a built site leads nowhere or to a network."""
    read.cache_clear()
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # of a server, which a site opened from a file never shows
            continue
        shown = file.relative_to(site)
        for tag, address in read(file).links:
            if (problem := _problem(file, tag, address)) is not None:
                yield f"{shown}: {address} {problem}"


def _problem(file: Path, tag: str, address: str) -> str | None:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") or parts.netloc:
        return None if tag == "a" else f"is fetched by <{tag}> from a network"
    if parts.scheme:
        return None
    if parts.path.startswith("/"):
        return "begins with a slash, which leads elsewhere from a file"
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        return "is a folder, which shows no page from a file"
    if not target.is_file():
        return "leads to no file"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors:
        return "leads to no anchor"
    return None
