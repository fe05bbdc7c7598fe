"""Run what the tutorials show, and hold what it prints against what they say.

python scripts/docsite_tutorials.py [--write] [PAGE ...]

Pages run one after the other in one empty folder: a later one finds what an earlier one made. Run are blocks called
``console``, of which lines that begin with ``$ `` are commands and all others what they print, and ``python``, each a
program of its own, with what it prints in the ``text`` block that follows. Blocks of other names are only read. Of what
is printed, ``...`` stands for anything, also for several lines; after ``<!-- figures vary -->`` numbers and the width
of columns do not count. ``--write`` puts what was printed into the pages.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docsite.markdown import ROOT
from docsite.notebook import EXECUTED, WRITTEN

PAGES = ("first-federation.md", "first-attack.md", "own-corpus.md")
LONGEST_S = 300
WIDTH = "90"
"""Characters of a line, so that tables are whole."""
PROGRESS = re.compile(r"\S+: \d+ of \d+")
"""Of a training, every half a minute: whether it is there depends on the machine."""
_BLOCK = re.compile(
    r"(?P<vary><!-- figures vary -->\n)?```(?P<kind>console|python)\n(?P<code>.*?)```\n"
    r"(?:\n```text\n(?P<output>.*?)```\n)?",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Step:
    command: Sequence[str] | str
    """A program's arguments, or a line for the shell."""
    shown: str
    """What the page says that it prints."""
    vary: bool
    line: int


class Differs(Exception):
    """What was printed is not what the page shows."""


def blocks(text: str) -> Iterator[re.Match[str]]:
    """Blocks of a page that are run."""
    return _BLOCK.finditer(text)


def steps(block: re.Match[str]) -> list[Step]:
    """What a block has run, each with what it prints."""
    line = block.string[: block.start("code")].count("\n") + 1
    vary = block["vary"] is not None
    if block["kind"] == "python":
        program = [sys.executable, "-c", block["code"]]
        return [Step(command=program, shown=block["output"] or "", vary=vary, line=line)]
    found = []  # a command goes on after a backslash
    for part in re.split(r"^\$ ", block["code"], flags=re.MULTILINE)[1:]:
        command, _, shown = re.sub(r"(?<!\\)\n", "\0", part, count=1).partition("\0")
        found.append(Step(command=command, shown=shown, vary=vary, line=line))
    return found


def surroundings(folder: Path) -> dict[str, str]:
    """Variables that a step is given: this tree and its program, and caches that nobody shares."""
    before = os.environ.get("PYTHONPATH")
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])]),
        "COLUMNS": WIDTH,
        "NO_COLOR": "1",
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "XDG_STATE_HOME": str(folder / ".state"),
    }


def printed(step: Step, folder: Path) -> str:
    """What a step prints, `Differs` where it fails."""
    try:
        done = subprocess.run(
            step.command,
            shell=isinstance(step.command, str),
            cwd=folder,
            env=os.environ | surroundings(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Differs(f"took longer than {LONGEST_S} s") from None
    if done.returncode:
        raise Differs(f"ended with {done.returncode}:\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.fullmatch(line)]
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


def plain(text: str, *, vary: bool) -> list[str]:
    """Lines as they are compared."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    if vary:
        text = re.sub(r"\d+(?:\.\d+)?", "#", "\n".join(lines))
        return [line for line in text.split("\n") if set(line) - set("─━┃│┏┓┡┩└┘├┤┳╇┴┼ ")]
    return lines


def agrees(shown: str, output: str, *, vary: bool) -> bool:
    """Whether what was printed is what the page shows."""
    wanted, found = plain(shown, vary=vary), plain(output, vary=vary)
    if vary:  # lines wrap elsewhere where a figure is longer
        wanted, found = [" ".join(" ".join(wanted).split())], [" ".join(" ".join(found).split())]
    pattern = re.escape("\n".join(wanted)).replace(re.escape("..."), r"[\s\S]*")
    return re.fullmatch(pattern, "\n".join(found)) is not None


def run_page(page: Path, folder: Path, *, write: bool = False) -> list[str]:
    """Run a page's steps in a folder; in words, what differs."""
    text, differences, pieces, end = page.read_text(encoding="utf-8"), [], [], 0
    for block in blocks(text):
        outputs = []
        for step in steps(block):
            began = time.perf_counter()
            try:
                output = printed(step, folder)
                if not write and not agrees(step.shown, output, vary=step.vary):
                    raise Differs(f"printed\n{output}and not\n{step.shown}")
            except Differs as difference:
                differences.append(f"{page.name}, line {step.line}: {step.command!r:.200} {difference}")
                output = step.shown
            outputs.append(output)
            print(f"{page.name}:{step.line} {time.perf_counter() - began:.1f} s", flush=True)
        pieces += [text[end : block.start()], _rewritten(block, outputs)]
        end = block.end()
    if write:
        page.write_text("".join([*pieces, text[end:]]), encoding="utf-8")
    return differences


def _rewritten(block: re.Match[str], outputs: list[str]) -> str:
    """A block with what was printed; one that shows ``...`` stays as it is."""
    if "..." in (block["output"] or "") or (block["kind"] == "console" and "\n...\n" in block["code"]):
        return block[0]
    head = f"{block['vary'] or ''}```{block['kind']}\n"
    if block["kind"] == "python":
        told = f"\n```text\n{outputs[0]}```\n" if outputs[0] else ""
        return f"{head}{block['code']}```\n{told}"
    commands = [step.command for step in steps(block)]
    return head + "".join(f"$ {command}\n{output}" for command, output in zip(commands, outputs, strict=True)) + "```\n"


def run_notebook(folder: Path) -> list[str]:
    """Run the notebook there, and keep it with what it shows; in words, a cell that fails."""
    began = time.perf_counter()
    copied = folder / WRITTEN.name
    copied.write_bytes(WRITTEN.read_bytes())
    run = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(EXECUTED.parent)]
    try:
        printed(Step(command=[*run, str(copied)], shown="...", vary=True, line=1), folder)
    except Differs as difference:
        return [f"{WRITTEN.name}: {difference}"]
    print(f"{WRITTEN.name} {time.perf_counter() - began:.1f} s", flush=True)
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pages; 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: the tutorials")
    parser.add_argument("--write", action="store_true", help="put what is printed into the pages")
    chosen = parser.parse_args(arguments)
    pages = chosen.pages or [ROOT / "docs" / "tutorial" / name for name in PAGES]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        differences = [one for page in pages for one in run_page(page, Path(folder), write=chosen.write)]
        if not chosen.pages and WRITTEN.exists():
            differences += run_notebook(Path(folder))
    for difference in differences:
        print(difference, file=sys.stderr)
    print(f"tutorials: {time.perf_counter() - began:.0f} s, {len(differences)} differences")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
