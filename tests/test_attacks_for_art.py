"""Expectation over transformation in ART's dress, on ART's own classifier; see test_attacks_art_users for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from ser_fl.attacks.art.evasion import ExpectationOverTransformationPGD

SHAPE, CLASSES = (4, 10), 3


def rolled(inputs: Tensor, generator: Generator) -> Tensor:
    """Moved in time by any number of frames."""
    return inputs.roll(int(torch.randint(SHAPE[1], (1,), generator=generator)), dims=-1)


def unchanged(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs


def classifier(clip_values: tuple[float, float] | None = (-1.5, 1.5), **settings: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, CLASSES))
    return PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=SHAPE,
        nb_classes=CLASSES,
        clip_values=clip_values,
        device_type="cpu",
        **settings,
    )


def problem(estimator: Any) -> tuple[np.ndarray, np.ndarray]:
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3)).clamp(-1.5, 1.5).numpy()
    return x, estimator.predict(x).argmax(1)


def recognised(estimator: Any, x: np.ndarray, labels: np.ndarray) -> float:
    """Over all places."""
    shown = [estimator.predict(np.roll(x, shift, axis=-1)).argmax(1) == labels for shift in range(SHAPE[1])]
    return float(np.mean(shown))


@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), (0.2, 0.7)])
def test_without_a_transformation_it_is_arts_pgd(preprocessing: tuple[float, float]) -> None:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    estimator = classifier(preprocessing=preprocessing)
    x, labels = problem(estimator)
    settings = {"eps": 0.2, "eps_step": 0.06, "max_iter": 4, "batch_size": 6}
    theirs = ProjectedGradientDescentPyTorch(estimator, verbose=False, **settings).generate(x, labels)
    ours = ExpectationOverTransformationPGD(estimator, unchanged, samples=1, **settings).generate(x, labels)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert not np.allclose(ours, x)


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.5), (np.inf, 0.5), (2, 3.0)])
def test_it_survives_the_transformation_inside_ball_and_clip_values(norm: Any, eps: float) -> None:
    estimator = classifier()
    x, labels = problem(estimator)
    settings = {"norm": norm, "eps": eps, "eps_step": eps / 4, "max_iter": 12, "num_random_init": 1}
    plain = ExpectationOverTransformationPGD(estimator, unchanged, samples=1, **settings).generate(x, labels)
    attack = ExpectationOverTransformationPGD(estimator, rolled, samples=8, **settings)
    adversarial = attack.generate(x, np.eye(CLASSES)[labels])
    before = recognised(estimator, x, labels)
    assert recognised(estimator, adversarial, labels) < 0.7 * recognised(estimator, plain, labels)
    assert recognised(estimator, adversarial, labels) < 0.6 * before
    order = 2 if norm == 2 else np.inf
    assert np.linalg.norm((adversarial - x).reshape(6, -1), ord=order, axis=1).max() <= eps + 1e-5
    assert np.abs(adversarial).max() <= 1.5 + 1e-6
    attack.set_params(batch_size=4)
    np.testing.assert_allclose(attack.generate(x, labels), adversarial, atol=1e-5)


def test_it_leaves_the_model_and_the_global_random_states_alone() -> None:
    estimator = classifier()
    x, labels = problem(estimator)
    estimator.model.train()
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    attack = ExpectationOverTransformationPGD(estimator, rolled, samples=2, max_iter=2, num_random_init=2)
    first = attack.generate(x, labels)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    assert all(module.training for module in estimator.model.modules())
    assert all(parameter.grad is None for parameter in estimator.model.parameters())
    np.testing.assert_array_equal(attack.generate(x, labels), first)
