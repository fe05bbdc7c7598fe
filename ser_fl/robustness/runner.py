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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ser_fl.attacks.domains import LOGMEL, Crafted
from ser_fl.defences import Defence
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.crafting import craft
from ser_fl.robustness.outcomes import Outcome, judge
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.progress import BenchmarkProgress, OnAttack, silent
from ser_fl.robustness.result_cache import Memory, ResultCache, key_of
from ser_fl.robustness.test_set import TestSet
from ser_fl.robustness.worst_case import worst_cases
from ser_fl.runs.records import AttackRecord

OnRecords = Callable[[list[AttackRecord]], object]
"""Given the records of all attacks that are done, whenever one is."""


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
    work = _Work(
        bench=bench, cache=cache, drop_broken=drop_broken, units=units, pace=BenchmarkProgress(units, on_attack)
    )
    records = bench.clean_records()
    for unit in units:
        outcome = work.run(unit)
        records += bench.records_of(outcome, work.outcomes)
        on_records(list(records))
    outcomes = [*work.earlier_outcomes(), *work.done_by_key.values()]
    return [*bench.records(outcomes), *worst_cases(bench, outcomes)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """A unit when it is its turn: which utterances, under which key."""

    key: str
    part: TestSet
    carried: tuple[int, ...] = ()
    """Rows that the smaller epsilon broke: its adversarial utterances are taken."""
    warm: tuple[int, ...] = ()
    """Rows that may begin at the smaller epsilon's."""
    cold: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """Runs units in their order, and keeps what they leave."""

    bench: Bench
    cache: ResultCache
    drop_broken: bool
    units: Sequence[Unit]
    pace: BenchmarkProgress
    tasks: dict[int, _Task] = field(default_factory=dict)
    """By unit."""
    done: dict[int, Outcome] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of this benchmark so far."""
        return list(self.done.values())

    @property
    def done_by_key(self) -> dict[str, Outcome]:
        """The same by key."""
        return {self.tasks[unit].key: outcome for unit, outcome in self.done.items()}

    def earlier_outcomes(self) -> list[Outcome]:
        """What earlier benchmarks of this test_set left, by attack and epsilon."""
        earlier = self.cache.outcomes()
        for key in self.done_by_key:
            earlier.pop(key, None)
        return sorted(
            earlier.values(), key=lambda outcome: (outcome.attack, outcome.adaptive_to or "", outcome.epsilon or 0.0)
        )

    def run(self, unit: Unit) -> Outcome:
        """What an attack does to its utterances: known already, or found out now."""
        self.pace.tell(unit)
        task = self.tasks[id(unit)] = self._task(unit)
        outcome = self.cache.outcome(task.key)
        keeps = self.cache.keeps_adversarials
        known = outcome is not None and all(map(outcome.was_shown_to, unit.shown_to))
        if outcome is not None and task.part.domain.lacks(
            outcome.measured, unit.attack, task.part.ids, unit.adaptive_to is not None
        ):
            known = False
        if outcome is None or not known or (keeps and not outcome.adversarials_kept):
            found = self._never_better(unit, judge(unit, task.part, self._adversarial(unit), leftover=self.drop_broken))
            kept = keeps or (outcome is not None and outcome.adversarials_kept)
            votes, written = ({}, {}) if outcome is None else (outcome.votes, outcome.written_votes)
            outcome = replace(
                found,
                votes=votes | found.votes,
                written_votes=written | found.written_votes,
                adversarials_kept=kept,
            )
            self.cache.keep_outcome(task.key, outcome)
        self.done[id(unit)] = outcome
        self._tidy()
        self.pace.finish(unit)
        self.pace.tell(unit)
        return outcome

    def _task(self, unit: Unit) -> _Task:
        part = self._unbroken(unit) if self.drop_broken else unit.part
        settings: dict[str, Any] = {
            "attack": unit.attack.settings.key,
            "library": unit.attack.library,
            "ids": part.ids,
        }
        if (domain := part.domain.name) != LOGMEL.name:
            settings["domain"] = domain
        if unit.expectation is not None:
            settings |= {"adaptive": repr(unit.shown_to[0]), "eot_samples": unit.eot_samples}
        everybody = range(len(part))
        if unit.before is None or unit.attack.entry.whole_set:  # one perturbation is for all, broken before or not
            return _Task(key=key_of(settings), part=part, cold=tuple(everybody))
        before, smaller = self.done[id(unit.before)], self.tasks[id(unit.before)]
        broken = set(before.ids)
        for defence in unit.shown_to:
            right_N = (before.votes_RN(defence.name) == smaller.part.labels_N.cpu()).any(dim=0).tolist()
            broken -= {key for key, right in zip(before.ids, right_N, strict=True) if right}
        carried = tuple(row for row in everybody if part.ids[row] in broken)
        begun = set(before.ids) if unit.attack.entry.warm else set()
        warm = tuple(row for row in everybody if part.ids[row] in begun - broken)
        cold = tuple(row for row in everybody if part.ids[row] not in begun | broken)
        settings |= {"carried": [part.ids[row] for row in carried], "warm": [part.ids[row] for row in warm]}
        settings |= {"before": smaller.key if carried or warm else None}
        return _Task(key=key_of(settings), part=part, carried=carried, warm=warm, cold=cold)

    def _unbroken(self, unit: Unit) -> TestSet:
        """What earlier attacks of the same epsilon left."""
        epsilon = unit.attack.settings.epsilon
        left = torch.zeros(len(self.bench.test_set), dtype=torch.bool)
        for defence in unit.shown_to:
            earlier = [
                outcome for outcome in self.outcomes if outcome.epsilon == epsilon and outcome.was_shown_to(defence)
            ]
            left |= self.bench.surviving(earlier, defence.name).any(dim=0) if earlier else True
        ids = {self.bench.test_set.ids[row] for row in left.nonzero().flatten().tolist()}
        return unit.part.take([row for row, key in enumerate(unit.part.ids) if key in ids])

    def _adversarial(self, unit: Unit) -> Crafted:
        """What the attack makes of its utterances, in their order; made anew only where nothing was kept."""
        if unit.shares is not None:
            return self._adversarial(unit.shares)
        task = self.tasks[id(unit)]
        smaller = _Smaller(self, unit)
        pieces: list[tuple[tuple[int, ...], Crafted]] = []
        if task.carried:
            pieces.append((task.carried, self._carried(task, smaller)))
            self.pace.count(unit, len(task.carried))
        for rows in (task.warm, task.cold):
            if not rows:
                continue
            made = craft(
                task.part.take(rows),
                unit.attack,
                expectation=unit.expectation,
                start=partial(smaller.adversarial_NFL, rows) if rows == task.warm else None,
                cache=self.cache,
                key=task.key,
                on_batch=partial(self._told, unit),
            )
            pieces.append((rows, made))
        order = [row for rows, _ in pieces for row in rows]
        return Crafted.join([made for _, made in pieces], order, task.part.features_NFL[:0])

    def _carried(self, task: _Task, smaller: _Smaller) -> Crafted:
        """The adversarial utterances that a smaller epsilon broke; kept under this key too, so that a sweep looks one
        step back only.
        """
        ids = [task.part.ids[row] for row in task.carried]
        made = self.cache.batch(task.key, ids)
        if made is None:
            made = Crafted(adversarial_NFL=smaller.adversarial_NFL(task.carried))
            self.cache.keep_batch(task.key, ids, made)
        return made

    def _told(self, unit: Unit, utterances: int, seconds: float) -> None:
        if id(unit) in self.done and not seconds:
            return  # looked up again for a larger epsilon
        self.pace.count(unit, utterances, seconds)
        self.pace.tell(unit)

    def _never_better(self, unit: Unit, found: Outcome) -> Outcome:
        """The outcome in which nothing is recognised that a smaller epsilon broke."""
        if unit.before is None:
            return found
        before = self.done[id(unit.before)]
        place = {key: column for column, key in enumerate(before.ids)}
        rows = [row for row, key in enumerate(found.ids) if key in place]
        columns = [place[found.ids[row]] for row in rows]
        labels_N = self.bench.test_set.labels_N[self.bench.test_set.rows_of(found.ids)].cpu()[rows]
        votes = {}
        for name in found.votes:
            now_RN, then_RN = found.votes_RN(name), before.votes_RN(name)[:, columns]
            now_RN[:, rows] = torch.where(then_RN == labels_N, now_RN[:, rows], then_RN)
            votes[name] = tuple(map(tuple, now_RN.tolist()))
        return replace(found, votes=votes)

    def _tidy(self) -> None:
        """Drop adversarial utterances that no larger epsilon waits for."""
        left = [unit for unit in self.units if id(unit) not in self.done]
        waiting = {id(unit.before) for unit in left} | {id(unit.shares) for unit in left}
        for unit, outcome in self.done.items():
            if unit not in waiting and not outcome.adversarials_kept:
                self.cache.forget_batches(self.tasks[unit].key)


@dataclass(slots=True, eq=False)
class _Smaller:
    """The adversarial utterances of the next smaller epsilon, got when they are first asked for."""

    work: _Work
    unit: Unit
    _found_NFL: Tensor | None = None

    def adversarial_NFL(self, rows: Sequence[int]) -> Tensor:
        """Of some rows of the unit."""
        assert self.unit.before is not None
        if self._found_NFL is None:
            self._found_NFL = self.work._adversarial(self.unit.before).adversarial_NFL
        ids = [self.work.tasks[id(self.unit)].part.ids[row] for row in rows]
        return self._found_NFL[self.work.tasks[id(self.unit.before)].part.rows_of(ids)]
