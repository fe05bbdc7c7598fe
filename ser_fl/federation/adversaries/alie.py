"""A little is enough: within the spread of honest updates, all on one side."""

from statistics import NormalDist

from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class ALIE(Adversary):
    """u' = mean - z * deviation, entry by entry over the updates that they know, sent by all (Baruch et al., arXiv
    1902.06156, algorithm 3; the sign is that of the authors' code). Of n clients, m of them hostile, z is the largest
    that leaves s = floor(n / 2 + 1) - m honest clients farther from the mean: Phi(z) = (n - m - s) / (n - m); strength
    is z in its place. Theirs knows the updates of hostile clients alone.
    """

    def __init__(self, strength: float | None = None) -> None:
        self.strength = strength

    def updates(self, seen: Seen) -> Tensor:
        known_KP = seen.known_KP
        z = largest_z(seen.cohort_size, len(seen.own_HP)) if self.strength is None else self.strength
        return seen.all_send(known_KP.mean(0) - z * known_KP.std(0, correction=0))


def largest_z(num_clients: int, num_hostile: int) -> float:
    """The paper's z; 0 where hostile clients need no honest one to be many.

    >>> round(largest_z(50, 24), 2)  # the paper's example
    1.43
    """
    supporters, honest = num_clients // 2 + 1 - num_hostile, num_clients - num_hostile
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0
