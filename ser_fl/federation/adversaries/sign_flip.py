"""Sign flip: the other way."""

from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class SignFlip(Adversary):
    """u' = -strength * u, of a client's own update (Li et al., arXiv 1811.03761, section 5.2)."""

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 4.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        return -self.strength * seen.own_HP
