"""The curves and bars of a report: each function draws records onto an ``ax`` and returns it.

Nothing here uses pyplot, so nothing is global. Shares are drawn in [0, 1] and labelled in per cent. Colours are Okabe
and Ito's, told apart with any colour vision; lines differ by marker as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ser_fl.report import wording
from ser_fl.report.reader import Round
from ser_fl.runs.records import AttackRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_STYLE_OF = {
    name: place for place, name in enumerate(("fgsm", "pgd", "bim", "cw_l2", "deepfool", "pgd_paper", "cw_linf"))
}
_FEW_ROUNDS = 30
_UNITS = {"logmel": "standardised log-mel units", "waveform": "amplitude"}


def robust_uar_curve(
    ax: Axes, records: Sequence[AttackRecord], *, num_classes: int, clean_uar: float | None, num_test: int | None = None
) -> Axes:
    """Robust UAR over the budget, one line per attack, for one model under one defence, in one domain and norm.

    Over epsilon every line starts at 0 with the clean UAR of the utterances that attack saw; over SNR, which falls to
    the right, the clean UAR is a line. Grey-box attacks are dashed; shades are 95 % intervals.

    Args:
        ax: where to draw.
        records: attack records, all with an epsilon or all with an SNR, of one defence, domain and norm.
        num_classes: number of classes C; the chance line is 1 / C.
        clean_uar: UAR without attack on the whole test part, in [0, 1].
        num_test: size of the test part; an attack on fewer utterances says so in the legend.
    """
    over_snr = bool(records) and records[0].snr_db is not None
    for place, (label, series) in enumerate(_series(records, num_test).items()):
        measured = sorted((record for record in series if not math.isnan(record.robust_uar)), key=_budget)
        places, uars = [_budget(record) for record in measured], [record.robust_uar for record in measured]
        style = _line_style(series[0], place)
        start = ([], []) if over_snr else ([0.0], [series[0].clean_uar])
        ax.plot([*start[0], *places], [*start[1], *uars], label=label, **style)
        if measured and all(record.uar_interval for record in measured):
            low, high = zip(*(record.uar_interval for record in measured if record.uar_interval), strict=True)
            ax.fill_between(places, low, high, color=style["color"], alpha=0.12, linewidth=0)
    if clean_uar is not None and over_snr:
        ax.axhline(clean_uar, color="black", linewidth=1, linestyle="--", label="clean")
    elif clean_uar is not None:
        ax.plot([0.0], [clean_uar], "k*", markersize=10, linestyle="none", label="clean", clip_on=False, zorder=5)
    if num_classes:
        ax.axhline(1 / num_classes, color="0.45", linewidth=1, linestyle=":", label=f"chance (1/{num_classes})")
    if over_snr:
        ax.set_xlabel("SNR (dB)")
        ax.invert_xaxis()
    else:
        ax.set_xlabel(_epsilon_label(records))
        ax.set_xlim(left=0)
    return _share_axis(ax, "robust UAR")


def _budget(record: AttackRecord) -> float:
    """Where a record stands on the axis."""
    return (record.epsilon if record.epsilon is not None else record.snr_db) or 0.0


def uar_over_rounds(
    ax: Axes, rounds: Sequence[Round], *, label: str, selected_round: int | None = None, place: int = 0
) -> Axes:
    """Validation UAR over rounds; robust UAR dashed where it was measured; a star on the selected round."""
    colour = COLOURS[place % len(COLOURS)]
    scored = [entry for entry in rounds if entry.uar is not None]
    ax.plot(*_over_rounds(scored, "uar"), color=colour, linewidth=1.6, marker=_round_marker(scored), label=label)
    robust = _over_rounds(rounds, "robust_uar")
    if robust[0]:
        ax.plot(*robust, color=colour, linewidth=1.2, linestyle="--", marker=".", label=f"{label}, robust UAR")
    chosen = [entry for entry in rounds if entry.round == selected_round]
    key = "uar" if _over_rounds(chosen, "uar")[0] else "robust_uar"
    if _over_rounds(chosen, key)[0]:
        star: dict[str, Any] = {"marker": "*", "markersize": 12, "markerfacecolor": colour, "markeredgecolor": "black"}
        ax.plot(*_over_rounds(chosen, key), linestyle="none", label="selected round", zorder=5, **star)
    _round_axis(ax)
    return _share_axis(ax, "validation UAR")


def loss_over_rounds(ax: Axes, rounds: Sequence[Round], *, label: str, place: int = 0) -> Axes:
    """Training loss, averaged over the cohort, over rounds."""
    style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linewidth": 1.6, "marker": _round_marker(rounds)}
    ax.plot(*_over_rounds(rounds, "train_loss"), label=label, **style)
    ax.set_ylabel("training loss")
    ax.set_ylim(bottom=0)
    return _round_axis(ax)


def speaker_bars(ax: Axes, uar_by_speaker: Mapping[str, float | None], *, overall_uar: float | None) -> Axes:
    """UAR of each test speaker, lowest first, with the UAR over all of them as a line."""
    known = {speaker: uar for speaker, uar in uar_by_speaker.items() if uar is not None}
    speakers = sorted(known, key=lambda speaker: (known[speaker], speaker))
    ax.bar(range(len(speakers)), [known[speaker] for speaker in speakers], color=COLOURS[5], width=0.7)
    if overall_uar is not None:
        ax.axhline(overall_uar, color="black", linewidth=1.2, linestyle="--")
        ax.text(1.01, overall_uar, "all", va="center", transform=ax.get_yaxis_transform())
    crowded = len(speakers) > 16
    ax.set_xticks(range(len(speakers)), labels=speakers, rotation=90 if crowded else 0, fontsize=6 if crowded else 9)
    ax.set_xlabel("test speaker")
    ax.grid(axis="x", visible=False)
    return _share_axis(ax, "UAR")


def _series(records: Iterable[AttackRecord], num_test: int | None) -> dict[str, list[AttackRecord]]:
    """Records of one attack and strength, differing in epsilon only, by their label in the legend."""
    series: dict[str, list[AttackRecord]] = {}
    for record in records:
        words = [wording.attack_name(record.attack), wording.effort(record)]
        if wording.is_grey_box(record):
            words.append("grey-box")
        elif record.knowledge != "undefended":
            words.append(record.knowledge)
        if num_test is not None and record.num_examples < num_test:
            words.append(f"n = {record.num_examples}")
        series.setdefault(", ".join(word for word in words if word), []).append(record)
    return series


def _line_style(record: AttackRecord, place: int) -> dict[str, Any]:
    """Colour and marker by attack; grey-box attacks are dashed, other knowledge than the usual has open markers."""
    index = _STYLE_OF.get(record.attack, len(_STYLE_OF) + place) % len(COLOURS)
    is_worst = record.attack == wording.WORST_CASE
    return {
        "color": "black" if is_worst else COLOURS[index],
        "linewidth": 1.0 if is_worst else 1.6,
        "linestyle": "--" if wording.is_grey_box(record) else "-",
        "marker": "x" if is_worst else _MARKERS[index],
        "markersize": 5,
        "fillstyle": "full" if record.knowledge == "undefended" else "none",
        "clip_on": False,
    }


def _epsilon_label(records: Sequence[AttackRecord]) -> str:
    if not records:
        return "epsilon"
    unit = _UNITS.get(records[0].domain, records[0].domain)
    norm = "" if records[0].norm == "inf" else f"{wording.norm_name(records[0].norm)} "
    return f"{norm}epsilon ({unit})"


def _over_rounds(rounds: Iterable[Round], key: str) -> tuple[list[int], list[float]]:
    measured = [entry for entry in rounds if getattr(entry, key) is not None]
    return [entry.round for entry in measured], [getattr(entry, key) for entry in measured]


def _round_marker(rounds: Sequence[Round]) -> str:
    """A dot a round where they are few: a line through one point cannot be seen."""
    return "." if len(rounds) <= _FEW_ROUNDS else ""


def _round_axis(ax: Axes) -> Axes:
    """Whole rounds as ticks, with room on both sides for what has been drawn so far."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = ax.dataLim.intervalx
    if first <= last:
        room = max(0.5, 0.03 * (last - first))
        ax.set_xlim(first - room, last + room)
    return ax


def _share_axis(ax: Axes, name: str) -> Axes:
    from matplotlib.ticker import PercentFormatter

    ax.set_ylabel(f"{name} (%)")
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))
    return ax
