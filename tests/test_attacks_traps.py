"""What attacks must leave as it was: modes, gradients, random states, logging; and what must not reach them."""

from __future__ import annotations

import contextlib
import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.art import any_attack
from ser_fl.attacks.art.estimator import classifier_of, clip_values_of, generated, import_art
from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.pgd import bim, fgsm, pgd
from ser_fl.attacks.registry import ATTACKS, AttackSettings, build
from ser_fl.attacks.target import Passes, Target, attacked
from ser_fl.attacks.threat_model import Box

EPSILON = 0.1
BOX = Box(torch.full((12, 1), -2.0), torch.full((12, 1), 2.0))
EVERY = [*ATTACKS, "art:MomentumIterativeMethod", "art:SquareAttack"]


class SpyGRU(nn.GRU):
    """Notes whether cuDNN is allowed when it runs."""

    def __init__(self, *args: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.cudnn: list[bool] = []

    def forward(self, *args: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.cudnn.append(torch.backends.cudnn.enabled)
        return super().forward(*args)


class Crnn(nn.Module):
    """All that is treacherous: batch norm, dropout between and inside layers, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.recurrence = SpyGRU(48, 6, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)
        self.output = nn.Linear(12, 4)
        self.cudnn: list[bool] = []

    def forward(self, features_BFL: Tensor) -> Tensor:
        self.cudnn.append(torch.backends.cudnn.enabled)
        maps = self.convolution(features_BFL[:, None])
        states, _ = self.recurrence(maps.flatten(1, 2).transpose(1, 2))
        return self.output(nn.functional.dropout(states.mean(1), 0.5, self.training))


@pytest.fixture
def model() -> Crnn:
    torch.manual_seed(0)
    return Crnn()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 12, 9, generator=generator).clamp(-2, 2), torch.tensor([0, 1, 2, 0])


def generate(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    steps = None if name == "fgsm" else 2
    attack = build(AttackSettings(name=name, epsilon=EPSILON, steps=steps))
    keys = [f"utterance {row}" for row in range(len(batch[1]))]
    return made_by(attack, model, *batch, box=BOX, num_classes=4, keys_B=keys, seed=1, batch_size=4).adversarial_NFL


def own(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return pgd(model, *batch, epsilon=EPSILON, step_size=0.03, steps=3, box=BOX)


def arts_bim(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """ART's own class on the model as ART gets to see it."""
    import_art()
    from art.attacks.evasion import BasicIterativeMethod

    with attacked(model):
        problem = Problem(
            network=model,
            num_classes=3,
            clean=batch[0],
            labels_B=batch[1],
            keys_B=["a", "b", "c", "d"],
            box=BOX,
            settings=AttackSettings(name="bim", epsilon=EPSILON),
            seed=1,
            passes=Passes(),
        )
        attack = BasicIterativeMethod(
            classifier_of(problem, clip_values_of(BOX)),
            eps=EPSILON,
            eps_step=EPSILON / 4,
            max_iter=2,
            verbose=False,
        )
        return generated(attack, problem)


def mixed_modes(model: Crnn) -> dict[str, bool]:
    """A training model with a frozen batch norm: the root's flag alone does not tell."""
    model.train()
    model.convolution[1].eval()
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("name", ["own", *EVERY])
def test_an_attack_leaves_the_model_as_it_was(name: str, model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    modes = mixed_modes(model)
    model(batch[0]).sum().backward()  # accumulated gradients, as with accumulate_grad_batches > 1
    gradients = {
        key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None
    }
    state = {key: value.clone() for key, value in model.state_dict().items()}
    adversarial = own(model, batch) if name == "own" else generate(name, model, batch)
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[key])
    assert not adversarial.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_modes_come_back_after_an_error(model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    modes = mixed_modes(model)
    with pytest.raises(RuntimeError), attacked(model):
        model(batch[0][:, :5])
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert torch.backends.cudnn.enabled


def test_a_gradient_of_a_model_with_dropout_has_no_noise(model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    """Dropout inside nn.GRU stays on in ART, which trains recurrent layers to differentiate them."""
    model.train()
    with attacked(model):
        target = Target(network=model, keys_B="abcd", passes=Passes())
        first, second = (target.answer(*batch, cross_entropy).gradient / len(batch[1]) for _ in range(2))
    assert torch.equal(first, second)
    inputs = batch[0].clone().requires_grad_()
    nn.functional.cross_entropy(model.eval()(inputs), batch[1]).backward()
    torch.testing.assert_close(first, inputs.grad)


def test_arts_bim_on_a_training_recurrent_model_is_ours_to_the_last_bit(
    model: Crnn, batch: tuple[Tensor, Tensor]
) -> None:
    """Left to itself ART would put the recurrent layers into training mode, and follow the noise of their dropout."""
    model.train()
    ours = bim(model, *batch, epsilon=EPSILON, step_size=EPSILON / 4, steps=2, box=BOX)
    assert not torch.equal(ours, batch[0])
    assert torch.equal(generate("bim", model, batch), ours)
    assert torch.equal(arts_bim(model, batch), ours)
    assert all(module.training for module in model.modules())


def test_recurrent_layers_run_without_cudnn_and_the_others_with_it(model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    own(model, batch)
    assert model.recurrence.cudnn == [False] * 3
    assert model.cudnn == [True] * 3
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("name", ["own", "fgsm", "pgd", "deepfool", "cw_l2", "cw_linf"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attacks_work_where_lightning_evaluates(
    name: str, context: type[torch.no_grad], model: Crnn, batch: tuple[Tensor, Tensor]
) -> None:
    run = own if name == "own" else lambda *given: generate(name, *given)
    outside = run(model, batch)
    with context():
        inside = run(model, (batch[0].clone(), batch[1].clone()))
    assert torch.equal(inside, outside)


def test_attacks_run_in_float32_under_autocast(model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    outside = own(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(own(model, batch), outside)
        assert torch.is_autocast_enabled("cpu")


def test_a_training_step_after_an_attack_is_the_step_without_it(model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    def gradients(with_attack: bool) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(7)
        if with_attack:
            fgsm(model, *batch, epsilon=EPSILON)
        nn.functional.cross_entropy(model.train()(batch[0]), batch[1]).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    for plain, attacked_before in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, attacked_before)


@pytest.mark.parametrize("name", ["pgd", "cw_l2", "art:SquareAttack"])
def test_global_random_states_neither_change_nor_matter(name: str, model: Crnn, batch: tuple[Tensor, Tensor]) -> None:
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        results.append(generate(name, model, batch))
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["HopSkipJump", "BoundaryAttack"])
def test_a_decision_attack_gives_one_result_for_a_seed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's take their start from the operating system. Where they no longer do, `art.random_states` is needless."""
    import_art()
    from art.attacks.evasion import boundary, hop_skip_jump

    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12 * 9, 3))
    features = torch.randn(2, 12, 9).clamp(-2, 2)
    labels = linear(features).argmax(1)

    def made() -> Tensor:
        attack = build(AttackSettings(name=f"art:{name}", epsilon=2.0, steps=2))
        crafted = made_by(
            attack, linear, features, labels, box=BOX, num_classes=3, keys_B=["a", "b"], seed=1, batch_size=2
        )
        assert hop_skip_jump.np is np and boundary.np is np
        return crafted.adversarial_NFL

    assert torch.equal(made(), made())
    assert not torch.equal(made(), features)
    monkeypatch.setattr(any_attack, "random_states_from_the_global_one", contextlib.nullcontext)
    first = made()
    assert any(not torch.equal(made(), first) for _ in range(20)), "two may be alike by chance"


LATE_IMPORT = """
import logging, sys
import ser_fl.attacks.pgd, ser_fl.attacks.registry
assert "art" not in sys.modules, "art is imported before an attack of it runs"
logger = logging.getLogger("study")
logger.setLevel(logging.INFO)
logger.addHandler(logging.FileHandler(sys.argv[1], mode="w"))
logger.info("before")
from ser_fl.attacks.art.estimator import import_art
import_art()
assert "art" in sys.modules
logger.info("after")
logging.config.dictConfig({"version": 1, "incremental": True})
"""


def test_art_is_imported_late_and_closes_no_log(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    subprocess.run([sys.executable, "-c", LATE_IMPORT, str(log)], check=True, capture_output=True)
    assert log.read_text().split() == ["before", "after"]


def test_art_keeps_its_warnings_to_itself(
    model: Crnn, batch: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        generate("deepfool", model, batch)  # ART warns of missing clip values
    assert not [record for record in caplog.records if record.name.startswith("art")]
