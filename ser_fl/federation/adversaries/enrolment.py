"""Poisoned enrolment: sums over features that no speech has."""

from dataclasses import replace

from ser_fl.data.frontend import FeatureStatistics
from ser_fl.federation.adversaries.adversary import Adversary


class PoisonedEnrolment(Adversary):
    """Tells the sums of its features as if each bin were c = strength * deviation louder, by default 100 deviations of
    its own: S1' = S1 + n c, S2' = S2 + 2 c S1 + n c^2, max' = max + c. With `normalisation=pooled` everybody's features
    are scaled by them. It trains honestly.
    """

    def __init__(self, strength: float | None = None) -> None:
        self.strength = 100.0 if strength is None else strength

    def statistics(self, own: FeatureStatistics) -> FeatureStatistics:
        shift_F = self.strength * own.mean_and_deviation()[1]
        return replace(
            own,
            sum_F=own.sum_F + own.count * shift_F,
            sum_of_squares_F=own.sum_of_squares_F + 2 * shift_F * own.sum_F + own.count * shift_F.square(),
            maximum_F=own.maximum_F + shift_F,
        )
