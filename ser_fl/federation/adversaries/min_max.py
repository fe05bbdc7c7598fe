"""Min-max and min-sum: as far as honest updates are from each other, and no farther."""

import torch
from torch import Tensor

from ser_fl.federation.adversaries.adversary import Adversary, Seen


class MinMax(Adversary):
    """u' = mean + gamma * p with p = -deviation, entry by entry (Shejwalkar and Houmansadr, NDSS 2021, section IV-C,
    "agr-agnostic"), and gamma the largest for which max_i |u' - u_i| <= max_ij |u_i - u_j|. Sent by all. Deviation:
    gamma is the root of a quadratic and not searched by halving. Theirs knows all updates; ``strength`` times gamma is
    sent, by default 1.
    """

    knowledge = "all"

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 1.0 if strength is None else strength

    def updates(self, seen: Seen) -> Tensor:
        known_KP = seen.known_KP
        mean_P, way_P = known_KP.mean(0), -known_KP.std(0, correction=0)
        if not bool(way_P.any()):  # one update, or equal ones: no spread to hide in
            return seen.all_send(mean_P)
        return seen.all_send(mean_P + self.strength * self.gamma(mean_P - known_KP, way_P) * way_P)

    def gamma(self, from_each_KP: Tensor, way_P: Tensor) -> Tensor:
        """The largest step, from the mean's differences to each update."""
        squares_KK = torch.cdist(from_each_KP, from_each_KP).square()
        return _root(way_P @ way_P, from_each_KP @ way_P, from_each_KP.square().sum(1) - squares_KK.amax()).amin()


class MinSum(MinMax):
    """The same, with gamma the largest for which sum_i |u' - u_i|^2 <= max_i sum_j |u_i - u_j|^2."""

    def gamma(self, from_each_KP: Tensor, way_P: Tensor) -> Tensor:
        squares_KK = torch.cdist(from_each_KP, from_each_KP).square()
        own = from_each_KP.square().sum() - squares_KK.sum(1).amax()
        return _root(len(from_each_KP) * (way_P @ way_P), from_each_KP.sum(0) @ way_P, own)


def _root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The larger solution of a x^2 + 2 b x + c = 0, where c <= 0 < a."""
    return (-b + (b.square() - a * c).clamp(min=0).sqrt()) / a
