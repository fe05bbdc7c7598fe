"""What the checks ask of one record, and when two can be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, Doubt, Severity
from ser_fl.runs.records import AttackRecord

CLEAN = "clean"
WORST_CASE = "worst_case"
NO_DEFENCE = "none"
GRADIENT = frozenset({"undefended", "adaptive"})
"""Knowledge of an attacker who differentiates the model itself."""
QUERIES = frozenset({"score", "decision"})
ROUNDING = 1e-9

Item = TypeVar("Item")


def doubt_of(check: str, record: AttackRecord, words: str, severity: Severity = "fails") -> Doubt:
    return Doubt(
        check=check,
        words=words,
        severity=severity,
        defence=record.defence,
        attack=record.attack,
        epsilon=record.epsilon,
    )


def single_attacks(records: Sequence[AttackRecord]) -> list[AttackRecord]:
    """Single attacks and noises."""
    return [record for record in records if record.attack not in (CLEAN, WORST_CASE)]


def worst_cases(records: Sequence[AttackRecord]) -> list[AttackRecord]:
    return [record for record in records if record.attack == WORST_CASE]


def is_noise(record: AttackRecord) -> bool:
    return record.attack.startswith("noise")


def asks_only(record: AttackRecord) -> bool:
    """Whether the attack sees no gradient; it may honestly break nothing where one that does breaks little."""
    return not {"score", "decision"}.isdisjoint(record.knowledge.split("+"))


def is_grey_box(record: AttackRecord) -> bool:
    return record.defence != NO_DEFENCE and "adaptive" not in record.knowledge.split("+")


def unless_grey_box(record: AttackRecord, advice: str) -> str:
    """What to do; where an attack does not know of the defence, that comes first."""
    return (
        f"{record.attack} does not know of the defence, so attack it adaptively."
        if is_grey_box(record)
        else f"{advice}."
    )


def threat(record: AttackRecord) -> tuple[Hashable, ...]:
    """Domain, norm, defence and budget: what two attacks must share to be compared."""
    budget = record.epsilon, record.snr_db
    return record.domain, record.norm, record.defence, *budget, record.seed, record.device


def strength(record: AttackRecord) -> float | None:
    """Grows with the budget; None for a record without one."""
    if record.epsilon is not None:
        return record.epsilon
    return None if record.snr_db is None else -record.snr_db


def leeway(*records: AttackRecord) -> float:
    """How far figures may lie apart: half a point, or what one utterance is worth where that is more."""
    return max(HALF_A_POINT, *map(one_utterance, records)) + ROUNDING


def one_utterance(record: AttackRecord) -> float:
    """UAR that one utterance of the rarest class is worth."""
    support = [count for row in record.confusion if (count := sum(row)) > 0]
    return 1 / (len(support) * min(support)) if support else 1 / max(record.num_examples, 1)


def groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items that share a key, in the order in which the keys first occur."""
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())
