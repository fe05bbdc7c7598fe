"""Free riders: the model without the work."""

import torch
from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class FreeRider(Adversary):
    """u' = strength / t * z in round t with z ~ N(0, 1) (Fraboni et al., AISTATS 2021, arXiv 2006.11901, section 3:
    disguised free riders, gamma = 1); by default 0, the plain one, which sends back what it was given. It claims the
    utterances that it has.
    """

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 0.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        size = seen.own_HP.shape[1:]
        noise_HP = torch.stack([torch.randn(size, generator=one, dtype=torch.float64) for one in seen.streams])
        return self.strength / seen.round * noise_HP
