"""Scaled update: the same way, too far."""

from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class Scaled(Adversary):
    """u' = strength * u, of a client's own update, by default 10; 1 is honest. What boosts any attack on data
    (Bhagoji et al., arXiv 1811.12470, section 3.2: explicit boosting).
    """

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 10.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        return self.strength * seen.own_HP
