"""AutoPGD: the optimum where it is known, PGD as the bar where it is not, and expectations that are compared fairly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import import_art
from ser_fl.attacks.art.evasion import AutoPGD
from ser_fl.attacks.autopgd import autopgd, checkpoints, likeliest_wrong_classes
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.losses import (
    Loss,
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
)
from ser_fl.attacks.pgd import pgd
from ser_fl.attacks.registry import AttackSettings, build
from ser_fl.attacks.target import BestAdversarial, Passes, Target, attacked
from ser_fl.attacks.threat_model import Ball, Box
from ser_fl.errors import UserError

BINS, FRAMES, CLASSES = 6, 8, 5
BOX = Box(torch.linspace(-2.0, -1.5, BINS)[:, None], torch.linspace(1.5, 2.5, BINS)[:, None])
NAMES = ["apgd_ce", "apgd_dlr", "apgd_t"]


def linear(num_classes: int = CLASSES, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(BINS * FRAMES, num_classes)).requires_grad_(False)


def convolutional(seed: int = 5) -> nn.Sequential:
    """A small network with kinks, whose logits are far apart."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Unflatten(1, (1, BINS)),
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * BINS * FRAMES, CLASSES)),
    )
    with torch.no_grad():
        network[-1].weight.mul_(8)
    return network.requires_grad_(False)


def utterances(model: nn.Module, number: int = 8, seed: int = 7) -> tuple[Tensor, Tensor]:
    features = BOX.clip(torch.randn(number, BINS, FRAMES, generator=torch.Generator().manual_seed(seed)))
    return features, model(features).argmax(1)


def keys(number: int) -> list[str]:
    return [f"utterance {row}" for row in range(number)]


def climb(
    model: nn.Module,
    features: Tensor,
    labels: Tensor,
    radius: float | Tensor,
    *,
    norm: str = "inf",
    loss: Loss = cross_entropy,
    steps: int = 20,
    box: Box = BOX,
    start: Tensor | None = None,
) -> tuple[Tensor, Passes]:
    passes = Passes()
    radius_B = radius if isinstance(radius, Tensor) else torch.full((len(features),), radius)
    target = Target(network=model, keys_B=keys(len(features)), passes=passes)
    with attacked(model):
        ball = Ball(features, radius_B, norm)  # type: ignore[arg-type]
        return autopgd(target, ball, labels, loss=loss, steps=steps, box=box, start=start), passes


def generate(name: str, model: nn.Module, features: Tensor, labels: Tensor, epsilon: float, **more: int) -> Crafted:
    attack = build(AttackSettings(name=name, epsilon=epsilon, **more))
    return made_by(
        attack, model, features, labels, box=BOX, num_classes=CLASSES, keys_B=keys(len(labels)), seed=1, batch_size=5
    )


def test_checkpoints_are_those_of_the_paper() -> None:
    """p = 0, 0.22, then each gap 0.03 smaller and at least 0.06, times the number of steps, rounded up."""
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(50) == (11, 21, 29, 35, 40, 44, 47)
    assert checkpoints(1) == ()


@pytest.mark.parametrize("loss", [cross_entropy, difference_of_logits_ratio, margin])
def test_two_classes_and_a_linear_model_end_at_the_exact_optimum(loss: Loss) -> None:
    """In the ball, margin = clean margin - epsilon * |w|_1: with as many cells as the box leaves free."""
    model = linear(2 if loss is not difference_of_logits_ratio else 3)
    features, labels = utterances(model)
    weight = model[1].weight
    if loss is difference_of_logits_ratio:  # a third class that is never near
        weight[2].zero_()
        model[1].bias[2] = -100.0
        labels = model(features).argmax(1)
    direction = torch.stack([(weight[1 - label] - weight[label]).view(BINS, FRAMES) for label in labels.tolist()])
    best = BOX.clip(features + 0.1 * direction.sign())
    found, _ = climb(model, features, labels, 0.1, loss=loss)
    assert torch.allclose(margin(model(found), labels), margin(model(best), labels), atol=1e-5)
    unbounded, _ = climb(model, features, labels, 0.1, loss=loss, box=Box.unbounded())
    worst = margin(model(features), labels) + 0.1 * direction.abs().sum((1, 2))
    assert torch.allclose(margin(model(unbounded), labels), worst, atol=1e-5)


def test_in_the_l2_ball_a_linear_model_falls_along_its_weights() -> None:
    model = linear(2)
    features, labels = utterances(model)
    length = (model[1].weight[0] - model[1].weight[1]).norm()
    radius = torch.linspace(0.05, 0.8, len(labels))
    found, _ = climb(model, features, labels, radius, norm="2", loss=margin, steps=30, box=Box.unbounded())
    assert torch.allclose(margin(model(found), labels), margin(model(features), labels) + radius * length, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_not_below_that_of_pgd(epsilon: float, seed: int) -> None:
    """At as many steps from the same start; utterance by utterance PGD may be luckier, by little."""
    model = convolutional(seed)
    features, labels = utterances(model, 24, seed)
    found, passes = climb(model, features, labels, epsilon, steps=40)
    peer = pgd(model, features, labels, epsilon=epsilon, step_size=epsilon / 4, steps=40, box=BOX)
    mine, theirs = (cross_entropy(model(made), labels) for made in (found, peer))
    assert mine.mean() >= theirs.mean()
    assert (mine >= 0.95 * theirs).all()
    assert (passes.forward, passes.backward) == (41 * 24, 40 * 24)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_every_utterance_keeps_to_its_own_ball_and_to_the_box(norm: str) -> None:
    model = convolutional()
    features, labels = utterances(model)
    radius = torch.linspace(0.0, 1.5, len(labels))
    start = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    found, _ = climb(model, features, labels, radius, norm=norm, start=start)
    length = torch.linalg.vector_norm((found - features).flatten(1), ord=float(norm), dim=1)
    assert (length <= radius + 1e-6).all()
    assert (length[1:] > 0.5 * radius[1:]).all()
    assert torch.equal(found[0], features[0])
    assert torch.equal(found, BOX.clip(found))


def test_samples_are_moved_as_well_as_features() -> None:
    """Another shape, a box of two numbers, and each utterance's own step sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12), nn.Tanh(), nn.Linear(12, CLASSES)).requires_grad_(False)
    waveform = torch.rand(6, 40) * 2 - 1
    labels = model(waveform).argmax(1)
    box = Box(torch.tensor(-1.0), torch.tensor(1.0))
    together, _ = climb(model, waveform, labels, torch.linspace(0.05, 0.3, 6), box=box)
    alone = [
        climb(
            model, waveform[row : row + 1], labels[row : row + 1], torch.linspace(0.05, 0.3, 6)[row : row + 1], box=box
        )
        for row in range(6)
    ]
    assert torch.allclose(together, torch.cat([made for made, _ in alone]), atol=1e-6)
    assert together.abs().max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_neither_batch_nor_order_matters_and_epsilon_zero_is_clean(name: str) -> None:
    model = convolutional()
    features, labels = utterances(model, 6)
    attack = build(AttackSettings(name=name, epsilon=0.1, steps=12, restarts=2))

    def run(rows: list[int], batch_size: int) -> Tensor:
        crafted = made_by(
            attack,
            model,
            features[rows],
            labels[rows],
            box=BOX,
            num_classes=CLASSES,
            keys_B=[keys(6)[row] for row in rows],
            seed=1,
            batch_size=batch_size,
        )
        return crafted.adversarial_NFL[torch.tensor(np.argsort(rows))]

    once = run([0, 1, 2, 3, 4, 5], 6)
    assert not torch.equal(once, features)
    assert torch.allclose(once, run([0, 1, 2, 3, 4, 5], 1), atol=1e-5)
    assert torch.allclose(once, run([4, 2, 0, 5, 1, 3], 4), atol=1e-5)
    still = generate(name, model, features, labels, 0.0)
    assert torch.equal(still.adversarial_NFL, features)


def test_only_what_is_still_recognised_is_attacked_again() -> None:
    """Of a linear model all that can be broken falls to the first start."""
    model = linear()
    features, labels = utterances(model, 10)
    one = generate("apgd_ce", model, features, labels, 0.05, steps=5, restarts=1)
    three = generate("apgd_ce", model, features, labels, 0.05, steps=5, restarts=3)
    left = int((model(one.adversarial_NFL).argmax(1) == labels).sum())
    assert 0 < left < 10
    assert one.backward_passes == 5 * 10
    assert three.backward_passes == 5 * (10 + 2 * left)
    broken = model(one.adversarial_NFL).argmax(1) != labels
    assert torch.equal(three.adversarial_NFL[broken], one.adversarial_NFL[broken])


def test_another_start_never_takes_away_what_one_has_found() -> None:
    model = convolutional()
    features, labels = utterances(model, 16)
    found = [generate("apgd_ce", model, features, labels, 0.03, steps=2, restarts=count) for count in (1, 2, 4)]
    one, two, four = (margin(model(crafted.adversarial_NFL), labels) for crafted in found)
    assert (two >= one).all() and (four >= two).all()
    assert (four > one).any()


def test_targets_find_what_cross_entropy_passes_by() -> None:
    """Of a linear model each target's optimum is known, and the worst of them is the worst there is."""
    model = linear()
    features, labels = utterances(model, 40)
    weight = model[1].weight.view(CLASSES, BINS, FRAMES)
    reach = []
    for other in range(CLASSES):
        best = BOX.clip(features + 0.03 * (weight[other] - weight[labels]).sign())
        logits = model(best)
        reach.append(logits[:, other] - logits.gather(1, labels[:, None])[:, 0])
    worst = torch.stack(reach, dim=1).scatter(1, labels[:, None], -torch.inf).amax(1)
    targeted = generate("apgd_t", model, features, labels, 0.03, steps=10)
    broken = model(targeted.adversarial_NFL).argmax(1) != labels
    assert torch.equal(broken, worst > 0)
    assert 0 < int(broken.sum()) < 40
    clean = model(features).argsort(dim=1, descending=True)
    assert torch.equal(likeliest_wrong_classes(model(features), labels), clean[:, 1:])


def test_an_attack_may_begin_at_a_point_that_it_is_given() -> None:
    """The point is a success already, and nothing else is inside so small a number of steps."""
    model = convolutional()
    features, labels = utterances(model, 6)
    attack = build(AttackSettings(name="apgd_ce", epsilon=0.5, steps=1))
    settled = generate("apgd_ce", model, features, labels, 0.5, steps=40).adversarial_NFL
    crafted = made_by(
        attack,
        model,
        features,
        labels,
        box=BOX,
        num_classes=CLASSES,
        keys_B=keys(6),
        seed=1,
        batch_size=2,
        start_BFL=settled,
    )
    assert (margin(model(crafted.adversarial_NFL), labels) >= margin(model(settled), labels)).all()
    cold = made_by(attack, model, features, labels, box=BOX, num_classes=CLASSES, keys_B=keys(6), seed=1, batch_size=2)
    assert margin(model(cold.adversarial_NFL), labels).mean() < margin(model(crafted.adversarial_NFL), labels).mean()


def test_losses_are_worked_numbers() -> None:
    """Equations 6 and 7: (3 - 4) / (4 - 2) for a wrong prediction, and so on."""
    logits = torch.tensor([[3.0, 4.0, 2.0, 1.0], [5.0, 1.0, 3.0, 2.0]])
    labels = torch.tensor([0, 0])
    ratio = difference_of_logits_ratio(logits, labels)
    assert torch.allclose(ratio, torch.tensor([(4 - 3) / (4 - 2), (3 - 5) / (5 - 2)]))
    towards = targeted_difference_of_logits_ratio(torch.tensor([2, 1]))(logits, labels)
    assert torch.allclose(towards, torch.tensor([(2 - 3) / (4 - 1.5), (1 - 5) / (5 - 1.5)]))
    assert torch.allclose(ratio, difference_of_logits_ratio(7 * logits + 3, labels))


@pytest.mark.parametrize(("name", "classes", "least"), [("apgd_t", 3, 4), ("apgd_dlr", 2, 3)])
def test_too_few_classes_are_refused_before_anything_runs(name: str, classes: int, least: int) -> None:
    model = linear(classes)
    features, labels = utterances(model)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(UserError, match=f"^{name} needs at least {least} classes, the model has {classes}: take"):
        made_by(
            build(AttackSettings(name=name, epsilon=0.1)),
            model,
            features,
            labels,
            box=BOX,
            num_classes=classes,
            keys_B=keys(8),
            seed=1,
            batch_size=8,
        )
    assert not passes


class Shifts:
    """A defence that adds one of four patterns, a step's draws being two of them; what it is asked for is kept."""

    def __init__(self, size: float) -> None:
        stream = torch.Generator().manual_seed(0)
        self.patterns = size * torch.randn(4, BINS, FRAMES, generator=stream)
        self.asked: list[int] = []

    @property
    def weights(self) -> tuple[float, float]:
        return 0.25, 0.75

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        self.asked.append(step)
        return torch.cat([features_BFL + self.patterns[(step + draw) % 4] for draw in draws])


def test_a_defence_without_effect_changes_nothing_but_the_cost() -> None:
    """Every draw the same: what is climbed, compared and returned is what it is without a defence."""
    model = convolutional()
    features, labels = utterances(model)
    bare, _ = climb(model, features, labels, 0.2, steps=30)
    target = Target(network=model, keys_B=keys(8), passes=Passes(), expectation=Shifts(0.0))
    with attacked(model):
        ball = Ball(features, torch.full((8,), 0.2), "inf")
        defended = autopgd(target, ball, labels, loss=cross_entropy, steps=30, box=BOX)
    assert torch.allclose(cross_entropy(model(defended), labels), cross_entropy(model(bare), labels), atol=1e-3)


def test_draws_change_at_checkpoints_only_and_what_is_judged_is_judged_alike() -> None:
    model = convolutional()
    features, labels = utterances(model)
    defence = Shifts(0.3)
    target = Target(network=model, keys_B=keys(8), passes=Passes(), expectation=defence)
    with attacked(model):
        ball = Ball(features, torch.full((8,), 0.2), "inf")
        found = autopgd(target, ball, labels, loss=cross_entropy, steps=20, box=BOX, first_draws=3)
        marks = checkpoints(20)
        stretches = np.diff([0, *marks, 20])
        expected = [3]
        for number, length in enumerate(stretches):
            expected += [3 + number] * length
            # Judged under draws that no stretch has climbed; then both points are asked again under the new ones.
            expected += [0] if number == len(marks) else [0, 4 + number, 4 + number]
        assert defence.asked == expected
        judged = BestAdversarial.of(target, found, labels, loss=cross_entropy)
        clean = BestAdversarial.of(target, features, labels, loss=cross_entropy)
    assert (judged.right_B <= clean.right_B).all()
    assert judged.loss_B.mean() > clean.loss_B.mean()


def test_the_better_of_two_is_recognised_less_and_then_has_the_larger_loss() -> None:
    first = BestAdversarial(torch.zeros(4, 2), torch.tensor([1.0, 0.5, 0.5, 0.0]), torch.tensor([9.0, 1.0, 1.0, 3.0]))
    second = BestAdversarial(torch.ones(4, 2), torch.tensor([0.5, 0.5, 1.0, 0.0]), torch.tensor([0.0, 2.0, 9.0, 3.0]))
    best = first.or_better(second)
    assert best.inputs[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert best.right_B.tolist() == [0.5, 0.5, 0.5, 0.0]
    assert best.loss_B.tolist() == [0.0, 2.0, 1.0, 3.0]
    assert best.unbroken().tolist() == [0, 1, 2]


@pytest.mark.parametrize("loss_type", ["cross_entropy", "difference_logits_ratio"])
def test_as_an_attack_of_arts_it_is_the_same_and_as_strong_as_arts_own(loss_type: str) -> None:
    import_art()
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    model = convolutional()
    features, labels = utterances(model, 12)
    assert BOX.lower_F1 is not None and BOX.upper_F1 is not None
    estimator = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(BINS, FRAMES),
        nb_classes=CLASSES,
        clip_values=(BOX.lower_F1.numpy(), BOX.upper_F1.numpy()),
        device_type="cpu",
    )
    settings = {
        "eps": 0.1,
        "max_iter": 20,
        "nb_random_init": 1,
        "loss_type": loss_type,
        "batch_size": 12,
        "verbose": False,
    }
    model.train()
    ours = torch.from_numpy(AutoPGD(estimator, **settings).generate(features.numpy(), labels.numpy()))
    assert model.training
    theirs = AutoProjectedGradientDescent(estimator, eps_step=0.2, **settings).generate(
        features.numpy(), labels.numpy()
    )
    assert (ours - features).abs().max() <= 0.1 + 1e-6
    assert torch.equal(ours, BOX.clip(ours))
    broken = [int((model(torch.as_tensor(made)).argmax(1) != labels).sum()) for made in (ours, theirs)]
    assert 0 < broken[1] <= broken[0]


def test_probabilities_that_differ_by_rounding_are_alike() -> None:
    """Sums of the same weights in another order: the loss decides."""
    first = BestAdversarial(torch.zeros(1, 2), torch.tensor([0.3]), torch.tensor([1.0]))
    second = BestAdversarial(torch.ones(1, 2), torch.tensor([0.30000004]), torch.tensor([2.0]))
    assert first.or_better(second).loss_B.tolist() == [2.0]
