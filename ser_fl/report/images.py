"""The images of a report: confusion matrices and spectrograms, each drawn onto an ``ax``, which is returned.

Legend: C classes, F mel bins, L frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_fl.report import wording
from ser_fl.report.reader import Example

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def confusion_matrix(ax: Axes, confusion: Sequence[Sequence[float]], classes: Sequence[str]) -> Axes:
    """Confusion matrix of shape (C, C): colour is the share of the true class (row), the text the count.

    Counts averaged over random draws need not be whole and are shown with one decimal.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    ax.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    form = ".0f" if np.allclose(counts, counts.round()) else ".1f"
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.55 else "black"
        ax.text(column, row, format(counts[row, column], form), ha="center", va="center", color=colour, fontsize=8)
    _name_both_sides(ax, classes)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def heat_table(ax: Axes, shares: Sequence[Sequence[float]], names: Sequence[str]) -> Axes:
    """A square table of shares in per cent, darker where lower, with a frame around each cell of the diagonal."""
    values = np.asarray(shares, dtype=np.float64)
    ax.imshow(values, cmap="Reds_r", vmin=0.0, vmax=1.0)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value < 0.4 else "black"
        ax.text(column, row, wording.percent(float(value)), ha="center", va="center", color=colour, fontsize=8)
    from matplotlib.patches import Rectangle

    for place in range(len(names)):
        ax.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    _name_both_sides(ax, names)
    return ax


def spectrogram_pair(axes: Sequence[Axes], example: Example) -> Sequence[Axes]:
    """Clean and adversarial log-mel spectrogram of one utterance and their difference, on three axes.

    The first two share their colours; in the third white is no change.
    """
    clean_FL, adversarial_FL = (np.asarray(values) for values in (example.clean, example.adversarial))
    difference_FL = adversarial_FL - clean_FL
    limits = (float(min(clean_FL.min(), adversarial_FL.min())), float(max(clean_FL.max(), adversarial_FL.max())))
    largest = float(np.abs(difference_FL).max()) or 1.0
    attack = f"{wording.attack_name(example.attack)}, ε {wording.number(example.epsilon, '.3g')}"
    titles = (
        f"clean: heard as {example.predicted_clean} (true: {example.emotion})",
        f"adversarial ({attack}): heard as {example.predicted_adversarial}",
    )
    for ax, values_FL, title in zip(axes, (clean_FL, adversarial_FL), titles, strict=False):
        _spectrogram(ax, values_FL, example.hop_s, limits, "viridis", "log-mel magnitude\n(natural log)")
        ax.set_title(title)
    _spectrogram(axes[2], difference_FL, example.hop_s, (-largest, largest), "PuOr_r", "difference\n(natural log)")
    axes[2].set_title("adversarial − clean")
    return axes


def _spectrogram(
    ax: Axes, values_FL: Any, hop_s: float, limits: tuple[float, float], colours: str, quantity: str
) -> None:
    """Values of shape (F, L) over time, their colours between two limits, with a bar that says what they are."""
    num_bins, num_frames = values_FL.shape
    image = ax.imshow(
        values_FL,
        origin="lower",
        aspect="auto",
        extent=(0.0, num_frames * hop_s, -0.5, num_bins - 0.5),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    ax.set_xlabel("time (s)")
    ax.set_ylabel("mel bin")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label=quantity, pad=0.01)


def _name_both_sides(ax: Axes, names: Sequence[str]) -> None:
    """Rows and columns of a square table, without ticks or spines."""
    places = np.arange(len(names))
    ax.set_xticks(places, labels=list(names), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, labels=list(names))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
