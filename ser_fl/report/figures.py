"""What a report draws: curves, bars, confusion matrices and spectrograms, each onto an ``ax``, which is returned.

Nothing here uses pyplot, so nothing is global. Shares are drawn in [0, 1] and labelled in per cent. Colours are Okabe
and Ito's, told apart with any colour vision; lines differ by marker as well.

Legend: C classes, F mel bins, L frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_fl.report import wording
from ser_fl.report.reader import Example, Round
from ser_fl.runs.records import WORST_CASE, AttackRecord

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

     Over epsilon lines start at 0 with the clean UAR of what the attack saw; over SNR, which falls to the right, it is
         a line. Grey-box attacks are dashed; shades are 95 % intervals.

    Args:
        ax: where to draw.
        records: attack records, all with an epsilon or all with an SNR, of one defence, domain and norm.
        num_classes: number of classes C; the chance line is 1 / C.
        clean_uar: UAR without attack on the whole test part, in [0, 1].
        num_test: size of the test part; an attack on fewer utterances says so in the legend.
    """
    over_snr = bool(records) and records[0].snr_db is not None
    budget = attrgetter("snr_db" if over_snr else "epsilon")
    for place, (label, series) in enumerate(_series(records, num_test).items()):
        measured = sorted((record for record in series if not math.isnan(record.robust_uar)), key=budget)
        places, uars = [budget(record) for record in measured], [record.robust_uar for record in measured]
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
        unit = f" ({_UNITS.get(records[0].domain, records[0].domain)})" if records else ""
        norm = f"{wording.norm_name(records[0].norm)} " if records and records[0].norm != "inf" else ""
        ax.set_xlabel(f"{norm}epsilon{unit}")
        ax.set_xlim(left=0)
    return _share_axis(ax, "robust UAR")


def uar_over_rounds(
    ax: Axes, rounds: Sequence[Round], *, label: str, selected_round: int | None = None, place: int = 0
) -> Axes:
    """Validation UAR over rounds; robust UAR dashed where it was measured; a star on the selected round."""
    colour = COLOURS[place % len(COLOURS)]
    _line(ax, rounds, "uar", color=colour, linewidth=1.6, label=label)
    if any(entry.robust_uar is not None for entry in rounds):
        style = {"linewidth": 1.2, "linestyle": "--", "marker": "."}
        _line(ax, rounds, "robust_uar", color=colour, label=f"{label}, robust UAR", **style)
    for entry in rounds:
        if entry.round == selected_round and (entry.uar, entry.robust_uar) != (None, None):
            style = {"marker": "*", "markersize": 12, "markerfacecolor": colour, "markeredgecolor": "black"}
            key = "robust_uar" if entry.uar is None else "uar"
            _line(ax, [entry], key, linestyle="none", label="selected round", zorder=5, **style)
    _round_axis(ax)
    return _share_axis(ax, "validation UAR")


def loss_over_rounds(ax: Axes, rounds: Sequence[Round], *, label: str, place: int = 0) -> Axes:
    """Training loss, averaged over the cohort, over rounds."""
    _line(ax, rounds, "train_loss", color=COLOURS[place % len(COLOURS)], linewidth=1.6, label=label)
    ax.set_ylabel("training loss")
    ax.set_ylim(bottom=0)
    return _round_axis(ax)


def speaker_bars(ax: Axes, uar_by_speaker: Mapping[str, float | None], *, overall_uar: float | None) -> Axes:
    """UAR of each test speaker, lowest first, with the UAR over all of them as a line."""
    known = sorted((uar, speaker) for speaker, uar in uar_by_speaker.items() if uar is not None)
    ax.bar(range(len(known)), [uar for uar, _ in known], color=COLOURS[5], width=0.7)
    if overall_uar is not None:
        ax.axhline(overall_uar, color="black", linewidth=1.2, linestyle="--")
        ax.text(1.01, overall_uar, "all", va="center", transform=ax.get_yaxis_transform())
    look: dict[str, Any] = {"rotation": 90, "fontsize": 6} if len(known) > 16 else {"rotation": 0, "fontsize": 9}
    ax.set_xticks(range(len(known)), labels=[speaker for _, speaker in known], **look)
    ax.set_xlabel("test speaker")
    ax.grid(axis="x", visible=False)
    return _share_axis(ax, "UAR")


def confusion_matrix(ax: Axes, confusion: Sequence[Sequence[float]], classes: Sequence[str]) -> Axes:
    """Confusion matrix of shape (C, C): colour is the share of the true class (row), the text the count; counts
    averaged over random draws are shown with one decimal.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    form = ".0f" if np.allclose(counts, counts.round()) else ".1f"
    texts = [[format(count, form) for count in row] for row in counts]
    _square(ax, shares, texts, classes, colours="Blues", is_dark=shares > 0.55)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def heat_table(ax: Axes, shares: Sequence[Sequence[float]], names: Sequence[str]) -> Axes:
    """A square table of shares in per cent, darker where lower, with a frame around each cell of the diagonal."""
    from matplotlib.patches import Rectangle

    values = np.asarray(shares, dtype=np.float64)
    texts = [[wording.percent(share) for share in row] for row in values.tolist()]
    _square(ax, values, texts, names, colours="Reds_r", is_dark=values < 0.4)
    for place in range(len(names)):
        ax.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    return ax


def spectrogram_pair(axes: Sequence[Axes], example: Example) -> Sequence[Axes]:
    """Clean and adversarial log-mel of one utterance (in common colours), and the difference (white: none)."""
    clean_FL, adversarial_FL = np.asarray(example.clean), np.asarray(example.adversarial)
    difference_FL = adversarial_FL - clean_FL
    shared = (float(min(clean_FL.min(), adversarial_FL.min())), float(max(clean_FL.max(), adversarial_FL.max())))
    largest = float(np.abs(difference_FL).max()) or 1.0
    attack = f"{wording.attack_name(example.attack)}, ε {wording.number(example.epsilon, '.3g')}"
    panels = (
        (clean_FL, f"clean: heard as {example.predicted_clean} (true: {example.emotion})"),
        (adversarial_FL, f"adversarial ({attack}): heard as {example.predicted_adversarial}"),
        (difference_FL, "adversarial − clean"),
    )
    for ax, (values_FL, title) in zip(axes, panels, strict=True):
        is_change = values_FL is difference_FL
        num_bins, num_frames = values_FL.shape
        low, high = (-largest, largest) if is_change else shared
        image = ax.imshow(
            values_FL,
            origin="lower",
            aspect="auto",
            extent=(0.0, num_frames * example.hop_s, -0.5, num_bins - 0.5),
            cmap="PuOr_r" if is_change else "viridis",
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        ax.set_title(title)
        ax.set_xlabel("time (s)" if is_change else "")
        ax.set_ylabel("mel bin")
        ax.grid(visible=False)
        quantity = "difference" if is_change else "log-mel magnitude"
        ax.figure.colorbar(image, ax=ax, label=f"{quantity}\n(natural log)", pad=0.01)
    return axes


def _series(records: Iterable[AttackRecord], num_test: int | None) -> dict[str, list[AttackRecord]]:
    """Records of one attack and strength, differing in epsilon only, by their label in the legend."""
    series: dict[str, list[AttackRecord]] = {}
    for record in records:
        knowledge = "" if record.knowledge == "undefended" else record.knowledge
        words = (
            wording.attack_name(record.attack),
            wording.effort(record),
            "grey-box" if wording.is_grey_box(record) else knowledge,
            f"n = {record.num_examples}" if num_test is not None and record.num_examples < num_test else "",
        )
        series.setdefault(", ".join(filter(None, words)), []).append(record)
    return series


def _line_style(record: AttackRecord, place: int) -> dict[str, Any]:
    """Colour and marker by attack; grey-box attacks are dashed, other knowledge than the usual has open markers."""
    index = _STYLE_OF.get(record.attack, len(_STYLE_OF) + place) % len(COLOURS)
    is_worst = record.attack == WORST_CASE
    return {
        "color": "black" if is_worst else COLOURS[index],
        "linewidth": 1.0 if is_worst else 1.6,
        "linestyle": "--" if wording.is_grey_box(record) else "-",
        "marker": "x" if is_worst else _MARKERS[index],
        "markersize": 5,
        "fillstyle": "full" if record.knowledge == "undefended" else "none",
        "clip_on": False,
    }


def _line(ax: Axes, rounds: Iterable[Round], key: str, **style: Any) -> None:
    measured = [entry for entry in rounds if getattr(entry, key) is not None]
    marker = {"marker": "." if len(measured) <= _FEW_ROUNDS else ""}
    ax.plot([entry.round for entry in measured], [getattr(entry, key) for entry in measured], **(marker | style))


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


def _square(ax: Axes, shares: Any, texts: Any, names: Sequence[str], *, colours: str, is_dark: Any) -> None:
    """A square table of coloured cells with a text in each, white on dark ones, and names on both sides."""
    ax.imshow(shares, cmap=colours, vmin=0.0, vmax=1.0)
    for (row, column), dark in np.ndenumerate(is_dark):
        colour = "white" if dark else "black"
        ax.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8)
    places = np.arange(len(names))
    ax.set_xticks(places, labels=list(names), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, labels=list(names))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
