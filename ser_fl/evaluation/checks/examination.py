"""All checks of a benchmark: of its records, and of the model that they are about."""

from __future__ import annotations

from collections.abc import Sequence

from ser_fl.attacks.attack import Attack
from ser_fl.evaluation.challenge import Challenge
from ser_fl.evaluation.checks.doubt import Examination
from ser_fl.evaluation.checks.probes import SUBSET, OnCheck, probe
from ser_fl.evaluation.checks.records import examine_records
from ser_fl.records import AttackRecord


def examine(
    challenge: Challenge,
    attacks: Sequence[Attack],
    records: Sequence[AttackRecord],
    *,
    subset_size: int = SUBSET,
    on_check: OnCheck = lambda name, done, total: None,
) -> Examination:
    """What there is to doubt in a benchmark that has run.

    Args:
        challenge: what was attacked.
        attacks: that ran.
        records: that they left.
        subset_size: utterances that are attacked once more, in other ways; see `probe`.
        on_check: told of progress.
    """
    found = probe(challenge, attacks, subset_size=subset_size, records=records, on_check=on_check)
    return examine_records(records) + found
