"""How reports write attacks, budgets, defences and figures: the same words in tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ser_fl.report.markup import MISSING
from ser_fl.runs.records import AttackRecord

CLEAN = "clean"
"""Name of the record without an attack."""
WORST_CASE = "worst_case"
"""Name of the record that takes, per utterance, the worst over all attacks of one budget."""
NO_DEFENCE = "none"
"""Name of the missing test-time defence."""
GREY_BOX = "†"
"""Marks a figure whose attacker did not know of the defence."""

_ATTACKS = {
    CLEAN: "clean",
    "fgsm": "FGSM",
    "bim": "BIM",
    "mim": "MIM",
    "pgd": "PGD",
    "pgd_paper": "PGD (the paper's)",
    "cw_l2": "C&W L2",
    "cw_linf": "C&W L∞",
    "fmn": "FMN L∞",
    "fmn_l2": "FMN L2",
    "deepfool": "DeepFool",
    "apgd_ce": "AutoPGD CE",
    "apgd_dlr": "AutoPGD DLR",
    "apgd_t": "AutoPGD targeted",
    "square": "Square",
    "hopskipjump": "HopSkipJump",
    "universal": "universal",
    "noise_uniform": "uniform noise",
    "noise_gaussian": "Gaussian noise",
    WORST_CASE: "worst case",
}
_UNLABELLED = "_unlabelled"
_NORMS = {"inf": "L∞", "2": "L2", "1": "L1", "0": "L0"}
_DEFENCES = {NO_DEFENCE: "no randomisation", "randomisation_ensemble": "randomisation ensemble"}


def attack_name(name: str) -> str:
    """An attack as papers write it; a class of ART by its own name."""
    known = name.removesuffix(_UNLABELLED)
    return _ATTACKS.get(known, known.removeprefix("art:")) + (" without labels" if known != name else "")


def defence_name(name: str) -> str:
    return _DEFENCES.get(name, name.replace("_", " "))


def norm_name(norm: str) -> str:
    return MISSING if norm == "none" else _NORMS.get(norm, norm)


def is_grey_box(record: AttackRecord) -> bool:
    """True where an attack on the undefended model was shown to a defended one: no evidence of robustness."""
    if record.attack == CLEAN or record.defence == NO_DEFENCE:
        return False
    if record.attack != WORST_CASE:
        asks = record.knowledge in ("score", "decision") and record.eot_samples == 0
        return record.knowledge == "undefended" or asks
    # A worst case is one of adaptive attacks where they saw every utterance that is left.
    return "adaptive" not in record.knowledge.split("+") or "adaptive on" in record.library


def budget(record: AttackRecord) -> str:
    """What the attacker may change: "ε 0.05", "SNR 30 dB", or "masked": what the clip itself hides."""
    if record.norm == "masking":
        return "masked"
    if record.epsilon is not None:
        return f"ε {record.epsilon:.3g}"
    return MISSING if record.snr_db is None else f"SNR {record.snr_db:.3g} dB"


def effort(record: AttackRecord) -> str:
    """How hard the attacker tried: "50 steps, 5 restarts, EOT 20"."""
    parts = []
    if record.steps is not None:
        parts.append(_counted(record.steps, "step"))
    if record.restarts is not None and record.restarts > 1:
        parts.append(_counted(record.restarts, "restart"))
    if record.eot_samples > 1:
        parts.append(f"EOT {record.eot_samples}")
    return ", ".join(parts)


def percent(value: Any) -> str:
    """A share of [0, 1] in per cent with one decimal; a dash for None and NaN.

    >>> percent(0.8349), percent(None), percent(float("nan"))
    ('83.5', '–', '–')
    """
    return number(value, ".1f", scale=100.0)


def interval(ends: Sequence[float] | None) -> str:
    """Two shares in per cent: "7.0 to 12.1"; a dash for None."""
    return MISSING if ends is None else " to ".join(percent(end) for end in ends)


def number(value: Any, form: str, *, scale: float = 1.0) -> str:
    """A figure in the given format; a dash for None, NaN, infinities and whatever is not a number."""
    return format(value * scale, form) if _is_finite(value) else MISSING


def count(value: Any) -> str:
    """A whole number with its thousands set apart: "12,500"."""
    return f"{round(value):,d}" if _is_finite(value) else MISSING


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
