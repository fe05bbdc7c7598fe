"""Attacks x attackers x budgets x defences on one trained classifier.

An attack on the bare model is crafted once and then shown to every defence: the paper's own test, threat model
``undefended``. For a randomised defence that is a grey-box figure, since the attacker does not know of it; it bounds
the harm from below and is no evidence of robustness. An ``adaptive`` attack is made against one defence, in expectation
over its randomness, and shown to that one.

A sweep over epsilons goes from the smallest up. What no defence recognises in any run after a smaller epsilon needs no
further attack: its adversarial utterance lies in the larger ball as well, and is carried on. What is left begins where
it was, where the attack can (`Entry.warm`). What a smaller epsilon has broken in a run counts as broken there at a
larger one, so that robust UAR never rises with epsilon.

Legend: N utterances, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as cached
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ser_fl.attacks.domains import LOGMEL, Crafted
from ser_fl.defences import Defence
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.crafting import craft, judge
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.result_cache import Memory, Outcome, ResultCache, key_of
from ser_fl.robustness.test_set import TestSet, rows_of
from ser_fl.runs.records import AttackRecord

OnRecords = Callable[[list[AttackRecord]], object]
"""Given the records of all attacks that are done, whenever one is."""


class OnAttack(Protocol):
    """Told the attack that runs, how many utterances of all attacks are done, of how many, and the seconds left."""

    def __call__(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None: ...


def silent(name: str, done: int, total: int, seconds_left: float | None = None) -> None:
    """Tells nobody."""


def run_plan(
    test_set: TestSet,
    units: Sequence[Unit],
    defences: Sequence[Defence],
    *,
    drop_broken: bool = False,
    open_cache: Callable[[], ResultCache] = Memory,
    on_attack: OnAttack = silent,
    on_records: OnRecords = lambda records: None,
) -> list[AttackRecord]:
    """Run every attack once, show what it made to every defence, and take the worst case per utterance.

    Args:
        test_set: classifier and utterances.
        units: all of a benchmark, as `plan` gives them.
        defences: that records are of.
        drop_broken: leave utterances out that earlier attacks of the same budget broke. The worst case is the same;
            the figures of an attack are then about what the earlier ones left, and its ``num_examples`` says how many.
        open_cache: where work is kept, and found that is done already; called when nothing is refused any more.
        on_attack: told of progress.
        on_records: given what a late error or a kill would lose; the worst cases, which need all attacks, come last.

    Returns:
        For every defence a record "clean", one an attack and, with two attacks or more, "worst_case" for every budget:
        of all outcomes that the cache has, those of earlier benchmarks included.
    """
    cache = open_cache()
    bench = Bench(test_set, defences)
    progress = BenchmarkProgress(units, on_attack)
    work = _Work(bench=bench, cache=cache, drop_broken=drop_broken, units=units, progress=progress)
    records = bench.records_of(bench.clean)
    for unit in units:
        outcome = work.run(unit)
        records += bench.records_of(outcome, list(work.done.values()))
        on_records(list(records))
    now = {work.tasks[unit].key: outcome for unit, outcome in work.done.items()}
    earlier = [outcome for key, outcome in cache.outcomes().items() if key not in now]
    earlier.sort(key=lambda outcome: (outcome.attack, outcome.adaptive_to or "", outcome.epsilon or 0.0))
    outcomes = [*earlier, *now.values()]
    return [*bench.records(outcomes), *bench.worst_cases(outcomes)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """A unit when it is its turn: which utterances, under which key."""

    key: str
    part: TestSet
    carried: Sequence[int] = ()
    """Rows that the smaller epsilon broke: its adversarial utterances are taken."""
    warm: Sequence[int] = ()
    """Rows that may begin at the smaller epsilon's."""
    cold: Sequence[int] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """Runs units in their order, and keeps what they leave."""

    bench: Bench
    cache: ResultCache
    drop_broken: bool
    units: Sequence[Unit]
    progress: BenchmarkProgress
    tasks: dict[Unit, _Task] = field(default_factory=dict)
    done: dict[Unit, Outcome] = field(default_factory=dict)

    def run(self, unit: Unit) -> Outcome:
        """What an attack does to its utterances: known already, or found out now."""
        self.progress.tell(unit)
        task = self.tasks[unit] = self._task(unit)
        part, keeps = task.part, self.cache.keeps_adversarials
        known = self.cache.outcome(task.key)
        if (
            known is None
            or not all(map(known.was_shown_to, unit.shown_to))
            or part.domain.lacks(known.measured, unit.attack, part.ids, unit.adaptive_to is not None)
            or (keeps and not known.adversarials_kept)
        ):
            found = self._never_better(unit, judge(unit, part, self._adversarial(unit), leftover=self.drop_broken))
            if known is not None:
                found = replace(
                    found, votes=known.votes | found.votes, written_votes=known.written_votes | found.written_votes
                )
            known = replace(found, adversarials_kept=keeps or (known is not None and known.adversarials_kept))
            self.cache.keep_outcome(task.key, known)
        self.done[unit] = known
        left = [other for other in self.units if other not in self.done]
        waiting = {other.before for other in left} | {other.shares for other in left}
        for other, outcome in self.done.items():
            if other not in waiting and not outcome.adversarials_kept:
                self.cache.forget_batches(self.tasks[other].key)
        self.progress.count(unit, len(unit.part))
        self.progress.tell(unit)
        return known

    def _task(self, unit: Unit) -> _Task:
        part = self._unbroken(unit) if self.drop_broken else unit.part
        ids, entry = part.ids, unit.attack.entry
        settings: dict[str, Any] = {
            "attack": unit.attack.settings.key,
            "library": unit.attack.entry.library,
            "ids": ids,
        }
        if part.domain.name != LOGMEL.name:
            settings["domain"] = part.domain.name
        if unit.expectation is not None:
            settings |= {"adaptive": repr(unit.shown_to[0]), "eot_samples": unit.eot_samples}
        if unit.before is None or entry.whole_set:  # one perturbation is for all, broken before or not
            return _Task(key=key_of(settings), part=part, cold=range(len(part)))
        before, smaller = self.done[unit.before], self.tasks[unit.before]
        broken = set(before.ids)
        for defence in unit.shown_to:
            right_N = (before.votes_RN(defence.name) == smaller.part.labels_N.cpu()).any(dim=0).tolist()
            broken -= {key for key, right in zip(before.ids, right_N, strict=True) if right}
        begun = set(before.ids) if entry.warm else set()
        rows: dict[str, list[int]] = {"carried": [], "warm": [], "cold": []}
        for row, key in enumerate(ids):
            rows["carried" if key in broken else "warm" if key in begun else "cold"].append(row)
        settings |= {kind: [ids[row] for row in rows[kind]] for kind in ("carried", "warm")}
        settings |= {"before": smaller.key if rows["carried"] or rows["warm"] else None}
        return _Task(key=key_of(settings), part=part, **rows)

    def _unbroken(self, unit: Unit) -> TestSet:
        """What earlier attacks of the same epsilon left."""
        test_set, epsilon = self.bench.test_set, unit.attack.settings.epsilon
        same = [outcome for outcome in self.done.values() if outcome.epsilon == epsilon]
        left = torch.zeros(len(test_set), dtype=torch.bool)
        for defence in unit.shown_to:
            earlier = [outcome for outcome in same if outcome.was_shown_to(defence)]
            left |= self.bench.surviving(earlier, defence.name).any(dim=0) if earlier else True
        ids = {test_set.ids[row] for row in left.nonzero().flatten().tolist()}
        return unit.part.take([row for row, key in enumerate(unit.part.ids) if key in ids])

    def _adversarial(self, unit: Unit) -> Crafted:
        """What the attack makes of its utterances, in their order; made anew only where nothing was kept."""
        if unit.shares is not None:
            return self._adversarial(unit.shares)
        task, part = self.tasks[unit], self.tasks[unit].part

        @cached
        def smaller() -> tuple[tuple[str, ...], Tensor]:
            """Ids and adversarial utterances of the next smaller epsilon, got when they are first asked for."""
            assert unit.before is not None
            return self.tasks[unit.before].part.ids, self._adversarial(unit.before).adversarial_NFL

        def from_smaller(rows: Sequence[int]) -> Tensor:
            ids, adversarial_NFL = smaller()
            return adversarial_NFL[rows_of(ids, [part.ids[row] for row in rows])]

        def told(utterances: int, seconds: float) -> None:
            if unit not in self.done or seconds:  # else looked up again for a larger epsilon
                self.progress.count(unit, utterances, seconds)
                self.progress.tell(unit)

        pieces: list[Crafted] = []
        if task.carried:  # kept under this key too, so that a sweep looks one step back only
            ids = [part.ids[row] for row in task.carried]
            carried = self.cache.batch(task.key, ids)
            if carried is None:
                carried = Crafted(adversarial_NFL=from_smaller(task.carried))
                self.cache.keep_batch(task.key, ids, carried)
            pieces.append(carried)
            self.progress.count(unit, len(ids))
        for rows, start in ((task.warm, partial(from_smaller, task.warm)), (task.cold, None)):
            if rows:
                pieces.append(
                    craft(
                        part.take(rows),
                        unit.attack,
                        expectation=unit.expectation,
                        start=start,
                        cache=self.cache,
                        key=task.key,
                        on_batch=told,
                    )
                )
        return Crafted.join(pieces, [*task.carried, *task.warm, *task.cold], part.features_NFL[:0])

    def _never_better(self, unit: Unit, found: Outcome) -> Outcome:
        """The outcome in which nothing is recognised that a smaller epsilon broke."""
        if unit.before is None:
            return found
        before, known = self.done[unit.before], set(self.done[unit.before].ids)
        rows = [row for row, key in enumerate(found.ids) if key in known]
        ids = [found.ids[row] for row in rows]
        columns, labels_N = rows_of(before.ids, ids), self.bench.labels_of(ids)
        votes = {}
        for name in found.votes:
            now_RN, then_RN = found.votes_RN(name), before.votes_RN(name)[:, columns]
            now_RN[:, rows] = torch.where(then_RN == labels_N, now_RN[:, rows], then_RN)
            votes[name] = tuple(map(tuple, now_RN.tolist()))
        return replace(found, votes=votes)


class BenchmarkProgress:
    """Counts utterances and seconds.

    What is left is estimated from what an utterance has cost in the same attack, and for an attack that has not run yet
    from its steps, restarts and draws, at the pace of those that have.
    """

    def __init__(self, units: Sequence[Unit], on_attack: OnAttack) -> None:
        self._on_attack = on_attack
        self._left = {unit: len(unit.part) for unit in units}
        self._total = sum(self._left.values())
        self._seconds: dict[tuple[str, str | None], float] = defaultdict(float)
        """By attack and attacker."""
        self._work: dict[tuple[str, str | None], float] = defaultdict(float)
        """Gradients, roughly."""

    def tell(self, unit: Unit) -> None:
        """Say where the benchmark is."""
        left = sum(self._left.values())
        self._on_attack(unit.label, self._total - left, self._total, self.seconds_left())

    def count(self, unit: Unit, utterances: int, seconds: float = 0.0) -> None:
        """Some utterances of a unit are done; 0 seconds are no measure of anything."""
        self._left[unit] = max(0, self._left[unit] - utterances)
        if seconds:
            self._seconds[unit.attack.name, unit.adaptive_to] += seconds
            self._work[unit.attack.name, unit.adaptive_to] += utterances * unit.effort

    def seconds_left(self) -> float | None:
        """None before anything was measured, unless nothing is left."""
        if not any(self._left.values()):
            return 0.0
        if not self._work:
            return None
        usual = sum(self._seconds.values()) / sum(self._work.values())
        pace = {kind: self._seconds[kind] / work for kind, work in self._work.items()}
        return sum(
            left * unit.effort * pace.get((unit.attack.name, unit.adaptive_to), usual)
            for unit, left in self._left.items()
        )
