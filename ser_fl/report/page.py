"""report.html: one self-contained page from the files of one or more run folders, laid out by ``templates/``."""

import shlex
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_fl.errors import UserError
from ser_fl.files import write_bytes
from ser_fl.report.baselines import baseline_table, without_baseline
from ser_fl.report.charts import budget_charts, round_charts
from ser_fl.report.checks import meaning
from ser_fl.report.folds import fold_tables
from ser_fl.report.four_way import four_way
from ser_fl.report.headline import comparison_table, headline
from ser_fl.report.people import confusion_tables, group_tables, standing_out
from ser_fl.report.reader import RunRecords, read_matrices, read_run
from ser_fl.report.replications import not_pooled, replication_table, spread_table
from ser_fl.report.tables import attack_table, pair_table, summary_table, training_table, transfer_tables
from ser_fl.report.wording import labelled
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import TransferMatrix
from ser_fl.runs.redaction import public_path

if TYPE_CHECKING:
    from ser_fl.report.audio import Pair


def write_report(folders: Sequence[Path], output: Path | None = None, *, transfers: Sequence[Path] = ()) -> Path:
    """Draw the report of one run, or of several compared, from the files of their folders alone, and return its path:
    ``output``, or ``report.html`` in the first folder. For a single run the figures go to its ``figures/`` as PNG as
    well. ``transfers`` are ``transfer.json`` files of other folders; those in the run folders are drawn anyway.

    Raises:
        UserError: a folder is not a run folder, or a file in it is damaged or of another schema.
    """
    from ser_fl.report.panels import draw_figures

    if not folders:
        raise UserError("a report needs at least one run folder: ser-fl report RUN [RUN ...]")
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    matrices = read_matrices(list(unique.values()), transfers)
    figures = draw_figures(runs, matrices, all_kinds=len(runs) == 1)
    if len(runs) == 1:
        for name, png in figures.items():
            write_bytes(RunFolder(runs[0].root).figures / f"{name}.png", png)
    path = output or RunFolder(runs[0].root).report
    write_bytes(path, render_page(runs, figures, matrices).encode())
    return path


def render_page(
    runs: Sequence[RunRecords], figures: Mapping[str, bytes], matrices: Sequence[TransferMatrix] = ()
) -> str:
    """The page as HTML: needs no network and no other file; without script it lacks its charts alone."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ser_fl.report.audio import audio_pairs

    templates = Environment(
        loader=PackageLoader("ser_fl.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pairs, notes = audio_pairs(runs)
    charts = {"budgets": budget_charts(runs), "rounds": round_charts(runs)}
    missing: dict[str, list[tuple[str, str]]] = {}
    for run, own in zip(runs, pairs, strict=True):
        for what, command in _missing(run, has_audio=bool(own)):
            missing.setdefault(what, []).append((run.name, command))
    checked = [(label, run.sanity_report) for label, run in labelled(runs) if run.attacks and run.sanity_report]
    parts = {
        "runs": "All runs" if len(runs) > 1 else "",
        "budget": "Robust UAR over the budget" if charts["budgets"] else "",
        "attacks": "Under attack",
        "checks": "Can these figures be believed?" if checked else "",
        "each": "Each run" if len(runs) > 1 else "The run",
        "transfer": "From one model to another" if matrices else "",
        "clean": "Without attack",
        "training": "Training",
        "missing": "Not there yet" if missing else "",
    }
    return templates.get_template("report.html.j2").render(
        title="ser_fl: " + " / ".join(dict.fromkeys(run.name for run in runs)),
        synthetic=any(run.synthetic for run in runs) or any(matrix.synthetic for matrix in matrices),
        headline=headline(runs),
        comparison=comparison_table(runs) if len(runs) > 1 else None,
        parts={anchor: words for anchor, words in parts.items() if words},
        charts=charts,
        meaning=meaning,
        replications=replication_table(runs),
        four_way=four_way(runs),
        attacks=attack_table(runs) if any(run.attacks for run in runs) else None,
        transfers=[table for matrix in matrices for table in (*transfer_tables(matrix), pair_table(matrix))],
        transfer_figures=[b64encode(png).decode() for name, png in figures.items() if name.startswith("transfer")],
        spread=[*fold_tables(runs), spread_table(runs)],
        baselines=baseline_table(runs),
        without_baseline=without_baseline(runs),
        not_pooled=not_pooled(runs),
        summary=summary_table(runs),
        training=training_table(runs),
        checked=checked,
        missing=missing,
        notes=notes,
        runs=[
            (label, run, _panel(run, own, figures.get(f"spectrogram_{place}")))
            for place, ((label, run), own) in enumerate(zip(labelled(runs), pairs, strict=True), start=1)
        ],
    )


def _panel(run: RunRecords, pairs: "Sequence[Pair]", spectrogram: bytes | None) -> dict[str, Any]:
    """What is shown of one run alone."""
    return {
        "groups": [*filter(None, [standing_out(run)]), *group_tables(run)],
        "confusions": confusion_tables(run),
        "pairs": pairs,
        "spectrograms": [b64encode(spectrogram).decode()] if spectrogram else [],
        "others": [(other, [four_way([other]), attack_table([other]), *group_tables(other)]) for other in run.others],
        "origin": _origin(run),
    }


def _missing(run: RunRecords, *, has_audio: bool) -> Iterator[tuple[str, str]]:
    """What was left out, and the command that makes it."""
    root = Path(public_path(run.root))
    folder = shlex.quote(str(root))
    if not run.rounds or run.summary.test is None:
        train = f"ser-fl train --config {shlex.quote(str(RunFolder(root).config))}"
        yield "The training has not finished", f"{train} run_dir={folder} resume=true"
    for there, what in ((run.attacks, "No attack was recorded"), (run.example, "There is no spectrogram pair")):
        if not there:
            yield what, f"ser-fl benchmark run={folder}"
    if not has_audio:
        listen = f"ser-fl benchmark run={folder} domain=waveform write_audio=3"
        yield "No clean and adversarial recordings were kept to hear", listen


def _origin(run: RunRecords) -> dict[str, str]:
    def in_words(value: Any) -> str:
        """One line: mappings as "name value", command lines quoted for a shell."""
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
        return shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    facts: dict[str, Any] = {
        "run folder": public_path(run.root),
        "experiment": run.name,
        "corpus": run.corpus,
        "split": run.split_in_words,
        "classes": ", ".join(run.summary.classes),
        "model": run.setting("model.name"),
        "seed": run.setting("seed"),
        **run.environment,
    }
    return {str(name): in_words(value) for name, value in facts.items() if value not in (None, "", [], {})}
