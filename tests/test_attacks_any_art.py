"""Any evasion attack of ART by its name: it runs within box and budget, or says in one line why it cannot."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.art.any_attack import PREFIX, attack_classes
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.registry import AttackSettings, build
from ser_fl.attacks.threat_model import RELATIVE_TOLERANCE, Box, budget_of, distance
from ser_fl.errors import UserError

BINS, FRAMES, CLASSES = 6, 8, 3
UPPER = torch.linspace(1.0, 2.0, BINS)[:, None]
BOX = Box(-UPPER, UPPER)
RUN = (
    *("AutoConjugateGradient", "AutoProjectedGradientDescent", "BasicIterativeMethod", "BoundaryAttack"),
    *("CarliniL0Method", "CarliniL2Method", "CarliniLInfMethod", "DeepFool", "ElasticNet", "FastGradientMethod"),
    *("HopSkipJump", "MomentumIterativeMethod", "NewtonFool", "PixelAttack", "ProjectedGradientDescent"),
    *("ProjectedGradientDescentNumpy", "ProjectedGradientDescentPyTorch", "RescalingAutoConjugateGradient"),
    *("SaliencyMapMethod", "ShadowAttack", "SignOPTAttack", "SimBA", "SpatialTransformation", "SquareAttack"),
    *("UniversalPerturbation", "VirtualAdversarialMethod", "Wasserstein", "ZooAttack"),
)
NEED_A_PACKAGE = {
    "AdversarialPatchPyTorch": "torchvision",
    "AutoAttack": "multiprocess",
    "ThresholdAttack": "cma",
}
"""What these do where the package is installed is not tested."""
REFUSED = {
    "AdversarialPatch": "patch_shape",
    "AdversarialPatchNumpy": "AttributeError",
    "AdversarialPatchTensorFlowV2": "models of TensorFlow only",
    "AdversarialTexturePyTorch": "patch_height",
    "CarliniWagnerASR": "requires an estimator",
    "CompositeAdversarialAttackPyTorch": r"\(StopIteration\)",
    "DPatch": "requires an estimator",
    "DecisionTreeAttack": "requires an estimator",
    "FeatureAdversariesNumpy": "delta",
    "FeatureAdversariesPyTorch": "delta",
    "FeatureAdversariesTensorFlowV2": "models of TensorFlow only",
    "FrameSaliencyAttack": "attacker",
    "GRAPHITEBlackbox": "noise_size",
    "GRAPHITEWhiteboxPyTorch": "net_size",
    "GeoDA": "needs square features, got 6 mel bins x 8 frames",
    "HighConfidenceLowUncertainty": "requires an estimator",
    "ImperceptibleASR": "masker",
    "ImperceptibleASRPyTorch": "requires an estimator",
    "LaserAttack": "laser_generator",
    "LowProFool": "importance",
    "MalwareGDTensorFlow": "models of TensorFlow only",
    "OverTheAirFlickeringPyTorch": "IndexError",
    "OverloadPyTorch": "num_grid",
    "ProjectedGradientDescentTensorFlowV2": "models of TensorFlow only",
    "RobustDPatch": "requires an estimator",
    "SNAL": "candidates",
    "TargetedUniversalPerturbation": "art:UniversalPerturbation",
}


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, and three utterances inside the box, of which the first is wrong when clean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Flatten(), nn.Linear(BINS * FRAMES, 12), nn.Tanh(), nn.Linear(12, CLASSES))
        features = BOX.clip(torch.randn(3, BINS, FRAMES))
    labels = model(features).argmax(1)
    labels[0] = (labels[0] + 1) % CLASSES
    return model, features, labels


def generate(name: str, problem: tuple[nn.Module, Tensor, Tensor], *, epsilon: float = 0.4, **changes: Any) -> Crafted:
    attack = build(AttackSettings(name=PREFIX + name, epsilon=epsilon, steps=3))
    keys = [f"utterance {row}" for row in range(len(problem[1]))]
    settings: dict[str, Any] = {"box": BOX, "num_classes": CLASSES, "keys_B": keys, "seed": 1, "batch_size": 2}
    return made_by(attack, *problem, **(settings | changes))


def test_every_class_is_accounted_for() -> None:
    needs_numba = {"BrendelBethgeAttack"}
    assert set(attack_classes()) - needs_numba == {*RUN, *NEED_A_PACKAGE, *REFUSED}


@pytest.mark.parametrize("name", RUN)
def test_it_runs_within_box_and_budget(name: str, problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    crafted = generate(name, problem)
    attack = build(AttackSettings(name=PREFIX + name, epsilon=0.4))
    features, adversarial = problem[1], crafted.adversarial_NFL
    allowed = budget_of(0.4, attack.entry.norm, (BINS, FRAMES)) * (1 + RELATIVE_TOLERANCE) + 1e-6
    assert (distance(features, adversarial, attack.entry.norm) <= allowed).all()
    assert torch.equal(BOX.clip(adversarial), adversarial)
    assert torch.equal(adversarial[0], features[0])
    assert crafted.forward_passes > 3


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_or_it_says_in_one_line_why_it_cannot(name: str, words: str, problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match=f"^art:{name} .*{words}") as error:
        generate(name, problem)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "package"), NEED_A_PACKAGE.items())
def test_a_missing_package_is_named(
    name: str, package: str, problem: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"^art:{name} needs the package {package}, .*pip install {package}$"):
        generate(name, problem)


@pytest.mark.parametrize("name", ["SaliencyMapMethod", "SimBA", "PixelAttack", "VirtualAdversarialMethod"])
def test_what_needed_help_does_attack(name: str, problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    """A saliency map told of the true class would lead there, and so nowhere."""
    crafted = generate(name, problem, epsilon=2.0)
    assert (distance(problem[1], crafted.adversarial_NFL, "2")[1:] > 0).any()


@pytest.mark.parametrize("name", ["CarliniL2Method", "SaliencyMapMethod", "SquareAttack"])
def test_a_missing_box_is_told(name: str, problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match=f"art:{name} needs a box"):
        generate(name, problem, box=None)


def test_cw_l2_goes_by_batches_and_does_not_depend_on_them(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    """By batches it takes a quarter of the time; each input has its own constant and its own length of steps."""
    at_once = generate("CarliniL2Method", problem, batch_size=3)
    one_by_one = generate("CarliniL2Method", problem, batch_size=1)
    assert (at_once.adversarial_NFL != problem[1]).any()
    torch.testing.assert_close(at_once.adversarial_NFL, one_by_one.adversarial_NFL, rtol=0, atol=1e-5)
