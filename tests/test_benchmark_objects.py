"""Attacks and defences that a caller brings to `ser_fl.benchmark`: ART's instances and classes, functions, objects.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks.threat_model import Box
from ser_fl.defences import Quantisation
from ser_fl.defences.squeezing import Deterministic
from ser_fl.errors import UserError
from ser_fl.runs.records import AttackRecord

N, F, L, C = 12, 4, 5, 3
BOX = Box(torch.full((F, 1), -2.0), torch.full((F, 1), 2.0))
EPSILON = 0.2


@pytest.fixture(scope="module")
def network() -> nn.Module:
    weights = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(F * L, 8), nn.Tanh(), nn.Linear(8, C))
    for parameter in layers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=weights) / 2
    return layers.eval()


@pytest.fixture(scope="module")
def features() -> Tensor:
    return BOX.clip(torch.randn((N, F, L), generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def labels(network: nn.Module, features: Tensor) -> Tensor:
    """All are recognised."""
    with torch.no_grad():
        return network(features).argmax(1)


def attacked(
    network: nn.Module, features: Tensor, labels: Tensor, *attacks: object, **changes: Any
) -> list[AttackRecord]:
    settings: dict[str, Any] = {"epsilons": (EPSILON,), "box": BOX, "checks": False, "seed": 3} | changes
    return ser_fl.benchmark(network, features, labels, attacks=attacks, **settings)


def figures(record: AttackRecord) -> tuple[object, ...]:
    return (record.robust_uar, record.attack_success_rate, record.confusion, record.max_linf, record.mean_l2)


def classifier(network: nn.Module, shape: Sequence[int] = (1, F, L)) -> PyTorchClassifier:
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, C, clip_values=(-2.0, 2.0))


def test_fgsm_of_art_is_fgsm_whoever_brings_it(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    """As a class, as an instance over one's own classifier, as a function, and by name."""

    def by_hand(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        features_BFL.requires_grad_()
        loss = nn.functional.cross_entropy(model(features_BFL), labels_B)
        (gradient_BFL,) = torch.autograd.grad(loss, features_BFL)
        return features_BFL.detach() + EPSILON * gradient_BFL.sign()

    own = FastGradientMethod(classifier(network), eps=EPSILON, norm="inf")
    records = attacked(network, features, labels, "fgsm", FastGradientMethod, own, by_hand)
    by_name, by_class, by_instance, by_function = records[1:5]
    assert figures(by_class) == figures(by_instance) == figures(by_function) == figures(by_name)
    assert by_name.robust_uar < 1.0
    names = ["fgsm", "FastGradientMethod", "FastGradientMethod_2", "by_hand"]
    assert [record.attack for record in records[1:5]] == names


def test_instance_keeps_its_own_settings(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    """What it makes is what ART makes of it, alone."""
    own = ProjectedGradientDescentPyTorch(
        classifier(network), norm="inf", eps=0.15, eps_step=0.03, max_iter=7, batch_size=5, verbose=False
    )
    made = torch.from_numpy(own.generate(features.numpy()[:, None], labels.numpy()))[:, 0]
    (_, record, *_) = attacked(network, features, labels, own)
    with torch.no_grad():
        right = network(made).argmax(1) == labels
    assert record.attack_success_rate == pytest.approx(1 - right.double().mean().item())
    assert record.max_linf == pytest.approx((made - features).abs().max().item())
    assert record.max_linf == pytest.approx(0.15, rel=1e-4)


def test_beyond_the_budget_or_outside_the_box_nothing_is_broken(
    network: nn.Module, features: Tensor, labels: Tensor
) -> None:
    def far(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return -features_BFL

    def outside(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return features_BFL + 9.0

    for function in (far, outside):
        (_, record, *_) = attacked(network, features, labels, function)
        assert (record.robust_uar, record.attack_success_rate, record.max_linf) == (1.0, 0.0, 0.0)
    (_, record, *_) = attacked(network, features, labels, far, epsilons=(4.0,))
    assert record.robust_uar < 1.0 and record.max_linf == pytest.approx(2 * features.abs().max().item())


def test_two_of_one_name_are_two(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    """Two lambdas, and a function that is called as an attack of the registry."""

    def fgsm(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return features_BFL

    def down(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return features_BFL - 0.1

    def other(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return features_BFL + 0.2

    other.__name__ = "down"
    records = attacked(network, features, labels, down, other, fgsm, "fgsm", down, epsilons=(0.3, 0.5), box=None)
    moved = {(record.attack, record.epsilon): record.max_linf for record in records if record.attack != "worst_case"}
    at_most = {"clean": 0.0, "down": 0.1, "down_2": 0.2, "fgsm_2": 0.0}
    assert {name for name, _ in moved} == {*at_most, "fgsm"}
    for name, largest in at_most.items():
        assert max(value for (attack, _), value in moved.items() if attack == name) == pytest.approx(largest, abs=1e-6)
    assert moved["fgsm", 0.5] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda model, features, labels: features[:, :2], "gave"),
        (lambda model, features, labels: features * torch.nan, "not finite"),
        (3, "3"),
        (object(), "object"),
    ],
)
def test_what_is_no_attack_is_refused(
    network: nn.Module, features: Tensor, labels: Tensor, attack: object, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        attacked(network, features, labels, attack)


@pytest.mark.parametrize("shape", [(1, F, L), (F, L), (F * L,)])
def test_own_classifier_and_own_model_may_take_other_shapes(
    network: nn.Module, features: Tensor, labels: Tensor, shape: tuple[int, ...]
) -> None:
    own = FastGradientMethod(classifier(network, shape), eps=EPSILON)
    (_, expected, *_) = attacked(network, features, labels, "fgsm")
    for given in (features, features[:, None], features.numpy()):
        (_, record, *_) = attacked(network, given, labels, own)
        assert figures(record) == figures(expected)


def test_function_is_no_reason_to_want_gradients(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    def black_box(given: Tensor) -> Tensor:
        return torch.from_numpy(network(given).detach().numpy())

    def tilt(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return features_BFL + EPSILON * torch.linspace(-1, 1, F)[:, None]

    first, second = (attacked(model, features, labels, tilt) for model in (black_box, network))
    assert figures(first[1]) == figures(second[1])


def test_defence_by_object(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    """An object with other settings than the name's, and a class that nobody has heard of."""

    @dataclass(frozen=True)
    class Rounding(Deterministic):
        step: float
        name: str = "rounding"

        def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
            return (features_BFL / self.step).round() * self.step

    records = attacked(network, features, labels, "fgsm", defences=["none", Quantisation(step=3.0), Rounding(3.0)])
    by_defence = {record.defence: record for record in records if record.attack == "fgsm"}
    assert list(by_defence) == ["none", "quantisation", "rounding"]
    assert figures(by_defence["quantisation"]) == figures(by_defence["rounding"])
    with torch.no_grad():
        right = network((features / 3).round() * 3).argmax(1) == labels
    (clean,) = [record for record in records if record.attack == "clean" and record.defence == "rounding"]
    assert np.trace(np.array(clean.confusion)) == right.sum().item() < N


def test_settings_beside_objects(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    """What else runs changes no attack's figures."""
    own = FastGradientMethod(classifier(network), eps=EPSILON)
    settings = {"name": "bim", "steps": 4, "step_size": 0.1}
    together = attacked(network, features, labels, own, settings, "noise_uniform", seed=1)
    alone = attacked(network, features, labels, settings, seed=1)
    assert replace(together[2], seconds=0.0) == replace(alone[1], seconds=0.0)
    assert (together[2].steps, together[2].step_size) == (4, 0.1)
