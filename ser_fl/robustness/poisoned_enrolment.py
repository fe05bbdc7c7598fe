"""Poisoned enrolment in a benchmark: speakers that nobody trained on, the clips that enrol them, and who moves these.

At each budget the clips of every speaker are moved first, and scored with clean utterances ("pgd_on_enrolment"). Where
both are asked for, the clips are moved once more, to harm utterances that PGD has attacked under the clean enrolment;
under this poison all attacks then go on the clean utterances ("pgd_with_enrolment"), within the same budget, in units
of the clean enrolment. (Poison for clean utterances may blunt attacks on them.) Speakers of training keep their scale.

Legend: N utterances of the test set, K clips that enrol a speaker, B of a batch, F bins, L frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from ser_fl.attacks import registry
from ser_fl.attacks.attack import Attack, AttackSettings, Problem
from ser_fl.attacks.domains import Crafted, Domain
from ser_fl.attacks.enrolment import ScaledFeatures, Service, poison, scale_by
from ser_fl.attacks.target import Passes
from ser_fl.attacks.threat_model import distance
from ser_fl.attacks.waveform_domain import Waveform, WaveformToFeatures
from ser_fl.data.normalisation import Scale
from ser_fl.defences import Defence
from ser_fl.robustness.plan import Unit, plan
from ser_fl.robustness.strangers import Strangers
from ser_fl.robustness.test_set import rows_of

STARTS = 2
"""Where nothing else is said: the clean clips, and a random one."""


@dataclass(kw_only=True, eq=False)
class Poison:
    """What an attack makes of everybody's enrolment, once somebody asks."""

    strangers: Strangers
    attack: Attack
    before: Attack | None = None
    """On the scored utterances, by the clean enrolment; None to harm clean ones."""
    passes: Passes = field(default_factory=Passes)

    @cached_property
    def moved(self) -> dict[str, list[Tensor]]:
        """By speaker, the clips of each of their `EnrolmentClips`."""
        strangers, found = self.strangers, dict[str, list[Tensor]]()
        test_set, raw_NFL = strangers.test_set, self._raw()
        for who, clips in strangers.enrolments.items():
            rows = strangers.rows(who)
            service = Service(
                network=test_set.model,
                standardisation=strangers.standardisation,
                raw_MFL=raw_NFL[rows],
                labels_M=test_set.labels_N[rows],
                batch_size=test_set.batch_size,
                seed=test_set.seed,
                passes=self.passes,
            )
            found[who] = poison(service, clips, self.attack, test_set.num_classes)
        return found

    def _raw(self) -> Tensor:
        """What is to be harmed, as the front end gives it, shape (N, F, L)."""
        strangers, raw_NFL = self.strangers, self.strangers.raw_NFL.clone()
        if self.before is None:
            return raw_NFL
        test_set, domain = strangers.test_set, strangers.domain(strangers.scale_of)
        for first in range(0, len(test_set), test_set.batch_size):
            batch = test_set.take(range(first, min(first + test_set.batch_size, len(test_set))))
            for rows, part in domain.problems(batch.problem(self.before.settings)):
                assert isinstance(part.to_features, (ScaledFeatures, WaveformToFeatures))
                way = replace(part.to_features, standardisation=nn.Identity(), mean_BF1=None, deviation_BF1=None)
                moved = self.before.craft(part)
                with torch.no_grad():
                    raw_NFL[[first + row for row in rows]] = way(moved)
        return raw_NFL

    @cached_property
    def scale(self) -> Scale:
        """Of each utterance of the test set."""
        enrolments = self.strangers.enrolments
        return self.strangers.scaled({who: scale_by(enrolments[who], moved) for who, moved in self.moved.items()})

    def scale_of(self, ids: Sequence[str]) -> Scale:
        return self.scale.rows(rows_of(self.strangers.test_set.ids, ids))

    def at(self, **changes: Any) -> Self:
        """The same with other settings of the attack."""
        attack = replace(self.attack, settings=replace(self.attack.settings, **changes))
        return type(self)(strangers=self.strangers, attack=attack, before=self.before)

    def crafted(self, ids: Sequence[str]) -> Crafted:
        """Clean utterances by this scale; norms and SNR are those of the clip that was moved most."""
        figures = {"l2": torch.zeros(len(ids)), "linf": torch.zeros(len(ids))}
        if isinstance(self.strangers.test_set.domain, Waveform):
            figures["median_snr_db"] = torch.full((len(ids),), torch.inf, dtype=torch.float64)
        speakers = dict(zip(self.strangers.test_set.ids, self.strangers.test_set.speakers, strict=True))
        for who, moved in self.moved.items():
            rows = [row for row, utterance_id in enumerate(ids) if speakers[utterance_id] == who]
            for clips, inputs in zip(self.strangers.enrolments[who], moved, strict=True):
                sizes = {
                    "l2": distance(clips.clean, inputs, "2").max(),
                    "linf": distance(clips.clean, inputs, "inf").max(),
                }
                for name, size in sizes.items():
                    figures[name][rows] = figures[name][rows].clamp(min=float(size))
                if isinstance(clips.to_features, WaveformToFeatures):
                    quietest = float(clips.to_features.clips.snr_db(inputs).min())
                    figures["median_snr_db"][rows] = figures["median_snr_db"][rows].clamp(max=quietest)
        return Crafted(adversarial_NFL=self.strangers.shown(ids, self.scale), figures=figures)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnEnrolment(Domain):
    """The clips that enrol speakers alone: scored utterances stay as they are."""

    poison: Poison
    sweeps: bool = False

    def craft(self, attack: Attack, problem: Problem) -> Crafted:
        found = self.poison.crafted(problem.keys_B)
        problem.passes.forward += self.poison.passes.forward
        problem.passes.backward += self.poison.passes.backward
        return found

    def held(self, crafted: Crafted, attack: Attack, clean_NFL: Tensor) -> Crafted:
        return crafted


def poisoned_units(
    strangers: Strangers,
    units: Sequence[Unit],
    defences: Sequence[Defence],
    *,
    both: bool,
    steps: int | None = None,
    restarts: int | None = None,
    **planned: Any,
) -> list[Unit]:
    """Units of a benchmark that poison enrolment, at every budget of its other ones.

    Args:
        strangers: whose enrolment.
        units: of the same benchmark, with clean enrolment.
        defences: that all is shown to.
        both: whether attacks of these go on utterances whose speakers' enrolment is poisoned: of features those of ours
            that keep to an L-infinity ball, of recordings all.
        steps: of the poison; None for the default of PGD.
        restarts: None is `STARTS`.
        planned: more arguments of `plan`.
    """
    test_set, found = strangers.test_set, list[Unit]()
    on_recordings = isinstance(test_set.domain, Waveform)
    build = registry.build_on_recordings if on_recordings else registry.build
    budgets = {unit.attack.settings.strength: unit.attack.settings for unit in units}
    for budget, settings in budgets.items():
        if settings.masked:
            continue
        asked = AttackSettings(
            name="pgd",
            epsilon=settings.epsilon,
            snr_db=settings.snr_db,
            steps=steps,
            restarts=STARTS if restarts is None else restarts,
            backend="native",
            enrolment="attacked",
        )
        attack = build(asked)
        attack = replace(attack, entry=replace(attack.entry, library="ser_fl.poison", whole_set=True))
        poison = Poison(strangers=strangers, attack=attack)
        on = replace(test_set, domain=OnEnrolment(name=test_set.domain.name, poison=poison))
        effort = (attack.settings.steps or 1) * max(attack.settings.restarts or 1, 1)
        found.append(Unit(attack=attack, part=on, shown_to=tuple(defences), gradients=effort))
        if not both:
            continue
        first = build(replace(asked, restarts=1, enrolment="clean"))
        domain = strangers.domain(Poison(strangers=strangers, attack=attack, before=first).scale_of)
        bare, aware = (
            {
                unit.attack.name: build(replace(unit.attack.settings, enrolment="both", backend="native"))
                for unit in units
                if (unit.expectation is not None) == knows
                and unit.attack.settings.strength == budget
                and (
                    on_recordings or "amplitude" in registry.entry_of(unit.attack.settings.name, "native").on_recordings
                )
            }
            for knows in (False, True)
        )
        part = replace(test_set, domain=domain)
        for unit in plan(part, [*bare.values()], defences, adaptive=[*aware.values()], sweep=False, **planned):
            unit.poisoned_by = attack
            found.append(unit)
    return found
