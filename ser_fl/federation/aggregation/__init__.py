"""How the updates of a round become one model state: the rules by their names in `federation.aggregation`."""

from dataclasses import asdict

from ser_fl.config.aggregation import RuleConfig
from ser_fl.federation.aggregation.base import Aggregation
from ser_fl.federation.aggregation.coordinate_median import CoordinateMedian
from ser_fl.federation.aggregation.krum import Krum, MultiKrum
from ser_fl.federation.aggregation.robust import Robust
from ser_fl.federation.aggregation.trimmed_mean import TrimmedMean
from ser_fl.federation.aggregation.weighted_mean import WeightedMean

RULES: dict[str, type[Aggregation]] = {"weighted_mean": WeightedMean} | {
    rule.name: rule for rule in (CoordinateMedian, TrimmedMean, Krum, MultiKrum)
}
"""By name."""
__all__ = ["RULES", "Aggregation", "Robust", "WeightedMean", "make_aggregation"]


def make_aggregation(settings: RuleConfig, seed: int) -> Aggregation:
    """The rule that the settings name; ``seed`` is for those that draw."""
    arguments = asdict(settings)
    rule = RULES[arguments.pop("name")]
    return rule(**arguments)
