"""What an adaptive attacker knows of a defence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ser_fl.attacks.victim import Expectation
from ser_fl.defences import Defence, NoDefence
from ser_fl.randomness import derive_seed


def expectation_of(defence: Defence, *, seed: int, samples: int | None) -> Expectation | None:
    """None for no defence."""
    return None if isinstance(defence, NoDefence) else _Draws(defence, seed, samples or defence.num_draws)


@dataclass(frozen=True, slots=True)
class _Draws:
    defence: Defence
    seed: int
    samples: int

    def draws(self, step: int) -> Sequence[tuple[int, float]]:
        return [(step * self.samples + draw, 1 / self.samples) for draw in range(self.samples)]

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], draw: int) -> Tensor:
        return self.defence.transform(features_BFL, keys_B, seed=derive_seed("adaptive", self.seed), draw=draw)
