"""The names that figures have in W&B, TensorBoard and ``metrics.csv``: each function gives figures by name. They are
listed in docs/how-to/wandb.md.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from ser_fl.runs.records import CLEAN, FIGURES, NO_DEFENCE, AttackRecord, ClientRecord, RoundRecord

ROUND = "round"
"""The x axis in W&B, whose own step only grows and would drop the rounds that a resumed run repeats."""
BY_ROUND = ("train", "val", "clients", "client")
"""Begin the names of what rounds have."""
OF_ROUND = {
    "train_loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "server_learning_rate": "train/server_learning_rate",
    "seconds": "train/round_seconds",
    "uar": "val/uar",
    "accuracy": "val/accuracy",
    "macro_f1": "val/macro_f1",
    "robust_uar": "val/robust_uar",
}
"""By name in `RoundRecord`."""
OF_CLIENT = (*FIGURES, "bytes_down", "bytes_up")
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "median": median, "max": max}
ROUND_COLUMNS = (
    *OF_ROUND.values(),
    *("clients/count", "clients/failures"),
    *(f"clients/{figure}/{statistic}" for figure in OF_CLIENT for statistic in STATISTICS),
)
"""All names of a round, whoever took part in it."""
BEST = {"train/loss": "min", **{name: "max" for name in OF_ROUND.values() if name.startswith("val/")}}
"""What W&B shows of a figure for the run as a whole, in place of its last value."""
ATTACK_TABLE, CONFUSION_TABLE, RECALL_TABLE = "attacks", "test/confusion", "test/per_class_recall"
CONFUSION_PLOT, CURVES, RECORDINGS = "test/confusion_plot", "attack/curves", "attack/recordings"
"""Tables and plots, in W&B alone."""


def round_metrics(
    record: RoundRecord, clients: Sequence[ClientRecord], *, per_client: bool = False
) -> dict[str, float]:
    """Figures of a round; of its clients their minimum, median and maximum, and with ``per_client`` each one's as
    ``client/{id}/...``.
    """
    metrics = {name: value for key, name in OF_ROUND.items() if (value := getattr(record, key)) is not None}
    metrics |= {"clients/count": len(record.cohort), "clients/failures": len(record.failures)}
    for figure in OF_CLIENT if clients else ():
        values = [getattr(client, figure) for client in clients]
        metrics |= {f"clients/{figure}/{name}": statistic(values) for name, statistic in STATISTICS.items()}
    for client in clients if per_client else ():
        metrics |= {f"client/{client.client_id}/{figure}": getattr(client, figure) for figure in OF_CLIENT}
    return metrics


def attack_metrics(records: Sequence[AttackRecord]) -> dict[str, float]:
    """Robust UAR, as ``attack/{name}``, ``attack/{defence}/{name}`` and on recordings ``attack/waveform/...``: names
    that do not depend on the grid of budgets. It is that of the budget that most attacks were made at, the larger of
    two, which ``attack/epsilon`` or ``attack/snr_db`` tells; of an attack that was not made at it, that of its
    strongest. Of records that share a name the strongest counts. Each budget alone is
    ``attack_budgets/{name}/eps_{e}[/{defence}][/{knowledge}]/robust_uar`` and ``.../attack_success_rate``.
    """
    metrics = dict[str, float]()
    by_domain: dict[str, list[AttackRecord]] = {}
    for record in records:
        by_domain.setdefault(record.domain, []).append(record)
    for domain, of_domain in by_domain.items():
        place = [] if domain == "logmel" else [domain]
        counts = Counter(_budget(record) for record in of_domain if record.attack != CLEAN)
        main = max(counts, key=lambda budget: (counts[budget], -(budget[1] or 0), budget[0] or 0), default=(None, None))
        for name, value in zip(("epsilon", "snr_db"), main, strict=True):
            metrics |= {} if value is None else {"/".join(["attack", *place, name]): value}
        for record in sorted(of_domain, key=lambda record: (_budget(record) == main, -record.robust_uar)):
            of = [] if record.defence == NO_DEFENCE else [record.defence]
            metrics["/".join(["attack", *place, *of, record.attack])] = record.robust_uar
    for record in sorted(records, key=lambda record: record.robust_uar, reverse=True):
        parts = ["attack_budgets", *([record.domain] if record.domain != "logmel" else []), record.attack]
        if record.epsilon is not None:
            parts.append(f"eps_{record.epsilon:g}")
        elif record.snr_db is not None:
            parts.append(f"snr_{record.snr_db:g}_db")
        parts += [word for word in (record.defence, record.knowledge) if word not in (NO_DEFENCE, "undefended")]
        metrics["/".join([*parts, "robust_uar"])] = record.robust_uar
        metrics["/".join([*parts, "attack_success_rate"])] = record.attack_success_rate
    return metrics


def _budget(record: AttackRecord) -> tuple[float | None, float | None]:
    return record.epsilon, record.snr_db


def curves(records: Sequence[AttackRecord]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Robust UAR over epsilon, by defence and attack: points in the order of epsilon, of L-infinity attacks on log-mel
    features that were made at two epsilons at least.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in sorted(records, key=lambda record: record.epsilon or 0.0):
        if record.epsilon is not None and (record.norm, record.domain) == ("inf", "logmel"):
            adaptive = ", adaptive" if record.knowledge == "adaptive" else ""
            points = found.setdefault(record.defence, {}).setdefault(record.attack + adaptive, [])
            points.append((record.epsilon, record.robust_uar))
    longer = {
        defence: {name: points for name, points in of.items() if len(points) > 1} for defence, of in found.items()
    }
    return {defence: of for defence, of in longer.items() if of}


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Selected round, test and calibration figures: ``test/uar``, ``test/recall/{class}``, ``test/ece`` and so on.
    ``selection_score`` is the validation score that selected the round, for sweeps.
    """
    test = summary["test"]
    metrics = {key: summary.get(key) for key in ("selected_round", "selection_score")}
    metrics |= {f"test/{key}": test[key] for key in ("uar", "accuracy", "macro_f1")}
    recall_by_class = zip(summary["classes"], test["per_class_recall"], strict=True)
    metrics |= {f"test/recall/{name}": recall for name, recall in recall_by_class}
    metrics |= {f"test/corpus/{name}/uar": own["uar"] for name, own in summary.get("corpora", {}).items()}
    calibration = summary.get("calibration") or {}
    metrics["test/temperature"] = calibration.get("temperature")
    for stage, ending in (("calibrated", ""), ("uncalibrated", "_uncalibrated")):
        metrics |= {f"test/{name}{ending}": value for name, value in (calibration.get(stage) or {}).items()}
    return {key: value for key, value in metrics.items() if value is not None}


def evaluation_metrics(name: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """Of an ``evaluation.json``: ``evaluation/{name}/uar``, ``.../ece`` and so on."""
    metrics = {key: figures[key] for key in ("uar", "accuracy", "macro_f1", "num_utterances")} | figures["calibrated"]
    return {f"evaluation/{name}/{key}": value for key, value in metrics.items()}
