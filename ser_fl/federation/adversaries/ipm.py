"""Inner product manipulation: against what all others want."""

from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class IPM(Adversary):
    """u' = -strength * mean of the honest updates, sent by all (Xie et al., UAI 2020, arXiv 1903.03936, section 4).

    A small strength (by default 0.5) stays near honest updates, which distances do not tell; a mean is turned round by
    one above honest / hostile clients. With knowledge=own the mean is of what they trained honestly themselves.
    """

    knowledge = "all"

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 0.5 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        honest_KP = seen.others_KP if len(seen.others_KP) else seen.own_HP
        return seen.all_send(-self.strength * honest_KP.mean(0))
