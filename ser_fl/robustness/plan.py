"""What was asked for: as attacks, each at every budget, and as the units of work of a benchmark.

Legend: N utterances.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ser_fl.attacks import registry
from ser_fl.attacks.attack import UNLABELLED, Attack, AttackSettings
from ser_fl.attacks.expectation import expectation_of
from ser_fl.attacks.objects import attack_from
from ser_fl.attacks.target import Expectation
from ser_fl.attacks.waveform_domain import SNR_DBS
from ser_fl.config.robustness import AttackChoice, Backend
from ser_fl.config.schema import checked
from ser_fl.defences import Defence
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed
from ser_fl.robustness.result_cache import Outcome
from ser_fl.robustness.test_set import TestSet

ADAPTIVE = "adaptive"
"""The knowledge of an attacker who differentiates the defended model; and in `subsets` all such attacks."""
EOT_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is set for all attacks of a benchmark, given to `ser_fl.benchmark`, on the command line or in a file."""

    num_classes: int
    steps: int | None = None
    """Of every attack that has some; None is each attack's own default, as with restarts."""
    restarts: int | None = None
    backend: Backend = "auto"

    def attacks(self, given: Iterable[object], epsilons: Sequence[float], *, adaptive: bool = False) -> list[Attack]:
        """Attacks on features within the model, each once.

        Args:
            given: choices, of a suite all its attacks that fit, each run at every epsilon unless it has its own; full
                `AttackSettings`; attacks of ART, their classes and functions.
            epsilons: budgets.
            adaptive: of attackers who know of a defence: by our own code, and of a suite what can know of one.

        Raises:
            UserError: an unknown attack or setting.
        """
        attacks: dict[object, Attack] = {}

        def fits(name: str) -> bool:
            entry = registry.ATTACKS[name]
            knows = not adaptive or entry.knowledge == "undefended" or entry.adaptive
            return knows and self.num_classes >= entry.min_classes

        for one in given:
            if isinstance(one, AttackSettings):
                attacks[one] = registry.build(one)
            elif not isinstance(one, AttackChoice):
                attacks |= _own_attacks(one, epsilons, attacks)
            else:
                names, backend = [one.name], one.backend or self.backend
                if suite := registry.SUITES.get(one.name):
                    names, backend = list(filter(fits, suite.attacks)), one.backend or suite.backend or self.backend
                    if left := ", ".join(name for name in suite.attacks if name not in names):
                        told = f"the suite {one.name} is run without what does not fit here: {left}"
                        warnings.warn(told, stacklevel=1)  # once, whoever asked
                restarts = self.restarts if one.restarts is None else one.restarts
                for name in names:
                    settable = registry.entry_of(name.removesuffix(UNLABELLED)).settable
                    for epsilon in epsilons if one.epsilon is None else (one.epsilon,):
                        settings = AttackSettings(
                            name=name,
                            epsilon=epsilon,
                            steps=one.steps or (self.steps if "steps" in settable else None),
                            step_size=one.step_size,
                            restarts=restarts if "restarts" in settable else one.restarts,
                            labels=one.labels,
                            backend="native" if adaptive else backend,
                        )
                        attacks[settings] = registry.build(settings)
        return list(attacks.values())

    def on_recordings(
        self, choices: Sequence[AttackChoice], snr_dbs: Sequence[float], amplitudes: Sequence[float]
    ) -> list[Attack]:
        """Attacks on recorded samples: each at all budgets that it keeps to; a suite stands for `SUITE_ON_RECORDINGS`.
        A `UserError` refuses an attack that does not go on recordings, or not within any of the budgets.
        """
        levels = snr_dbs if snr_dbs or amplitudes else SNR_DBS
        budgets: list[tuple[str, dict[str, Any]]] = [
            *(("snr_db", {"snr_db": value}) for value in levels),
            *(("amplitude", {"epsilon": value}) for value in amplitudes),
        ]
        attacks: dict[AttackSettings, Attack] = {}
        for choice in choices:
            for name in registry.SUITE_ON_RECORDINGS if choice.name in registry.SUITES else (choice.name,):
                entry = registry.ON_RECORDINGS.get(name.removesuffix(UNLABELLED))
                units = entry.on_recordings if entry else ()
                kept = [budget for unit, budget in budgets if unit in units] or [budgets[0][1]]
                for budget in [{}] if "masking" in units else kept:
                    settings = AttackSettings(
                        name=name,
                        steps=choice.steps or self.steps,
                        restarts=self.restarts if choice.restarts is None else choice.restarts,
                        labels=choice.labels,
                        masked=not budget,
                        **budget,
                    )
                    attacks[settings] = registry.build_on_recordings(settings)
        return list(attacks.values())


def _own_attacks(given: object, epsilons: Sequence[float], others: Mapping[object, Attack]) -> dict[object, Attack]:
    """A caller's own attack at every epsilon, under a name that no other has: records and what is kept go by it."""
    own: dict[object, Attack] = {(id(given), epsilon): attack_from(given, epsilon) for epsilon in epsilons}
    taken = {attack.settings.name for key, attack in others.items() if key not in own} | registry.ATTACKS.keys()
    for key, attack in own.items():
        name = attack.settings.name
        names = (name if number == 1 else f"{name}_{number}" for number in count(1))
        free = next(free for free in names if free not in taken)
        own[key] = replace(attack, settings=replace(attack.settings, name=free))
    return own


def listed(given: object) -> list[object]:
    """One or many attacks as a list: names and mappings of settings as choices, the rest as it is; a `UserError` for an
    unknown setting, or a value out of its range.
    """
    found: list[object] = []
    for one in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        if isinstance(one, (str, Mapping)):
            found.append(checked(AttackChoice, {"name": one} if isinstance(one, str) else one))
        else:
            found.append(one)
    return found


def subsets_for(given: Iterable[object], own: Mapping[str, int] | None) -> dict[str, int]:
    """Sizes of balanced subsets: those that are said, and else those that the suites among the attacks ask for, the
    larger where two of them differ.
    """
    names = [one.name for one in given if isinstance(one, AttackChoice)]
    suites = [suite for name, suite in registry.SUITES.items() if name in names]
    asked = sorted((size, attack) for suite in suites for attack, size in suite.subsets.items())
    return {attack: size for size, attack in asked} | dict(own or {})


@dataclass(slots=True, kw_only=True, eq=False)
class Unit:
    """An attack with its settings, the attacker's knowledge and the utterances, and what became of it."""

    attack: Attack
    part: TestSet
    shown_to: tuple[Defence, ...]
    """Defences that what it makes is shown to: all, or the one that the attacker knows of."""
    expectation: Expectation | None = None
    """What the attacker knows of that one; None for an attack on the bare model."""
    adaptive_to: str | None = None
    """The name of that one."""
    eot_samples: int = 0
    """Draws of that one that every answer of the model is averaged over."""
    gradients: int = 1
    """Roughly how many an utterance takes."""
    poisoned_by: Attack | None = None
    """What moved the clips that enrol the speakers; None where these are clean."""
    before: "Unit | None" = None
    """The same at the next smaller epsilon, in a sweep."""
    shares: "Unit | None" = None
    """The same at another budget, whose adversarial utterances are held against this budget too."""
    key: str = ""
    """Under which its work is kept, from its turn on; so the rows."""
    carried: Sequence[int] = ()
    """Rows that the smaller epsilon broke: its adversarial utterances are taken."""
    warm: Sequence[int] = ()
    """Rows that may begin at the smaller epsilon's."""
    cold: Sequence[int] = ()
    outcome: Outcome | None = None


def plan(
    test_set: TestSet,
    attacks: Sequence[Attack],
    defences: Sequence[Defence],
    *,
    adaptive: Sequence[Attack] = (),
    eot_samples: int | None = EOT_SAMPLES,
    subsets: Mapping[str, int] | None = None,
    sweep: bool = True,
) -> list[Unit]:
    """All units of a benchmark, in the order they are run: by attack, adaptive ones last, from small epsilons to large.

    Args:
        test_set: classifier and utterances.
        attacks: on the bare model.
        defences: that what they make is shown to.
        adaptive: attacks on each defended model, in expectation over its randomness.
        eot_samples: draws of the defence that they average over in every step; None for all that there are.
        subsets: numbers of utterances for slow attacks, by name, and "adaptive" for all adaptive ones; the smaller
            counts.
        sweep: whether an attack at one epsilon goes on where it was at a smaller one.

    Raises:
        UserError: an attack that needs a box has none or that has too few classes, an adaptive one that sees no
            gradient, or no defence for it to know of.
    """
    for attack in (*attacks, *adaptive):
        attack.check(test_set.box, test_set.num_classes)
    seed = derive_seed("expectation", test_set.seed)  # the attacker does not know the defence's own draws
    expected = [(defence, expectation_of(defence, seed=seed, samples=eot_samples)) for defence in defences if adaptive]
    known = [(defence, expectation) for defence, expectation in expected if expectation is not None]
    if adaptive and not known:
        raise UserError(
            f"an adaptive {adaptive[0].name} needs a defence to know of, got "
            f"{', '.join(defence.name for defence in defences)}: add randomisation to the defences"
        )
    for attack in adaptive:
        attack.knowledge_of(known[0][1])  # refuses an attack without gradients
    sizes = subsets or {}
    sweep = sweep and test_set.domain.sweeps
    units: list[Unit] = []
    for name in dict.fromkeys(attack.name for attack in (*attacks, *adaptive)):
        undefended, aware = ([attack for attack in some if attack.name == name] for some in (attacks, adaptive))
        units += _chain(undefended, test_set.subset(sizes.get(name)), tuple(defences), None, sweep)
        few = test_set.subset(min((size for key, size in sizes.items() if key in (name, ADAPTIVE)), default=None))
        for defence, expectation in known:
            units += _chain(aware, few, (defence,), expectation, sweep)
    # Without a sweep nothing hangs together but the attacker's knowledge.
    return units if sweep else sorted(units, key=lambda unit: unit.adaptive_to is not None)


def _chain(
    attacks: Sequence[Attack],
    part: TestSet,
    shown_to: tuple[Defence, ...],
    expectation: Expectation | None,
    sweep: bool,
) -> list[Unit]:
    """Units of one attack and attacker, from small budgets to large, each after the next smaller one of its effort."""
    units: list[Unit] = []
    of_effort: dict[tuple[int | None, int | None], list[Unit]] = {}
    for attack in sorted(attacks, key=lambda attack: attack.settings.strength):
        settings, entry = attack.settings, attack.entry
        alike = of_effort.setdefault((settings.steps, settings.restarts), [])
        smaller = [unit for unit in alike if unit.attack.settings.strength < settings.strength]
        # A larger budget holds what is found in a smaller one by a search: a single step or a draw goes elsewhere.
        searches = entry.warm or entry.minimal
        once = entry.minimal and not part.domain.sweeps
        draws = len(expectation.weights) if expectation else 0
        unit = Unit(
            attack=attack,
            part=part,
            shown_to=shown_to,
            expectation=expectation,
            adaptive_to=shown_to[0].name if expectation else None,
            eot_samples=draws,
            gradients=(settings.steps or 1) * max(settings.restarts or 1, 1) * max(draws, 1),
            before=smaller[-1] if sweep and smaller and searches else None,
            shares=alike[0] if once and alike else None,
        )
        alike.append(unit)
        units.append(unit)
    return units
