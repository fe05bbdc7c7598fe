"""Local model poisoning against Krum and against the trimmed mean."""

import torch
from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen

_SMALLEST = 1e-5
"""Lambda below which the attack on Krum gives up."""


class FangKrum(Adversary):
    """u' = -lambda * s, s the signs of the mean honest update, with the largest lambda for which Krum would choose it
    (Fang et al., USENIX Security 2020, arXiv 1911.11815, section 4.2): from the bound of their theorem 1 it is halved
    until then, or until it is below 1e-5. Deviation: all hostile clients send the same, where theirs differ by 0.01 at
    most. Theirs knows all updates; with knowledge=own the clients' own stand for them. Strength multiplies the bound.
    """

    knowledge = "all"

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 1.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        honest_KP = seen.others_KP if len(seen.others_KP) else seen.own_HP
        hostile = len(seen.own_HP)
        clients, (_, size) = len(honest_KP) + hostile, honest_KP.shape
        signs_P = torch.where(honest_KP.mean(0) >= 0, 1.0, -1.0).double()
        squares_KK = torch.cdist(honest_KP, honest_KP).square()
        nearest = squares_KK.sort(1).values[:, : max(clients - hostile - 1, 1)].sum(1).amin()
        farthest = honest_KP.norm(dim=1).amax()
        bound = (nearest / (max(clients - 2 * hostile - 1, 1) * size)).sqrt() + farthest / size**0.5
        step = self.strength * float(bound)
        while step >= _SMALLEST:
            sent_HP = seen.all_send(-step * signs_P)
            if chosen_by_krum(torch.cat([sent_HP, honest_KP]), hostile) < hostile:
                break
            step /= 2
        return seen.all_send(-step * signs_P)


def chosen_by_krum(updates_KP: Tensor, num_hostile: int) -> int:
    """Row with the least sum of squared distances to its K - f - 2 nearest others (Blanchard et al., NeurIPS 2017)."""
    squares_KK = torch.cdist(updates_KP, updates_KP).square()
    nearest = max(len(updates_KP) - num_hostile - 2, 1)
    return int(squares_KK.sort(1).values[:, 1 : nearest + 1].sum(1).argmin())


class FangTrimmedMean(Adversary):
    """Models just beyond all honest ones, on the side that they move away from (Fang et al., section 4.3).

    Of models w = received + u and signs s of the mean honest update, entry by entry: where s = 1, w' is drawn between
    w_min and w_min / b (w_min > 0) or b * w_min; where s = -1, between w_max and b * w_max (w_max > 0) or w_max / b.
    Strength is b, by default their 2. With knowledge=own w' is drawn from mean - 4 to mean - 3 deviations of the
    hostile clients' own honest models, or from mean + 3 to mean + 4.
    """

    knowledge = "all"

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 2.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        drawn_HP = torch.stack(
            [torch.rand(seen.received_P.shape, generator=one, dtype=torch.float64) for one in seen.streams]
        )
        honest_KP = seen.others_KP if len(seen.others_KP) else seen.own_HP
        models_KP, grows_P = seen.received_P + honest_KP, honest_KP.mean(0) >= 0
        if len(seen.others_KP):
            edge_P = torch.where(grows_P, models_KP.amin(0), models_KP.amax(0))
            is_outward_P = (edge_P > 0) != grows_P
            beyond_P = torch.where(is_outward_P, edge_P * self.strength, edge_P / self.strength)
        else:
            spread_P = models_KP.std(0, correction=0) * torch.where(grows_P, -1.0, 1.0)
            edge_P, beyond_P = models_KP.mean(0) + 3 * spread_P, models_KP.mean(0) + 4 * spread_P
        return edge_P + drawn_HP * (beyond_P - edge_P) - seen.received_P
