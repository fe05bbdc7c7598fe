"""`ser-fl corpus`: list the known corpora, check one, describe one."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ser_fl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console

    from ser_fl.data.corpora import FileCorpus
    from ser_fl.data.utterance import Corpus

_BAR = 24
_SHOWN = 8
_FRONT_END_HZ = 16_000
"""The default front end's rate: what cannot be resampled to it is told."""


def add_arguments(parser: ArgumentParser) -> None:
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
    else:
        action = check_corpus if arguments.action == "check" else describe_corpus
        action(console, arguments.name, arguments.root, arguments.channel)


def list_corpora(console: Console) -> None:
    """Corpora with their label maps and published counts, a block of indented lines each."""
    from ser_fl.cli.terminal import say
    from ser_fl.data.corpora import CORPORA

    blocks = {"builtin: synthetic speech, made by ser_fl": ["the paper's seven emotions; no files needed"]}
    for info in CORPORA.values():
        facts = blocks[f"{info.name}: {info.title}"] = []
        if info.published_counts.num_utterances:
            counts = info.published_counts
            facts.append(f"{counts.num_utterances} utterances, {counts.num_speakers} speakers")
        for owner, labels in (info.recognised_labels or {}).items():
            facts.append(f"labels: as in the table; where all are codes of {owner}: {_in_words(labels)}")
        if info.label_map:
            left_out = f"; left out: {', '.join(info.left_out)}" if info.left_out else ""
            facts.append(f"labels: {_in_words(info.label_map)}{left_out}")
        facts += [f"looks for: {info.example}", f"licence: {info.licence}", *filter(None, [info.url])]
    wrapper = textwrap.TextWrapper(
        max(console.width, 40),
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    for title, facts in blocks.items():
        say(title, console, style="bold")
        for fact in facts:
            say(wrapper.fill(fact), console)


def check_corpus(console: Console, name: str, root: str | None, channel: str) -> None:
    """Print the labels, every finding, and what could not be compared."""
    from ser_fl.cli.terminal import say
    from ser_fl.data.corpora import CORPORA, FileCorpus
    from ser_fl.data.inspection import check, not_published

    corpus = _open("check", name, root, channel)
    if not isinstance(corpus, FileCorpus):
        raise UserError("the built-in corpus has no files to check: use `ser-fl corpus describe builtin`")
    info = CORPORA[name]
    say(_labels(corpus), console)
    findings = check(corpus, info)
    for finding in findings:
        say(f"{finding.kind}: {finding.text}", console)
    if unknown := not_published(info):
        say(f"not published for {info.title}, so not compared: counts {', '.join(unknown)}", console, style="dim")
    console.print(f"{len(corpus.utterances)} utterances read, {len(findings)} findings", highlight=False)


def describe_corpus(console: Console, name: str, root: str | None, channel: str) -> None:
    """Draw counts by speaker and emotion, and durations by emotion, with a bar for the median."""
    from rich.table import Table

    from ser_fl.cli.terminal import say
    from ser_fl.data.corpora import FileCorpus
    from ser_fl.data.inspection import describe

    corpus = _open("describe", name, root, channel)
    if isinstance(corpus, FileCorpus):
        say(_labels(corpus), console)
    found = describe(corpus)
    counts = Table(title=f"{name}: utterances" + (" (synthetic)" if corpus.synthetic else ""))
    for column in ("speaker", *found.emotions, "all"):
        counts.add_column(column, justify="left" if column == "speaker" else "right")
    for speaker, row in found.counts.items():
        counts.add_row(speaker, *(str(n) for n in row.values()), str(sum(row.values())))
    totals = [sum(row[emotion] for row in found.counts.values()) for emotion in found.emotions]
    counts.add_section()
    counts.add_row("all", *(str(n) for n in totals), str(sum(totals)))
    console.print(counts)

    durations = Table(title="Durations in seconds")
    for column in ("emotion", "total", "shortest", "5 %", "median", "95 %", "longest"):
        durations.add_column(column, justify="left" if column == "emotion" else "right")
    durations.add_column("median", justify="left")
    longest = max((row.median_s for row in found.durations), default=1.0)
    for line in found.durations:
        figures = (line.total_s, line.shortest_s, line.p05_s, line.median_s, line.p95_s, line.longest_s)
        bar = "█" * round(_BAR * line.median_s / longest)
        durations.add_row(line.emotion, *(f"{figure:.2f}" for figure in figures), bar)
    console.print(durations)
    rates = ", ".join(f"{rate} Hz ({count} files)" for rate, count in found.sample_rates_hz.items())
    console.print(f"sampling rates: {rates}", highlight=False)
    if lost := found.unreadable:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        names = ", ".join(lost[:_SHOWN])
        say(f"{len(lost)} files cannot be used (`ser-fl corpus check` says why): {names}{more}", console)


def _labels(corpus: FileCorpus) -> str:
    from ser_fl.data.corpora import CORPORA

    info = CORPORA[corpus.name]
    left_out = sorted({*info.label_map, *info.left_out} - set(corpus.labels))
    lost = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"labels (in the corpus→here): {_in_words(corpus.labels)}{lost}"


def _in_words(labels: Mapping[str, str]) -> str:
    """A label map in one line; a code that is its own word stands alone."""
    return ", ".join(code if code == word else f"{code}→{word}" for code, word in labels.items())


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
