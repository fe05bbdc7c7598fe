"""From what attacks did to every utterance to the records of a benchmark.

Legend: N utterances, R runs of a defence.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, replace
from functools import cache
from itertools import product
from math import nan
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_fl.defences import Defence
from ser_fl.metrics import Bootstrap, confusion_matrix, recording_products, scores, uar_by_group, uar_of
from ser_fl.robustness.crafting import votes_of
from ser_fl.robustness.result_cache import Outcome
from ser_fl.robustness.test_set import TestSet, rows_of
from ser_fl.runs.records import CLEAN, WITH_ENROLMENT, WORST_CASE, AttackFacts, AttackRecord

LIBRARY = "ser_fl"
"""What a record names as the class where no attack ran."""
_THREAT = attrgetter("norm", "epsilon", "snr_db")
"""What attacks must share to have a common worst case."""


class Bench:
    """A test set, what its defended models say without an attack, and the records of what attacks did to it."""

    def __init__(self, test_set: TestSet, defences: Sequence[Defence]) -> None:
        self.test_set, self.defences = test_set, defences
        self._labels_N = test_set.labels_N.cpu()
        votes = {defence.name: votes_of(test_set, test_set.features_NFL, defence) for defence in defences}
        zeros = (0.0,) * len(test_set)
        self.clean = Outcome(
            attack=CLEAN,
            library=LIBRARY,
            knowledge="undefended",
            domain=test_set.domain.name,
            norm="none",
            snr_db=None,
            steps=None,
            step_size=None,
            restarts=None,
            eot_samples=0,
            forward_passes=0,
            backward_passes=0,
            seconds=0.0,
            ids=test_set.ids,
            l2_N=zeros,
            linf_N=zeros,
            votes=votes,
        )
        labels, recordings = self._labels_N.tolist(), test_set.recordings or test_set.ids
        self._bootstrap = cache(  # resamples of some rows are the same for every figure
            lambda rows: Bootstrap.of([labels[row] for row in rows], [recordings[row] for row in rows], test_set.seed)
        )

    def labels_of(self, ids: Sequence[str]) -> Tensor:
        return self._labels_N[rows_of(self.test_set.ids, ids)]

    def records_of(self, outcome: Outcome, others: Collection[Outcome] = ()) -> list[AttackRecord]:
        """The records of an outcome, one a defence that it was shown to; none without utterances. ``others`` may be of
        the same sweep, or of an attacker who did not know of the defence.
        """
        if not outcome.ids:
            return []
        alike = attrgetter("attack", "norm", "steps", "restarts", "adaptive_to", "eot_samples")
        sweep = [
            replace(other, minimal=False)  # of smaller epsilons the epsilon counts, whatever was found within
            for other in others
            if alike(other) == alike(outcome)
        ]
        records = []
        for defence in self.defences:
            if outcome.was_shown_to(defence):
                median = self._median_epsilon([outcome], sweep, defence, outcome.ids)
                gap = self._undefended_gap(outcome, defence, others) if outcome.adaptive_to else None
                records.append(self._record(outcome, defence, median_epsilon=median, undefended_gap=gap))
        return records

    def _record(self, outcome: Outcome, defence: Defence, **more: Any) -> AttackRecord:
        rows = rows_of(self.test_set.ids, outcome.ids)
        part, labels_N = self.test_set.take(rows), self._labels_N[rows]
        before_RN, after_RN = self.clean.votes_RN(defence.name)[:, rows], outcome.votes_RN(defence.name)
        right_RN, weights_R = before_RN == labels_N, torch.tensor(defence.run_weights, dtype=torch.float64)
        success_RN = right_RN & (after_RN != labels_N)
        right, success = (float(weights_R @ counts.sum(dim=1).double()) for counts in (right_RN, success_RN))
        weight_N = weights_R @ success_RN.double()
        l2_N, linf_N = (torch.tensor(norms, dtype=torch.float64) for norms in (outcome.l2_N, outcome.linf_N))
        measured: dict[str, Any] = {"median_snr_db": None}
        for name, values in outcome.measured.items():
            value_N = torch.tensor([nan if value is None else value for value in values], dtype=torch.float64)
            measured[name] = median_over_successes(value_N, success_RN, defence.run_weights)
        if (written := outcome.written_votes.get(defence.name)) is not None:
            again_RN = success_RN & (torch.tensor(written, dtype=torch.int64) == labels_N)
            measured["lost_to_quantisation"] = float(weights_R @ again_RN.sum(dim=1).double())
        labels, recognised_N = labels_N.tolist(), (weights_R @ (after_RN == labels_N).double()).numpy()
        before, confusion = (  # weighted means of the runs' matrices
            np.average(
                [confusion_matrix(labels, run, part.num_classes) for run in votes_RN.tolist()],
                axis=0,
                weights=defence.run_weights,
            )
            for votes_RN in (before_RN, after_RN)
        )
        clean, robust = scores(before), scores(confusion)
        emotions = part.emotions or tuple(map(str, range(part.num_classes)))
        recordings, products = part.recordings or part.ids, []
        if len(set(recordings)) < len(recordings):
            products = recording_products(recognised_N, labels, recordings, part.num_classes).tolist()
        return AttackRecord(
            **{fact.name: getattr(outcome, fact.name) for fact in fields(AttackFacts)},
            **measured,
            **more,
            epsilon=outcome.budget,
            defence=defence.name,
            clean_uar=clean.uar,
            robust_uar=robust.uar,
            clean_accuracy=clean.accuracy,
            robust_accuracy=robust.accuracy,
            attack_success_rate=success / right if right else 0.0,
            mean_l2=float(weight_N @ l2_N / weight_N.sum()) if bool(weight_N.any()) else 0.0,
            max_linf=float(linf_N.max()),
            num_examples=len(part),
            seed=part.seed,
            device=part.features_NFL.device.type,
            confusion=tuple(map(tuple, confusion.tolist())),
            recording_products=tuple(map(tuple, products)),
            uar_interval=self._bootstrap(tuple(rows)).interval(recognised_N),
            speaker_uar=uar_by_group(recognised_N, labels, part.speakers) if part.speakers else {},
            sex_uar=uar_by_group(recognised_N, labels, part.sexes) if part.sexes else {},
            emotion_recall={
                emotion: recall
                for emotion, recall in zip(emotions, robust.per_class_recall, strict=True)
                if recall is not None
            },
        )

    def _undefended_gap(
        self, outcome: Outcome, defence: Defence, others: Collection[Outcome]
    ) -> tuple[float, float, float] | None:
        """UAR under the same attack by an attacker who does not know of the defence, minus that of an adaptive one."""
        same = attrgetter("attack", "norm", "epsilon", "snr_db", "steps", "restarts")
        unaware = [
            other
            for other in others
            if other.adaptive_to is None
            and not other.leftover
            and other.was_shown_to(defence)
            and same(other) == same(outcome)
        ]
        if outcome.leftover or not unaware:
            return None
        grey = max(unaware, key=lambda other: len(set(other.ids) & set(outcome.ids)))
        common = tuple(sorted(set(grey.ids) & set(outcome.ids)))
        rows = rows_of(self.test_set.ids, common)
        labels_N = self._labels_N[rows]
        grey_RN, white_RN = (
            (one.votes_RN(defence.name)[:, rows_of(one.ids, common)] == labels_N).double() for one in (grey, outcome)
        )
        weights_R = torch.tensor(defence.run_weights, dtype=torch.float64)
        difference_N = (weights_R @ grey_RN - weights_R @ white_RN).numpy()
        interval = self._bootstrap(tuple(rows)).interval(difference_N)
        return None if interval is None else (uar_of(difference_N, labels_N.tolist()), *interval)

    def _median_epsilon(
        self, taken: Sequence[Outcome], others: Sequence[Outcome], defence: Defence, ids: Sequence[str]
    ) -> float | None:
        """Median over some utterances and all runs of the smallest epsilon that broke them; infinite where none did.

        What is taken has one epsilon; of the others smaller ones count too, and of a minimal-norm attack in L-infinity
        the norm that it found. What was wrong when clean has 0.
        """
        if taken[0].norm != "inf":
            return None
        ceiling = taken[0].epsilon or 0.0
        right_RN = self.clean.votes_RN(defence.name) == self._labels_N
        smallest_RN = torch.full(right_RN.shape, torch.inf, dtype=torch.float64)
        smaller = [other for other in others if other.norm == "inf" and (other.epsilon or 0.0) < ceiling]
        for outcome in (*taken, *smaller):
            if outcome.was_shown_to(defence):
                rows = rows_of(self.test_set.ids, outcome.ids)
                found_N = torch.tensor(outcome.linf_N if outcome.minimal else outcome.epsilon, dtype=torch.float64)
                broken_RN = outcome.votes_RN(defence.name) != self._labels_N[rows]
                smallest_RN[:, rows] = smallest_RN[:, rows].minimum(torch.where(broken_RN, found_N, torch.inf))
        smallest_RN = torch.where(right_RN, smallest_RN, 0.0)[:, rows_of(self.test_set.ids, ids)]
        weights_R = torch.tensor(defence.run_weights, dtype=torch.float64)
        return weighted_median(smallest_RN, weights_R[:, None].expand_as(smallest_RN))

    def surviving(self, outcomes: Iterable[Outcome], defence: str) -> Tensor:
        """What is recognised without an attack and after each, in each run, shape (R, N)."""
        right_RN = self.clean.votes_RN(defence) == self._labels_N
        for outcome in outcomes:
            rows = rows_of(self.test_set.ids, outcome.ids)
            right_RN[:, rows] &= outcome.votes_RN(defence) == self._labels_N[rows]
        return right_RN

    def worst_cases(self, outcomes: Sequence[Outcome]) -> list[AttackRecord]:
        """One record a defence and budget: recognised is what withstood every attack of that norm it was shown to. (The
        budget of an L2 attack holds more than an L-infinity ball of its epsilon: the two make no common worst case.)

        It is taken per utterance and run of the defence, over attackers who know of the defence and who do not, where
        there are two outcomes or more. An attack on a subset may not have seen an utterance: the true worst case may
        then be lower, unless another attack broke it, and `library` names the attack, as in "ser_fl (cw_l2 on 21 of 64
        utterances)". `knowledge` is that of all its attacks, or the different ones in alphabetical order, as in
        "score+undefended". UAR needs recalls only, so that the confusion matrix keeps what was right and counts the
        rest as the next class.

        It is over attackers who leave the clips alone that enrol a speaker; where some moved these too, there is one of
        all attackers as well, "worst_case_with_enrolment".

        Where adaptive attacks saw only some of the utterances, there is a second record on those: only there has
        everybody been attacked by one who knows of the defence.
        """
        threats = defaultdict[Any, list[Outcome]](list)
        for outcome in outcomes:
            threats[_THREAT(outcome)].append(outcome)
        records = []
        for threat in sorted(threats, key=lambda threat: (threat[0] != "inf", threat[1] or 0.0, -(threat[2] or 0.0))):
            for defence, suffix in product(self.defences, ("", WITH_ENROLMENT)):
                shown = [outcome for outcome in threats[threat] if outcome.was_shown_to(defence)]
                taken = [outcome for outcome in shown if suffix or not outcome.enrolment]
                others = [outcome for outcome in outcomes if suffix or not outcome.enrolment]
                if suffix not in {outcome.enrolment for outcome in taken}:
                    continue
                if len({(outcome.attack, outcome.adaptive_to) for outcome in taken}) < 2:
                    continue
                known = (outcome.ids for outcome in taken if outcome.adaptive_to and not outcome.leftover)
                aware = max(known, key=len, default=())
                for ids in (self.test_set.ids, *([aware] if 0 < len(aware) < len(self.test_set) else [])):
                    worst = self._worst_case(defence, taken, ids)
                    worst = replace(worst, attack=WORST_CASE + suffix)
                    median = self._median_epsilon(taken, others, defence, ids)
                    records.append(self._record(worst, defence, median_epsilon=median))
        return records

    def _worst_case(self, defence: Defence, taken: Sequence[Outcome], ids: tuple[str, ...]) -> Outcome:
        rows = rows_of(self.test_set.ids, ids)
        right_RN, labels_N = self.surviving(taken, defence.name)[:, rows], self._labels_N[rows]
        votes_RN = torch.where(right_RN, labels_N, (labels_N + 1) % self.test_set.num_classes)
        unbroken = {ids[row] for row in right_RN.any(dim=0).nonzero().flatten().tolist()}
        attacked: dict[str, set[str]] = {}
        for outcome in taken:
            label = outcome.attack + (" adaptive" if outcome.adaptive_to else "")
            attacked.setdefault(label, set()).update(outcome.ids)
        covered = any(unbroken <= seen for label, seen in attacked.items() if label.endswith(" adaptive"))
        partial = [
            f"{label} on {len(seen & set(ids))}"
            for label, seen in attacked.items()
            if unbroken - seen and not (covered and label.endswith(" adaptive"))
        ]
        first = taken[0]
        return replace(
            self.clean,
            attack=WORST_CASE,
            ids=ids,
            l2_N=self.clean.l2_N[: len(ids)],
            linf_N=self.clean.linf_N[: len(ids)],
            votes={defence.name: tuple(map(tuple, votes_RN.tolist()))},
            library=f"{LIBRARY} ({', '.join(partial)} of {len(ids)} utterances)" if partial else LIBRARY,
            knowledge="+".join(sorted({outcome.knowledge for outcome in taken})),
            norm=first.norm,
            budget=first.budget,
            snr_db=first.snr_db,
        )


def weighted_median(value_RN: Tensor, weight_RN: Tensor) -> float | None:
    """The smallest value that half of all, by weight, do not exceed; None where that is infinite or weighs nothing.

    >>> weighted_median(torch.tensor([[0.0, 0.1, 0.2, float("inf")]]), torch.ones(1, 4))
    0.1
    """
    values, order = value_RN.double().flatten().sort(stable=True)
    weights = weight_RN.double().flatten()[order]
    if not bool(weights.any()):
        return None
    reached = weights.cumsum(0) >= (0.5 - 1e-9) * weights.sum()
    median = float(values[int(reached.nonzero()[0])])
    return median if median != float("inf") else None


def median_over_successes(value_N: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float | None:
    """Median over successes, each by the weight of its run; of what was measured (not NaN), or None of nothing."""
    weight_N = torch.tensor(run_weights, dtype=torch.float64) @ (success_RN & ~value_N.isnan()).double()
    return weighted_median(value_N.nan_to_num(0.0), weight_N)
