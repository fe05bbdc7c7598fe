"""Whole figures from the records of runs, as PNG: which panel shows what, and how it all looks on a page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ser_fl.report import figures, wording
from ser_fl.report.four_way import reference_budgets
from ser_fl.report.people import strongest_on_all
from ser_fl.report.reader import RunRecords
from ser_fl.report.tables import attack_of, uars_of
from ser_fl.runs.records import AttackRecord, TransferMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labelled = Sequence[tuple[str, RunRecords]]
"""Runs, each after its label."""

_STYLE: Any = {
    "text.parse_math": False,  # a label may hold dollar signs
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
}
_DPI = 160


def draw_figures(
    runs: Sequence[RunRecords], transferred: Sequence[TransferMatrix] = (), *, all_kinds: bool = True
) -> dict[str, bytes]:
    """PNG of every figure the records allow, by file stem, in the report's order; equal for equal records. Those that a
    page draws by itself are left out without ``all_kinds``.
    """
    import matplotlib

    labelled = wording.labelled(runs)
    with matplotlib.rc_context(_STYLE):
        drawn: dict[str, Figure] = {}
        if all_kinds:
            drawn |= _kinds_of_the_page(labelled)
        for place, (label, run) in enumerate(labelled, start=1):
            if run.example:
                drawn[f"spectrogram_{place}"], grid = _grid(3, 1, width=6.6, height=1.7, sharex=True)
                figures.spectrogram_pair(grid[:, 0], run.example)
                drawn[f"spectrogram_{place}"].suptitle(label.replace("\n", ", "), fontsize="medium")
        for place, matrix in enumerate(transferred, start=1):
            drawn[f"transfer_{place}"] = transfers(matrix)
        found = {}
        for name, figure in drawn.items():
            if any(run.synthetic for run in runs) or any(matrix.synthetic for matrix in transferred):
                figure.text(0.995, 0.005, "SYNTHETIC speech", ha="right", va="bottom", fontsize=7, color="0.35")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
            found[name] = buffer.getvalue()
        return found


def _kinds_of_the_page(labelled: Labelled) -> dict[str, Figure]:
    """As pictures what the page draws by itself: curves, confusions, speakers."""
    drawn: dict[str, Figure] = {}
    if any(run.rounds for _, run in labelled):
        drawn["training"] = training_curves(labelled)
    points: dict[tuple[str, ...], set[tuple[str, float | None, float | None]]] = {}
    for record in (record for _, run in labelled for record in run.attacked):
        if threat := _threat(record):
            points.setdefault(threat, set()).add((record.attack, record.epsilon, record.snr_db))
    for threat in [threat for threat, measured in points.items() if len(measured) > 1] or points:
        drawn["_".join(("robust_uar", *threat))] = robust_uar(labelled, threat)
    if (matrices := confusions(labelled)) is not None:
        drawn["confusion"] = matrices
    if speakers := [run for _, run in labelled if run.test.per_speaker_uar]:
        drawn["speakers"], grid = _grid(len(speakers), 1, width=6.6, height=2.2)
        for (label, run), (ax,) in zip(wording.labelled(speakers), grid, strict=True):
            figures.speaker_bars(ax, run.test.per_speaker_uar, overall_uar=run.test.uar)
            ax.set_title(label.replace("\n", ", "))
    return drawn


def training_curves(labelled: Labelled) -> Figure:
    """Validation UAR above training loss, all runs on the same axes."""
    figure, ((upper,), (lower,)) = _grid(2, 1, width=6.6, height=2.2, sharex=True)
    for place, (label, run) in enumerate(labelled):
        style: dict[str, Any] = {"label": label.replace("\n", ", "), "place": place}
        figures.uar_over_rounds(upper, run.rounds, selected_round=run.summary.selected_round, **style)
        figures.loss_over_rounds(lower, run.rounds, **style)
    upper.set_xlabel("")
    _legend_below(figure, [upper])
    return figure


def robust_uar(labelled: Labelled, threat: tuple[str, ...]) -> Figure:
    """Robust UAR over budgets of one kind: a row of panels per run, a column per test-time defence."""
    defences = list(dict.fromkeys(defence for _, run in labelled for defence in run.defences))
    figure, grid = _grid(len(labelled), len(defences), width=3.4, height=2.5, sharex=True, sharey=True)
    for (label, run), row in zip(labelled, grid, strict=True):
        for defence, ax in zip(defences, row, strict=True):
            figures.robust_uar_curve(
                ax,
                [record for record in run.attacked if record.defence == defence and _threat(record) == threat],
                num_classes=len(run.summary.classes),
                clean_uar=run.clean_scores(defence)[0],
                num_test=run.num_test_utterances,
            )
            ax.set_title(f"{label}\n{wording.defence_name(defence)}")
            ax.label_outer()
    _legend_below(figure, grid.flat)
    return figure


def confusions(labelled: Labelled) -> Figure | None:
    """Confusion matrices side by side, two to a row, of every run: clean, and under the strongest attack of the
    four-way table on the bare model; None where there is none.
    """
    budgets = reference_budgets([run for _, run in labelled])
    matrices: list[tuple[str, Sequence[Sequence[float]], Sequence[str]]] = []
    for label, run in labelled:
        shown = [("clean", run.test.uar, run.test.confusion)]
        if worst := strongest_on_all(run, budgets):
            attack = f"{wording.attack_name(worst.attack)} {wording.budget(worst)}"
            shown.append((attack, worst.robust_uar, worst.confusion))
        matrices += [
            (f"{label}\n{attack}, UAR {wording.percent(uar)} %", confusion, run.summary.classes)
            for attack, uar, confusion in shown
            if run.summary.classes and confusion
        ]
    if not matrices:
        return None
    side = 1.4 + 0.32 * max(len(names) for _, _, names in matrices)
    figure, grid = _grid(-(-len(matrices) // 2), min(len(matrices), 2), width=side + 0.4, height=side)
    for (title, counts, names), ax in zip(matrices, grid.flat, strict=False):
        figures.confusion_matrix(ax, counts, names).set_title(title)
    for ax in grid.flat[len(matrices) :]:
        ax.remove()
    return figure


def transfers(matrix: TransferMatrix) -> Figure:
    """Robust UAR of every target under what was made on every source, a panel for each defence."""
    tables = uars_of(matrix)
    side = 1.6 + 0.55 * len(matrix.models)
    figure, grid = _grid(1, len(tables), width=side + 1.2, height=side)
    for (defence, uars), ax in zip(tables.items(), grid[0], strict=True):
        figures.heat_table(ax, uars, list(matrix.models)).set_title(wording.defence_name(defence))
        ax.set_ylabel(f"{attack_of(matrix)} on")
        ax.set_xlabel("shown to")
    return figure


def _threat(record: AttackRecord) -> tuple[str, ...]:
    """Domain, norm and, where the budget is one, "snr"; empty for an attack without a budget."""
    if not record.epsilon and record.snr_db is None:
        return ()
    return record.domain, f"l{record.norm}", *(() if record.snr_db is None else ("snr",))


def _grid(num_rows: int, num_columns: int, *, width: float, height: float, **share: Any) -> tuple[Figure, Any]:
    """A figure of panels, each of the given size in inches, and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * num_columns, height * num_rows + 0.3), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **share)


def _legend_below(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all axes, each label once, with room of its own under the panels."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = 2 if max(map(len, entries), default=0) < 50 else 1
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * -(-len(entries) // columns))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, handlelength=3.2)
