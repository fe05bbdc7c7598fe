"""`ser-fl corpus`: list the known corpora, check one, describe one."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ser_fl.data.corpora import CORPORA, FileCorpus, open_corpus
from ser_fl.data.inspection import check, describe
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.data.utterance import Corpus
from ser_fl.errors import UserError, unknown_name

_BAR = 24


def list_corpora(console: Console) -> None:
    """Corpora with their label maps and published counts."""
    table = Table(title="Corpora", show_lines=True)
    for column in ("name", "corpus", "speakers", "utterances", "labels", "licence", "from"):
        table.add_column(column, overflow="fold")
    table.add_row("builtin", "synthetic, made by ser_fl", "any", "any", "the paper's seven", "Apache-2.0", "–")
    for info in CORPORA.values():
        labels = ", ".join(f"{code}→{word}" for code, word in info.label_map.items()) or "as in the table"
        left_out = f" (left out: {', '.join(info.left_out)})" if info.left_out else ""
        speakers, utterances = (str(n) if n else "–" for n in (info.num_speakers, info.num_utterances))
        table.add_row(info.name, info.title, speakers, utterances, labels + left_out, info.licence, info.url)
    console.print(table)


def check_corpus(console: Console, name: str, root: str | None, channel: str) -> None:
    """Print every finding, or that there is none."""
    corpus = _open(name, root, channel)
    if not isinstance(corpus, FileCorpus):
        raise UserError("the built-in corpus has no files to check: use `ser-fl corpus describe builtin`")
    findings = check(corpus, CORPORA[name])
    for finding in findings:
        console.print(f"{finding.kind}: {finding.text}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(corpus.utterances)} utterances read, {len(findings)} findings", highlight=False)


def describe_corpus(console: Console, name: str, root: str | None, channel: str) -> None:
    """Draw counts by speaker and emotion, and durations by emotion."""
    corpus = _open(name, root, channel)
    description = describe(corpus)
    title = f"{name}: utterances" + (" (synthetic)" if corpus.synthetic else "")
    counts = Table(title=title)
    for column in ("speaker", *description.emotions, "all"):
        counts.add_column(column, justify="left" if column == "speaker" else "right")
    for speaker, row in description.counts.items():
        counts.add_row(speaker, *(str(n) for n in row.values()), str(sum(row.values())))
    totals = [sum(row[emotion] for row in description.counts.values()) for emotion in description.emotions]
    counts.add_section()
    counts.add_row("all", *(str(n) for n in totals), str(sum(totals)))
    durations = Table(title="Durations in seconds")
    for column in ("emotion", "total", "shortest", "5 %", "median", "95 %", "longest"):
        durations.add_column(column, justify="left" if column == "emotion" else "right")
    durations.add_column("median", justify="left")
    longest = max((row.median_s for row in description.durations), default=1.0)
    for line in description.durations:
        figures = (line.total_s, line.shortest_s, line.p05_s, line.median_s, line.p95_s, line.longest_s)
        bar = "█" * round(_BAR * line.median_s / longest)
        durations.add_row(line.emotion, *(f"{figure:.2f}" for figure in figures), bar)
    console.print(counts)
    console.print(durations)
    rates = ", ".join(f"{rate} Hz ({count} files)" for rate, count in description.sample_rates_hz.items())
    console.print(f"sampling rates: {rates}", highlight=False)
    for path in description.unreadable:
        console.print(f"unreadable: {path}", highlight=False, markup=False)


def _open(name: str, root: str | None, channel: str) -> Corpus:
    if name == "builtin":
        return SyntheticCorpus()
    if name not in CORPORA:
        raise unknown_name("corpus", name, ["builtin", *CORPORA])
    if root is None:
        raise UserError(f"say where {CORPORA[name].title} lies: ser-fl corpus check {name} ROOT")
    return open_corpus(name, Path(root), channel=channel, on_unreadable="skip")
