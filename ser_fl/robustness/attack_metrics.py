"""From what attacks did to every utterance to the records of a benchmark.

Legend: N utterances, R runs of a defence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from ser_fl.attacks.domains import Crafted
from ser_fl.defences import Defence
from ser_fl.metrics import Confusion, scores
from ser_fl.robustness.curves import smallest_epsilons
from ser_fl.robustness.intervals import Bootstrap, uar_by_group, uar_of
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.predictions import (
    Predictions,
    mean_over_successes,
    median_over_successes,
    show,
    success_rate,
    weighted_median,
)
from ser_fl.robustness.result_cache import Outcome
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord

CLEAN = "clean"
WORST_CASE = "worst_case"
LIBRARY = "ser_fl"
"""What a record names as the class that ran where no attack did."""


def judge(unit: Unit, part: TestSet, made: Crafted, *, leftover: bool = False) -> Outcome:
    """Show what an attack made to the defences that it is meant for.

    Args:
        unit: the attack and the attacker.
        part: the utterances that were attacked.
        made: their adversarial versions.
        leftover: whether these are the utterances that earlier attacks had not broken.
    """
    attack, settings = unit.attack, unit.attack.settings
    held = part.domain.held(made, attack, part.features_NFL)
    votes, written = (
        {} if shown_NFL is None else {defence.name: _votes(part, shown_NFL, defence) for defence in unit.shown_to}
        for shown_NFL in (held.adversarial_NFL, held.written_NFL)
    )
    norms = {name: tuple(held.figures[name].tolist()) for name in ("l2", "linf")}
    measured = {
        name: tuple(value if isfinite(value) else None for value in value_N.tolist())
        for name, value_N in held.figures.items()
        if name not in norms and not bool(value_N.isnan().all())
    }
    return Outcome(
        attack=attack.name,
        library=attack.library,
        knowledge=unit.knowledge,
        domain=part.domain.name,
        norm=attack.norm,
        epsilon=settings.epsilon if isfinite(settings.epsilon) else None,
        budget=attack.budget(tuple(part.features_NFL.shape)),
        snr_db=settings.snr_db,
        steps=settings.steps,
        step_size=settings.step_size,
        restarts=settings.restarts,
        eot_samples=unit.eot_samples,
        adaptive_to=unit.adaptive_to,
        swept=unit.before is not None,
        leftover=leftover,
        minimal=attack.entry.minimal,
        ids=part.ids,
        l2_N=norms["l2"],
        linf_N=norms["linf"],
        votes=votes,
        written_votes=written,
        measured=measured,
        forward_passes=made.forward_passes,
        backward_passes=made.backward_passes,
        seconds=made.seconds,
    )


def _votes(part: TestSet, features_NFL: Tensor, defence: Defence) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, show(part, features_NFL, defence).votes_RN.tolist()))


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
        return [*self.clean_records(), *made, *self.worst_cases(outcomes)]

    def clean_records(self) -> list[AttackRecord]:
        """The scores without an attack."""
        return [
            self._record(self.test_set, defence, said, said, **_scored(CLEAN, None))
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
        sweep = [other for other in others if _same_sweep(other, outcome) and _smaller(other, outcome)]
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
            median = _median(smallest_epsilons(outcome, sweep, defence.name, clean), clean)
        return self._record(
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

    def worst_cases(self, outcomes: Iterable[Outcome]) -> list[AttackRecord]:
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
        outcomes = [outcome for outcome in outcomes if outcome.domain == self.domain]
        records = []
        for threat in sorted({outcome.threat for outcome in outcomes}, key=_infinity_first):
            for defence in self.defences:
                taken = [outcome for outcome in outcomes if outcome.threat == threat and outcome.was_shown_to(defence)]
                if len({(outcome.attack, outcome.adaptive_to) for outcome in taken}) < 2:
                    continue
                smaller = taken + [
                    outcome for outcome in outcomes if outcome.norm == taken[0].norm and _smaller(outcome, taken[0])
                ]
                records.append(self._worst_case(defence, taken, smaller, self.test_set.ids))
                known = (outcome.ids for outcome in taken if outcome.adaptive_to and not outcome.leftover)
                aware = max(known, key=len, default=())
                if 0 < len(aware) < len(self.test_set):
                    records.append(self._worst_case(defence, taken, smaller, aware))
        return records

    def _worst_case(
        self, defence: Defence, taken: Sequence[Outcome], smaller: Sequence[Outcome], ids: Sequence[str]
    ) -> AttackRecord:
        """Over some utterances; ``smaller`` are the outcomes that the median smallest epsilon is of."""
        clean, rows = self.cleans[defence.name], self.test_set.rows_of(ids)
        right_RN = self.surviving(taken, defence.name)
        wrong_N = (clean.labels_N + 1) % clean.num_classes
        worst = replace(clean, votes_RN=torch.where(right_RN, clean.labels_N, wrong_N))
        missed = {self.test_set.ids[row] for row in rows if bool(right_RN[:, row].any())}
        described = _scored(WORST_CASE, taken[0].budget) | {
            "norm": taken[0].norm,
            "snr_db": taken[0].snr_db,
            "knowledge": "+".join(sorted({outcome.knowledge for outcome in taken})),
            "library": self._library_of_worst_case(taken, missed, set(ids)),
            "median_epsilon": self._median_epsilon(smaller, defence, rows) if taken[0].norm == "inf" else None,
        }
        return self._record(self.test_set.take(rows), defence.name, clean.take(rows), worst.take(rows), **described)

    def surviving(self, outcomes: Iterable[Outcome], defence: str) -> Tensor:
        """What is recognised without an attack and after each, in each run, shape (R, N)."""
        right_RN = self.cleans[defence].right_RN.clone()
        for outcome in outcomes:
            rows = self.test_set.rows_of(outcome.ids)
            right_RN[:, rows] &= outcome.votes_RN(defence) == self.cleans[defence].labels_N[rows]
        return right_RN

    def _median_epsilon(self, outcomes: Sequence[Outcome], defence: Defence, rows: Sequence[int]) -> float | None:
        """Median over some utterances of the smallest L-infinity perturbation that any attack found."""
        clean = self.cleans[defence.name]
        smallest_RN = torch.where(clean.right_RN, torch.inf, 0.0).double()
        for outcome in outcomes:
            if outcome.was_shown_to(defence):
                attacked = self.test_set.rows_of(outcome.ids)
                found_RM = smallest_epsilons(outcome, (), defence.name, clean.take(attacked))
                smallest_RN[:, attacked] = torch.minimum(smallest_RN[:, attacked], found_RM)
        return _median(smallest_RN[:, rows], clean)

    def _library_of_worst_case(self, outcomes: Sequence[Outcome], unbroken: set[str], all_ids: set[str]) -> str:
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

    def _record(
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


def _infinity_first(threat: tuple[str, float | None, float | None]) -> tuple[bool, float, float]:
    norm, epsilon, snr_db = threat
    return norm != "inf", epsilon or 0.0, -(snr_db or 0.0)


def _smaller(outcome: Outcome, other: Outcome) -> bool:
    """Whether an outcome is of a smaller epsilon than another."""
    return outcome.epsilon is not None and other.epsilon is not None and outcome.epsilon < other.epsilon


def _median(value_RN: Tensor, clean: Predictions) -> float | None:
    """Median over utterances and runs."""
    return weighted_median(value_RN, clean.weights_R[:, None].expand_as(value_RN))


def _scored(name: str, epsilon: float | None) -> dict[str, Any]:
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
