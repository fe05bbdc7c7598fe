"""Expectation over a defence's randomness: exact, sampled, fixed; and a gradient for a defence that has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.expectation import expectation_of
from ser_fl.attacks.losses import Loss, cross_entropy, margin
from ser_fl.attacks.registry import ATTACKS, AttackSettings, build
from ser_fl.attacks.target import Expectation, Passes, Target, attacked
from ser_fl.attacks.threat_model import Box
from ser_fl.defences import (
    DEFENCES,
    Defence,
    ExpectedRandomisation,
    NoDefence,
    Quantisation,
    Randomisation,
    build_defence,
)
from ser_fl.defences.randomisation import apply_patterns, patterns
from ser_fl.errors import UserError

BINS, FRAMES, CLASSES, NUM = 6, 20, 3, 6
KEYS = [f"{row}.wav" for row in range(NUM)]


class PlaceNet(nn.Module):
    """Every cell has weights of its own, so that a perturbation for one placement says nothing about another."""

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        self.hidden = nn.Parameter(torch.randn(16, BINS + 2, FRAMES + 7, generator=stream) / 10)
        self.output = nn.Parameter(torch.randn(CLASSES, 16, generator=stream))

    def forward(self, features_BFL: Tensor) -> Tensor:
        _, num_bins, num_frames = features_BFL.shape
        hidden = torch.einsum("bfl,hfl->bh", features_BFL, self.hidden[:, :num_bins, :num_frames])
        return hidden.tanh() @ self.output.T


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A defence of someone else: it has draws, and lists nothing."""

    name: str = "unlisted"
    num_draws: int = 3
    run_weights: tuple[float, ...] = (1 / 3,) * 3
    outcome_weights: None = None
    approximation: None = None

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        return Randomisation().transform(features_BFL, keys_B, seed=seed, draw=draw)

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        raise NotImplementedError

    def predict(self, model: object, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        raise NotImplementedError


NET = PlaceNet()
FEATURES = torch.randn(NUM, BINS, FRAMES, generator=torch.Generator().manual_seed(5))


def known(defence: Defence | None = None, samples: int | None = None, seed: int = 1) -> Expectation:
    expectation = expectation_of(defence or Randomisation(), seed=seed, samples=samples)
    assert expectation is not None
    return expectation


def target(expectation: Expectation | None, keys: Sequence[str] = KEYS) -> Target:
    return Target(network=NET, keys_B=keys, passes=Passes(), expectation=expectation)


with torch.no_grad():
    LABELS = target(known())(FEATURES).argmax(1)


def generate(expectation: Expectation | None, name: str = "pgd", batch_size: int = 4, **settings: float) -> Crafted:
    attack = build(AttackSettings(name=name, **({"epsilon": 0.3} | settings)))  # type: ignore[arg-type]
    return made_by(
        attack,
        NET,
        FEATURES,
        LABELS,
        box=None,
        num_classes=CLASSES,
        keys_B=KEYS,
        seed=1,
        batch_size=batch_size,
        expectation=expectation,
    )


@pytest.mark.parametrize("loss", [cross_entropy, margin])
@pytest.mark.parametrize("name", ["randomisation", "randomisation_expected", "randomisation_ensemble"])
def test_the_exact_answer_is_the_sum_over_all_patterns(name: str, loss: Loss) -> None:
    """Forward and backward pattern by pattern, by plain autograd."""
    inputs = FEATURES.clone().requires_grad_()
    listed = patterns(FRAMES, BINS)
    logits = [NET(apply_patterns(inputs, [pattern] * NUM)) for pattern in listed]
    weights = [pattern.probability for pattern in listed]
    loss_B = torch.stack([w * loss(one, LABELS) for w, one in zip(weights, logits, strict=True)]).sum(0)
    (gradient,) = torch.autograd.grad(loss_B.sum(), inputs)
    right_B = torch.stack([w * (one.argmax(1) == LABELS) for w, one in zip(weights, logits, strict=True)]).sum(0)
    mean_BC = torch.stack([w * one.log_softmax(1) for w, one in zip(weights, logits, strict=True)]).sum(0)

    questioned = target(known(build_defence(name)))
    with attacked(NET):
        answer = questioned.answer(FEATURES, LABELS, loss, step=3)
    torch.testing.assert_close(answer.gradient, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer.loss_B, loss_B.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer.right_B, right_B, atol=1e-5, rtol=0)
    torch.testing.assert_close(answer.logits_BC, mean_BC.detach(), atol=1e-5, rtol=1e-5)
    assert (questioned.passes.forward, questioned.passes.backward) == (84 * NUM, 84 * NUM)
    assert 0.05 < float(right_B.min()) < float(right_B.max()) < 0.95, "the example must be random"

    judged, right = questioned.score(FEATURES, LABELS, loss, step=8)
    torch.testing.assert_close(right, answer.right_B)
    torch.testing.assert_close(judged, answer.loss_B)
    assert (questioned.passes.forward, questioned.passes.backward) == (168 * NUM, 84 * NUM)


def test_without_a_defence_an_answer_is_plain_autograd() -> None:
    inputs = FEATURES.clone().requires_grad_()
    loss_B = F.cross_entropy(NET(inputs), LABELS, reduction="none")
    (gradient,) = torch.autograd.grad(loss_B.sum(), inputs)
    questioned = target(expectation_of(NoDefence(), seed=1, samples=None))
    with attacked(NET):
        answer = questioned.answer(FEATURES, LABELS, cross_entropy)
    torch.testing.assert_close(answer.gradient, gradient)
    assert torch.equal(answer.loss_B, loss_B.detach())
    assert torch.equal(answer.right_B, (NET(FEATURES).argmax(1) == LABELS).float())
    assert (questioned.passes.forward, questioned.passes.backward) == (NUM, NUM)


def many_draws(defence: Defence, samples: int, copies: int = 250) -> Tensor:
    """Losses of each utterance under many keys, and so under draws of their own: shape (copies, NUM)."""
    keys = [f"{copy}/{key}" for copy in range(copies) for key in KEYS]
    questioned = target(known(defence, samples), keys)
    loss, _ = questioned.score(FEATURES.repeat(copies, 1, 1), LABELS.repeat(copies), cross_entropy, step=3)
    return loss.unflatten(0, (copies, NUM))


@pytest.mark.parametrize(("defence", "samples"), [(Randomisation(), 1), (Randomisation(), 5), (Unlisted(), 2)])
def test_sampled_answers_are_unbiased(defence: Defence, samples: int) -> None:
    """The mean over many draws is the exact answer, within what their spread allows."""
    exact, _ = target(known()).score(FEATURES, LABELS, cross_entropy)
    drawn = many_draws(defence, samples)
    assert ((drawn.mean(0) - exact).abs() <= 4 * drawn.std(0) / len(drawn) ** 0.5).all()
    assert (drawn.std(0) > 0.01).all(), "draws must differ"


def test_steps_draw_anew_without_bias() -> None:
    exact, _ = target(known()).score(FEATURES, LABELS, cross_entropy)
    questioned = target(known(samples=4))
    drawn = torch.stack([questioned.score(FEATURES, LABELS, cross_entropy, step=step)[0] for step in range(60)])
    assert ((drawn.mean(0) - exact).abs() <= 4 * drawn.std(0) / len(drawn) ** 0.5).all()
    assert (drawn.std(0) > 0.01).all()


def test_draws_among_listed_outcomes_vary_less_than_independent_ones() -> None:
    listed, independent = (many_draws(defence, 8).var(0).mean() for defence in (Randomisation(), Unlisted()))
    assert listed < 0.9 * independent


def test_listed_outcomes_are_drawn_as_often_as_they_are_probable() -> None:
    counted: Counter[int] = Counter()

    class Counting(Randomisation):
        def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
            counted.update(number for numbers in numbers_KB for number in numbers)
            return features_BFL

    expectation = known(Counting(), 16)
    for step in range(1000):
        expectation.transform(FEATURES[:1], KEYS[:1], step=step, draws=range(16))
    listed = patterns(FRAMES, BINS)
    assert counted.keys() == set(range(84))
    for number, pattern in enumerate(listed):
        expected = 16_000 * pattern.probability
        assert abs(counted[number] - expected) < 5 * expected**0.5


@pytest.mark.parametrize("defence", [Randomisation(), Unlisted()])
def test_draws_are_common_to_what_is_compared_and_hang_on_no_batch(defence: Defence) -> None:
    expectation = known(defence, 5)
    shown = expectation.transform(FEATURES, KEYS, step=2, draws=range(5)).unflatten(0, (5, NUM))
    assert torch.equal(shown.flatten(0, 1), expectation.transform(FEATURES, KEYS, step=2, draws=range(5)))
    torch.testing.assert_close(
        shown[3:], expectation.transform(FEATURES, KEYS, step=2, draws=[3, 4]).unflatten(0, (2, NUM))
    )
    order = [4, 0, 2]
    some = expectation.transform(FEATURES[order], [KEYS[row] for row in order], step=2, draws=range(5))
    torch.testing.assert_close(some.unflatten(0, (5, 3)), shown[:, order])
    later = expectation.transform(FEATURES, KEYS, step=3, draws=range(5)).unflatten(0, (5, NUM))
    other = known(defence, 5, seed=2).transform(FEATURES, KEYS, step=2, draws=range(5)).unflatten(0, (5, NUM))
    for different in (later, other):
        assert not any(torch.equal(different[:, row], shown[:, row]) for row in range(NUM))
    same = expectation.transform(FEATURES[:1].expand(NUM, -1, -1), KEYS, step=2, draws=range(5)).unflatten(0, (5, NUM))
    assert not torch.equal(same[:, 0], same[:, 1]), "each utterance has draws of its own"


@pytest.mark.parametrize("defence", [Randomisation(), Unlisted()])
def test_the_attacker_does_not_know_the_defences_draws(defence: Defence) -> None:
    ours = known(defence, 3).transform(FEATURES, KEYS, step=0, draws=range(3))
    theirs = torch.cat([defence.transform(FEATURES, KEYS, seed=1, draw=draw) for draw in range(3)])
    # Of 18 pairs of patterns some may be alike by chance.
    assert sum(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)) < 5


def test_with_fixed_randomness_the_attack_succeeds() -> None:
    """The first thing to try: against draws that are known, seen by the defence's own prediction."""
    defence = Randomisation(num_draws=2)
    expectation = expectation_of(defence, seed=9, samples=None, fixed=[1])
    crafted = generate(expectation)
    clean, votes = (defence.predict(NET, shown, KEYS, seed=9) for shown in (FEATURES, crafted.adversarial_NFL))
    assert int((clean[1] == LABELS).sum()) >= 2
    assert (votes[1] != LABELS).all()
    pattern = ExpectedRandomisation()
    crafted = generate(expectation_of(pattern, seed=9, samples=None, fixed=[17]))
    assert (pattern.predict(NET, crafted.adversarial_NFL, KEYS, seed=9)[17] != LABELS).all()


def test_the_adaptive_attack_beats_what_does_not_survive_the_randomisation() -> None:
    judge = target(known())
    clean = float(judge.right(FEATURES, LABELS).mean())
    settings = {"steps": 15, "restarts": 1}
    rates = [
        float(judge.right(generate(expectation, **settings).adversarial_NFL, LABELS).mean())
        for expectation in (None, known(), known(samples=16))
    ]
    assert rates[0] > 0.8 * clean
    assert rates[1] < 0.5 * clean
    assert rates[2] < 0.5 * clean


@pytest.mark.parametrize("name", ["pgd", "fgsm", "bim", "deepfool", "art:MomentumIterativeMethod"])
def test_every_gradient_attack_takes_the_expectation_whatever_the_batch(name: str) -> None:
    """ART's classes question the same target, an utterance at a time."""
    settings = {} if name == "fgsm" else {"steps": 4}
    judge, expectation = target(known()), known(samples=8)
    crafted = generate(expectation, name, epsilon=0.4, **settings)
    assert judge.right(crafted.adversarial_NFL, LABELS).mean() < judge.right(FEATURES, LABELS).mean()
    assert not torch.equal(crafted.adversarial_NFL, generate(None, name, epsilon=0.4, **settings).adversarial_NFL)
    other = generate(expectation, name, epsilon=0.4, batch_size=3, **settings)
    torch.testing.assert_close(other.adversarial_NFL, crafted.adversarial_NFL, atol=1e-5, rtol=0)
    assert build(AttackSettings(name=name, epsilon=0.4)).knowledge_of(expectation) == "adaptive"


def test_arts_classes_are_attacked_in_expectation() -> None:
    """One step of ART's momentum method goes where the mean of log-probabilities falls."""
    crafted = generate(known(), "art:MomentumIterativeMethod", steps=1, step_size=0.3)
    inputs = FEATURES.clone().requires_grad_()
    loss = F.cross_entropy(target(known())(inputs), LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    clear = gradient.abs() > 1e-5
    assert torch.equal((crafted.adversarial_NFL - FEATURES).sign()[clear], gradient.sign()[clear])


@pytest.mark.parametrize(("name", "steps"), [("bim", 5), ("fgsm", 1)])
def test_passes_are_those_of_every_draw(name: str, steps: int) -> None:
    settings = {} if name == "fgsm" else {"steps": steps}
    crafted = generate(known(samples=16), name, **settings)
    assert crafted.forward_passes == crafted.backward_passes == 16 * steps * NUM
    crafted = generate(known(), "art:MomentumIterativeMethod", steps=2)
    assert crafted.backward_passes == 84 * 2 * NUM
    assert crafted.forward_passes % 84 == 0


@pytest.mark.parametrize("name", ["art:SquareAttack", "art:HopSkipJump"])
def test_an_attack_without_gradients_cannot_be_adaptive(name: str) -> None:
    attack, box = build(AttackSettings(name=name, epsilon=0.1)), Box(torch.tensor(-9.0), torch.tensor(9.0))
    with pytest.raises(UserError, match=r"sees no gradient \((score|decision)\)"):
        made_by(
            attack,
            NET,
            FEATURES,
            LABELS,
            box=box,
            num_classes=CLASSES,
            keys_B=KEYS,
            seed=1,
            batch_size=4,
            expectation=known(),
        )
    assert build(AttackSettings(name=name, epsilon=0.1)).knowledge_of(None) in ("score", "decision")


def test_a_knowledge_for_every_attack_of_the_catalogue() -> None:
    for name, entry in ATTACKS.items():
        attack = build(AttackSettings(name=name, epsilon=0.1))
        assert attack.knowledge_of(None) == entry.knowledge
        if entry.knowledge == "undefended":
            assert attack.knowledge_of(known()) == "adaptive"
        elif entry.adaptive:  # asks the defended model, and still sees no gradient
            assert attack.knowledge_of(known()) == entry.knowledge
        else:
            with pytest.raises(UserError, match=f"{name} sees no gradient"):
                attack.knowledge_of(known())


def test_what_cannot_be_expected_is_refused() -> None:
    with pytest.raises(UserError, match="the outcomes of unlisted cannot be listed: take a number of samples"):
        expectation_of(Unlisted(), seed=1, samples=None)
    with pytest.raises(UserError, match="EOT samples must be 1 or more, or none for the exact expectation, got 0"):
        expectation_of(Randomisation(), seed=1, samples=0)
    for samples, fixed in ((3, [1]), (None, [])):
        with pytest.raises(UserError, match="fixed needs one draw or more and no samples"):
            expectation_of(Randomisation(), seed=1, samples=samples, fixed=fixed)


@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_every_defence_has_an_expectation_whose_outcomes_are_what_it_shows(name: str) -> None:
    defence = build_defence(name)
    expectation = expectation_of(defence, seed=1, samples=None)
    if name == "none":
        assert expectation is None
        assert expectation_of(defence, seed=1, samples=16) is None
        return
    assert expectation is not None
    assert sum(expectation.weights) == pytest.approx(1)
    assert defence.outcome_weights == tuple(expectation.weights)
    shown = expectation.transform(FEATURES, KEYS, step=0, draws=[0])
    assert shown.shape == defence.transform(FEATURES, KEYS, seed=1, draw=0).shape
    if len(expectation.weights) == 1:
        assert torch.equal(shown, defence.transform(FEATURES, KEYS, seed=1, draw=0))
        assert expectation_of(defence, seed=1, samples=16) == expectation, "one outcome is one pass"


class Unhelped(Quantisation):
    """An attacker who differentiates the rounding itself."""

    @property
    def approximation(self) -> None:  # type: ignore[override]
        return None


def test_a_rounding_stops_a_plain_gradient_and_no_straight_through_one() -> None:
    defence = Quantisation(step=0.5)
    labels = defence.predict(NET, FEATURES, KEYS, seed=0)[0]
    plain, straight = (known(one) for one in (Unhelped(step=0.5), defence))
    with attacked(NET):
        inputs = FEATURES.clone().requires_grad_()
        (expected,) = torch.autograd.grad(
            F.cross_entropy(NET(defence.transform(inputs, KEYS, seed=0, draw=0)), labels), inputs
        )
        assert not target(plain).answer(FEATURES, labels, cross_entropy).gradient.any()
        rounded = (FEATURES / 0.5).round() * 0.5
        answer = target(straight).answer(FEATURES, labels, cross_entropy)
        at_rounded = target(None).answer(rounded, labels, cross_entropy)
    assert not expected.any()
    torch.testing.assert_close(answer.gradient, at_rounded.gradient)
    torch.testing.assert_close(answer.loss_B, at_rounded.loss_B)

    attack = build(AttackSettings(name="pgd", epsilon=0.4, steps=10, restarts=0))
    right = []
    for expectation in (plain, straight):
        crafted = made_by(
            attack,
            NET,
            FEATURES,
            labels,
            box=None,
            num_classes=CLASSES,
            keys_B=KEYS,
            seed=1,
            batch_size=4,
            expectation=expectation,
        )
        right.append(int((defence.predict(NET, crafted.adversarial_NFL, KEYS, seed=0)[0] == labels).sum()))
    assert right == [NUM, 0]


def test_a_forward_pass_through_a_rounding_is_exact() -> None:
    features = torch.randn(4, 64, 100) * 3
    shown = known(Quantisation()).transform(features.requires_grad_(), ["a"] * 4, step=0, draws=[0])
    assert torch.equal(shown, Quantisation().transform(features, ["a"] * 4, seed=0, draw=0))


def test_a_median_is_differentiated_as_it_is() -> None:
    defence = build_defence("smoothing")
    labels = defence.predict(NET, FEATURES, KEYS, seed=0)[0]
    inputs = FEATURES.clone().requires_grad_()
    loss = F.cross_entropy(NET(defence.transform(inputs, KEYS, seed=0, draw=0)), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    with attacked(NET):
        answer = target(known(defence)).answer(FEATURES, labels, cross_entropy)
    torch.testing.assert_close(answer.gradient, gradient)
    assert gradient.any()


def test_a_subset_of_a_victim_draws_as_the_whole() -> None:
    whole, rows = target(known(samples=6)), torch.tensor([5, 1])
    loss, right = whole.score(FEATURES, LABELS, cross_entropy, step=4)
    some_loss, some_right = whole.subset(rows).score(FEATURES[rows], LABELS[rows], cross_entropy, step=4)
    torch.testing.assert_close(some_right, right[rows])
    torch.testing.assert_close(some_loss, loss[rows])


@pytest.mark.parametrize(
    "name", [name for name, entry in ATTACKS.items() if entry.warm and entry.min_classes <= CLASSES]
)
def test_a_larger_budget_that_starts_at_a_smaller_ones_result_loses_nothing(name: str) -> None:
    expectation = known()
    smaller = generate(expectation, "bim", epsilon=0.2, steps=8).adversarial_NFL
    attack = build(AttackSettings(name=name, epsilon=0.21, steps=1, step_size=0.01))
    larger = made_by(
        attack,
        NET,
        FEATURES,
        LABELS,
        box=None,
        num_classes=CLASSES,
        keys_B=KEYS,
        seed=1,
        batch_size=4,
        expectation=expectation,
        start_BFL=smaller,
    ).adversarial_NFL
    before, after = (target(expectation).score(each, LABELS, cross_entropy) for each in (smaller, larger))
    assert (after[1] <= before[1] + 1e-6).all()
    assert (after[1] < target(expectation).right(FEATURES, LABELS)).any()
    if "step_size" in ATTACKS[name].settable:
        assert ((larger - smaller).abs().amax((1, 2)) <= 0.01 + 1e-6).all(), "one step from where the smaller one ended"
