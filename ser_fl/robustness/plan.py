"""The units of work of a benchmark: one attack at one epsilon, by an attacker who knows of a defence or of none.

Legend: N utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.expectation import expectation_of
from ser_fl.attacks.target import Expectation
from ser_fl.defences import Defence
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed
from ser_fl.robustness.test_set import TestSet

ADAPTIVE = "adaptive"
"""The knowledge of an attacker who differentiates the defended model; and in `subsets` all such attacks."""
EOT_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """An attack with its settings, the attacker's knowledge, and the utterances."""

    attack: Attack
    part: TestSet
    shown_to: tuple[Defence, ...]
    """Defences that what it makes is shown to: all, or the one that the attacker knows of."""
    expectation: Expectation | None = None
    """What the attacker knows of that one; None for an attack on the bare model."""
    before: Unit | None = None
    """The same at the next smaller epsilon, in a sweep."""
    shares: Unit | None = None
    """The same at another budget, whose adversarial utterances are held against this budget too."""

    @property
    def adaptive_to(self) -> str | None:
        return None if self.expectation is None else self.shown_to[0].name

    @property
    def knowledge(self) -> str:
        """The threat model."""
        return self.attack.knowledge_of(self.expectation)

    @property
    def eot_samples(self) -> int:
        """Draws of the defence that every answer of the model is averaged over."""
        return 0 if self.expectation is None else len(self.expectation.weights)

    @property
    def label(self) -> str:
        """For whoever waits: ``pgd at 0.05, adaptive``."""
        return f"{self.attack.name} at {self.attack.settings.budget}" + (", adaptive" if self.adaptive_to else "")

    @property
    def effort(self) -> int:
        """Roughly how much work an utterance is, in gradients."""
        settings = self.attack.settings
        return (settings.steps or 1) * max(settings.restarts or 1, 1) * max(self.eot_samples, 1)


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
    for attack in sorted(attacks, key=lambda attack: attack.settings.strength):
        alike = [unit for unit in units if _effort(unit.attack) == _effort(attack)]
        smaller = [unit for unit in alike if unit.attack.settings.strength < attack.settings.strength]
        # A larger budget holds what is found in a smaller one by a search: a single step or a draw goes elsewhere.
        searches = attack.entry.warm or attack.entry.minimal
        once = attack.entry.minimal and not part.domain.sweeps
        units.append(
            Unit(
                attack=attack,
                part=part,
                shown_to=shown_to,
                expectation=expectation,
                before=smaller[-1] if sweep and smaller and searches else None,
                shares=alike[0] if once and alike else None,
            )
        )
    return units


def _effort(attack: Attack) -> tuple[int | None, int | None]:
    return attack.settings.steps, attack.settings.restarts
