"""AutoPGD and C&W step by step: every point that they ask for, against the papers' algorithms written anew in NumPy.

The constants are literals here on purpose: whoever changes one in the code changes the attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks.autopgd import autopgd
from ser_fl.attacks.carlini_wagner import carlini_wagner_linf
from ser_fl.attacks.target import Passes, Target, attacked
from ser_fl.attacks.threat_model import Ball, Box

Vector = np.ndarray
CELLS, WAVES, ASCENTS = 3, 6, 300
TIE = "a tie"
"""Two heights that differ by rounding, whose order NumPy and torch may see differently."""


class Hills:
    """A sum of sines of three cells and of saw teeth, with a gradient that is written out: hills, ridges and cliffs."""

    def __init__(self, seed: int, teeth: float = 0.0) -> None:
        numbers = np.random.default_rng(seed)
        self.frequencies = numbers.normal(0, 4, (WAVES, CELLS))
        self.phases, self.heights = numbers.uniform(0, 6.3, WAVES), numbers.normal(0, 1, WAVES)
        self.tooth, self.teeth = numbers.normal(0, 4, CELLS), teeth

    def __call__(self, point: Vector) -> float:
        saw = self.tooth @ point
        return float(self.heights @ np.sin(self.frequencies @ point + self.phases) + self.teeth * (saw - np.floor(saw)))

    def gradient(self, point: Vector) -> Vector:
        slopes: Vector = (self.heights * np.cos(self.frequencies @ point + self.phases)) @ self.frequencies
        return slopes + self.teeth * self.tooth


def lead_of(hills: Sequence[Hills]) -> Callable[[Tensor], Tensor]:
    """The height of each input on its own hills, for torch to differentiate."""
    frequencies, phases, heights, tooth, teeth = (
        torch.tensor(np.stack([getattr(one, name) for one in hills]))
        for name in ("frequencies", "phases", "heights", "tooth", "teeth")
    )

    def lead(inputs: Tensor) -> Tensor:
        rows = len(inputs)  # at first all, later on some of them
        waves = torch.einsum("bwc,bc->bw", frequencies[:rows], inputs) + phases[:rows]
        saw = (tooth[:rows] * inputs).sum(1)
        return (heights[:rows] * waves.sin()).sum(1) + teeth[:rows] * (saw - saw.floor())

    return lead


class Asked(nn.Module):
    """Two logits, of which the second is that much ahead; it keeps all that it was asked for."""

    def __init__(self, lead: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lead, self.points = lead, []  # type: ignore[var-annotated]

    def forward(self, inputs: Tensor) -> Tensor:
        self.points += list(inputs.detach().numpy().copy())
        lead_B = self.lead(inputs)
        return torch.stack([torch.zeros_like(lead_B), lead_B], dim=1)


def target(model: nn.Module, num: int = 1) -> Target:
    return Target(network=model, keys_B=[f"utterance {row}" for row in range(num)], passes=Passes())


def climb(model: nn.Module, clean: Tensor, radius: float, steps: int) -> None:
    num = len(clean)
    with attacked(model):
        autopgd(
            target(model, num),
            Ball(clean, clean.new_full((num,), radius), "inf"),
            torch.zeros(num, dtype=torch.int64),
            loss=lambda logits_BC, labels_B: logits_BC[:, 1],
            steps=steps,
            box=Box.unbounded(),
        )


def auto_pgd(hills: Hills, clean: Vector, radius: float, steps: int) -> tuple[list[Vector], set[str]]:
    """Croce and Hein 2020 (arXiv 2003.01690), algorithm 1, L-infinity, for one point; and what happened on the way.

    As in the authors' code the second condition looks back to a checkpoint, and so never holds at the first.
    """
    shares = [0.0, 0.22]  # section 3.1: p_1 = 0.22, and then
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = [math.ceil(round(share * steps, 9)) for share in shares]
    happened: set[str] = set()

    def projected(point: Vector) -> Vector:
        return clean + np.clip(point - clean, -radius, radius)

    points, values = [clean], [hills(clean)]
    step_size, best = 2 * radius, clean
    highest = highest_before = hills(clean)
    halved_before = True
    x_before, x = clean, clean
    rises: list[bool] = []
    for k in range(steps):
        z = projected(x + step_size * np.sign(hills.gradient(x)))
        x_next = z if k == 0 else projected(x + 0.75 * (z - x) + 0.25 * (x - x_before))
        points.append(x_next)
        values.append(hills(x_next))
        rises.append(values[-1] > hills(x))
        if min(abs(values[-1] - hills(x)), abs(values[-1] - highest)) < 1e-9:
            happened.add(TIE)
        if values[-1] > highest:
            highest, best = values[-1], x_next
        x_before, x = x, x_next
        if k + 1 in checkpoints[1:] and k + 1 < steps:
            last = checkpoints[checkpoints.index(k + 1) - 1]
            share = sum(rises[last:]) / (k + 1 - last)
            too_few, stuck = share < 0.75, not halved_before and highest == highest_before
            if 0.5 <= share < 0.75:
                happened.add("a share between a half and three quarters")
            if not too_few and highest == highest_before and k + 1 == checkpoints[1]:
                happened.add("no higher, but at the first checkpoint")
            if stuck and not too_few:
                happened.add("stuck, though it rises")
            if not too_few and halved_before and highest == highest_before and k + 1 > checkpoints[1]:
                happened.add("no higher, but just halved")
            if too_few or stuck:
                step_size, x = step_size / 2, best
            halved_before, highest_before = too_few or stuck, highest
    return points, happened


def test_autopgd_asks_for_the_points_of_algorithm_1() -> None:
    """All checkpoints, halvings, returns and momenta of many ascents at once, to the last digits of float64."""
    hills = [Hills(seed, teeth=2.0) for seed in range(ASCENTS)]
    somewhere = [np.random.default_rng(1000 + seed).normal(size=(20, CELLS)) for seed in range(ASCENTS)]
    high = [max(places, key=one) for one, places in zip(hills, somewhere, strict=True)]
    seen: set[str] = set()
    for steps, radius, clean in ((14, 0.2, high), (40, 0.3, [places[0] for places in somewhere])):
        ascents = [auto_pgd(*each, radius, steps) for each in zip(hills, clean, strict=True)]
        model = Asked(lead_of(hills))
        climb(model, torch.tensor(np.stack(clean)), radius, steps)
        asked = np.reshape(model.points, (steps + 1, ASCENTS, CELLS))
        clear = [row for row, (_, happened) in enumerate(ascents) if TIE not in happened]
        assert len(clear) > ASCENTS / 3
        np.testing.assert_allclose(asked[:, clear], np.stack([ascents[row][0] for row in clear], axis=1), atol=1e-9)
        seen |= set().union(*(ascents[row][1] for row in clear))
    assert seen == {
        "a share between a half and three quarters",
        "stuck, though it rises",
        "no higher, but just halved",
        "no higher, but at the first checkpoint",
    }


def test_autopgd_moves_the_whole_of_its_first_step_and_three_quarters_of_the_next() -> None:
    """Worked: the summit of a roof at 0.4, a start at 0, radius 1; steps of 2, cut to the ball."""
    model = Asked(lambda inputs: -(inputs[:, 0] - 0.4).abs())
    climb(model, torch.zeros(1, 1, dtype=torch.float64), radius=1.0, steps=10)
    third = 1 + 0.75 * (-1 - 1) + 0.25 * (1 - 0)
    fourth = third + 0.75 * (1 - third) + 0.25 * (third - 1)
    assert [float(point[0]) for point in model.points[:4]] == pytest.approx([0.0, 1.0, third, fourth])


def carlini_wagner(hills: Hills, lead: float, clean: Vector, tau: float, steps: int) -> list[Vector]:
    """The L-infinity attack for one point: Adam on the lead within a bound that falls to 0.9 of what was enough.

    The bound's factor is the paper's (arXiv 1608.04644, section VI.C); Adam's and the steps' are ours.
    """
    clear = max(1e-4 * abs(hills(clean) - lead), 1e-6 * abs(hills(clean) - lead))
    points, x = [clean], clean
    mean, square = np.zeros(CELLS), np.zeros(CELLS)
    for step in range(steps):
        points.append(x)
        if hills(x) - lead > clear:
            tau = min(tau, 0.9 * np.abs(x - clean).max())
        gradient = hills.gradient(x)
        mean, square = 0.7 * mean + 0.3 * gradient, 0.9 * square + 0.1 * gradient**2
        direction = (mean / (1 - 0.7 ** (step + 1))) / np.sqrt(square / (1 - 0.9 ** (step + 1)))
        stride = 0.5 * (1 - 0.95 * step / steps) * tau
        x = np.clip(x + stride * direction, clean - tau, clean + tau)
    return points


def test_cw_linf_asks_for_the_points_of_a_bound_that_falls_to_nine_tenths() -> None:
    hills = [Hills(seed) for seed in range(40)]
    clean = np.random.default_rng(8).normal(size=(40, CELLS))
    summit = [one(point) + 0.8 for one, point in zip(hills, clean, strict=True)]
    expected = [carlini_wagner(*each, tau=0.5, steps=25) for each in zip(hills, summit, clean, strict=True)]
    lead, away = lead_of(hills), torch.tensor(summit)
    model = Asked(lambda inputs: lead(inputs) - away[: len(inputs)])
    with attacked(model):
        made = carlini_wagner_linf(
            target(model, 40),
            torch.tensor(clean),
            torch.zeros(40, dtype=torch.int64),
            tau_B=torch.full((40,), 0.5, dtype=torch.float64),
            steps=25,
        )
    asked = np.reshape(model.points[: 26 * 40], (26, 40, CELLS))
    np.testing.assert_allclose(asked, np.stack(expected, axis=1), atol=1e-9)
    assert 10 < int((made != torch.tensor(clean)).any(1).sum()) < 40


def test_cw_linf_shrinks_its_bound_by_a_tenth_as_long_as_that_is_enough() -> None:
    """Worked: one cell, a boundary at 0.3, a first bound of 1, so a first step of 0.5."""
    model = Asked(lambda inputs: inputs[:, 0] - 0.3)
    with attacked(model):
        made = carlini_wagner_linf(target(model), torch.zeros(1, 1), torch.tensor([0]), tau_B=torch.ones(1), steps=8)
    asked = [float(point[0]) for point in model.points]
    bounds = [0.5 * 0.9**number for number in range(6)]
    assert asked[1:8] == pytest.approx([0.0, *bounds])
    assert bounds[-2] > 0.3 > bounds[-1]
    assert asked[8] == pytest.approx(bounds[-1]), "not enough: it stays"
    assert 0.3 < float(made) < bounds[-2]
