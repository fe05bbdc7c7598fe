"""The norms of perturbations: one entry each, which everything that needs a norm asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks.minimum_norm import fast_minimum_norm, rise_of
from ser_fl.attacks.pgd import descend
from ser_fl.attacks.target import Passes, Target, attacked
from ser_fl.attacks.threat_model import NORMS, Ball, Box, budget_of, distance, keep_within
from ser_fl.errors import UserError
from ser_fl.randomness import generator

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
CLEAN = torch.randn(5, 3, 4)
MOVED = CLEAN + 0.3 * torch.randn(5, 3, 4)
with torch.no_grad():
    LABELS = MODEL(CLEAN).argmax(1)


def ball(norm: Any) -> Ball:
    return Ball(CLEAN, torch.full((5,), 0.4), norm)


def target() -> Target:
    return Target(network=MODEL, keys_B=list("abcde"), passes=Passes())


def ascended(norm: Any) -> Tensor:
    with attacked(MODEL):
        return descend(target(), ball(norm), LABELS, steps=3, step_size=0.1, starts=None, box=Box.unbounded())


def nearest(norm: Any) -> Tensor:
    with attacked(MODEL):
        return fast_minimum_norm(target(), CLEAN, LABELS, norm=norm, steps=5)


USES: dict[str, Callable[[Any], Any]] = {
    "project": lambda norm: ball(norm).project(MOVED),
    "steepest": lambda norm: ball(norm).steepest(MOVED),
    "random": lambda norm: ball(norm).random(generator("start", row) for row in range(5)),
    "budget": lambda norm: torch.tensor(budget_of(0.5, norm, (3, 4))),
    "distance": lambda norm: distance(CLEAN, MOVED, norm),
    "keep_within": lambda norm: keep_within(CLEAN, MOVED, norm, 0.9),
    "rise_of": lambda norm: rise_of(MOVED, norm),
    "descend": ascended,
    "fast_minimum_norm": nearest,
}


@pytest.mark.parametrize("use", USES)
def test_an_unknown_norm_is_refused_wherever_a_norm_is_asked_for(use: str) -> None:
    for norm in ("1", "linf", 2):
        with pytest.raises(UserError, match=r"unknown norm '.*'.* Known: 2, inf"):
            USES[use](norm)


@pytest.mark.parametrize("use", USES)
def test_a_norm_is_added_in_one_place(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "another", NORMS["2"])
    assert torch.equal(USES[use]("another"), USES[use]("2"))
    assert not torch.equal(USES[use]("another"), USES[use]("inf"))


@pytest.mark.parametrize(("norm", "dual", "order"), [("inf", 1, math.inf), ("2", 2, 2)])
def test_an_entry_is_one_norm_throughout(norm: str, dual: float, order: float) -> None:
    """Size and dual size by their definitions, and the rest by what they promise of these."""
    functions, radius_B = NORMS[norm], torch.tensor([0.1, 0.2, 0.5, 1.0, 100.0])
    flat = MOVED.flatten(1)
    torch.testing.assert_close(functions.size(MOVED), torch.linalg.vector_norm(flat, ord=order, dim=1))
    torch.testing.assert_close(functions.dual_size(MOVED), torch.linalg.vector_norm(flat, ord=dual, dim=1))
    steepest = functions.steepest(MOVED)
    torch.testing.assert_close(functions.size(steepest), torch.ones(5))
    torch.testing.assert_close((steepest * MOVED).flatten(1).sum(1), functions.dual_size(MOVED))
    shortened = functions.shortened(MOVED, radius_B)
    torch.testing.assert_close(functions.size(shortened), torch.minimum(radius_B, functions.size(MOVED)))
    assert functions.of_ones(12) == pytest.approx(float(functions.size(torch.ones(1, 12))[0]))
    drawn = torch.cat([functions.drawn(torch.Size((3, 4)), generator("drawn", row)) for row in range(200)])
    assert 0.9 < float(functions.size(drawn).max()) <= 1
