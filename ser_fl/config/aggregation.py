"""`federation.aggregation`: the rules by which the updates of a round become one model, and their settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from ser_fl.config.values import Count, OrOwn, stage
from ser_fl.errors import unknown_name

Hostile = Annotated[float, Field(ge=0, lt=0.5)]


@stage
class WeightedMeanConfig:
    """Every client weighs as many utterances as it says: FedAvg, and what null is. Nobody may be hostile."""

    name: Literal["weighted_mean"]


@stage
class MajorityConfig:
    """median and trimmed_mean go by each cell of the model, and need n >= 2f + 1 clients a round where f of them are
    hostile. krum takes the one update that is closest to most others, and needs n >= 2f + 3.
    """

    name: Literal["median", "trimmed_mean", "krum"]
    hostile_share: Hostile = 0.2
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up. trimmed_mean leaves out so
    many from either end."""


@stage
class MultiKrumConfig:
    """The mean of those updates that are closest to most others; needs n >= 2f + 3 clients a round."""

    name: Literal["multi_krum"]
    hostile_share: Hostile = 0.2
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up."""
    kept: Count | None = None
    """Updates that are averaged; null: n - f."""


RuleConfig = WeightedMeanConfig | MajorityConfig | MultiKrumConfig
SETTINGS: dict[str, Any] = {
    name: rule for rule in get_args(RuleConfig) for name in get_args(rule.__annotations__["name"])
}
"""Class of the settings of each rule, by its name."""


def _named(given: object) -> object:
    """A rule's name alone is its settings as by default; a ValueError of an unknown rule or setting."""
    given = {"name": given} if isinstance(given, (str, int, float)) else given
    if not isinstance(given, Mapping) or "_target_" in given or "name" not in given:
        return given
    if (name := str(given["name"])) not in SETTINGS:
        raise unknown_name("federation.aggregation", name, SETTINGS)
    known = [field.name for field in fields(SETTINGS[name])]
    for setting in given:
        if setting not in known:
            raise unknown_name(f"setting of federation.aggregation={name}", str(setting), known)
    return given


AggregationConfig = Annotated[OrOwn[Annotated[RuleConfig, Field(discriminator="name")]] | None, BeforeValidator(_named)]
