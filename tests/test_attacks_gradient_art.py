"""FGSM, BIM and PGD by ART's classes: the bits, the passes and the restarts of our own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks import pgd
from ser_fl.attacks.art import estimator
from ser_fl.attacks.art.estimator import import_art
from ser_fl.attacks.attack import AttackSettings, Problem
from ser_fl.attacks.target import Passes, attacked
from ser_fl.attacks.threat_model import Box

BINS, FRAMES, CLASSES = 7, 10, 4
NATIVE: dict[str, Callable[[Problem], Tensor]] = {
    "fgsm": pgd.craft_fgsm,
    "bim": pgd.craft_pgd,
    "pgd": pgd.craft_pgd,
}
ART: dict[str, Callable[[Problem], Tensor]] = {
    "fgsm": estimator.craft_fgsm,
    "bim": estimator.craft_bim,
    "pgd": estimator.craft_pgd,
}
UPPER = torch.linspace(0.4, 1.7, BINS)[:, None]
LOWER = -UPPER - 0.1
LOWER_MET = LOWER.clone()
LOWER_MET[2], LOWER_MET[5] = UPPER[2], UPPER[5]  # as above the band of a telephone
BOXES = {"none": Box.unbounded(), "wide": Box(LOWER, UPPER), "meeting": Box(LOWER_MET, UPPER)}


class Crnn(nn.Module):
    """All that is treacherous: batch norm, dropout between and inside layers, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.recurrence = nn.GRU(4 * BINS, 6, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)
        self.output = nn.Linear(12, CLASSES)

    def forward(self, features_BFL: Tensor) -> Tensor:
        maps = self.convolution(features_BFL[:, None])
        states, _ = self.recurrence(maps.flatten(1, 2).transpose(1, 2))
        return 8 * self.output(states.mean(1))


def problem(
    name: str,
    *,
    seed: int = 0,
    num: int = 6,
    box: Box = BOXES["wide"],
    epsilon: float = 0.1,
    steps: int = 4,
    restarts: int = 0,
    warm: bool = False,
) -> Problem:
    """Labels of which some are wrong when clean, and, where warm, a start inside the ball of half the budget."""
    torch.manual_seed(seed)
    model = Crnn()
    for _ in range(3):
        model(torch.randn(8, BINS, FRAMES))
    model.eval().requires_grad_(False)
    features_BFL = box.clip(torch.randn(num, BINS, FRAMES))
    labels_B = model(features_BFL).argmax(1)
    labels_B[0] = (labels_B[0] + 1) % CLASSES
    start_BFL = box.clip(features_BFL + epsilon / 2 * torch.randn_like(features_BFL).sign()) if warm else None
    step_size = epsilon if name == "fgsm" else epsilon / 4
    restarts = restarts if name == "pgd" else 0
    return Problem(
        network=model,
        num_classes=CLASSES,
        clean=features_BFL,
        labels_B=labels_B,
        keys_B=[f"utterance {row}" for row in range(num)],
        box=box,
        settings=AttackSettings(name=name, epsilon=epsilon, steps=steps, step_size=step_size, restarts=restarts),
        seed=seed,
        passes=Passes(),
        start_BFL=start_BFL,
    )


def both(given: Problem) -> tuple[Tensor, Tensor, Passes, Passes]:
    """What our code and ART's make of a problem, and their passes."""
    made = []
    for crafts in (NATIVE, ART):
        passes = Passes()
        with attacked(given.network):
            made.append((crafts[given.settings.name](replace(given, passes=passes)), passes))
    (ours, our_passes), (arts, art_passes) = made
    return ours, arts, our_passes, art_passes


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("epsilon", [0.03, 0.25, 1.5])
@pytest.mark.parametrize(("seed", "num"), [(0, 1), (1, 5), (2, 16)])
@pytest.mark.parametrize("name", ART)
def test_art_gives_our_bits(name: str, seed: int, num: int, epsilon: float, box: str) -> None:
    given = problem(name, seed=seed, num=num, epsilon=epsilon, box=BOXES[box], restarts=1)
    ours, arts, our_passes, art_passes = both(given)
    assert torch.equal(ours, arts)
    assert not torch.equal(ours, given.clean)
    assert our_passes == art_passes


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("restarts", [0, 1, 3])
@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_starts_restarts_and_what_a_smaller_budget_found_are_ours(epsilon: float, restarts: int, warm: bool) -> None:
    given = problem("pgd", seed=3, num=12, epsilon=epsilon, restarts=restarts, warm=warm)
    ours, arts, our_passes, art_passes = both(given)
    assert torch.equal(ours, arts)
    assert our_passes == art_passes
    broken = given.network(arts).argmax(1) != given.labels_B
    if restarts == 3 and not warm:
        assert not broken.all(), "nobody is started again"
        alone = both(replace(given, settings=replace(given.settings, restarts=1)))[1]
        assert not torch.equal(alone, arts)


@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_bim_goes_on_from_where_a_smaller_budget_led_to(epsilon: float) -> None:
    given = problem("bim", num=8, epsilon=epsilon, warm=True)
    ours, arts, our_passes, art_passes = both(given)
    assert torch.equal(ours, arts)
    assert our_passes == art_passes
    assert not torch.equal(arts, both(replace(given, start_BFL=None))[1])


@pytest.mark.parametrize("name", ART)
def test_a_step_is_one_pass_forward_and_one_backward(name: str) -> None:
    """ART asks for two more predictions, for its log."""
    passes = both(problem(name, num=5, steps=7, restarts=1))[3]
    steps = 1 if name == "fgsm" else 7
    assert (passes.forward, passes.backward) == (5 * steps, 5 * steps)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ART)
def test_in_expectation_over_a_defence_they_are_ours_too(name: str, warm: bool) -> None:
    """A batch at a time, with our draws of every step and restart."""
    given = problem(name, num=20, epsilon=0.1, steps=3, restarts=3, warm=warm)
    given = replace(given, expectation=_Shifted(3))
    ours, arts, our_passes, art_passes = both(given)
    assert torch.equal(ours, arts)
    assert our_passes == art_passes
    assert not torch.equal(arts, both(replace(given, expectation=None))[1])


class _Shifted:
    """A step's draws: shifts in time, other ones in every step and for every utterance."""

    def __init__(self, samples: int) -> None:
        self.weights = (1 / samples,) * samples

    def transform(self, features_BFL: Tensor, keys_B: list[str], *, step: int, draws: range) -> Tensor:
        rows = [
            row.roll((step + 2 * draw + int(key.split()[1])) % FRAMES, dims=-1)
            for draw in draws
            for row, key in zip(features_BFL, keys_B, strict=True)
        ]
        return torch.stack(rows)


def test_arts_pgd_takes_no_start_yet() -> None:
    """Else the hook in `estimator` is needless."""
    import_art()
    from art.attacks.evasion import BasicIterativeMethod, HopSkipJump, ProjectedGradientDescentPyTorch

    def words(kind: type) -> str:
        return f"{inspect.signature(kind.__init__)} {inspect.getdoc(kind.generate)}"

    assert "x_adv_init" in words(HopSkipJump)
    for kind in (BasicIterativeMethod, ProjectedGradientDescentPyTorch):
        assert not [word for word in ("x_adv_init", "x_init", "adv_init", "start") if word in words(kind)]
