"""Noise in place of an update."""

import torch
from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class Noise(Adversary):
    """u' = strength * rms(u) * z with z ~ N(0, 1) in every entry (Blanchard et al., NeurIPS 2017, section 5: Gaussian).
    Deviation: their deviation is a number, 200; here it is in units of the client's own update's root mean square, by
    default 10, so that it means the same in every network.
    """

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 10.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        size = seen.own_HP.shape[1:]
        noise_HP = torch.stack([torch.randn(size, generator=one, dtype=torch.float64) for one in seen.streams])
        return self.strength * seen.own_HP.square().mean(1, keepdim=True).sqrt() * noise_HP
