"""The names that figures have in W&B and TensorBoard: each function gives a record's figures by name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord

ROUND = "round"
"""The x axis in W&B, whose own step only grows and would drop the rounds that a resumed run repeats."""
ATTACK_TABLE, CONFUSION_TABLE, RECALL_TABLE = "attacks", "test/confusion", "test/per_class_recall"
"""Tables, in W&B alone."""


def round_metrics(record: RoundRecord, clients: Sequence[ClientRecord]) -> dict[str, float]:
    """Every figure of a round: ``server/...`` and ``client/{id}/...``."""
    metrics = {f"server/{key}": value for key, value in _figures(record).items()}
    metrics["server/num_clients"] = len(record.cohort)
    metrics["server/num_failures"] = len(record.failures)
    for client in clients:
        metrics |= {f"client/{client.client_id}/{key}": value for key, value in _figures(client).items()}
    return metrics


def _figures(record: RoundRecord | ClientRecord) -> dict[str, float]:
    return {key: value for key, value in asdict(record).items() if isinstance(value, (int, float)) and key != "round"}


def attack_metrics(records: Sequence[AttackRecord]) -> dict[str, float]:
    """Robust UAR and success rate: ``attack/{name}/eps_{e}[/{defence}][/{knowledge}]/...``; defence and knowledge where
    they are not none and undefended. Of records that share a name the strongest attack is kept; the W&B table has them
    all.
    """
    metrics = {}
    for record in sorted(records, key=lambda record: record.robust_uar, reverse=True):
        parts = ["attack", *([record.domain] if record.domain != "logmel" else []), record.attack]
        if record.epsilon is not None:
            parts.append(f"eps_{record.epsilon:g}")
        elif record.snr_db is not None:
            parts.append(f"snr_{record.snr_db:g}_db")
        parts += [word for word in (record.defence, record.knowledge) if word not in ("none", "undefended")]
        metrics["/".join([*parts, "robust_uar"])] = record.robust_uar
        metrics["/".join([*parts, "attack_success_rate"])] = record.attack_success_rate
    return metrics


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Selected round and test figures: ``test/uar``, ``test/recall/{class}`` and so on. ``selection_score`` is the
    validation score that selected the round, for sweeps.
    """
    test = summary["test"]
    metrics = {key: summary.get(key) for key in ("selected_round", "selection_score")}
    metrics |= {f"test/{key}": test[key] for key in ("uar", "accuracy", "macro_f1")}
    recall_by_class = zip(summary["classes"], test["per_class_recall"], strict=True)
    metrics |= {f"test/recall/{name}": recall for name, recall in recall_by_class}
    metrics |= {f"test/corpus/{name}/uar": own["uar"] for name, own in summary.get("corpora", {}).items()}
    return {key: value for key, value in metrics.items() if value is not None}
