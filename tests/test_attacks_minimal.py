"""C&W, FMN and MIM on tensors, and as attacks of ART: against known distances, ART and written-out steps."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import import_art
from ser_fl.attacks.art.evasion import CarliniWagnerL2, CarliniWagnerLInf, FastMinimumNorm
from ser_fl.attacks.carlini_wagner import carlini_wagner_l2, carlini_wagner_linf
from ser_fl.attacks.minimum_norm import SEGMENT_STEPS, Aim, Nearest, fast_minimum_norm
from ser_fl.attacks.registry import AttackSettings, build
from ser_fl.attacks.target import Passes, Target, attacked
from ser_fl.attacks.threat_model import Ball, Box

CELLS, CLASSES = 48, 4
Engine = Callable[..., Tensor]
ENGINES: dict[str, tuple[Engine, int | float]] = {
    "cw_l2": (carlini_wagner_l2, 2),
    "cw_linf": (
        lambda target, clean, labels_B, **how: carlini_wagner_linf(
            target, clean, labels_B, **({"tau_B": clean.new_full((len(clean),), 1.0)} | how)
        ),
        torch.inf,
    ),
    "fmn": (lambda *given, **how: fast_minimum_norm(*given, norm="inf", **how), torch.inf),
    "fmn_l2": (lambda *given, **how: fast_minimum_norm(*given, norm="2", **how), 2),
}
DUAL = {2: 2.0, torch.inf: 1.0}
BOX = Box(torch.tensor(-8.0), torch.tensor(8.0))


def linear_problem(shape: Sequence[int] = (6, 8), num: int = 12, seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear classifier and inputs that it gets right, none of them by a hair."""
    stream = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(CELLS, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) / 7)
    clean = torch.randn(4 * num, *shape, generator=stream)
    leads_B = model(clean).detach().topk(2).values
    clean = clean[(leads_B[:, 0] - leads_B[:, 1]).topk(num).indices]
    return model, clean, model(clean).argmax(1)


def distances_to(model: nn.Sequential, clean: Tensor, labels_B: Tensor, order: float) -> Tensor:
    """Distance to the boundary of every class, shape (B, C): the margin over the dual norm of a weight difference."""
    weight, logits = model[1].weight.detach(), model(clean).detach()
    gaps_BC = logits.gather(1, labels_B[:, None]) - logits
    slopes_BC = torch.linalg.vector_norm(weight[labels_B][:, None] - weight[None], ord=DUAL[order], dim=2)
    return torch.where(slopes_BC > 0, gaps_BC / slopes_BC, torch.inf)


def run(name: str, model: nn.Module, clean: Tensor, labels_B: Tensor, **how: Any) -> tuple[Tensor, Passes]:
    """What an engine makes, and what it costs."""
    passes = Passes()
    with attacked(model):
        target = Target(network=model, keys_B=[str(row) for row in range(len(clean))], passes=passes)
        return ENGINES[name][0](target, clean, labels_B, **how), passes


def moved_by(clean: Tensor, made: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm((made - clean).flatten(1), ord=order, dim=1)


@pytest.mark.parametrize("shape", [(CELLS,), (6, 8), (1, 4, 12)])
@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("name", ENGINES)
def test_the_nearest_input_of_a_linear_model_is_found(name: str, box: Box | None, shape: tuple[int, ...]) -> None:
    """Waveforms, features or images, with a box or without."""
    model, clean, labels_B = linear_problem(shape)
    order = ENGINES[name][1]
    made, _ = run(name, model, clean, labels_B, box=box)
    ratio_B = moved_by(clean, made, order) / distances_to(model, clean, labels_B, order).amin(1)
    assert (model(made).argmax(1) != labels_B).all()
    assert ratio_B.min() >= 0.999
    assert ratio_B.max() <= (1.25 if name == "cw_linf" else 1.1)


@pytest.mark.parametrize("name", ENGINES)
def test_the_class_of_the_largest_wrong_logit_is_not_always_the_nearest(name: str) -> None:
    """Class 1 is close in logits and far away, as its logit hardly depends on the input; class 2 is the other way."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 10.0]]))
        model[1].bias.copy_(torch.tensor([1.0, 0.5, -1.0]))
    clean, labels_B = torch.zeros(1, 2), torch.tensor([0])
    made, _ = run(name, model, clean, labels_B)
    assert model(made).argmax(1).item() == 2
    assert moved_by(clean, made, ENGINES[name][1]).item() <= 1.25 * 0.2


@pytest.mark.parametrize("name", ENGINES)
def test_a_target_is_hit_at_its_own_distance(name: str) -> None:
    model, clean, labels_B = linear_problem()
    targets_B = (labels_B + 1) % CLASSES
    made, _ = run(name, model, clean, targets_B, targeted=True)
    order = ENGINES[name][1]
    hit_B = model(made).argmax(1) == targets_B
    # Other classes may lie in between, so that the target's own boundary is a lower bound only.
    nearest_B = distances_to(model, clean, labels_B, order).gather(1, targets_B[:, None])[:, 0]
    assert hit_B.all()
    assert (moved_by(clean, made, order) >= 0.999 * nearest_B).all()
    assert (moved_by(clean, made, order) <= 1.25 * nearest_B).double().mean() >= 0.5


@pytest.mark.parametrize("name", ENGINES)
def test_inputs_at_the_edge_of_the_box_are_moved_inwards(name: str) -> None:
    """Half of the cells are at the edge, as silence is; what the gradient would push out of the box does not count."""
    model, clean, _ = linear_problem(seed=2)
    box = Box(torch.tensor(-0.5), torch.tensor(0.5))
    clean = box.clip(clean)
    assert ((clean.abs() == 0.5).float().mean() > 0.4).item()
    labels_B = model(clean).argmax(1)
    made, _ = run(name, model, clean, labels_B, box=box)
    assert (made.abs() <= 0.5).all()
    assert (model(made).argmax(1) != labels_B).all()


@pytest.mark.parametrize("name", ENGINES)
def test_what_the_box_lets_go_no_further_is_no_way_to_a_boundary(name: str) -> None:
    """The first value is at its upper end, where class 1 seems 0.005 away; class 2 is 1 away, and class 1 indeed 5."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.01], [0.0, -1.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -10.05, -1.0]))
    clean, box = torch.tensor([[1.0, 0.0]]), Box(torch.tensor([-8.0, -8.0]), torch.tensor([1.0, 8.0]))
    how = {"tau_B": torch.tensor([6.0])} if name == "cw_linf" else {}
    made, _ = run(name, model, clean, torch.tensor([0]), box=box, **how)
    assert model(made).argmax(1).item() == 2
    assert moved_by(clean, made, ENGINES[name][1]).item() <= 1.25


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_reached_to_begin_with_costs_one_pass_and_does_not_move(name: str) -> None:
    model, clean, labels_B = linear_problem()
    wrong_B = (labels_B + 1) % CLASSES
    made, passes = run(name, model, clean, wrong_B)
    assert torch.equal(made, clean)
    assert (passes.forward, passes.backward) == (len(clean), len(clean))
    hit, _ = run(name, model, clean, labels_B, targeted=True)
    assert torch.equal(hit, clean)


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_that_nothing_moves_is_left_alone(name: str) -> None:
    """The gradient is 0 everywhere: no division by it, and the clean input in the end."""
    model, clean, _ = linear_problem()
    with torch.no_grad():
        model[1].weight.zero_()
    labels_B = model(clean).argmax(1)
    made, _ = run(name, model, clean, labels_B, box=BOX)
    assert torch.equal(made, clean)


@pytest.mark.parametrize("name", ENGINES)
def test_nobody_at_all(name: str) -> None:
    model, clean, labels_B = linear_problem()
    made, passes = run(name, model, clean[:0], labels_B[:0])
    assert made.shape == (0, 6, 8)
    assert passes.forward == 0


def test_nominal_iterations_are_the_most_that_it_costs() -> None:
    """Constants whose objective no longer falls end early; classes, and bisections at the end, come on top."""
    model, clean, labels_B = linear_problem()
    _, passes = run("cw_l2", model, clean, labels_B, steps=20, search_steps=3)
    assert passes.backward < len(clean) * (60 + CLASSES - 1)
    assert passes.forward <= passes.backward + SEGMENT_STEPS * len(clean)
    _, passes = run("fmn", model, clean, labels_B, steps=20)
    assert passes.backward == len(clean) * (20 + CLASSES - 1)
    assert passes.forward == passes.backward + SEGMENT_STEPS * len(clean)


def test_more_iterations_come_nearer() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(CELLS, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    clean = torch.randn(16, 6, 8)
    labels_B = model(clean).argmax(1)
    for name in ENGINES:
        few, _ = run(name, model, clean, labels_B, steps=4)
        many, _ = run(name, model, clean, labels_B, steps=60)
        order = ENGINES[name][1]
        assert (model(many).argmax(1) != labels_B).all()
        assert moved_by(clean, many, order).mean() < moved_by(clean, few, order).mean()


def test_cw_linf_looks_no_farther_than_its_first_bound() -> None:
    model, clean, labels_B = linear_problem()
    nearest_B = distances_to(model, clean, labels_B, torch.inf).amin(1)
    tau_B = nearest_B * torch.tensor([0.9, 1.2]).repeat(6)
    with attacked(model):
        target = Target(network=model, keys_B=[str(row) for row in range(12)], passes=Passes())
        made = carlini_wagner_linf(target, clean, labels_B, tau_B=tau_B)
    assert (moved_by(clean, made, torch.inf) <= tau_B + 1e-6).all()
    assert torch.equal(model(made).argmax(1) != labels_B, torch.tensor([False, True]).repeat(6))
    assert torch.equal(made[::2], clean[::2])


class Flipping:
    """A defence with two draws: one shows the input, the other its negative."""

    def __init__(self, weight: float) -> None:
        self.weights = (weight, 1 - weight)

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        return torch.cat([features_BFL if draw == 0 else -features_BFL for draw in draws])


@pytest.mark.parametrize("weight", [0.9, 0.1])
def test_against_randomness_more_than_half_of_the_draws_must_be_wrong(weight: float) -> None:
    """One input cannot fool both draws of a linear model without a bias; it is moved against the heavier one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(CELLS, 2, bias=False))
    torch.manual_seed(2)
    clean = torch.randn(8, 6, 8)
    labels_B = (model(clean if weight > 0.5 else -clean)).argmax(1)
    for name, (engine, _) in ENGINES.items():
        with attacked(model):
            target = Target(
                network=model, keys_B=[str(row) for row in range(8)], passes=Passes(), expectation=Flipping(weight)
            )
            made = engine(target, clean, labels_B)
        seen = made if weight > 0.5 else -made
        assert (model(seen).argmax(1) != labels_B).all(), name


def test_drawing_in_ends_within_a_thirty_second_of_the_boundary() -> None:
    """Class 1 begins at 0.3 of the way."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.3, 0.0]))
    clean = torch.zeros(1, 1)
    nearest = Nearest.none_yet(clean, "2")
    nearest.offer(torch.tensor([0]), torch.ones(1, 1), torch.ones(1), torch.tensor([True]))
    target = Target(network=model, keys_B=["a"], passes=Passes())
    with attacked(model):
        made = nearest.draw_in(Aim(target=target, labels_B=torch.tensor([0]), box=Box.unbounded()), 0)
    assert 0.3 < made.item() <= 0.3 + 1 / 2**SEGMENT_STEPS
    assert nearest.distance_B.item() == pytest.approx(made.item())


def test_mim_is_the_papers_update() -> None:
    """Each gradient by its own L1 norm, added to all of the sum before; a step along its signs (equations 6 and 7)."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(CELLS, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    clean = torch.randn(6, 6, 8)
    labels_B = model(clean).argmax(1)
    ball = Ball(clean, torch.full((6,), 0.3), "inf")
    moved, velocity = clean.clone(), torch.zeros_like(clean)
    for _ in range(10):
        moved.requires_grad_()
        loss = nn.functional.cross_entropy(model(moved), labels_B, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        velocity = velocity + gradient / gradient.abs().sum(dim=(1, 2), keepdim=True)
        moved = ball.project(moved.detach() + 0.03 * velocity.sign())
    crafted = made_by(
        build(AttackSettings(name="mim", epsilon=0.3)),
        model,
        clean,
        labels_B,
        box=None,
        num_classes=CLASSES,
        keys_B=list("abcdef"),
        seed=1,
        batch_size=6,
    )
    # A cell whose velocity is nearly 0 may go the other way.
    assert ((crafted.adversarial_NFL - moved).abs() < 1e-5).float().mean() > 0.99


# As a user of ART uses them.


def art_classifier(model: nn.Module, shape: tuple[int, ...], clip_values: Any = (-8.0, 8.0), **how: Any) -> Any:
    import_art()
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=CLASSES, clip_values=clip_values, **how
    )


ART: dict[str, tuple[type[Any], dict[str, Any], int | float]] = {
    "cw_l2": (CarliniWagnerL2, {}, 2),
    "cw_linf": (CarliniWagnerLInf, {"initial_tau": 1.0}, torch.inf),
    "fmn": (FastMinimumNorm, {}, torch.inf),
    "fmn_l2": (FastMinimumNorm, {"norm": 2}, 2),
}


@pytest.mark.parametrize("labels", ["indices", "one-hot", "predicted"])
@pytest.mark.parametrize("name", ART)
def test_as_attacks_of_art_they_are_what_they_are(name: str, labels: str) -> None:
    """In batches smaller than what they are given, whichever way ART's users give labels."""
    model, clean, labels_B = linear_problem((1, 6, 8))
    attack_class, how, _ = ART[name]
    attack = attack_class(art_classifier(model, (1, 6, 8)), batch_size=5, **how)
    y = {"indices": labels_B.numpy(), "one-hot": np.eye(CLASSES)[labels_B], "predicted": None}[labels]
    made = attack.generate(clean.numpy(), y)
    assert made.dtype == np.float32
    expected, _ = run(name, model, clean, labels_B, box=BOX)
    torch.testing.assert_close(torch.from_numpy(made), expected, rtol=0, atol=1e-5)


def test_cw_l2_agrees_with_arts() -> None:
    """Both break every input of a linear model, both within 1.25 times the known distance, ART with many more steps."""
    model, clean, labels_B = linear_problem((6, 8), num=6)
    classifier = art_classifier(model, (6, 8))
    from art.attacks.evasion import CarliniL2Method

    nearest_B = distances_to(model, clean, labels_B, 2).amin(1)
    theirs = CarliniL2Method(classifier, max_iter=10, binary_search_steps=6, initial_const=4.0, verbose=False)
    for attack in (theirs, CarliniWagnerL2(classifier)):
        made = torch.from_numpy(attack.generate(clean.numpy(), labels_B.numpy()))
        assert (model(made).argmax(1) != labels_B).all()
        assert (moved_by(clean, made, 2) <= 1.25 * nearest_B).all()


def test_targets_for_art() -> None:
    model, clean, labels_B = linear_problem((6, 8))
    classifier = art_classifier(model, (6, 8))
    targets = ((labels_B + 1) % CLASSES).numpy()
    for attack_class, how, _ in ART.values():
        attack = attack_class(classifier, targeted=True, **how)
        made = attack.generate(clean.numpy(), targets)
        assert (classifier.predict(made).argmax(1) == targets).all()
        with pytest.raises(ValueError, match="Target labels"):
            attack.generate(clean.numpy())


def test_preprocessing_of_the_estimator_is_attacked_through() -> None:
    """ART's standardisation in front of the model: distances are those of the inputs before it."""
    model, clean, labels_B = linear_problem((6, 8))
    classifier = art_classifier(model, (6, 8), clip_values=None, preprocessing=(0.0, 0.5))
    made = torch.from_numpy(CarliniWagnerL2(classifier).generate((clean / 2).numpy(), labels_B.numpy()))
    nearest_B = distances_to(model, clean, labels_B, 2).amin(1) / 2
    ratio_B = moved_by(clean / 2, made, 2) / nearest_B
    assert ratio_B.min() >= 0.999
    assert ratio_B.max() <= 1.1


def test_bounds_of_each_value_are_kept() -> None:
    model, clean, _ = linear_problem((6, 8))
    upper = np.linspace(0.3, 1.0, 6, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    made = CarliniWagnerL2(art_classifier(model, (6, 8), clip_values=(-upper, upper))).generate(clean.numpy())
    assert (np.abs(made) <= upper + 1e-6).all()
    assert (made != np.clip(clean.numpy(), -upper, upper)).any()


def test_a_classifier_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(CELLS, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    classifier = art_classifier(model, (6, 8))
    model.train()
    model[2].eval()
    model(torch.randn(4, 6, 8)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    FastMinimumNorm(classifier, max_iter=3).generate(np.zeros((2, 6, 8), np.float32))
    assert [module.training for module in (model, model[1], model[2])] == [True, True, False]
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), before, strict=True))  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in model.parameters())


FOR_ART = """
import logging, sys
logging.getLogger().addHandler(logging.FileHandler(sys.argv[1], mode="w"))
logging.warning("before")
import ser_fl.attacks.art.evasion
logging.warning("after")
"""


@pytest.mark.slow
def test_importing_our_attacks_for_art_closes_no_log(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    subprocess.run([sys.executable, "-c", FOR_ART, str(log)], check=True, capture_output=True)
    assert log.read_text().split() == ["before", "after"]
    assert logging.getLogger("art").level == logging.ERROR


def test_a_boundary_behind_a_steep_short_slope_is_found() -> None:
    """As digital silence makes it: one cell promises the boundary at 0.01 and leads half of the way, once; the other
    leads the rest, at 5. The nearest adversarial input is 500 times as far as the slope says.
    """

    class Silence(nn.Module):
        def forward(self, inputs_BD: Tensor) -> Tensor:
            lead_B = -1 + 0.5 * torch.tanh(200 * inputs_BD[:, 0]) + 0.1 * inputs_BD[:, 1]
            return torch.stack([torch.zeros_like(lead_B), lead_B], dim=1)

    model, clean = Silence(), torch.zeros(1, 2)
    target = Target(network=model, keys_B=["a"], passes=Passes())
    with attacked(model):
        made = carlini_wagner_l2(target, clean, torch.tensor([0]))
    assert model(made).argmax(1).item() == 1
    assert 5 <= float(made.norm()) <= 5 * 1.25
