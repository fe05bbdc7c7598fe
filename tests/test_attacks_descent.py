"""Projected ascent in either norm, and the ball it keeps to: ART's to the last bit, and exact on a linear model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import clip_values_of, import_art
from ser_fl.attacks.losses import margin
from ser_fl.attacks.pgd import descend, pgd, random_start
from ser_fl.attacks.target import Passes, Target, attacked
from ser_fl.attacks.threat_model import Ball, Box, keep_within

BINS, FRAMES, CLASSES = 6, 9, 3
NONE = Box.unbounded()


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Unflatten(1, (1, BINS)), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 7, CLASSES)
    )


def batch(num: int) -> tuple[nn.Module, Tensor, Tensor]:
    model = network()
    features = torch.randn(num, BINS, FRAMES)
    return model, features, model(2 * features).argmax(1)


def target(model: nn.Module, num: int) -> Target:
    return Target(network=model, keys_B=[str(row) for row in range(num)], passes=Passes())


def linear(num: int = 5) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Logits (w.x, 0), so that a margin and the gradient of the loss are known."""
    torch.manual_seed(4)
    weight = torch.randn(BINS * FRAMES)
    layer = nn.Linear(BINS * FRAMES, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([weight, torch.zeros_like(weight)]))
    model, features = nn.Sequential(nn.Flatten(), layer), torch.randn(num, BINS, FRAMES)
    return model, features, model(features).argmax(1), weight


@pytest.mark.parametrize("num", [1, 3, 8])
@pytest.mark.parametrize("boxed", [False, True])
def test_sign_steps_equal_arts_pgd_and_training_to_the_last_bit(num: int, boxed: bool) -> None:
    import_art()
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, features, labels = batch(num)
    box = Box(torch.full((BINS, 1), -1.1), torch.linspace(0.5, 1.5, BINS)[:, None]) if boxed else NONE
    features = box.clip(features)
    classifier = PyTorchClassifier(
        model.eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(BINS, FRAMES),
        nb_classes=CLASSES,
        clip_values=clip_values_of(box),
        preprocessing=None,
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=0.3, eps_step=0.07, max_iter=6, num_random_init=1, verbose=False
    )
    np.random.seed(5)  # noqa: NPY002
    theirs = attack.generate(features.numpy(), labels.numpy())
    np.random.seed(5)  # noqa: NPY002
    noise = np.random.uniform(-0.3, 0.3, (num, BINS * FRAMES)).astype(np.float32)  # noqa: NPY002
    start = features + torch.from_numpy(noise.reshape(features.shape))

    training = pgd(model, features, labels, epsilon=0.3, step_size=0.07, steps=6, box=box, start_BFL=start)
    with attacked(model):
        ball = Ball(features, torch.full((num,), 0.3), "inf")
        ours = descend(target(model, num), ball, labels, steps=6, step_size=0.07, starts=start, box=box)
    assert not torch.equal(ours, start)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    assert torch.equal(ours, training)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_linear_model_breaks_exactly_where_it_must_with_a_radius_for_each(norm: str) -> None:
    """No perturbation of a radius lowers the margin by more than the radius times the dual norm of the weights."""
    model, features, labels, weight = linear()
    dual = weight.abs().sum() if norm == "inf" else weight.norm()
    critical_B = (features.flatten(1) @ weight).abs() / dual
    with attacked(model):
        for factor, broken in ((0.999, False), (1.001, True)):
            radius_B = factor * critical_B
            ball = Ball(features, radius_B, norm)  # type: ignore[arg-type]
            found = descend(
                target(model, 5), ball, labels, steps=6, step_size=radius_B / 4, starts=None, box=NONE, loss=margin
            )
            assert ((model(found).argmax(1) != labels) == broken).all()
            length_B = torch.linalg.vector_norm((found - features).flatten(1), ord=float(norm), dim=1)
            torch.testing.assert_close(length_B, radius_B)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_what_is_found_stays_in_ball_and_box_and_does_not_hang_on_the_batch(norm: str) -> None:
    model, features, labels = batch(6)
    box = Box(torch.full((BINS, 1), -0.7), torch.linspace(0.5, 1.5, BINS)[:, None])
    clean = box.clip(features)
    radius_B = torch.linspace(0.1, 1.0, 6)
    ball = Ball(clean, radius_B, norm)  # type: ignore[arg-type]
    starts = torch.stack(
        [ball.random(torch.Generator().manual_seed(10 * r + row) for row in range(6)) for r in range(3)]
    )
    settings = {"steps": 5, "box": box}
    with attacked(model):
        whole = target(model, 6)
        found = descend(whole, ball, labels, step_size=radius_B / 3, starts=starts, **settings)  # type: ignore[arg-type]
        rows = torch.tensor([4, 1, 2])
        part = descend(
            whole.subset(rows),
            ball.subset(rows),
            labels[rows],
            step_size=radius_B[rows] / 3,
            starts=starts[:, rows],
            **settings,  # type: ignore[arg-type]
        )
    torch.testing.assert_close(part, found[rows], atol=1e-5, rtol=0)
    length_B = torch.linalg.vector_norm((found - clean).flatten(1), ord=float(norm), dim=1)
    assert (length_B <= radius_B + 1e-5).all()
    assert (length_B > 0.2 * radius_B).all()
    assert float((box.clip(found) - found).abs().max()) <= 1e-6


def test_any_shape_is_moved() -> None:
    torch.manual_seed(3)
    model, waves = nn.Linear(50, CLASSES), torch.randn(4, 50)
    labels = model(waves).argmax(1)
    with attacked(model):
        ball = Ball(waves, torch.full((4,), 20.0), "2")
        found = descend(target(model, 4), ball, labels, steps=10, step_size=5.0, starts=None, box=NONE)
    assert (model(found).argmax(1) != labels).all()


def test_restarts_keep_the_best_and_drop_what_is_broken() -> None:
    model, features, labels = batch(12)
    ball = Ball(features, torch.full((12,), 0.08), "inf")
    starts = torch.stack([random_start(features, 0.08, torch.Generator().manual_seed(seed)) for seed in range(3)])
    with attacked(model):
        alone = []
        for start in starts:
            found = descend(target(model, 12), ball, labels, steps=2, step_size=0.02, starts=start, box=NONE)
            with torch.no_grad():
                alone.append(
                    (
                        found,
                        model(found).argmax(1) != labels,
                        nn.CrossEntropyLoss(reduction="none")(model(found), labels),
                    )
                )
        questioned = target(model, 12)
        best = descend(questioned, ball, labels, steps=2, step_size=0.02, starts=starts, box=NONE)
    first_broken = alone[0][1]
    broken = torch.stack([one[1] for one in alone]).any(0)
    assert 0 < int(first_broken.sum()) < int((model(best).argmax(1) != labels).sum()) < 12
    assert torch.equal(model(best).argmax(1) != labels, broken)
    assert torch.equal(best[first_broken], alone[0][0][first_broken])
    largest = torch.stack([one[2] for one in alone]).argmax(0)
    for row in (~broken).nonzero().flatten().tolist():
        torch.testing.assert_close(best[row], alone[int(largest[row])][0][row])
    second = first_broken | alone[1][1]
    started = 12 + int((~first_broken).sum()) + int((~second).sum())
    assert (questioned.passes.forward, questioned.passes.backward) == (3 * started, 2 * started)


def test_an_incumbent_stays_where_nothing_better_is_found() -> None:
    model, features, labels, weight = linear()
    sign = (features.flatten(1) @ weight).sign()[:, None, None]
    strongest = features - 0.1 * sign * weight.sign().reshape(BINS, FRAMES)
    ball = Ball(features, torch.full((5,), 0.1), "inf")
    with attacked(model):
        settings = {"steps": 1, "step_size": 0.01, "box": NONE}
        kept = descend(target(model, 5), ball, labels, starts=features, incumbent=strongest, **settings)  # type: ignore[arg-type]
        left = descend(target(model, 5), ball, labels, starts=strongest, incumbent=features, **settings)  # type: ignore[arg-type]
    assert torch.equal(kept, strongest)
    torch.testing.assert_close(left, strongest)


def test_l2_projection_by_hand() -> None:
    clean = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    moved = torch.tensor([[4.0, 5.0], [0.3, 0.4], [0.0, 0.0]])
    ball = Ball(clean, torch.tensor([1.0, 1.0, 0.0]), "2")
    torch.testing.assert_close(ball.project(moved), torch.tensor([[1.6, 1.8], [0.3, 0.4], [0.0, 0.0]]))
    steepest = ball.steepest(torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-20, 0.0]]))
    torch.testing.assert_close(steepest[:2], torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    assert steepest.isfinite().all()


def test_l2_starts_are_uniform_in_their_balls() -> None:
    """The share of the radius to the power of the dimension is uniform, and directions have no preference."""
    dimension, num = 5, 4000
    radius_B = torch.linspace(0.5, 2.0, num)
    ball = Ball(torch.ones(num, dimension), radius_B, "2")
    steps = ball.random(torch.Generator().manual_seed(row) for row in range(num)) - 1
    share = (steps.norm(dim=1) / radius_B) ** dimension
    assert float(share.max()) <= 1 + 1e-5
    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) by chance once in a thousand seeds.
    distance = (share.sort().values - torch.linspace(0, 1, num)).abs().max()
    assert float(distance) < 1.95 / num**0.5
    directions = steps / steps.norm(dim=1, keepdim=True)
    assert float(directions.mean(0).abs().max()) < 4 / (dimension * num) ** 0.5
    covariance = directions.T @ directions / num
    torch.testing.assert_close(covariance, torch.eye(dimension) / dimension, atol=0.02, rtol=0)


def test_linf_starts_are_uniform_and_belong_to_their_generators() -> None:
    radius_B = torch.tensor([0.5, 2.0])
    ball = Ball(torch.zeros(2, 40, 50), radius_B, "inf")
    drawn = ball.random(torch.Generator().manual_seed(seed) for seed in (1, 2))
    again = ball.subset(torch.tensor([1])).random([torch.Generator().manual_seed(2)])
    assert torch.equal(drawn[1:], again)
    for row, radius in enumerate((0.5, 2.0)):
        assert 0.99 * radius < float(drawn[row].abs().max()) <= radius
        assert float(drawn[row].std()) == pytest.approx(radius / 3**0.5, rel=0.05)


def test_the_steepest_direction_has_length_1_however_small_the_gradient() -> None:
    """A margin of 60 logits leaves gradients whose squares are nothing in float32."""
    gradient = (
        torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 1e-15, 1e-30])[:, None, None]
    )
    ball = Ball(torch.zeros_like(gradient), torch.ones(3), "2")
    torch.testing.assert_close(ball.steepest(gradient).flatten(1).norm(dim=1), torch.ones(3))
    assert not ball.steepest(torch.zeros_like(gradient)).any()


def test_what_lies_within_a_budget_depends_on_no_other_utterance() -> None:
    """The rounding that is allowed is that of an utterance's own largest cell."""
    clean = torch.tensor([[[0.5, 0.25]], [[1000.0, 0.0]]])
    moved = clean + torch.tensor([1.00002, 0.0])
    together = keep_within(clean, moved, "inf", 1.0)
    assert torch.equal(together[:1], keep_within(clean[:1], moved[:1], "inf", 1.0))
    assert torch.equal(together[0], clean[0]) and torch.equal(together[1], moved[1])


def test_a_box_with_an_open_side_is_none() -> None:
    floor, open_side = torch.zeros(4, 1), torch.full((4, 1), torch.inf)
    assert Box.of(floor, open_side).lower_F1 is None and Box.of(-open_side, floor).lower_F1 is None
    assert Box.of(floor, floor + 1).lower_F1 is not None
