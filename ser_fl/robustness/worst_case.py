"""The worst case of each utterance over all attacks of one budget.

Legend: N utterances, R runs of a defence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from ser_fl.defences import Defence
from ser_fl.robustness.attack_metrics import LIBRARY, WORST_CASE, Bench, is_smaller, median_of, unattacked
from ser_fl.robustness.curves import smallest_epsilons
from ser_fl.robustness.outcomes import Outcome
from ser_fl.runs.records import AttackRecord


def worst_cases(bench: Bench, outcomes: Iterable[Outcome]) -> list[AttackRecord]:
    """One record a defence and budget: recognised is what withstood every attack of that norm it was shown to.

    The budget of an L2 attack holds more than an L-infinity ball of its epsilon, so that the two make no common
    worst case.

    It is taken per utterance and run of the defence, over attackers who know of the defence and who do not, where
    there are two outcomes or more. An utterance that an attack's subset leaves out was not shown to that attack, so
    that the true worst case may be lower, unless another attack broke it: the record's `library` then names the
    attack, as in "ser_fl (cw_l2 on 21 of 64 utterances)". Its `knowledge` is that of all its attacks, or the
    different ones in alphabetical order, as in "score+undefended". UAR needs recalls only, so that the confusion
    matrix of the worst case keeps what was right and counts the rest as the next class.

    Where adaptive attacks saw only some of the utterances, there is a second record on those: only there has
    everybody been attacked by one who knows of the defence.
    """
    outcomes = [outcome for outcome in outcomes if outcome.domain == bench.domain]
    records = []
    for threat in sorted({outcome.threat for outcome in outcomes}, key=_infinity_first):
        for defence in bench.defences:
            taken = [outcome for outcome in outcomes if outcome.threat == threat and outcome.was_shown_to(defence)]
            if len({(outcome.attack, outcome.adaptive_to) for outcome in taken}) < 2:
                continue
            smaller = taken + [
                outcome for outcome in outcomes if outcome.norm == taken[0].norm and is_smaller(outcome, taken[0])
            ]
            records.append(_worst_case(bench, defence, taken, smaller, bench.test_set.ids))
            known = (outcome.ids for outcome in taken if outcome.adaptive_to and not outcome.leftover)
            aware = max(known, key=len, default=())
            if 0 < len(aware) < len(bench.test_set):
                records.append(_worst_case(bench, defence, taken, smaller, aware))
    return records


def _worst_case(
    bench: Bench, defence: Defence, taken: Sequence[Outcome], smaller: Sequence[Outcome], ids: Sequence[str]
) -> AttackRecord:
    """Over some utterances; ``smaller`` are the outcomes that the median smallest epsilon is of."""
    clean, rows = bench.cleans[defence.name], bench.test_set.rows_of(ids)
    right_RN = bench.surviving(taken, defence.name)
    wrong_N = (clean.labels_N + 1) % clean.num_classes
    worst = replace(clean, votes_RN=torch.where(right_RN, clean.labels_N, wrong_N))
    missed = {bench.test_set.ids[row] for row in rows if bool(right_RN[:, row].any())}
    described = unattacked(WORST_CASE, taken[0].budget) | {
        "norm": taken[0].norm,
        "snr_db": taken[0].snr_db,
        "knowledge": "+".join(sorted({outcome.knowledge for outcome in taken})),
        "library": _library_of_worst_case(bench, taken, missed, set(ids)),
        "median_epsilon": _median_epsilon(bench, smaller, defence, rows) if taken[0].norm == "inf" else None,
    }
    return bench.record(bench.test_set.take(rows), defence.name, clean.take(rows), worst.take(rows), **described)


def _median_epsilon(bench: Bench, outcomes: Sequence[Outcome], defence: Defence, rows: Sequence[int]) -> float | None:
    """Median over some utterances of the smallest L-infinity perturbation that any attack found."""
    clean = bench.cleans[defence.name]
    smallest_RN = torch.where(clean.right_RN, torch.inf, 0.0).double()
    for outcome in outcomes:
        if outcome.was_shown_to(defence):
            attacked = bench.test_set.rows_of(outcome.ids)
            found_RM = smallest_epsilons(outcome, (), defence.name, clean.take(attacked))
            smallest_RN[:, attacked] = torch.minimum(smallest_RN[:, attacked], found_RM)
    return median_of(smallest_RN[:, rows], clean)


def _library_of_worst_case(bench: Bench, outcomes: Sequence[Outcome], unbroken: set[str], all_ids: set[str]) -> str:
    """Who took the worst case of some utterances, and which attacks of it missed one that nothing broke."""
    attacked: dict[str, set[str]] = {}
    for outcome in outcomes:
        label = outcome.attack + (" adaptive" if outcome.adaptive_to else "")
        attacked.setdefault(label, set()).update(outcome.ids)
    covered = any(unbroken <= ids for label, ids in attacked.items() if label.endswith(" adaptive"))
    partial = [
        f"{label} on {len(ids & all_ids)}"
        for label, ids in attacked.items()
        if unbroken - ids and not (covered and label.endswith(" adaptive"))
    ]
    return f"{LIBRARY} ({', '.join(partial)} of {len(all_ids)} utterances)" if partial else LIBRARY


def _infinity_first(threat: tuple[str, float | None, float | None]) -> tuple[bool, float, float]:
    norm, epsilon, snr_db = threat
    return norm != "inf", epsilon or 0.0, -(snr_db or 0.0)
