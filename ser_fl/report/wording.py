"""How reports write runs, attacks, budgets, defences and figures: the same words in tables and plots."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ser_fl.report.markup import MISSING
from ser_fl.report.reader import RunRecords
from ser_fl.runs.records import (
    CLEAN,
    NO_DEFENCE,
    ON_ENROLMENT,
    WITH_ENROLMENT,
    WORST_CASE,
    AttackRecord,
    SpeechRecord,
)

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
_SUFFIXES = {
    ON_ENROLMENT: "on enrolment alone",
    WITH_ENROLMENT: "enrolment attacked too",
    "_unlabelled": "unlabelled",
}
_FEDERATIONS = {"federated": "Federated", "centralised": "Centralised", "local_only": "Local only"}
_NORMS = {"inf": "L∞", "2": "L2", "1": "L1", "0": "L0"}
_DEFENCES = {NO_DEFENCE: "no randomisation", "randomisation_ensemble": "randomisation ensemble"}


def attack_name(name: str) -> str:
    """An attack as papers write it; a class of ART by its own name; one without labels says so, as one on enrolment."""
    for suffix, words in _SUFFIXES.items():
        if name != (known := name.removesuffix(suffix)):
            return f"{attack_name(known)}, {words}"
    return _ATTACKS.get(name, name.removeprefix("art:"))


def defence_name(name: str) -> str:
    return _DEFENCES.get(name, name.replace("_", " "))


def norm_name(norm: str) -> str:
    return MISSING if norm == "none" else _NORMS.get(norm, norm)


def is_grey_box(record: AttackRecord) -> bool:
    """True where an attack on the undefended model was shown to a defended one: no evidence of robustness."""
    if record.attack == CLEAN or record.defence == NO_DEFENCE:
        return False
    if not record.is_worst_case:
        asks_bare = record.knowledge in ("score", "decision") and record.eot_samples == 0
        return record.knowledge == "undefended" or asks_bare
    # A worst case is one of adaptive attacks where they saw every utterance that is left.
    return "adaptive" not in record.knowledge.split("+") or "adaptive on" in record.library


def marked(text: str, record: AttackRecord) -> str:
    """A figure or a word, with a mark where it is no evidence of robustness."""
    return f"{text} {GREY_BOX}" if is_grey_box(record) else text


def mark_explained(records: Iterable[AttackRecord]) -> str:
    """The end of a caption, after a blank; nothing where no record is marked."""
    if not any(map(is_grey_box, records)):
        return ""
    return f" {GREY_BOX} Grey-box: the attacker does not know of the test-time defence; no evidence of robustness."


def enrolment_explained(records: Iterable[AttackRecord]) -> str:
    """What it means that enrolment was attacked, after a blank; nothing where none was."""
    if not any(record.enrolment for record in records):
        return ""
    return (
        " Enrolment attacked: the clips by which each unseen speaker is scaled were moved within the same budget (of"
        " epsilon in units of the clean enrolment), by an attacker who knows the model and all utterances scored of the"
        " speaker, with their emotions, and raises their mean loss: one perturbation against the speaker's whole"
        " service, and an upper bound on what poison does. On enrolment alone, the scored utterances are clean."
    )


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
        parts.append("1 step" if record.steps == 1 else f"{record.steps} steps")
    if record.restarts is not None and record.restarts > 1:
        parts.append(f"{record.restarts} restarts")
    if record.eot_samples > 1:
        parts.append(f"EOT {record.eot_samples}")
    return ", ".join(parts)


def percent(value: Any) -> str:
    """A share of [0, 1] in per cent with one decimal; a dash for None and NaN.

    >>> percent(0.8349), percent(None), percent(float("nan"))
    ('83.5', '–', '–')
    """
    return number(value, ".1f", scale=100.0)


def scores(uar: Any, accuracy: Any) -> str:
    """UAR, and accuracy where it is known, in per cent: "41.7 / 43.2"."""
    return percent(uar) if accuracy is None else f"{percent(uar)} / {percent(accuracy)}"


def interval(ends: Sequence[float] | None) -> str:
    """Two shares in per cent: "7.0 to 12.1"; a dash for None."""
    return MISSING if ends is None else " to ".join(percent(end) for end in ends)


def number(value: Any, form: str, *, scale: float = 1.0) -> str:
    """A figure in the given format; a dash for None, NaN, infinities and whatever is not a number."""
    is_figure = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return format(value * scale, form) if is_figure else MISSING


def count(value: Any) -> str:
    """A whole number with its thousands set apart: "12,500"."""
    return number(value, ",.0f")


def training_epsilon(run: RunRecords) -> float | None:
    """Budget of the adversarial training; None for clean training."""
    epsilon = run.setting("objective.epsilon") if run.setting("objective.snr_db") is None else None
    return float(epsilon) if isinstance(epsilon, (int, float)) and run.is_hardened else None


def labels_of(runs: Sequence[RunRecords]) -> list[str]:
    """A label for each run: how it was trained and, on a second line, whatever else tells it from the others: the name
    that the user gave it, whether it was fine-tuned, corpus, split, model and seed only where they differ, then the
    name of its folder.
    """
    traits = (
        [str(run.setting("run_name") or "") for run in runs],
        ["fine-tuned" if run.setting("init_from") else "" for run in runs],
        [f"corpus {run.corpus}" for run in runs],
        [f"split {run.split}" for run in runs],
        [f"model {run.setting('model.name')}" for run in runs],
        [f"seed {run.setting('seed')}" for run in runs],
    )
    labels = []
    for place, run in enumerate(runs):
        federation = str(run.setting("federation.name") or "unknown")
        heading, adversary = _FEDERATIONS.get(federation, federation), ""
        if run.is_hardened:
            epsilon, recipe = training_epsilon(run), str(run.setting("objective.recipe") or "")
            snr_db = run.setting("objective.snr_db")
            budget = "" if epsilon is None else f"ε {epsilon:.3g}"
            budget = budget if snr_db is None else f"SNR {float(snr_db):g} dB"
            words = (str(run.setting("objective.name")).upper(), budget, recipe.replace("_", " "))
            heading, adversary = f"{heading} + adversarial training", " ".join(filter(None, words))
        details = [adversary, *(trait[place] for trait in traits if len(set(trait)) > 1)]
        labels.append("\n".join(filter(None, (heading, ", ".join(filter(None, details))))))
    return [
        f"{label}\n{run.root.name}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def labelled(runs: Sequence[RunRecords]) -> list[tuple[str, RunRecords]]:
    """Each run after its label."""
    return list(zip(labels_of(runs), runs, strict=True))


def speech(record: SpeechRecord) -> str:
    """Whose utterances figures are of, and what their reader must know, in sentences."""
    lines = (f"utterances: {record.corpus}, part {record.part}", *record.words)
    return " ".join(f"{line[:1].upper()}{line[1:]}." for line in lines)


def provenance(runs: Sequence[RunRecords]) -> str:
    """Where the figures come from: corpus, split, seed; SYNTHETIC where the speech is."""
    facts = (
        ("Corpus", [run.corpus for run in runs]),
        ("split", [run.split_in_words for run in runs]),
        ("seed", [str(run.setting("seed")) for run in runs]),
    )
    words = "; ".join(f"{name} {' / '.join(dict.fromkeys(values))}" for name, values in facts)
    warning = " Synthetic speech is no evidence about real speech." if any(run.synthetic for run in runs) else ""
    others = "".join(f" {speech(run.speech)}" for run in runs if run.speech)
    return f"{words}.{warning}{others}"
