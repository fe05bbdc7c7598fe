"""The benchmark on recorded audio: which attacks at which budgets, and the outcomes that records are made of.

Legend: N utterances, R runs of a defence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.expectation import expectation_of
from ser_fl.attacks.suites import SUITES
from ser_fl.attacks.waveform import WaveformAttack, WaveformBudget, attack_named
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.defences import Defence
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.randomness import derive_seed
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.plan import ADAPTIVE, EOT_SAMPLES
from ser_fl.robustness.predictions import show
from ser_fl.robustness.progress import OnAttack, silent
from ser_fl.robustness.recordings import Assault, Heard, Read, Studio, WavPairs
from ser_fl.robustness.result_cache import Memory, Outcome, ResultCache, key_of
from ser_fl.robustness.runner import OnRecords
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord

DOMAIN = "waveform"
MASKING = "masking"
"""The norm that a record names where the budget is the clip's own masking threshold."""
_TOLERANCE_DB = 1e-3
SUITE = ("pgd", "apgd_ce", "cw_l2")
"""What the suites of the other domain stand for here."""
SNR_DBS = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Budgets where none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attack, and all budgets that it is run at."""

    name: str
    attack: WaveformAttack
    budgets: tuple[WaveformBudget | None, ...]
    steps: int
    restarts: int | None
    """None for an attack that starts once, at the clean clip."""
    adaptive: bool = False
    """Made against every defence by one who knows of it, and not against the bare model."""


def plans_of(config: BenchmarkConfig) -> list[Plan]:
    """What the settings of a benchmark with ``domain=waveform`` ask for, adaptive attacks last.

    Raises:
        UserError: an attack that does not go on waveforms, or one that cannot keep to any of the budgets.
    """
    budgets = [WaveformBudget("snr_db", value) for value in config.snr_dbs]
    budgets += [WaveformBudget("amplitude", value) for value in config.amplitudes]
    if not budgets:
        budgets = [WaveformBudget("snr_db", value) for value in SNR_DBS]
    plans = []
    for given, adaptive in ((config.attacks, False), (config.adaptive, True)):
        for name in dict.fromkeys(name for one in given for name in (SUITE if one in SUITES else (one,))):
            attack = attack_named(name)
            own = tuple(budget for budget in dict.fromkeys(budgets) if budget.unit in attack.units)
            if attack.units and not own:
                raise UserError(
                    f"{name} keeps to budgets of {' or '.join(attack.units)} only: set snr_dbs, such as [30]"
                )
            fixed = config.restarts is None or attack.restarts is None
            plans.append(
                Plan(
                    name=name,
                    attack=attack,
                    budgets=own or (None,),
                    steps=config.steps or attack.steps,
                    restarts=attack.restarts if fixed else config.restarts,
                    adaptive=adaptive,
                )
            )
    return plans


def benchmark_waveforms(
    test_set: TestSet,
    bundle: EmotionModel,
    read: Read,
    plans: Sequence[Plan],
    defences: Sequence[Defence],
    *,
    eot_samples: int | None = EOT_SAMPLES,
    subsets: Mapping[str, int] | None = None,
    pairs: WavPairs | None = None,
    open_cache: Callable[[], ResultCache] = Memory,
    on_attack: OnAttack = silent,
    on_records: OnRecords = lambda records: None,
) -> list[AttackRecord]:
    """Run every attack at every budget, show what it made to defences, and take the worst case per utterance.

    Args:
        test_set: utterances; their features are computed anew, by the way that adversarial recordings take.
        bundle: the model with its front end, on the device of the test_set, in evaluation mode.
        read: gives recordings.
        plans: what is run.
        defences: "none" among them if the bare model is wanted.
        eot_samples: draws of a defence that adaptive attacks average over in every step; None for all that there are.
        subsets: attack names to a number of utterances, for attacks that are too slow for all, and "adaptive" for all
            adaptive ones; the smaller counts.
        pairs: which recordings are kept as WAV files; None for none.
        open_cache: where outcomes are kept, and found that are there already; called when nothing is refused any more.
        on_attack: told of progress.
        on_records: given the records of all attacks that are done, whenever one is.

    Returns:
        For every defence a record "clean", one an attack and budget and, of budgets that two attacks or more kept to,
        "worst_case": of all outcomes that the cache has, those of earlier benchmarks included.

    Raises:
        UserError: a recording cannot be read, there are too few classes for an attack, or no defence for an adaptive
            one.
    """
    for plan in plans:
        if test_set.num_classes < plan.attack.min_classes:
            raise UserError(f"{plan.name} needs at least {plan.attack.min_classes} classes: take apgd_ce")
    units = _units(test_set, plans, defences, eot_samples, subsets or {})
    studio = Studio(
        bundle=bundle,
        read=read,
        seed=test_set.seed,
        device=test_set.features_NFL.device,
        pairs=pairs,
        masked=any(plan.budgets == (None,) for plan in plans),
    )
    cache = open_cache()
    test_set = replace(test_set, features_NFL=studio.clean(test_set.ids))
    bench, done = Bench(test_set, defences, domain=DOMAIN), dict[str, Outcome]()
    records = bench.clean_records()
    for unit in units:
        part, crafted = test_set.take(test_set.rows_of(unit.ids)), None
        for budget in unit.plan.budgets:
            key = unit.key(budget)
            outcome = cache.outcome(key)
            if outcome is None or not unit.is_answered(outcome, budget, studio):
                if crafted is None or not unit.plan.attack.minimal:
                    crafted = _craft(studio, part, unit, budget, on_attack)
                outcome = _judged(unit, part, budget, crafted, outcome)
                cache.keep_outcome(key, outcome)
            done[key] = outcome
            records += bench.records_of(outcome, done.values())
            on_records(list(records))
    earlier = [outcome for key, outcome in sorted(cache.outcomes().items()) if key not in done]
    return bench.records([*earlier, *done.values()])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Unit:
    """An attack at all its budgets, by one attacker, on some utterances."""

    plan: Plan
    ids: tuple[str, ...]
    shown_to: tuple[Defence, ...]
    assault: Assault
    """Of no budget yet."""

    @property
    def adaptive_to(self) -> str | None:
        return None if self.assault.expectation is None else self.shown_to[0].name

    @property
    def eot_samples(self) -> int:
        return 0 if self.assault.expectation is None else len(self.assault.expectation.weights)

    def at(self, budget: WaveformBudget | None) -> Assault:
        """One of its budgets; an attack that looks for the quietest perturbation is made once, for all."""
        return replace(self.assault, budget=None if self.plan.attack.minimal else budget)

    def key(self, budget: WaveformBudget | None) -> str:
        """What an outcome depends on beside its test_set."""
        knowledge = {"adaptive": repr(self.shown_to[0]), "eot_samples": self.eot_samples} if self.adaptive_to else {}
        plan = self.plan
        effort = [plan.name, plan.attack.library, str(budget), plan.steps, plan.restarts]
        return key_of({"domain": DOMAIN, "attack": effort, "ids": self.ids, **knowledge})

    def is_answered(self, outcome: Outcome, budget: WaveformBudget | None, studio: Studio) -> bool:
        """Whether an outcome says all that is asked, and the WAV files are there."""
        shown = all(map(outcome.was_shown_to, self.shown_to))
        measured = not studio.masked or "masked_share" in outcome.measured
        return shown and measured and (studio.pairs is None or studio.pairs.has(self.ids, self.at(budget).words))


def _units(
    test_set: TestSet,
    plans: Sequence[Plan],
    defences: Sequence[Defence],
    eot_samples: int | None,
    subsets: Mapping[str, int],
) -> list[_Unit]:
    seed = derive_seed("expectation", test_set.seed)  # the attacker does not know the defence's own draws
    units = []
    for plan in plans:
        assault = Assault(name=plan.name, attack=plan.attack, budget=None, steps=plan.steps, restarts=plan.restarts)
        if not plan.adaptive:
            ids = test_set.subset(subsets.get(plan.name)).ids
            units.append(_Unit(plan=plan, ids=ids, shown_to=tuple(defences), assault=assault))
            continue
        ids = test_set.subset(min((subsets[key] for key in (plan.name, ADAPTIVE) if key in subsets), default=None)).ids
        expected = [(defence, expectation_of(defence, seed=seed, samples=eot_samples)) for defence in defences]
        known = [(defence, expectation) for defence, expectation in expected if expectation is not None]
        if not known:
            raise UserError(
                f"an adaptive {plan.name} needs a defence to know of, got "
                f"{', '.join(defence.name for defence in defences)}: add randomisation to the defences"
            )
        units += [
            _Unit(plan=plan, ids=ids, shown_to=(defence,), assault=replace(assault, expectation=expectation))
            for defence, expectation in known
        ]
    return units


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Crafted:
    heard: Heard
    passes: Passes
    seconds: float


def _craft(studio: Studio, part: TestSet, unit: _Unit, budget: WaveformBudget | None, on_attack: OnAttack) -> _Crafted:
    assault = unit.at(budget)
    label = unit.plan.name if assault.budget is None else f"{unit.plan.name} at {assault.budget}"
    label += ", adaptive" if unit.adaptive_to else ""
    passes, parts, total = Passes(), [], len(part)
    started = time.perf_counter()
    for first in range(0, total, part.batch_size):
        on_attack(label, first, total)
        batch = slice(first, first + part.batch_size)
        parts.append(studio.attack(assault, part.ids[batch], part.labels_N[batch], passes))
    on_attack(label, total, total)
    return _Crafted(heard=Heard.join(parts), passes=passes, seconds=time.perf_counter() - started)


def _judged(
    unit: _Unit, part: TestSet, budget: WaveformBudget | None, crafted: _Crafted, before: Outcome | None
) -> Outcome:
    """What an attack did to each utterance, at a budget; with what was known of other defences before."""
    plan, heard = unit.plan, crafted.heard
    if plan.attack.minimal and budget is not None:
        heard = heard.or_clean(heard.snr_db_N >= budget.value - _TOLERANCE_DB, part.features_NFL)
    votes, written = (
        {defence.name: _votes(part, features_NFL, defence) for defence in unit.shown_to}
        for features_NFL in (heard.features_NFL, heard.written_NFL)
    )
    measured = {
        "median_snr_db": heard.snr_db_N,
        "median_pesq": heard.pesq_N,
        "median_stoi": heard.stoi_N,
        "masked_share": heard.masked_N,
    }
    amplitude = budget.value if budget is not None and budget.unit == "amplitude" else None
    return Outcome(
        attack=plan.name,
        library=plan.attack.library,
        knowledge=ADAPTIVE if unit.adaptive_to else "undefended",
        domain=DOMAIN,
        norm=MASKING if budget is None else budget.norm,
        epsilon=amplitude,
        budget=amplitude,
        snr_db=budget.value if budget is not None and budget.unit == "snr_db" else None,
        steps=plan.steps,
        step_size=None,
        restarts=plan.restarts,
        eot_samples=unit.eot_samples,
        adaptive_to=unit.adaptive_to,
        swept=False,
        leftover=False,
        minimal=plan.attack.minimal,
        ids=part.ids,
        l2_N=tuple(heard.l2_N.tolist()),
        linf_N=tuple(heard.linf_N.tolist()),
        votes=({} if before is None else before.votes) | votes,
        written_votes=({} if before is None else before.written_votes) | written,
        measured={
            name: tuple(value if math.isfinite(value) else None for value in values_N.tolist())
            for name, values_N in measured.items()
            if not bool(values_N.isnan().all())
        },
        forward_passes=crafted.passes.forward,
        backward_passes=crafted.passes.backward,
        seconds=crafted.seconds,
    )


def _votes(part: TestSet, features_NFL: Tensor, defence: Defence) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, show(part, features_NFL, defence).votes_RN.tolist()))
