"""Files of the repository that pages link to, as pages of their own: the site needs no network and no checkout.

A link from docs/how-to/x.md to ``../../ser_fl/api.py`` works where the repository is read, and leads to
``source/ser_fl/api.py.html`` in the site; a folder is a list of what is in it.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from subprocess import run

from docsite.markdown import FENCE, ROOT

LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*\]\()([^)#\s]+)(#[^)\s]*)?((?:\s+\"[^\"]*\")?\))")
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".toml": "toml",
    ".sh": "bash",
    ".md": "markdown",
}
LARGEST = 200_000
"""Bytes of a file that is shown whole."""
PREFIX = "source"


def outside(page: str, target: str) -> str | None:
    """The path in the repository that a link of a page in docs/ leads to; None where it stays in docs/, or leads to
    another host.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:|/|#", target):
        return None
    path = normpath(str(PurePosixPath("docs") / PurePosixPath(page).parent / target))
    return None if path.startswith("docs/") or path == "docs" or path.startswith("..") else path


def page_of(path: str) -> str:
    """Where the site has a file or folder of the repository."""
    if path == "README.md":
        return "index.md"
    return f"{PREFIX}/{path}.md" if (ROOT / path).is_file() else f"{PREFIX}/{path}/index.md"


def rewritten(page: str, text: str) -> str:
    """A page whose links out of docs/ lead to pages of the site; those to nothing are left for the check of links."""

    def link(found: re.Match[str]) -> str:
        path = outside(page, found[2])
        if path is None or not (ROOT / path).exists():
            return found[0]
        anchor = re.sub(r"#L(\d+).*", r"#__codelineno-0-\1", found[3] or "")
        return f"{found[1]}{relpath(page_of(path), str(PurePosixPath(page).parent))}{anchor}{found[4]}"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, text[end:])])


def linked(page: str, text: str) -> Iterator[str]:
    """Files and folders of the repository that a page links to."""
    for _, target, *_ in LINK.findall(FENCE.sub("", text)):
        path = outside(page, target)
        if path is not None and (ROOT / path).exists():
            yield path


def source_pages(texts: dict[str, str]) -> dict[str, str]:
    """Pages of all files that these pages link to, and of the files that folders among them list."""
    waiting = sorted({path for page, text in texts.items() for path in linked(page, text)})
    made: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        if (name := page_of(path)) in made or path == "README.md":
            continue
        if (ROOT / path).is_dir():
            inside = _tracked(path)
            made[name] = _folder(path, inside)
            waiting += [child for child in inside if (ROOT / child).is_dir() or (ROOT / child).suffix in LANGUAGES]
        else:
            made[name] = _file(path)
    return made


def _tracked(folder: str) -> list[str]:
    """What of a folder belongs to the repository: files and folders, one level deep."""
    listed = run(["git", "ls-files", "--", folder], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    names = listed.splitlines() or [
        str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*") if file.is_file()
    ]
    depth = len(PurePosixPath(folder).parts)
    return sorted({"/".join(PurePosixPath(name).parts[: depth + 1]) for name in names})


def _folder(path: str, inside: list[str]) -> str:
    here = f"{PREFIX}/{path}"
    lines = []
    for child in inside:
        name = PurePosixPath(child).name
        shown = (ROOT / child).is_dir() or (ROOT / child).suffix in LANGUAGES
        lines.append(f"- [`{name}`]({relpath(page_of(child), here)})" if shown else f"- `{name}`")
    return f"{_HEAD}# {path}/\n\nA folder of the repository.\n\n" + "\n".join(lines) + "\n"


def _file(path: str) -> str:
    file = ROOT / path
    language = LANGUAGES.get(file.suffix, "text")
    if file.stat().st_size > LARGEST or b"\0" in (content := file.read_bytes()):
        return f"{_HEAD}# {path}\n\nA file of {file.stat().st_size:,} bytes in the repository.\n"
    text = content.decode("utf-8", "replace").rstrip()
    fence = "`" * (max([2, *map(len, re.findall("`{3,}", text))]) + 1)
    return f'{_HEAD}# {path}\n\n{fence} {{ .{language} linenums="1" }}\n{text}\n{fence}\n'


_HEAD = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n"


def is_source(page: str) -> bool:
    """Whether a page is one of these."""
    return Path(page).parts[0] == PREFIX
