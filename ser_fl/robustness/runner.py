"""Attacks x attackers x budgets x defences on one trained classifier.

An attack on the bare model is crafted once and then shown to every defence: the paper's own test, threat model
``undefended``. For a randomised defence that is a grey-box figure, since the attacker does not know of it; it bounds
the harm from below and is no evidence of robustness. An ``adaptive`` attack is made against one defence, in expectation
over its randomness, and shown to that one.

A sweep over epsilons goes from the smallest up. What no defence recognises in any run needs no further attack: its
adversarial utterance lies in the larger ball as well. What is left begins where it was, where the attack can
(`Entry.warm`). What a smaller epsilon has broken in a run counts as broken there at a larger one, so that robust UAR
never rises with epsilon.

Legend: N utterances, F mel bins, L frames, R runs of a defence.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache as cached
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ser_fl.attacks.domains import LOGMEL, Crafted
from ser_fl.attacks.registry import VERSION
from ser_fl.defences import Defence
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.crafting import craft, judge
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.result_cache import Outcome, ResultCache, digest_of
from ser_fl.robustness.test_set import TestSet, rows_of
from ser_fl.runs.records import AttackRecord

OnRecords = Callable[[list[AttackRecord]], object]
"""Given the records of all attacks that are done, whenever one is."""


class OnAttack(Protocol):
    """Told the attack that runs, how many utterances of all attacks are done, of how many, and the seconds left."""

    def __call__(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None: ...


silent: OnAttack = lambda name, done, total, seconds_left=None: None  # noqa: E731
"""Tells nobody."""


@dataclass(slots=True)
class BenchmarkProgress:
    """Counts utterances and seconds, and tells of them. What is left is estimated from what an utterance has cost in
    the same attack; before it has run, from its steps, restarts and draws, at the pace of the others.
    """

    units: Sequence[Unit]
    on_attack: OnAttack
    _done: Counter[Unit] = field(default_factory=Counter)
    """Utterances."""
    _spent: dict[tuple[str, str | None], tuple[float, float]] = field(default_factory=dict)
    """By attack and attacker: seconds, and gradients of what took them."""

    def count(self, unit: Unit, utterances: int, seconds: float = 0.0) -> None:
        """Some utterances of a unit are done; 0 seconds are no measure of anything, and nothing at all where they are
        looked up again for a larger epsilon. The seconds left are None before anything was measured, unless nothing is
        left.
        """
        if unit.outcome is not None and not seconds:
            return
        self._done[unit] += utterances
        if seconds:
            kind = unit.attack.name, unit.adaptive_to
            before, work = self._spent.get(kind, (0.0, 0.0))
            self._spent[kind] = before + seconds, work + utterances * unit.gradients
        total = sum(len(unit.part) for unit in self.units)
        left = {unit: max(0, len(unit.part) - self._done[unit]) for unit in self.units}
        done = total - sum(left.values())
        seconds_left = None if done < total else 0.0
        if done < total and self._spent:
            usual, seconds_left = tuple(map(sum, zip(*self._spent.values(), strict=True))), 0.0
            for waiting, number in left.items():
                spent, work = self._spent.get((waiting.attack.name, waiting.adaptive_to), usual)
                seconds_left += number * waiting.gradients * spent / work
        label = f"{unit.attack.name} at {unit.attack.settings.budget}" + (", adaptive" if unit.expectation else "")
        self.on_attack(label, done, total, seconds_left)


def run_plan(
    test_set: TestSet,
    units: Sequence[Unit],
    defences: Sequence[Defence],
    *,
    drop_broken: bool = False,
    cache: ResultCache | None = None,
    on_attack: OnAttack = silent,
    on_records: OnRecords = lambda records: None,
) -> list[AttackRecord]:
    """Run every attack once, show what it made to every defence, and take the worst case per utterance.

    Args:
        test_set: classifier and utterances.
        units: all of a benchmark, as `plan` gives them.
        defences: that records are of.
        drop_broken: leave utterances out that earlier attacks of the same budget broke. The worst case is the same; an
            attack's figures are then about what was left, and its ``num_examples`` says how many.
        cache: where work is kept, and found that is done already; None forgets it at the end.
        on_attack: told of progress.
        on_records: given what a late error or a kill would lose; the worst cases, which need all attacks, come last.

    Returns:
        For every defence a record "clean", one an attack and, with two attacks or more, "worst_case" for every budget:
            of all outcomes that the cache has, those of earlier benchmarks included.
    """
    cache = cache or ResultCache()
    bench = Bench(test_set, defences)
    progress = BenchmarkProgress(units, on_attack)
    work = _Work(bench=bench, cache=cache, drop_broken=drop_broken, units=units, progress=progress)
    records, now = bench.records_of(bench.clean), dict[str, Outcome]()
    for unit in units:
        outcome = work.run(unit)
        now[unit.key] = outcome
        records += bench.records_of(outcome, now.values())
        on_records(list(records))
    earlier = sorted(
        (outcome for key, outcome in cache.outcomes.items() if key not in now),
        key=lambda outcome: (outcome.attack, outcome.adaptive_to or "", outcome.epsilon or 0.0),
    )
    outcomes = [outcome for outcome in (*earlier, *now.values()) if outcome.domain == test_set.domain.name]
    single = (record for outcome in (bench.clean, *outcomes) for record in bench.records_of(outcome, outcomes))
    return [*single, *bench.worst_cases(outcomes)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Work:
    bench: Bench
    cache: ResultCache
    drop_broken: bool
    units: Sequence[Unit]
    progress: BenchmarkProgress

    def run(self, unit: Unit) -> Outcome:
        self.progress.count(unit, 0)
        self._begin(unit)
        part, keeps = unit.part, self.cache.keeps_adversarials
        known = self.cache.outcomes.get(unit.key)
        if (
            known is None
            or not all(map(known.was_shown_to, unit.shown_to))
            or part.domain.lacks(known.measured, unit.attack, part.ids, unit.expectation is not None)
            or (keeps and not known.adversarials_kept)
        ):
            found = judge(unit, self._adversarial(unit), leftover=self.drop_broken)
            if unit.before is not None and unit.before.outcome is not None:
                found = self._never_better(unit.before.outcome, found)
            votes, written = ({}, {}) if known is None else (known.votes, known.written_votes)
            known = replace(
                found,
                votes=votes | found.votes,
                written_votes=written | found.written_votes,
                adversarials_kept=keeps or (known is not None and known.adversarials_kept),
            )
            self.cache.keep_outcome(unit.key, known)
        self.progress.count(unit, len(self.bench.test_set))  # whatever was counted, it is done
        unit.outcome = known
        waiting = {needed for other in self.units if other.outcome is None for needed in (other.before, other.shares)}
        for other in self.units:
            if other.outcome is not None and not other.outcome.adversarials_kept and other not in waiting:
                self.cache.forget_batches(other.key)
        return known

    def _begin(self, unit: Unit) -> None:
        """Settle which utterances are attacked, from where, and under which key."""
        if self.drop_broken:
            unit.part = self._unbroken(unit)
        ids, before, entry = unit.part.ids, unit.before, unit.attack.entry
        attack = asdict(unit.attack.settings)
        later = {"snr_db": None, "masked": False, "labels": True, "enrolment": "clean"}
        del attack["backend"]  # which code runs is said by the library
        attack = {name: value for name, value in attack.items() if name not in later or value != later[name]}
        settings: dict[str, Any] = {"attack": attack, "library": entry.library, "ids": ids}
        if unit.part.domain.name != LOGMEL.name:
            settings["domain"] = unit.part.domain.name
        if unit.expectation is not None:
            settings |= {"adaptive": repr(unit.shown_to[0]), "eot_samples": unit.eot_samples}
        if unit.poisoned_by is not None:
            settings["enrolment"] = asdict(unit.poisoned_by.settings)
        unit.cold = range(len(ids))
        # One perturbation for all is made for all, broken before or not.
        if before is not None and before.outcome is not None and not entry.whole_set:
            known, labels_N = before.outcome.ids, self.bench.labels_of(before.outcome.ids)
            broken = set(known)
            for defence in unit.shown_to:
                right_N = (before.outcome.votes_RN(defence.name) == labels_N).any(dim=0).tolist()
                broken -= {key for key, right in zip(known, right_N, strict=True) if right}
            begun = set(known) if entry.warm else set()
            unit.carried = [row for row, key in enumerate(ids) if key in broken]
            unit.warm = [row for row, key in enumerate(ids) if key in begun - broken]
            unit.cold = [row for row, key in enumerate(ids) if key not in begun | broken]
            settings |= {kind: [ids[row] for row in getattr(unit, kind)] for kind in ("carried", "warm")}
            settings |= {"before": before.key if unit.carried or unit.warm else None}
        unit.key = digest_of(json.dumps({"version": VERSION, **settings}, sort_keys=True), size=12)

    def _unbroken(self, unit: Unit) -> TestSet:
        test_set, epsilon = self.bench.test_set, unit.attack.settings.epsilon
        left = torch.zeros(len(test_set), dtype=torch.bool)
        for defence in unit.shown_to:
            done = [other.outcome for other in self.units if other.outcome is not None]
            earlier = [outcome for outcome in done if outcome.epsilon == epsilon and outcome.was_shown_to(defence)]
            left |= self.bench.surviving(earlier, defence.name).any(dim=0) if earlier else True
        ids = {test_set.ids[row] for row in left.nonzero().flatten().tolist()}
        return unit.part.take([row for row, key in enumerate(unit.part.ids) if key in ids])

    def _adversarial(self, unit: Unit) -> Crafted:
        """In the order of its utterances; made anew only where nothing was kept."""
        if unit.shares is not None:
            return self._adversarial(unit.shares)
        part = unit.part

        @cached
        def of_smaller() -> Crafted:
            assert unit.before is not None
            return self._adversarial(unit.before)

        def from_smaller(rows: Sequence[int]) -> Tensor:
            assert unit.before is not None
            return of_smaller().adversarial_NFL[rows_of(unit.before.part.ids, [part.ids[row] for row in rows])]

        pieces: list[Crafted] = []
        if unit.carried:  # kept under this key too, so that a sweep looks one step back only
            ids = [part.ids[row] for row in unit.carried]
            carried = self.cache.batch(unit.key, ids)
            if carried is None:
                carried = Crafted(adversarial_NFL=from_smaller(unit.carried))
                self.cache.keep_batch(unit.key, ids, carried)
            pieces.append(carried)
            self.progress.count(unit, len(ids))
        for rows, start in ((unit.warm, partial(from_smaller, unit.warm)), (unit.cold, None)):
            if rows:
                pieces.append(
                    craft(
                        part.take(rows),
                        unit.attack,
                        expectation=unit.expectation,
                        start=start,
                        cache=self.cache,
                        key=unit.key,
                        on_batch=partial(self.progress.count, unit),
                    )
                )
        return Crafted.join(pieces, [*unit.carried, *unit.warm, *unit.cold], part.features_NFL[:0])

    def _never_better(self, before: Outcome, found: Outcome) -> Outcome:
        """The outcome in which nothing is recognised that a smaller epsilon broke."""
        known = set(before.ids)
        rows = [row for row, key in enumerate(found.ids) if key in known]
        ids = [found.ids[row] for row in rows]
        columns, labels_N = rows_of(before.ids, ids), self.bench.labels_of(ids)
        votes = {}
        for name in found.votes:
            now_RN, then_RN = found.votes_RN(name), before.votes_RN(name)[:, columns]
            now_RN[:, rows] = torch.where(then_RN == labels_N, now_RN[:, rows], then_RN)
            votes[name] = tuple(map(tuple, now_RN.tolist()))
        return replace(found, votes=votes)
