"""All checks of a benchmark: of its records, and of the model that they are about."""

from __future__ import annotations

from collections.abc import Sequence

from ser_fl.attacks.attack import Attack
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.sanity_checks.probes import SUBSET, probe
from ser_fl.robustness.sanity_checks.records import check_records
from ser_fl.robustness.sanity_checks.report import SanityReport
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord


def check_benchmark(
    test_set: TestSet,
    attacks: Sequence[Attack],
    records: Sequence[AttackRecord],
    *,
    subset_size: int = SUBSET,
    on_check: OnAttack = silent,
) -> SanityReport:
    """What there is to doubt in a benchmark that has run.

    Args:
        test_set: what was attacked.
        attacks: that ran.
        records: that they left.
        subset_size: utterances that are attacked once more, in other ways; see `probe`.
        on_check: told of progress.
    """
    found = probe(test_set, attacks, subset_size=subset_size, records=records, on_check=on_check)
    return check_records(records) + found
