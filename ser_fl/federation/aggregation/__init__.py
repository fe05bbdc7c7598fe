"""How the updates of a round become one model state: the rules by their names in `federation.aggregation`."""

from dataclasses import asdict

from ser_fl.config.aggregation import RuleConfig
from ser_fl.federation.aggregation.base import Aggregation
from ser_fl.federation.aggregation.bulyan import Bulyan
from ser_fl.federation.aggregation.centred_clipping import CentredClipping
from ser_fl.federation.aggregation.coordinate_median import CoordinateMedian
from ser_fl.federation.aggregation.divide_and_conquer import DivideAndConquer
from ser_fl.federation.aggregation.flame import FLAME
from ser_fl.federation.aggregation.fltrust import FLTrust
from ser_fl.federation.aggregation.geometric_median import GeometricMedian
from ser_fl.federation.aggregation.krum import Krum, MultiKrum
from ser_fl.federation.aggregation.norm_bounding import NormBounding
from ser_fl.federation.aggregation.robust import Robust
from ser_fl.federation.aggregation.trimmed_mean import TrimmedMean
from ser_fl.federation.aggregation.weighted_mean import WeightedMean

_ROBUST: tuple[type[Robust], ...] = (
    *(CoordinateMedian, TrimmedMean, GeometricMedian, Krum, MultiKrum, Bulyan),
    *(NormBounding, CentredClipping, DivideAndConquer, FLTrust, FLAME),
)
RULES: dict[str, type[Aggregation]] = {"weighted_mean": WeightedMean} | {rule.name: rule for rule in _ROBUST}
"""By name."""
_DRAWS = (NormBounding, DivideAndConquer, FLAME)
__all__ = ["RULES", "Aggregation", "Robust", "WeightedMean", "make_aggregation"]


def make_aggregation(settings: RuleConfig, seed: int) -> Aggregation:
    """The rule that the settings name; ``seed`` is for those that draw."""
    arguments = asdict(settings)
    rule = RULES[arguments.pop("name")]
    return rule(**arguments, **({"seed": seed} if rule in _DRAWS else {}))
