"""Doubts about poisoned enrolment: small experiments on the speakers of a benchmark."""

from collections.abc import Iterator, Sequence

from ser_fl.devices import exact_arithmetic
from ser_fl.metrics import uar_of
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.poisoned_enrolment import OnEnrolment, Poison
from ser_fl.robustness.sanity_checks.report import HALF_A_POINT, Checks, Doubt, SanityReport, at_budget
from ser_fl.robustness.sanity_checks.trial import logits_of
from ser_fl.runs.records import NO_DEFENCE

ENROLMENT_CHECKS = Checks[Poison]()


def check_poison(units: Sequence[Unit]) -> SanityReport:
    """Doubts about what poisons enrolment, at the first budget: it takes three times as long as that did."""
    domains = (unit.part.domain for unit in units)
    first = next(domain for domain in domains if isinstance(domain, OnEnrolment))
    with evaluating(first.poison.strangers.test_set.model), exact_arithmetic():
        return ENROLMENT_CHECKS.made_of(first.poison)


@ENROLMENT_CHECKS.named("poison without a budget changes nothing")
def nothing_is_poisoned(poison: Poison) -> Iterator[Doubt]:
    """Features and so predictions must be the clean ones, bit for bit."""
    idle = poison.at(epsilon=0.0, snr_db=None, step_size=None, steps=1)
    test_set = poison.strangers.test_set
    idle_NFL = idle.crafted(test_set.ids).adversarial_NFL
    if moved := int((idle_NFL != test_set.features_NFL).flatten(1).any(1).sum()):
        words = (
            f"Enrolment that is attacked at epsilon 0 moves {moved} of {len(test_set)} utterances: clean and attacked "
            "enrolment are not prepared alike."
        )
        yield Doubt(words=words, attack=poison.attack.name, epsilon=0.0, defence=NO_DEFENCE)


@ENROLMENT_CHECKS.named("twice the steps of poison change nothing")
def poison_has_converged(poison: Poison) -> Iterator[Doubt]:
    """Of one more ascent, twice as long."""
    steps, settings = poison.attack.settings.steps or 1, poison.attack.settings
    before, after = _uar(poison), _uar(poison.at(steps=2 * steps))
    if before - after > HALF_A_POINT:
        words = (
            f"{2 * steps} steps of {poison.attack.name} in place of {steps} take UAR from {before:.3f} to {after:.3f} "
            f"{at_budget(settings)}: poison has not converged, so double until UAR moves by less than half a point."
        )
        epsilon = settings.epsilon if settings.snr_db is None else None
        yield Doubt(words=words, severity="hint", attack=poison.attack.name, epsilon=epsilon, defence=NO_DEFENCE)


def _uar(poison: Poison) -> float:
    """Of clean utterances by the poisoned scale, without a defence."""
    test_set = poison.strangers.test_set
    logits_NC = logits_of(test_set, poison.strangers.shown(test_set.ids, poison.scale))
    recognised_N = (logits_NC.argmax(1) == test_set.labels_N).double().cpu().numpy()
    return uar_of(recognised_N, test_set.labels_N.tolist())
