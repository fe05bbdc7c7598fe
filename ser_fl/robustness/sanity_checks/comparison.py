"""How records are read and compared: what an attacker knows, what two attacks must share, and how far figures may lie
apart.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter

from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, ROUNDING
from ser_fl.runs.records import CLEAN, NO_DEFENCE, AttackRecord

GRADIENT = frozenset({"undefended", "adaptive"})
"""Knowledge of an attacker who differentiates the model itself."""
QUERIES = frozenset({"score", "decision"})
"""Knowledge of one who sees no gradient, and may honestly break nothing where one who does breaks little."""

Records = Sequence[AttackRecord]
Pair = tuple[AttackRecord, AttackRecord]
uar = attrgetter("robust_uar")
kind = attrgetter("domain", "norm", "defence", "enrolment")
threat = attrgetter("domain", "norm", "defence", "enrolment", "epsilon", "snr_db", "seed", "device")
"""What two attacks must share to be compared."""
effort = attrgetter("attack", "knowledge", "num_examples", "steps", "restarts", "eot_samples", "seed", "device")


def attacks_in(records: Records, *, worst_cases: bool = False) -> list[AttackRecord]:
    """Single attacks and noises; then worst cases, where they are asked for."""
    attacks = [record for record in records if record.attack != CLEAN and (worst_cases or not record.is_worst_case)]
    return sorted(attacks, key=lambda record: record.is_worst_case)


def knows(record: AttackRecord) -> set[str]:
    """What the attacker knows; of a worst case, what any of its attackers does."""
    return set(record.knowledge.split("+"))


def is_noise(record: AttackRecord) -> bool:
    return record.attack.startswith("noise")


def is_grey_box(record: AttackRecord) -> bool:
    return record.defence != NO_DEFENCE and "adaptive" not in knows(record)


def strength(record: AttackRecord) -> float:
    """Grows with the budget; 0 for a record without one."""
    return -(record.snr_db or 0.0) if record.epsilon is None else record.epsilon


def leeway(*records: AttackRecord) -> float:
    """How far figures may lie apart: half a point, or what an utterance of the rarest class is worth, if more."""
    worth = [HALF_A_POINT]
    for record in records:
        support = [count for row in record.confusion if (count := sum(row)) > 0]
        worth.append(1 / (len(support) * min(support)) if support else 1 / max(record.num_examples, 1))
    return max(worth) + ROUNDING


def groups(records: Iterable[AttackRecord], key: Callable[[AttackRecord], Hashable]) -> list[list[AttackRecord]]:
    """Records that share a key, in the order in which the keys first occur."""
    found: dict[Hashable, list[AttackRecord]] = defaultdict(list)
    for record in records:
        found[key(record)].append(record)
    return list(found.values())


def worst_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Of the pairs that disagree the widest, one for every two attacks, defence and threat, whatever the budget."""
    worst: dict[Hashable, Pair] = {}
    for weak, strong in pairs:
        key, gap = (weak.attack, strong.attack, strong.knowledge, *kind(strong)), uar(strong) - uar(weak)
        if gap > leeway(weak, strong) and (key not in worst or gap > uar(worst[key][1]) - uar(worst[key][0])):
            worst[key] = weak, strong
    return list(worst.values())
