"""Our FGSM, BIM and PGD: bit for bit ART's, and exact on a linear model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import clip_values_of, import_art
from ser_fl.attacks.pgd import bim, fgsm, pgd, random_start
from ser_fl.attacks.target import attacked
from ser_fl.attacks.threat_model import Box
from ser_fl.errors import UserError

EPSILON = 0.05
CLASSES = 4
SHAPES = [(1, 16, 12), (3, 16, 19), (8, 12, 11)]


class TinyCrnn(nn.Module):
    def __init__(self, num_bins: int) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.dropout = nn.Dropout(0.5)
        self.recurrence = nn.GRU(6 * (num_bins // 2), 8, bidirectional=True, batch_first=True)
        self.output = nn.Linear(16, CLASSES)

    def forward(self, features_BFL: Tensor) -> Tensor:
        maps = self.dropout(self.convolution(features_BFL[:, None]))
        states, _ = self.recurrence(maps.flatten(1, 2).transpose(1, 2))
        return self.output(states.mean(1))


def batch(shape: tuple[int, int, int]) -> tuple[nn.Module, Tensor, Tensor, Box]:
    """A model with lived-in batch norm, a batch that touches the faces of its box, and the box."""
    torch.manual_seed(sum(shape))
    model = TinyCrnn(shape[1])
    for _ in range(3):
        model(torch.randn(6, *shape[1:]))
    upper_F1 = torch.linspace(0.5, 2.5, shape[1])[:, None]
    box = Box(-upper_F1 - 0.1, upper_F1)
    return model, box.clip(torch.randn(shape)), torch.randint(0, CLASSES, shape[:1]), box


def art_classifier(model: nn.Module, box: Box | None, shape: tuple[int, ...]) -> object:
    """ART's own estimator straight over the model: the oracle."""
    import_art()
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model.eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=shape[1:],
        nb_classes=CLASSES,
        clip_values=None if box is None else clip_values_of(box),
        preprocessing=None,
        device_type="cpu",
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("boxed", [False, True])
def test_fgsm_bim_and_pgd_equal_art_to_the_last_bit(shape: tuple[int, int, int], boxed: bool) -> None:
    model, features_BFL, labels_B, box = batch(shape)
    bounds = box if boxed else None
    import_art()
    from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod, ProjectedGradientDescentPyTorch

    classifier = art_classifier(model, bounds, shape)
    x, y = features_BFL.numpy(), labels_B.numpy()
    settings = {"eps": EPSILON, "eps_step": EPSILON / 4, "verbose": False}

    theirs = FastGradientMethod(classifier, eps=EPSILON, eps_step=EPSILON).generate(x, y)
    ours = fgsm(model, features_BFL, labels_B, epsilon=EPSILON, box=bounds)
    np.testing.assert_array_equal(ours.numpy(), theirs)

    theirs = BasicIterativeMethod(classifier, max_iter=5, **settings).generate(x, y)
    ours = bim(model, features_BFL, labels_B, epsilon=EPSILON, step_size=EPSILON / 4, steps=5, box=bounds)
    np.testing.assert_array_equal(ours.numpy(), theirs)

    attack = ProjectedGradientDescentPyTorch(classifier, max_iter=5, num_random_init=1, **settings)
    np.random.seed(5)  # noqa: NPY002
    theirs = attack.generate(x, y)
    np.random.seed(5)  # noqa: NPY002
    noise = np.random.uniform(-EPSILON, EPSILON, (shape[0], shape[1] * shape[2]))  # noqa: NPY002
    start = features_BFL + torch.from_numpy(noise.reshape(shape).astype(np.float32))
    ours = pgd(
        model, features_BFL, labels_B, epsilon=EPSILON, step_size=EPSILON / 4, steps=5, box=bounds, start_BFL=start
    )
    np.testing.assert_array_equal(ours.numpy(), theirs)


def test_fgsm_from_a_random_start_equals_art() -> None:
    shape = SHAPES[1]
    model, features_BFL, labels_B, box = batch(shape)
    import_art()
    from art.attacks.evasion import FastGradientMethod

    attack = FastGradientMethod(art_classifier(model, box, shape), eps=EPSILON, eps_step=EPSILON, num_random_init=1)
    np.random.seed(5)  # noqa: NPY002
    theirs = attack.generate(features_BFL.numpy(), labels_B.numpy())
    np.random.seed(5)  # noqa: NPY002
    noise = np.random.uniform(-EPSILON, EPSILON, (shape[0], shape[1] * shape[2]))  # noqa: NPY002
    start = features_BFL + torch.from_numpy(noise.reshape(shape).astype(np.float32))
    ours = fgsm(model, features_BFL, labels_B, epsilon=EPSILON, box=box, start_BFL=start)
    np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 2.0])
def test_perturbation_stays_in_ball_and_box(epsilon: float) -> None:
    model, features_BFL, labels_B, box = batch(SHAPES[2])
    start = random_start(features_BFL, epsilon, torch.Generator().manual_seed(1))
    adversarial = pgd(
        model, features_BFL, labels_B, epsilon=epsilon, step_size=epsilon / 2, steps=6, box=box, start_BFL=start
    )
    assert float((adversarial - features_BFL).abs().max()) <= epsilon + 1e-6
    assert float((adversarial - box.clip(adversarial)).abs().max()) <= 1e-6
    assert float((adversarial - features_BFL).abs().max()) > 0.99 * epsilon


def test_features_outside_the_box_are_clipped_to_it_first() -> None:
    model, features_BFL, labels_B, box = batch(SHAPES[2])
    outside_BFL = features_BFL * 5
    adversarial = pgd(model, outside_BFL, labels_B, epsilon=EPSILON, step_size=0.05, steps=3, box=box)
    assert float((adversarial - box.clip(adversarial)).abs().max()) <= 1e-6
    inside = pgd(model, box.clip(outside_BFL), labels_B, epsilon=EPSILON, step_size=0.05, steps=3, box=box)
    assert torch.equal(adversarial, inside)


def test_epsilon_zero_gives_the_clean_features() -> None:
    model, features_BFL, labels_B, box = batch(SHAPES[1])
    start = random_start(features_BFL, 0.0, torch.Generator())
    assert torch.equal(fgsm(model, features_BFL, labels_B, epsilon=0.0, box=box), features_BFL)
    assert torch.equal(
        pgd(model, features_BFL, labels_B, epsilon=0.0, step_size=0.0, steps=3, box=box, start_BFL=start), features_BFL
    )


def test_a_linear_model_breaks_exactly_where_it_must() -> None:
    """For logits (w.x, 0) the sign step lowers the margin by epsilon * |w|_1, and nothing lowers it more."""
    torch.manual_seed(0)
    weight_FL = torch.randn(8, 5)
    linear = nn.Linear(40, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([weight_FL.flatten(), torch.zeros(40)]))
    model = nn.Sequential(nn.Flatten(), linear)
    features_BFL = torch.randn(6, 8, 5)
    margin_B = (features_BFL * weight_FL).sum((1, 2))
    labels_B = (margin_B < 0).long()
    critical_B = margin_B.abs() / weight_FL.abs().sum()
    for row, critical in enumerate(critical_B.tolist()):
        one, label = features_BFL[row : row + 1], labels_B[row : row + 1]
        for factor, broken in ((0.999, False), (1.001, True)):
            epsilon = factor * critical
            by_fgsm = fgsm(model, one, label, epsilon=epsilon)
            by_pgd = pgd(model, one, label, epsilon=epsilon, step_size=epsilon / 4, steps=8)
            assert bool(model(by_fgsm).argmax() != label) is broken
            assert bool(model(by_pgd).argmax() != label) is broken


def test_more_steps_find_at_least_as_much_loss() -> None:
    model, features_BFL, labels_B, _ = batch((8, 12, 20))
    model.eval()
    one = fgsm(model, features_BFL, labels_B, epsilon=0.5)
    many = bim(model, features_BFL, labels_B, epsilon=0.5, step_size=0.125, steps=20)
    loss = nn.CrossEntropyLoss()
    with torch.no_grad():
        clean, once, often = (float(loss(model(x), labels_B)) for x in (features_BFL, one, many))
    assert clean < once <= often


def test_a_step_costs_one_forward_pass_and_a_parameter_nothing() -> None:
    model, features_BFL, labels_B, box = batch(SHAPES[2])
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    pgd(model, features_BFL, labels_B, epsilon=EPSILON, step_size=0.01, steps=4, box=box)
    assert len(calls) == 4
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_start_belongs_to_its_generator() -> None:
    features_BFL = torch.zeros(4, 16, 50)
    first = random_start(features_BFL, 0.2, torch.Generator().manual_seed(3))
    again = random_start(features_BFL, 0.2, torch.Generator().manual_seed(3))
    other = random_start(features_BFL, 0.2, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.abs().max()) <= 0.2
    assert abs(float(first.mean())) < 0.01
    assert float(first.std()) == pytest.approx(0.2 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -0.1, "step_size": 0.1, "steps": 1}, "epsilon must be >= 0, got -0.1"),
        ({"epsilon": float("nan"), "step_size": 0.1, "steps": 1}, "epsilon must be >= 0, got nan"),
        ({"epsilon": 0.1, "step_size": -1.0, "steps": 1}, "step_size must be >= 0, got -1.0"),
        ({"epsilon": 0.1, "step_size": 0.1, "steps": -1}, "steps must be >= 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    model, features_BFL, labels_B, _ = batch(SHAPES[0])
    with pytest.raises(UserError, match=message):
        pgd(model, features_BFL, labels_B, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bounds", [(torch.zeros(4, 1), None), (None, torch.zeros(4, 1)), (torch.ones(1), torch.zeros(1))]
)
def test_a_box_needs_both_sides_in_order(bounds: tuple[Tensor | None, Tensor | None]) -> None:
    with pytest.raises(UserError, match="a box needs"):
        Box(*bounds)


def test_an_attack_leaves_out_the_gradients_of_parameters_and_gives_them_back() -> None:
    """Also where an operation with a backward pass of its own would compute them; what was frozen stays frozen."""
    asked: list[tuple[bool, ...]] = []

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features_BFL: Tensor, scale: Tensor) -> Tensor:
            ctx.save_for_backward(scale)
            return features_BFL * scale

        @staticmethod
        def backward(ctx: Any, gradient_BFL: Tensor) -> tuple[Tensor, None]:
            asked.append(ctx.needs_input_grad)
            return gradient_BFL * ctx.saved_tensors[0], None

    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.frozen = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(1.0), False)

        def forward(self, features_BFL: Tensor) -> Tensor:
            logit_B = Scaled.apply(features_BFL, self.scale).sum((1, 2))
            return torch.stack([logit_B, torch.zeros_like(logit_B)], dim=1)

    model = Scaling()
    pgd(model, torch.randn(2, 3, 4), torch.tensor([0, 1]), epsilon=0.1, step_size=0.05, steps=2)
    assert asked == [(True, False)] * 2
    assert (model.scale.requires_grad, model.frozen.requires_grad) == (True, False)
    with suppress(ZeroDivisionError), attacked(model):
        assert not model.scale.requires_grad
        _ = 1 / 0
    assert (model.scale.requires_grad, model.frozen.requires_grad) == (True, False)


def test_a_box_that_is_where_it_should_be_is_not_made_anew() -> None:
    """Making one waits for the values on a GPU."""
    box = Box(torch.zeros(3, 1), torch.ones(3, 1))
    assert box.to(torch.device("cpu")) is box.to(torch.device("cpu"), torch.float32) is box
    moved = box.to(torch.device("cpu"), torch.float64)
    assert moved.lower_F1 is not None and moved.lower_F1.dtype == torch.float64
