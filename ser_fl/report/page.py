"""report.html: one self-contained page from the files of one or more run folders."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ser_fl.errors import UserError
from ser_fl.files import write_bytes
from ser_fl.report.groups import group_table
from ser_fl.report.labels import labels_of
from ser_fl.report.markup import to_html
from ser_fl.report.replications import replication_table
from ser_fl.report.runs import RunRecords, read_run
from ser_fl.report.sanity_checks import doubts_panel
from ser_fl.report.spread import spread_table
from ser_fl.report.tables import attack_table, four_way, summary_table, training_table
from ser_fl.report.transfer import pair_table, read_matrices, transfer_tables
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import TransferMatrix
from ser_fl.runs.redaction import public_path

_CAPTIONS = {
    "training": "Validation UAR and training loss over rounds; the star is the selected round.",
    "robust_uar": "Robust UAR over the budget; over epsilon each line starts at the clean UAR of the utterances that"
    " attack saw. Shades: 95 % intervals over utterances."
    " Dashed: grey-box, the attacker does not know of the test-time defence, which is no evidence of robustness.",
    "confusion": "Confusion matrices of the test part without defence: colour is the share of the true class, the"
    " number counts utterances.",
    "speakers": "Clean UAR of each test speaker.",
    "transfer": "Robust UAR in per cent of each model on what was made against another; darker is lower. Framed: the"
    " white-box figures.",
    "spectrogram": "An utterance as the model hears it, its adversarial copy, and what the attack added.",
}

_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0 .3rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top; }
thead th { border-bottom: 2px solid #555; text-align: left; vertical-align: bottom; }
th[scope=row] { text-align: left; font-weight: normal; } td { text-align: right; font-variant-numeric: tabular-nums; }
td.words { text-align: left; overflow-wrap: anywhere; }
.note, figcaption { color: #555; font-size: .85rem; max-width: 50rem; }
.synthetic { background: #fff3cd; border: 1px solid #e0c36a; padding: .5rem .8rem; }
.doubts { border: 1px solid #ccc; border-left: 4px solid #2e7d32; padding: .3rem .9rem; margin: .9rem 0; }
.doubts.fails { border-left-color: #b3261e; } .doubts.hint { border-left-color: #b8860b; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; }
code { background: #f3f3f3; padding: .1rem .3rem; }
"""


def write_report(folders: Sequence[Path], output: Path | None = None, *, transfers: Sequence[Path] = ()) -> Path:
    """Draw the report of one run, or of several compared, from the files of their folders alone.

    Args:
        folders: run folders; one given twice counts once.
        output: the page to write; by default ``report.html`` in the first folder.
        transfers: ``transfer.json`` files of other folders; those in the run folders are drawn anyway.

    Returns:
        Path of the page. For a single run the figures are written to its ``figures/`` as PNG as well.

    Raises:
        UserError: a folder is not a run folder, or a file in it is damaged or of another schema.
    """
    from ser_fl.report.panels import draw_figures

    if not folders:
        raise UserError("a report needs at least one run folder: ser-fl report RUN [RUN ...]")
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    matrices = read_matrices(list(unique.values()), transfers)
    figures = draw_figures(runs, matrices)
    if len(runs) == 1:
        for name, png in figures.items():
            write_bytes(RunFolder(runs[0].root).figures / f"{name}.png", png)
    path = output or RunFolder(runs[0].root).report
    write_bytes(path, render_page(runs, figures, matrices).encode())
    return path


def render_page(
    runs: Sequence[RunRecords], figures: Mapping[str, bytes], matrices: Sequence[TransferMatrix] = ()
) -> str:
    """The page as HTML: needs no network, no script and no other file."""
    title = "ser_fl: " + " / ".join(dict.fromkeys(run.name for run in runs))
    body = "\n".join(_sections(runs, figures, matrices))
    return (
        '<!DOCTYPE html>\n<html lang="en-GB"><head><meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style></head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _sections(
    runs: Sequence[RunRecords], figures: Mapping[str, bytes], matrices: Sequence[TransferMatrix]
) -> Iterator[str]:
    if any(run.synthetic for run in runs) or any(matrix.synthetic for matrix in matrices):
        yield '<p class="synthetic"><strong>SYNTHETIC speech</strong>: figures of the built-in corpus show that the'
        yield "method runs, and are no evidence about real speech.</p>"
    yield "<h2>Under attack</h2>"
    if (repeated := replication_table(runs)) is not None:
        yield to_html(repeated)
    yield to_html(four_way(runs))
    yield from _images(figures, "robust_uar")
    if any(run.attacks for run in runs):
        yield to_html(attack_table(runs))
        if (groups := group_table(runs)) is not None:
            yield to_html(groups)
        yield from doubts_panel(runs)
    yield from _images(figures, "spectrogram")
    if matrices:
        yield "<h2>From one model to another</h2>"
        yield from _images(figures, "transfer")
        for matrix in matrices:
            yield from map(to_html, (*transfer_tables(matrix), pair_table(matrix)))
    yield "<h2>Without attack</h2>"
    if (spread := spread_table(runs)) is not None:
        yield to_html(spread)
    yield to_html(summary_table(runs))
    yield from _images(figures, "confusion")
    yield from _images(figures, "speakers")
    yield "<h2>Training</h2>"
    yield to_html(training_table(runs))
    yield from _images(figures, "training")
    yield from _missing(runs)
    yield "<h2>Where this comes from</h2>"
    for label, run in zip(labels_of(runs), runs, strict=True):
        yield _origin(label, run)


def _images(figures: Mapping[str, bytes], kind: str) -> Iterator[str]:
    for name, png in figures.items():
        if name.startswith(kind):
            data = base64.b64encode(png).decode()
            caption = html.escape(_CAPTIONS[kind])
            yield f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption>'
            yield "</figure>"


def _missing(runs: Sequence[RunRecords]) -> Iterator[str]:
    """A sentence for every part that was left out, with the command that makes it."""
    sentences = []
    for run in runs:
        root = Path(public_path(run.root))
        folder = shlex.quote(str(root))
        train = f"ser-fl train --config {shlex.quote(str(RunFolder(root).config))}"
        benchmark = f"ser-fl benchmark run={folder}"
        parts = (
            (run.rounds and run.test, "The training has not finished", f"{train} run_dir={folder} resume=true"),
            (run.attacks, "No attack was recorded", benchmark),
            (run.example, "There is no spectrogram pair", benchmark),
        )
        sentences += [(run.name, what, command) for there, what, command in parts if not there]
    if sentences:
        yield "<h2>Not there yet</h2>\n<ul>"
        for name, what, command in sentences:
            yield f"<li>{html.escape(name)}: {what}; make it with <code>{html.escape(command)}</code>.</li>"
        yield "</ul>"


def _origin(label: str, run: RunRecords) -> str:
    """Settings, commit, versions and command of a run, as a table."""
    facts: dict[str, Any] = {
        "run folder": public_path(run.root),
        "experiment": run.name,
        "corpus": run.corpus,
        "split": run.split,
        "classes": ", ".join(run.classes),
        "model": run.setting("model.name"),
        "seed": run.setting("seed"),
        **run.environment,
    }
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(str(name).replace("_", " "))}</th>'
        f'<td class="words">{html.escape(_in_words(value))}</td></tr>'
        for name, value in facts.items()
        if value not in (None, "", [], {})
    )
    return f'<h3>{html.escape(label)}</h3>\n<div class="table"><table><tbody>\n{rows}\n</tbody></table></div>'


def _in_words(value: Any) -> str:
    """An entry of ``environment.json`` as one line: mappings as "name value", command lines quoted for a shell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return shlex.join(str(item) for item in value)
    return str(value)
