"""What the charts of a page are drawn from, as plain data for its script: robust UAR over budgets, and rounds."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ser_fl.report import wording
from ser_fl.report.four_way import budget_key, worst_under
from ser_fl.report.headline import attacker_in_words
from ser_fl.report.reader import RunRecords
from ser_fl.runs.records import WORST_CASE, AttackRecord

STRONGEST = "the strongest that was measured"
"""Name of the series over all attacks."""
_UNITS = {"logmel": "standardised log-mel units", "waveform": "amplitude"}

Threat = tuple[str, str, bool]
"""Domain, norm, and whether budgets are SNRs."""


def budget_charts(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """Of each domain and norm: the budgets that were measured, weakest first and none before them, and each run's
    points under each defence and attack. UAR is in [0, 1].
    """
    labelled = wording.labelled(runs)
    threats = dict.fromkeys(threat for run in runs for record in run.attacked if (threat := _threat(record)))
    return [_chart(labelled, threat) for threat in sorted(threats, key=lambda threat: (threat[0] != "logmel", *threat))]


def _threat(record: AttackRecord) -> Threat | None:
    if not record.epsilon and record.snr_db is None:
        return None
    return record.domain, record.norm, record.snr_db is not None


def _chart(labelled: Sequence[tuple[str, RunRecords]], threat: Threat) -> dict[str, Any]:
    domain, norm, over_snr = threat
    series = [one for label, run in labelled for one in _series(label, run, threat)]
    budgets = {point["budget"] for one in series for point in one["points"]} - {None}
    classes = {len(run.summary.classes) for _, run in labelled if run.summary.classes}
    form = "SNR {:.3g} dB" if over_snr else f"{wording.norm_name(norm)} ε {{:.3g}}"
    unit = "" if over_snr else f" ({_UNITS.get(domain, domain)})"
    return {
        "name": f"{'recordings' if domain == 'waveform' else 'features'}, {'SNR' if over_snr else form.split(' ')[0]}",
        "axis": "SNR (dB)" if over_snr else f"epsilon{unit}",
        "falls": over_snr,
        "budgets": [
            {"value": None, "words": "no attack"},
            *({"value": value, "words": form.format(value)} for value in sorted(budgets, reverse=over_snr)),
        ],
        "chance": 1 / classes.pop() if len(classes) == 1 else None,
        "strongest": STRONGEST,
        "series": series,
    }


def _series(label: str, run: RunRecords, threat: Threat) -> Iterator[dict[str, Any]]:
    for defence in run.defences:
        records = [each for each in run.attacked if each.defence == defence and _threat(each) == threat]
        records = [each for each in records if not each.enrolment and not math.isnan(each.robust_uar)]
        if not records:
            continue
        keys = dict.fromkeys(map(budget_key, records))
        worst = [found for key in keys if (found := worst_under(run, defence, {key}))]
        attacks: dict[str, list[AttackRecord]] = {}
        for each in records:
            if each.attack != WORST_CASE:
                attacks.setdefault(_attack(run, each), []).append(each)
        for attack, shown in {STRONGEST: worst, **attacks}.items():
            clean = run.clean_scores(defence)[0] if attack == STRONGEST else shown[0].clean_uar
            none = {"budget": None, "uar": _figure(clean), "interval": None, "n": None, "by": "", "grey": False}
            yield {
                "run": label.replace("\n", ", "),
                "defence": wording.defence_name(defence),
                "attack": attack,
                "points": [none, *(_point(run, each) for each in shown)],
            }


def _attack(run: RunRecords, record: AttackRecord) -> str:
    """One attack of one strength, on whatever defence."""
    knowledge = "" if record.knowledge == "undefended" else record.knowledge
    size = "" if run.subset(record) is None else f"n = {record.num_examples}"
    return ", ".join(filter(None, (wording.attack_name(record.attack), wording.effort(record), knowledge, size)))


def _point(run: RunRecords, record: AttackRecord) -> dict[str, Any]:
    return {
        "budget": record.epsilon if record.snr_db is None else record.snr_db,
        "uar": record.robust_uar,
        "interval": record.uar_interval,
        "n": record.num_examples,
        "by": attacker_in_words(run, record),
        "grey": wording.is_grey_box(record),
    }


def round_charts(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """Validation UAR over rounds, with the selected round of each run, and training loss."""
    labelled = [(label.replace("\n", ", "), run) for label, run in wording.labelled(runs) if run.rounds]

    def chart(name: str, axis: str, keys: dict[str, str]) -> dict[str, Any]:
        series = list[dict[str, Any]]()
        for place, (label, run) in enumerate(labelled):
            for key, more in keys.items():
                figures = {each.round: _figure(getattr(each, key)) for each in run.rounds}
                points = [(number, value) for number, value in figures.items() if value is not None]
                selected = run.summary.selected_round
                star = next((point for point in points if point[0] == selected), None)
                one = {"name": label + more, "place": place, "dashed": bool(more), "points": points, "star": star}
                series += [one] if points else []
        return {"name": name, "axis": axis, "share": name != "Training loss", "series": series}

    charts = (
        chart("Validation UAR", "round", {"uar": "", "robust_uar": ", robust UAR"}),
        chart("Training loss", "round", {"train_loss": ""}),
    )
    return [one for one in charts if one["series"]]


def _figure(value: float | None) -> float | None:
    """None for NaN too, which JSON does not have."""
    return None if value is None or math.isnan(value) else value
