"""`ser-fl corpus`: list the known corpora, check one, describe one."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ser_fl.data.corpora import CorpusInfo, FileCorpus
    from ser_fl.data.inspection import Description
    from ser_fl.data.utterance import Corpus

_BAR = 24
_SHOWN = 8
_FRONT_END_HZ = 16_000
"""The default front end's rate: what cannot be resampled to it is told."""


def add_arguments(parser: ArgumentParser) -> None:
    """An action, a corpus and its folder."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="corpora, their label maps and published counts")
    for action, text in (
        ("check", "compare with the published counts, find broken files"),
        ("describe", "counts and durations"),
    ):
        command = actions.add_parser(action, help=text)
        command.add_argument("name", help="a corpus of `ser-fl corpus list`, or builtin")
        command.add_argument("root", nargs="?", help="its folder")
        command.add_argument("--channel", default="first", choices=("first", "second", "mean"))


def run(arguments: Namespace) -> None:
    """Do what the action says."""
    from ser_fl.cli.terminal import console

    if arguments.action == "list":
        list_corpora(console)
    elif arguments.action == "check":
        check_corpus(console, arguments.name, arguments.root, arguments.channel)
    else:
        describe_corpus(console, arguments.name, arguments.root, arguments.channel)


def list_corpora(console: Console) -> None:
    """Corpora with their label maps and published counts, a block each."""
    from ser_fl.data.corpora import CORPORA

    _print_block(console, "builtin: synthetic speech, made by ser_fl", ["the paper's seven emotions; no files needed"])
    for info in CORPORA.values():
        _print_block(console, f"{info.name}: {info.title}", _facts(info))


def check_corpus(console: Console, name: str, root: str | None, channel: str) -> None:
    """Print the labels, every finding, and what could not be compared."""
    from ser_fl.data.corpora import CORPORA, FileCorpus
    from ser_fl.data.inspection import check, not_published

    corpus = _open("check", name, root, channel)
    if not isinstance(corpus, FileCorpus):
        raise UserError("the built-in corpus has no files to check: use `ser-fl corpus describe builtin`")
    info = CORPORA[name]
    _print_labels(console, corpus)
    findings = check(corpus, info)
    for finding in findings:
        console.print(f"{finding.kind}: {finding.text}", highlight=False, markup=False, soft_wrap=True)
    if unknown := not_published(info):
        text = f"not published for {info.title}, so not compared: counts {', '.join(unknown)}"
        console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(corpus.utterances)} utterances read, {len(findings)} findings", highlight=False)


def describe_corpus(console: Console, name: str, root: str | None, channel: str) -> None:
    """Draw counts by speaker and emotion, and durations by emotion."""
    from ser_fl.data.corpora import FileCorpus
    from ser_fl.data.inspection import describe

    corpus = _open("describe", name, root, channel)
    if isinstance(corpus, FileCorpus):
        _print_labels(console, corpus)
    description = describe(corpus)
    console.print(_count_table(description, f"{name}: utterances" + (" (synthetic)" if corpus.synthetic else "")))
    console.print(_duration_table(description))
    rates = ", ".join(f"{rate} Hz ({count} files)" for rate, count in description.sample_rates_hz.items())
    console.print(f"sampling rates: {rates}", highlight=False)
    if lost := description.unreadable:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        text = f"{len(lost)} files cannot be used (`ser-fl corpus check` says why): {', '.join(lost[:_SHOWN])}{more}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _facts(info: CorpusInfo) -> Iterator[str]:
    """What `list_corpora` says of a corpus, a line each before wrapping."""
    if info.published_counts.num_utterances:
        yield f"{info.published_counts.num_utterances} utterances, {info.published_counts.num_speakers} speakers"
    for owner, labels in (info.recognised_labels or {}).items():
        yield f"labels: as in the table; where all are codes of {owner}: {_in_words(labels)}"
    if info.label_map:
        left_out = f"; left out: {', '.join(info.left_out)}" if info.left_out else ""
        yield f"labels: {_in_words(info.label_map)}{left_out}"
    yield f"looks for: {info.example}"
    yield f"licence: {info.licence}"
    if info.url:
        yield info.url


def _print_block(console: Console, title: str, facts: Iterator[str] | list[str]) -> None:
    """A title and indented lines, broken between words only."""
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    for fact in facts:
        lines = textwrap.wrap(
            fact,
            max(console.width, 40),
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _print_labels(console: Console, corpus: FileCorpus) -> None:
    from ser_fl.data.corpora import CORPORA

    info = CORPORA[corpus.name]
    left_out = sorted({*info.label_map, *info.left_out} - set(corpus.labels))
    lost = f"; left out: {', '.join(left_out)}" if left_out else ""
    text = f"labels (in the corpus→here): {_in_words(corpus.labels)}{lost}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _in_words(labels: Mapping[str, str]) -> str:
    """A label map in one line; a code that is its own word stands alone."""
    return ", ".join(code if code == word else f"{code}→{word}" for code, word in labels.items())


def _count_table(description: Description, title: str) -> Table:
    """Utterances by speaker and emotion."""
    from rich.table import Table

    counts = Table(title=title)
    for column in ("speaker", *description.emotions, "all"):
        counts.add_column(column, justify="left" if column == "speaker" else "right")
    for speaker, row in description.counts.items():
        counts.add_row(speaker, *(str(n) for n in row.values()), str(sum(row.values())))
    totals = [sum(row[emotion] for row in description.counts.values()) for emotion in description.emotions]
    counts.add_section()
    counts.add_row("all", *(str(n) for n in totals), str(sum(totals)))
    return counts


def _duration_table(description: Description) -> Table:
    """Durations by emotion, with a bar for the median."""
    from rich.table import Table

    durations = Table(title="Durations in seconds")
    for column in ("emotion", "total", "shortest", "5 %", "median", "95 %", "longest"):
        durations.add_column(column, justify="left" if column == "emotion" else "right")
    durations.add_column("median", justify="left")
    longest = max((row.median_s for row in description.durations), default=1.0)
    for line in description.durations:
        figures = (line.total_s, line.shortest_s, line.p05_s, line.median_s, line.p95_s, line.longest_s)
        bar = "█" * round(_BAR * line.median_s / longest)
        durations.add_row(line.emotion, *(f"{figure:.2f}" for figure in figures), bar)
    return durations


def _open(action: str, name: str, root: str | None, channel: str) -> Corpus:
    from ser_fl.data.corpora import CORPORA, open_corpus
    from ser_fl.data.synthetic import SyntheticCorpus

    if name == "builtin":
        return SyntheticCorpus()
    if name not in CORPORA:
        raise unknown_name("corpus", name, ["builtin", *CORPORA])
    if root is None:
        raise UserError(f"say where {CORPORA[name].title} lies: ser-fl corpus {action} {name} ROOT")
    return open_corpus(name, Path(root), channel=channel, on_unreadable="skip", to_hz=_FRONT_END_HZ, root_name="ROOT")
