"""From what attacks did to every utterance to the records of a benchmark.

Legend: N utterances, R runs of a defence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from ser_fl.defences import Defence
from ser_fl.metrics import Confusion, scores
from ser_fl.robustness.curves import smallest_epsilons
from ser_fl.robustness.intervals import Bootstrap, uar_by_group, uar_of
from ser_fl.robustness.outcomes import Outcome
from ser_fl.robustness.predictions import (
    Predictions,
    mean_over_successes,
    median_over_successes,
    show,
    success_rate,
    weighted_median,
)
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord

CLEAN = "clean"
WORST_CASE = "worst_case"
LIBRARY = "ser_fl"
"""What a record names as the class that ran where no attack did."""


@dataclass(slots=True, eq=False)
class Bench:
    """A test_set, what its defended models say without an attack, and the records that come of attacks.

    Outcomes of another domain than its own are left aside.
    """

    test_set: TestSet
    defences: Sequence[Defence]
    cleans: dict[str, Predictions] = field(default_factory=dict)
    _bootstraps: dict[tuple[str, ...], Bootstrap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        features_NFL = self.test_set.features_NFL
        self.cleans = {defence.name: show(self.test_set, features_NFL, defence) for defence in self.defences}

    @property
    def domain(self) -> str:
        """Name of what attacks move."""
        return self.test_set.domain.name

    def records(self, outcomes: Iterable[Outcome]) -> list[AttackRecord]:
        """For every defence "clean", one an attack it was shown, and "worst_case"s."""
        outcomes = [outcome for outcome in outcomes if outcome.domain == self.domain]
        made = [record for outcome in outcomes for record in self.records_of(outcome, outcomes)]
        return [*self.clean_records(), *made]

    def clean_records(self) -> list[AttackRecord]:
        """The scores without an attack."""
        return [
            self.record(self.test_set, defence, said, said, **unattacked(CLEAN, None))
            for defence, said in self.cleans.items()
        ]

    def records_of(self, outcome: Outcome, others: Iterable[Outcome] = ()) -> list[AttackRecord]:
        """The records of an outcome, one a defence that it was shown to.

        Args:
            outcome: of one attack; of some utterances at least, or there is no record.
            others: outcomes that may be of the same sweep, or of an attacker who did not know of the defence.
        """
        if not outcome.ids:
            return []
        others = [other for other in others if other.domain == self.domain]
        sweep = [other for other in others if _same_sweep(other, outcome) and is_smaller(other, outcome)]
        return [
            self._record_of(outcome, defence, sweep, others)
            for defence in self.defences
            if outcome.was_shown_to(defence)
        ]

    def _record_of(
        self, outcome: Outcome, defence: Defence, sweep: Sequence[Outcome], others: Sequence[Outcome]
    ) -> AttackRecord:
        rows = self.test_set.rows_of(outcome.ids)
        part, clean = self.test_set.take(rows), self.cleans[defence.name].take(rows)
        attacked = replace(clean, votes_RN=outcome.votes_RN(defence.name))
        success_RN = clean.right_RN & ~attacked.right_RN
        l2_N, linf_N = (torch.tensor(norms, dtype=torch.float64) for norms in (outcome.l2_N, outcome.linf_N))
        median = None
        if outcome.norm == "inf":
            sweep = [smaller for smaller in sweep if smaller.was_shown_to(defence)]
            median = median_of(smallest_epsilons(outcome, sweep, defence.name, clean), clean)
        return self.record(
            part,
            defence.name,
            clean,
            attacked,
            attack=outcome.attack,
            library=outcome.library,
            knowledge=outcome.knowledge,
            norm=outcome.norm,
            epsilon=outcome.budget,
            snr_db=outcome.snr_db,
            steps=outcome.steps,
            step_size=outcome.step_size,
            restarts=outcome.restarts,
            eot_samples=outcome.eot_samples,
            swept=outcome.swept,
            mean_l2=mean_over_successes(l2_N, success_RN, clean.run_weights),
            max_linf=float(linf_N.max()),
            forward_passes=outcome.forward_passes,
            backward_passes=outcome.backward_passes,
            seconds=outcome.seconds,
            median_epsilon=median,
            undefended_gap=self._undefended_gap(outcome, defence, others),
            **self._heard(outcome, defence, success_RN, clean),
        )

    def _heard(
        self, outcome: Outcome, defence: Defence, success_RN: Tensor, clean: Predictions
    ) -> dict[str, float | None]:
        """What an attack on recordings measured: medians over successes, and how many of them a file has lost."""
        found = {
            name: median_over_successes(
                torch.tensor([nan if value is None else value for value in values], dtype=torch.float64),
                success_RN,
                clean.run_weights,
            )
            for name, values in outcome.measured.items()
        }
        if (written := outcome.written_votes.get(defence.name)) is not None:
            again_RN = success_RN & (torch.tensor(written, dtype=torch.int64) == clean.labels_N)
            found["lost_to_quantisation"] = float(clean.weights_R @ again_RN.sum(dim=1).double())
        return found

    def _undefended_gap(
        self, outcome: Outcome, defence: Defence, others: Sequence[Outcome]
    ) -> tuple[float, float, float] | None:
        """UAR under the same attack by an attacker who does not know of the defence, minus that of an adaptive one."""
        unaware = [
            other
            for other in others
            if other.adaptive_to is None
            and not other.leftover
            and other.was_shown_to(defence)
            and (other.attack, other.threat, other.steps, other.restarts)
            == (outcome.attack, outcome.threat, outcome.steps, outcome.restarts)
        ]
        if outcome.adaptive_to is None or outcome.leftover or not unaware:
            return None
        grey = max(unaware, key=lambda other: len(set(other.ids) & set(outcome.ids)))
        common = sorted(set(grey.ids) & set(outcome.ids))
        if not common:
            return None
        labels_N = self.test_set.labels_N[self.test_set.rows_of(common)].cpu()
        grey_N, white_N = (
            self.cleans[defence.name].weights_R
            @ (said.votes_RN(defence.name)[:, _columns(said.ids, common)] == labels_N).double()
            for said in (grey, outcome)
        )
        difference_N = (grey_N - white_N).numpy()
        interval = self._bootstrap(common).interval(difference_N)
        assert interval is not None
        return uar_of(difference_N, labels_N.tolist()), *interval

    def surviving(self, outcomes: Iterable[Outcome], defence: str) -> Tensor:
        """What is recognised without an attack and after each, in each run, shape (R, N)."""
        right_RN = self.cleans[defence].right_RN.clone()
        for outcome in outcomes:
            rows = self.test_set.rows_of(outcome.ids)
            right_RN[:, rows] &= outcome.votes_RN(defence) == self.cleans[defence].labels_N[rows]
        return right_RN

    def record(
        self, part: TestSet, defence: str, clean: Predictions, attacked: Predictions, **described: Any
    ) -> AttackRecord:
        """A record with all figures that follow from what was said of utterances before and after."""
        labels, confusion = attacked.labels_N.tolist(), attacked.confusion
        recognised_N = attacked.recognised_N.numpy()
        success_RN = clean.right_RN & ~attacked.right_RN
        emotions = part.emotions or tuple(map(str, range(part.num_classes)))
        return AttackRecord(
            **{"snr_db": None, "median_snr_db": None} | described,
            domain=self.domain,
            defence=defence,
            clean_uar=scores(clean.confusion).uar,
            robust_uar=scores(confusion).uar,
            clean_accuracy=scores(clean.confusion).accuracy,
            robust_accuracy=scores(confusion).accuracy,
            attack_success_rate=success_rate(clean.right_RN, success_RN, clean.run_weights),
            num_examples=len(part),
            seed=part.seed,
            device=part.features_NFL.device.type,
            confusion=as_tuples(confusion),
            uar_interval=self._bootstrap(part.ids).interval(recognised_N),
            speaker_uar=uar_by_group(recognised_N, labels, part.speakers) if part.speakers else {},
            sex_uar=uar_by_group(recognised_N, labels, part.sexes) if part.sexes else {},
            emotion_recall={
                emotion: recall
                for emotion, recall in zip(emotions, scores(confusion).per_class_recall, strict=True)
                if recall is not None
            },
        )

    def _bootstrap(self, ids: Sequence[str]) -> Bootstrap:
        """Resamples of these utterances, the same for every figure."""
        if (known := tuple(ids)) not in self._bootstraps:
            labels = self.test_set.labels_N[self.test_set.rows_of(known)].tolist()
            self._bootstraps[known] = Bootstrap.of(labels, known, self.test_set.seed)
        return self._bootstraps[known]


def is_smaller(outcome: Outcome, other: Outcome) -> bool:
    """Whether an outcome is of a smaller epsilon than another."""
    return outcome.epsilon is not None and other.epsilon is not None and outcome.epsilon < other.epsilon


def median_of(value_RN: Tensor, clean: Predictions) -> float | None:
    """Median over utterances and runs."""
    return weighted_median(value_RN, clean.weights_R[:, None].expand_as(value_RN))


def unattacked(name: str, epsilon: float | None) -> dict[str, Any]:
    """What a record says that no attack made."""
    return {
        "attack": name,
        "library": LIBRARY,
        "knowledge": "undefended",
        "norm": "none",
        "epsilon": epsilon,
        "steps": None,
        "step_size": None,
        "restarts": None,
        "eot_samples": 0,
        "mean_l2": 0.0,
        "max_linf": 0.0,
        "forward_passes": 0,
        "backward_passes": 0,
        "seconds": 0.0,
    }


def _same_sweep(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes differ in epsilon and utterances at most."""
    first, second = (
        (outcome.attack, outcome.norm, outcome.steps, outcome.restarts, outcome.adaptive_to, outcome.eot_samples)
        for outcome in (one, other)
    )
    return first == second


def _columns(ids: Sequence[str], wanted: Sequence[str]) -> list[int]:
    place = {utterance_id: column for column, utterance_id in enumerate(ids)}
    return [place[utterance_id] for utterance_id in wanted]


def as_tuples(confusion: Confusion) -> tuple[tuple[float, ...], ...]:
    """A matrix for JSON."""
    return tuple(tuple(row) for row in confusion.tolist())


def merged(earlier: Sequence[AttackRecord], records: Sequence[AttackRecord]) -> list[AttackRecord]:
    """Records of several benchmarks of one model: a later one takes the place of one that says the same of itself."""
    kept: Mapping[tuple[Any, ...], AttackRecord] = {_identity(record): record for record in (*earlier, *records)}
    places = {CLEAN: 0, WORST_CASE: 2}
    return sorted(kept.values(), key=lambda record: places.get(record.attack, 1))


def _identity(record: AttackRecord) -> tuple[Any, ...]:
    """What tells a record from another of the same run."""
    found = (record.attack, record.domain, record.epsilon, record.snr_db, record.defence)
    measured = (record.norm, record.num_examples, record.seed, record.device)
    if record.attack in (CLEAN, WORST_CASE):
        return (*found, *measured)
    effort = (record.steps, record.step_size, record.restarts, record.eot_samples, record.swept)
    return (*found, *measured, *effort, record.library, record.knowledge)
