"""The benchmark doubting itself: for every check a model that is built to trip it, and one that does not.

Legend: N utterances, B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import benchmark_attacks
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, AttackSettings, Entry, Problem
from ser_fl.attacks.registry import build
from ser_fl.attacks.threat_model import Box
from ser_fl.cli.benchmark import print_sanity_report
from ser_fl.defences import NoDefence, Randomisation
from ser_fl.errors import UserError
from ser_fl.randomness import generator
from ser_fl.report.checks import MEANINGS, failures_in_words
from ser_fl.robustness.sanity_checks import probes
from ser_fl.robustness.sanity_checks import records as checks
from ser_fl.robustness.sanity_checks.poison import ENROLMENT_CHECKS
from ser_fl.robustness.sanity_checks.probes import probe
from ser_fl.robustness.sanity_checks.records import check_records
from ser_fl.robustness.sanity_checks.report import (
    Doubt,
    NotChecked,
    SanityReport,
    read_sanity_report,
    write_sanity_report,
)
from ser_fl.robustness.sanity_checks.trial import strongest
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

# As ``attacks.json`` names them.
EPSILON_0 = "at epsilon 0 the scores are the clean ones"
BELOW_CLEAN = "an attack does not raise UAR"
FALLS = "UAR falls as the budget grows"
MANY_STEPS = "many steps beat one"
WHITE_BOX = "the white box beats the black box"
NOISE = "attacks beat noise"
EXPECTATION = "every defence is attacked by one who knows of it"
SUCCESS = "passes buy successes"
PLAUSIBLE = "clean UAR is plausible"
SAME_ANSWER = "the model answers the same question alike"
NOTHING_MOVES = "epsilon 0 changes nothing"
CHANCE = "a huge epsilon reaches chance"
STEPS = "twice the steps change nothing"
RESTARTS = "twice the restarts change nothing"
GRADIENTS = "gradients reach the input"
LEFT = "nothing weaker breaks what is left"
SAVED = "saved adversarials give the same result"

F, L = 2, 3
SIDE = 2.0
BOX = Box(torch.full((F, 1), -SIDE), torch.full((F, 1), SIDE))
MEANS = [-0.9, -0.7, -0.5, -0.35, -0.25, -0.15, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8]


class Sign(nn.Module):
    """Class 1 where the mean of all cells is above 0: a boundary that one step of any size finds."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        return two_classes(features_BFL.mean(dim=(1, 2)))


class Masked(Sign):
    """Logits of ten thousand: cross-entropy is 0 to the last bit, and so is its gradient."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        return 1e4 * super().forward(features_BFL)


class Quantised(Sign):
    """Rounds its input to tenths: no gradient arrives, of whatever loss."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        return super().forward((features_BFL * 10).round() / 10)


class Random(Sign):
    """Adds noise of its own to the logits, in evaluation mode too."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        logits_BC = super().forward(features_BFL)
        return logits_BC + torch.randn(logits_BC.shape)


class Batchwise(Sign):
    """Compares an utterance with the others of its batch, as batch norm does in training mode."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        return super().forward(features_BFL - features_BFL.mean(dim=0, keepdim=True))


class Answers(nn.Module):
    """Knows the labels by heart, and looks at its input only to have a gradient, of 0."""

    def __init__(self, labels_N: Tensor) -> None:
        super().__init__()
        self.labels_N = labels_N

    def forward(self, features_BFL: Tensor) -> Tensor:
        known_B = 2.0 * self.labels_N[: len(features_BFL)] - 1
        return two_classes(known_B + 0 * features_BFL.sum(dim=(1, 2)))


class Rippled(nn.Module):
    """Class 1 where a mean is below 1/2, but for ripples that an attack of small steps is caught in.

    A step of 0.8 in any cell lands behind the boundary at the phase at which it began.
    """

    def forward(self, features_BFL: Tensor) -> Tensor:
        mean_B = features_BFL.mean(dim=(1, 2))
        return two_classes(0.5 - mean_B - 0.3 * torch.sin(2 * torch.pi * mean_B / 0.2))


class Pits(nn.Module):
    """Recognises an utterance of class 1 everywhere but in a few pits, which only starts nearby fall into."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        mean_B = features_BFL.mean(dim=(1, 2))
        ripples_B = 1 + 0.5 * torch.cos(2 * torch.pi * mean_B / 0.1)
        pit_B = 3 * torch.exp(-(((mean_B - 0.25) / 0.04) ** 2))
        return two_classes(ripples_B - pit_B)


def two_classes(lead_B: Tensor) -> Tensor:
    """Logits of which the second leads by twice this."""
    return torch.stack([-lead_B, lead_B], dim=1)


def make_test_set(model: nn.Module, means: Sequence[float] = MEANS, **changes: Any) -> TestSet:
    """Utterances with one value in every cell, labelled by its sign."""
    values_N = torch.tensor(means)
    fields: dict[str, Any] = {
        "model": model.eval(),
        "features_NFL": values_N[:, None, None].expand(-1, F, L).clone(),
        "labels_N": (values_N > 0).long(),
        "ids": tuple(f"u{row:02d}" for row in range(len(means))),
        "num_classes": 2,
        "box": BOX,
        "seed": 0,
    }
    return TestSet(**(fields | changes))


def attack_of(name: str = "pgd", epsilon: float = 0.3, **settings: Any) -> Attack:
    defaults: dict[str, Any] = {"pgd": {"steps": 10, "restarts": 1}, "bim": {"steps": 10}}.get(name, {})
    return build(AttackSettings(name=name, epsilon=epsilon, **(defaults | settings)))


def crafted(name: str, craft: Callable[[Problem], Tensor], epsilon: float = 0.3, steps: int | None = None) -> Attack:
    """An attack of the test's own."""
    entry = Entry(craft=craft, library="test", norm="inf", paper="")
    return Attack(settings=AttackSettings(name=name, epsilon=epsilon, steps=steps), entry=entry)


def to_the_edge(problem: Problem) -> Tensor:
    """Noise of one sign in all cells, at the edge of the ball, by a stream of each utterance."""
    signs = [torch.rand(1, generator=generator(problem.seed, key)) < 0.5 for key in problem.keys_B]
    steps_B = torch.where(torch.cat(signs), problem.settings.epsilon, -problem.settings.epsilon)
    return problem.clean + steps_B[:, None, None]


def benchmarked(test_set: TestSet, *attacks: Attack, defence: Any = None) -> list[AttackRecord]:
    defences = [NoDefence()] if defence is None else [NoDefence(), defence]
    return benchmark_attacks(test_set, attacks, defences, sweep=False)


def found(records: Sequence[AttackRecord], check: str) -> Any:
    """The doubts of one check, or that it had nothing to look at."""
    try:
        return list(checks.RECORD_CHECKS[check](records))
    except NotChecked as reason:
        return reason


def only(doubts: Any) -> Doubt:
    assert not isinstance(doubts, NotChecked), str(doubts)
    (doubt,) = doubts
    return doubt


def record(attack: str = "pgd", robust_uar: float = 0.3, **changes: Any) -> AttackRecord:
    """An honest record: 100 utterances of two classes."""
    values: dict[str, Any] = {
        **{"attack": attack, "library": "l", "knowledge": "undefended", "domain": "logmel", "norm": "inf"},
        **{"epsilon": 0.05, "snr_db": None, "steps": 10, "step_size": 0.0125, "restarts": 1, "eot_samples": 0},
        **{"defence": "none", "clean_uar": 0.7, "robust_uar": robust_uar, "attack_success_rate": 0.5},
        **{"mean_l2": 1.0, "max_linf": 0.05, "median_snr_db": None, "num_examples": 100},
        **{"forward_passes": 1000, "backward_passes": 1000, "seconds": 1.0, "seed": 0},
    }
    return AttackRecord(**(values | changes))


HONEST = [
    record("clean", 0.7, epsilon=None, norm="none", steps=None, forward_passes=0, backward_passes=0),
    record("fgsm", 0.4, steps=1),
    record("pgd", 0.3),
    record("pgd", 0.7, epsilon=0.0, attack_success_rate=0.0, max_linf=0.0),
    record("pgd", 0.1, epsilon=0.1),
    record("art:SquareAttack", 0.35, knowledge="score"),
    record("noise_uniform", 0.69, attack_success_rate=0.0, knowledge="undefended"),
    record("pgd", 0.5, defence="randomisation"),
    record("pgd", 0.32, defence="randomisation", knowledge="adaptive", eot_samples=20),
    record("worst_case", 0.28, steps=None, restarts=None),
]


# Checks of records.


def test_an_honest_benchmark_passes_every_check() -> None:
    sanity_report = check_records(HONEST)
    assert sanity_report.doubts == ()
    assert set(sanity_report.passed) == set(checks.RECORD_CHECKS)
    assert not sanity_report.not_checked


@pytest.mark.parametrize(
    ("check", "tripping"),
    [
        (EPSILON_0, record("bim", 0.69, epsilon=0.0)),
        (EPSILON_0, record("bim", 0.7, epsilon=0.0, attack_success_rate=0.0, max_linf=1e-6)),
        (BELOW_CLEAN, record("bim", 0.72)),
        (FALLS, record("pgd", 0.12, epsilon=0.2)),
        (FALLS, record("worst_case", 0.31, epsilon=0.1, steps=None, restarts=None)),
        (MANY_STEPS, record("fgsm", 0.27, steps=1)),
        (WHITE_BOX, record("art:HopSkipJump", 0.27, knowledge="decision")),
        (NOISE, record("noise_gaussian", 0.27)),
        (EXPECTATION, record("pgd", 0.5, defence="randomisation_ensemble")),
        (EXPECTATION, record("pgd", 0.5, defence="other", knowledge="adaptive", eot_samples=0)),
        (SUCCESS, record("bim", 0.7, attack_success_rate=0.0)),
    ],
)
def test_one_false_record_fails_its_check_alone(check: str, tripping: AttackRecord) -> None:
    doubts = check_records([*HONEST, tripping]).doubts
    assert {(doubt.check, doubt.severity) for doubt in doubts if doubt.severity == "fails"} == {(check, "fails")}
    doubt = next(doubt for doubt in doubts if doubt.check == check)
    assert doubt.defence == tripping.defence and doubt.attack is not None
    assert f"{tripping.robust_uar:.3f}" in doubt.words or check == SUCCESS


@pytest.mark.parametrize(
    ("check", "near"),
    [
        (BELOW_CLEAN, record("bim", 0.71)),
        (FALLS, record("pgd", 0.11, epsilon=0.2)),
        (MANY_STEPS, record("fgsm", 0.29, steps=1)),
        (WHITE_BOX, record("art:HopSkipJump", 0.29, knowledge="decision")),
        (NOISE, record("noise_gaussian", 0.29)),
    ],
)
def test_what_one_utterance_is_worth_is_no_doubt(check: str, near: AttackRecord) -> None:
    """A hundredth, of 100 utterances; half a point where the confusion matrix says that there are 1000."""
    assert not [doubt for doubt in found([*HONEST, near], check) if doubt.severity == "fails"]
    many = [replace(each, num_examples=1000, confusion=((250.0, 250.0), (250.0, 250.0))) for each in (*HONEST, near)]
    assert [doubt for doubt in found(many, check) if doubt.severity == "fails"]


@pytest.mark.parametrize("check", checks.RECORD_CHECKS)
def test_nothing_to_look_at_is_not_passed(check: str) -> None:
    assert isinstance(found([], check), NotChecked)


def test_what_cannot_be_compared_is_not() -> None:
    """Another norm, domain, defence or budget, or attackers that know different things."""
    fgsm = record("fgsm", 0.1, steps=1)
    for changes in (
        {"norm": "2"},
        {"domain": "waveform"},
        {"defence": "randomisation"},
        {"epsilon": 0.04},
        {"num_examples": 99},
        {"knowledge": "adaptive"},
    ):
        assert isinstance(found([record("pgd", 0.3, **changes), fgsm], MANY_STEPS), NotChecked), changes
    assert only(found([record("pgd", 0.3), fgsm], MANY_STEPS))


def test_the_black_box_on_other_utterances_hints_beyond_sampling() -> None:
    white = record("pgd", 0.4, num_examples=400)
    far = record("art:HopSkipJump", 0.1, knowledge="decision", num_examples=25)
    doubt = only(found([white, far], WHITE_BOX))
    assert doubt.severity == "hint" and "25" in doubt.words and "400" in doubt.words
    # Two standard errors of 0.25 on 25 utterances are 0.173.
    assert found([white, replace(far, robust_uar=0.25)], WHITE_BOX) == []
    assert only(found([white, replace(far, robust_uar=0.2)], WHITE_BOX)).severity == "hint"


def test_attacks_that_do_not_know_of_the_defence_hint_only() -> None:
    """A single step transfers better than many; what both lack is the knowledge of the defence."""
    hidden = [record("pgd", 0.5, defence="randomisation")]
    for check, weaker in (
        (MANY_STEPS, record("fgsm", 0.3, steps=1, defence="randomisation")),
        (WHITE_BOX, record("art:SquareAttack", 0.3, knowledge="score", defence="randomisation")),
        (NOISE, record("noise_uniform", 0.3, defence="randomisation")),
    ):
        doubt = only(found([*hidden, weaker], check))
        assert doubt.severity == "hint" and "does not know of the defence" in doubt.words
        known = [replace(each, knowledge="adaptive", eot_samples=8) for each in (*hidden, weaker)]
        if check != WHITE_BOX:
            assert only(found(known, check)).severity == "fails"


def test_snr_is_a_budget_that_grows_downwards() -> None:
    def wave(snr_db: float, robust_uar: float) -> AttackRecord:
        return record("pgd", robust_uar, domain="waveform", epsilon=None, snr_db=snr_db)

    assert found([wave(40, 0.5), wave(20, 0.3)], FALLS) == []
    doubt = only(found([wave(20, 0.5), wave(40, 0.3)], FALLS))
    assert "0.500 at an SNR of 20 dB" in doubt.words and doubt.severity == "fails"


def test_undefined_scores_raise_no_error() -> None:
    nan = float("nan")
    sanity_report = check_records([replace(each, robust_uar=nan, clean_uar=nan) for each in HONEST])
    assert len(sanity_report.passed) + len(sanity_report.not_checked) + len(sanity_report.failed) > 0


def test_attacks_that_may_have_had_no_chance_are_one_hint() -> None:
    weak = [record(name, 0.7, attack_success_rate=0.0, epsilon=0.001) for name in ("bim", "pgd")]
    doubt = only(found(weak, SUCCESS))
    assert doubt.severity == "hint" and "bim, pgd" in doubt.words
    grey_box = record("pgd", 0.7, attack_success_rate=0.0, defence="randomisation")
    assert found([*HONEST, grey_box], SUCCESS) == []


def test_a_success_elsewhere_may_be_an_accident() -> None:
    idle = record("bim", 0.7, attack_success_rate=0.0, num_examples=20)
    for rate, num_examples, severity in (
        (0.05, 100, "hint"),
        (0.5, 100, "fails"),
        (0.05, 20, "hint"),
        (0.1, 20, "fails"),
    ):
        other = record("pgd", 0.3, attack_success_rate=rate, num_examples=num_examples)
        assert only(found([idle, other], SUCCESS)).severity == severity


def test_a_longer_step_is_caught_by_no_ripple() -> None:
    """FGSM jumps over the ripple that BIM's small steps are caught in."""
    labels_N = torch.ones(3, dtype=torch.long)
    fgsm, caught = attack_of("fgsm", 0.8), attack_of("bim", 0.8, step_size=0.02)
    test_set = make_test_set(Rippled(), [0.0, 0.002, 0.004], labels_N=labels_N)
    doubt = only(found(benchmarked(test_set, fgsm, caught), MANY_STEPS))
    assert (doubt.attack, doubt.epsilon, doubt.severity) == ("fgsm", 0.8, "fails")
    assert "UAR 0.000" in doubt.words and "leaves 1.000" in doubt.words
    free = replace(test_set, model=Sign(), features_NFL=test_set.features_NFL + 0.1)
    assert found(benchmarked(free, fgsm, caught), MANY_STEPS) == []


@pytest.mark.filterwarnings("ignore:bim. a step size")
def test_a_step_that_overshoots_lets_uar_rise() -> None:
    """Behind the ripple's first crest, a larger budget ends on safe ground again."""

    class Wave(nn.Module):
        def forward(self, features_BFL: Tensor) -> Tensor:
            return two_classes(torch.cos(2 * torch.pi * features_BFL.mean(dim=(1, 2))))

    means = [0.05, 0.1, 0.15]
    for name, settings, severity in (
        ("fgsm", {}, "hint"),
        ("bim", {"steps": 2, "step_size": 1.0}, "fails"),
    ):
        test_set = make_test_set(Wave(), means, labels_N=torch.ones(3, dtype=torch.long))
        curve = [attack_of(name, epsilon, **settings) for epsilon in (0.4, 1.0)]
        doubt = only(found(benchmarked(test_set, *curve), FALLS))
        assert (doubt.severity, doubt.epsilon) == (severity, 1.0)
        assert found(benchmarked(replace(test_set, model=Sign()), *curve), FALLS) == []


def test_whoever_needs_no_gradient_breaks_what_hides_it() -> None:
    """Square and noise against PGD, on an input that is rounded; and on one that is not."""
    square = attack_of("art:SquareAttack", 0.3, steps=20)
    attacks = [attack_of("pgd", restarts=0), square, crafted("noise_uniform", to_the_edge)]
    hidden = benchmarked(make_test_set(Quantised()), *attacks)
    black, noise, idle = (only(found(hidden, check)) for check in (WHITE_BOX, NOISE, SUCCESS))
    assert (black.attack, black.severity) == ("art:SquareAttack", "fails")
    assert (noise.attack, noise.severity) == ("pgd", "fails")
    assert (idle.attack, idle.severity) == ("pgd", "fails")
    shown = benchmarked(make_test_set(Sign()), *attacks)
    for check in (WHITE_BOX, NOISE, SUCCESS):
        assert found(shown, check) == []


def test_a_randomised_defence_asks_for_an_attack_in_expectation() -> None:
    records = benchmarked(make_test_set(Sign()), attack_of("fgsm"), defence=Randomisation())
    doubt = only(found(records, EXPECTATION))
    assert doubt.defence == "randomisation" and "EOT" in doubt.words
    adaptive = replace(records[-1], attack="pgd", knowledge="adaptive", eot_samples=8)
    assert found([*records, adaptive], EXPECTATION) == []


def test_an_attack_that_helps_the_model_is_told() -> None:
    """Its sign is wrong: it moves every utterance deeper into its own class."""
    wrong_N = torch.tensor([0, 1] * 6)

    def help_on(problem: Problem) -> Tensor:
        towards_B = 2.0 * problem.labels_B - 1
        return problem.clean + problem.settings.epsilon * towards_B[:, None, None]

    test_set = make_test_set(Sign(), labels_N=wrong_N)
    assert only(found(benchmarked(test_set, crafted("helper", help_on)), BELOW_CLEAN)).severity == "fails"
    assert found(benchmarked(test_set, attack_of("pgd")), BELOW_CLEAN) == []


def test_a_clean_uar_that_is_too_good_hints_at_a_leak() -> None:
    test_set = make_test_set(Sign())
    assert only(found(benchmarked(test_set), PLAUSIBLE)).severity == "hint"
    assert found(benchmarked(replace(test_set, labels_N=torch.tensor([0, 1] * 6))), PLAUSIBLE) == []


# Probes of the model.


def probed(test_set: TestSet, *attacks: Attack, **settings: Any) -> SanityReport:
    return probe(test_set, attacks or [attack_of(restarts=2)], **settings)


def test_an_honest_model_passes_every_probe() -> None:
    sanity_report = probed(make_test_set(Sign()))
    assert sanity_report.doubts == ()
    assert set(sanity_report.passed) == set(probes.PROBES)


def outside_the_box() -> TestSet:
    return make_test_set(Sign(), [-2.5, -0.5, 0.5, 2.5])


TRIPPING: Mapping[str, tuple[Callable[[], TestSet], Callable[[], Attack], Sequence[str]]] = {
    SAME_ANSWER: (lambda: make_test_set(Random()), attack_of, ["draws random numbers", "12 utterances"]),
    NOTHING_MOVES: (outside_the_box, attack_of, ["moves 2 of 4 utterances"]),
    CHANCE: (lambda: make_test_set(Masked()), lambda: attack_of(restarts=0), ["UAR 1.000", "0.500"]),
    GRADIENTS: (lambda: make_test_set(Masked()), attack_of, ["12 of 12", "for 12 of them"]),
    STEPS: (
        lambda: make_test_set(Sign()),
        lambda: attack_of("bim", steps=2),
        ["4 steps of bim", "in place of 2"],
    ),
    RESTARTS: (
        lambda: make_test_set(Pits(), [0.0, 0.05, 0.1] * 8, labels_N=torch.ones(24, dtype=torch.long)),
        lambda: attack_of("pgd", 0.8, steps=5, step_size=0.005, restarts=2),
        ["4 restarts of pgd", "in place of 2"],
    ),
    LEFT: (
        lambda: make_test_set(Rippled(), [0.0, 0.002, 0.004], labels_N=torch.ones(3, dtype=torch.long)),
        lambda: attack_of("bim", 0.8, step_size=0.02),
        ["Of 3 utterances that bim", "breaks 3 and", "UAR 1.000, then 0.000"],
    ),
    SAVED: (lambda: make_test_set(Batchwise()), attack_of, ["utterances of pgd", "5 at a time"]),
}


@pytest.mark.parametrize("check", probes.PROBES)
def test_a_model_that_is_built_to_trip_a_probe_does(check: str) -> None:
    test_set, attack, words = TRIPPING[check]
    torch.manual_seed(0)
    doubts = [doubt for doubt in probed(test_set(), attack()).doubts if doubt.check == check]
    (doubt,) = doubts
    assert doubt.severity == "fails" and doubt.defence == "none"
    for word in words:
        assert word in doubt.words


def test_a_model_that_ignores_its_input_does_not_reach_chance() -> None:
    test_set = make_test_set(Answers(torch.tensor([0] * 6 + [1] * 6)))
    sanity_report = probed(test_set)
    assert CHANCE in sanity_report.failed and GRADIENTS in sanity_report.failed
    assert SAVED in sanity_report.failed  # the labels are known in their order


def test_noise_breaks_what_an_attack_without_gradients_left() -> None:
    (doubt,) = (
        doubt for doubt in probed(make_test_set(Quantised()), attack_of(restarts=0)).doubts if doubt.check == LEFT
    )
    assert "FGSM breaks 0 and" in doubt.words and doubt.severity == "fails"


def test_a_rounded_input_has_no_gradient_of_any_loss() -> None:
    (doubt,) = (doubt for doubt in probed(make_test_set(Quantised())).doubts if doubt.check == GRADIENTS)
    assert "neither has the margin" in doubt.words


def test_a_gradient_that_is_not_finite_is_none() -> None:
    class Root(Sign):
        def forward(self, features_BFL: Tensor) -> Tensor:
            return super().forward(features_BFL) + 0 * (features_BFL * (features_BFL > 0)).sqrt().sum()

    (doubt,) = (doubt for doubt in probed(make_test_set(Root())).doubts if doubt.check == GRADIENTS)
    assert "for 6 of 12 utterances" in doubt.words  # those below 0, where 0 * infinity is no number


def test_gradients_of_a_model_that_is_sure_of_some_are_a_hint() -> None:
    class Sure(Sign):
        def forward(self, features_BFL: Tensor) -> Tensor:
            return 25 * super().forward(features_BFL)

    (doubt,) = probed(make_test_set(Sure())).doubts
    # The gradient falls as exp(-50 |mean|): to 1e-6 of that at 0.1 from 0.38 on.
    assert (doubt.check, doubt.severity) == (GRADIENTS, "hint") and "6 of 12" in doubt.words


def test_one_utterance_more_is_a_hint_with_both_figures() -> None:
    """Two steps of a quarter reach 0.15, four reach 0.3: of these utterances, one lies between the two."""
    test_set = make_test_set(Sign(), [-0.9, -0.8, -0.2, 0.7, 0.8, 0.9])
    doubt = next(doubt for doubt in probed(test_set, attack_of("bim", steps=2)).doubts if doubt.check == STEPS)
    assert (doubt.check, doubt.severity, doubt.attack, doubt.epsilon) == (STEPS, "hint", "bim", 0.3)
    assert "from 1.000 to 0.833" in doubt.words and "1 more of 6" in doubt.words


def test_no_iterated_attack_leaves_probes_out() -> None:
    sanity_report = probed(make_test_set(Sign()), attack_of("fgsm"))
    assert set(sanity_report.passed) == {SAME_ANSWER, GRADIENTS}
    assert set(sanity_report.not_checked) == set(probes.PROBES) - set(sanity_report.passed)
    assert "no restarts" in probed(make_test_set(Sign()), attack_of("bim")).not_checked[RESTARTS]


def test_the_strongest_is_the_iterated_attack_that_harmed_most() -> None:
    fgsm, bim, pgd, far = attack_of("fgsm"), attack_of("bim"), attack_of(restarts=3), attack_of("bim", 0.9)
    deepfool = attack_of("deepfool")
    attacks = [fgsm, far, bim, pgd, deepfool]
    assert strongest(attacks) is pgd
    harmed = [record("bim", 0.2, epsilon=0.3), record("pgd", 0.3, epsilon=0.3), record("bim", 0.0, epsilon=0.9)]
    assert strongest(attacks, harmed) is bim
    assert strongest([fgsm, deepfool]) is None


def test_probes_look_at_a_subset_and_leave_the_model_as_it_was() -> None:
    test_set = make_test_set(Sign())
    test_set.model.train()
    told: list[tuple[str, int, int]] = []
    sanity_report = probed(
        test_set, attack_of("bim", steps=2), subset_size=6, on_check=lambda *given: told.append(given)
    )
    doubt = next(doubt for doubt in sanity_report.doubts if doubt.check == STEPS)
    assert " of 6 utterances" in doubt.words
    assert test_set.model.training
    assert told[0] == ("checks", 0, len(probes.PROBES)) and told[-1] == ("checks",) + (len(probes.PROBES),) * 2


def test_probes_work_under_inference_mode_and_on_what_was_made_there() -> None:
    with torch.inference_mode():
        sanity_report = probed(make_test_set(Sign()))
    assert sanity_report.doubts == ()


def test_one_examination_is_the_same_as_another() -> None:
    test_set, attacks = make_test_set(Masked()), [attack_of("fgsm"), attack_of()]
    records = benchmarked(test_set, *attacks)
    first, again = (check_records(records) + probe(test_set, attacks, records=records) for _ in range(2))
    assert first == again
    assert set(first.failed) | set(first.hinted) | set(first.passed) | set(first.not_checked) == {
        *checks.RECORD_CHECKS,
        *probes.PROBES,
    }


# Where it lies, and who reads it.

DOUBTED = SanityReport(
    doubts=(
        Doubt(check="a < b", words="PGD leaves 0.3 & more.", attack="pgd", epsilon=0.1, defence="none"),
        Doubt(check="a < b", words="So does BIM [bold]."),
        Doubt(check="c", words="Perhaps.", severity="hint"),
    ),
    passed=("d", "e"),
    not_checked={"f": "nothing ran"},
)


def test_an_examination_comes_back_with_the_records_untouched(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_sanity_report(run) is None
    run.write_attacks(HONEST)
    assert read_sanity_report(run) is None
    write_sanity_report(run, DOUBTED)
    assert read_sanity_report(run) == DOUBTED
    assert run.read_attacks() == HONEST
    content = json.loads(run.attacks.read_text())
    assert content["checks"]["doubts"][0]["words"] == "PGD leaves 0.3 & more."
    run.write_attacks(HONEST)  # another benchmark, without checks
    assert read_sanity_report(run) is None


@pytest.mark.parametrize("checks_given", [[], {"doubts": [{}], "passed": [], "not_checked": {}}, {"doubts": []}])
def test_checks_of_another_form_are_refused(tmp_path: Path, checks_given: Any) -> None:
    run = RunFolder(tmp_path)
    run.attacks.write_text(json.dumps({"schema": 1, "records": [], "checks": checks_given}))
    with pytest.raises(UserError, match="incomplete checks"):
        read_sanity_report(run)


def test_the_headline_counts_checks_not_doubts() -> None:
    assert (DOUBTED.failed, DOUBTED.hinted) == (("a < b",), ("c",))
    assert "4 checks" in DOUBTED.headline and "1 fails, 1 with a hint, 2 passed; 1 had" in DOUBTED.headline


def test_the_terminal_says_each_doubt_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    run.write_attacks([])
    print_sanity_report(run)
    assert capsys.readouterr().out == ""
    write_sanity_report(run, DOUBTED)
    print_sanity_report(run)
    printed = capsys.readouterr().out
    assert "fails: a < b: figures of this benchmark are in doubt\n" in printed, "a check of a later version"
    assert DOUBTED.headline in printed and "fails: a < b. PGD leaves 0.3 & more." in printed
    assert "fails: a < b. So does BIM [bold]." in printed and "hint: c. Perhaps." in printed


def test_every_check_says_what_it_means_where_it_fails() -> None:
    named = {*checks.RECORD_CHECKS, *probes.PROBES, *ENROLMENT_CHECKS}
    assert set(MEANINGS) == named and len(set(MEANINGS.values())) == len(named)
    found = SanityReport(
        doubts=(Doubt(check=CHANCE, words="x"), Doubt(check=SAVED, words="y", severity="hint")),
        passed=(),
        not_checked={},
    )
    assert list(failures_in_words(found)) == [
        f"fails: {CHANCE}: {MEANINGS[CHANCE]}",
        f"hint: {SAVED}: perhaps {MEANINGS[SAVED]}",
    ]


def test_checks_of_records_load_no_torch() -> None:
    program = "import ser_fl.robustness.sanity_checks.records, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
