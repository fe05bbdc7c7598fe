"""`federation.aggregation`: the rules by which the updates of a round become one model, and their settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from ser_fl.config.values import Amount, Count, NonNegative, OrOwn, Positive, stage
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


@stage
class BulyanConfig:
    """A trimmed mean of those that krum takes one after the other; needs n >= 4f + 3 clients a round."""

    name: Literal["bulyan"]
    hostile_share: Annotated[float, Field(ge=0, lt=0.25)] = 0.1
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up."""


@stage
class GeometricMedianConfig:
    """The point with the smallest sum of distances to all updates; needs n >= 2f + 1 clients a round."""

    name: Literal["geometric_median"]
    hostile_share: Hostile = 0.2
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up."""
    steps: Amount = 100
    """Of Weiszfeld; 0: the plain mean."""
    smoothing: Positive = 1e-6
    """Least distance that an update is taken to have."""


@stage
class NormBoundingConfig:
    """The mean of updates that are cut down to a largest norm. Any number of clients will do."""

    name: Literal["norm_bounding"]
    radius: Positive | None = None
    """That norm, L2, of the change of the whole model; null: the median of the round's norms. With a number the
    server keeps no update, so that its memory does not grow with the cohort."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on every cell, drawn by (seed, round)."""


@stage
class CentredClippingConfig:
    """The mean of updates that are clipped around a centre, at first the received model; needs n >= 2f + 1 clients a
    round.
    """

    name: Literal["centred_clipping"]
    hostile_share: Hostile = 0.2
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up."""
    radius: Positive | None = None
    """Largest L2 distance from the centre; null: in each iteration the median distance. With a number and one
    iteration the server keeps no update, so that its memory does not grow with the cohort."""
    iterations: Count = 1
    """Of clipping, each around the last one's result."""


@stage
class DnCConfig:
    """Clients that stand out along the direction in which updates differ most are dropped; needs n >= 2f + 1 clients a
    round.
    """

    name: Literal["dnc"]
    hostile_share: Hostile = 0.2
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up."""
    removed: Positive = 1.0
    """Clients that a draw drops for each hostile one."""
    draws: Count = 1
    """Of cells of the model; a client that any of them drops is dropped."""
    cells: Count = 10_000
    """Of a draw, by (seed, round)."""


@stage
class FLTrustConfig:
    """Updates count as far as they point where the root's does, and are as long as that."""

    name: Literal["fltrust"]
    root: str | None = None
    """Id of the client whose utterances the server trusts, such as a speaker of its own. It trains in every round."""

    def __post_init__(self) -> None:
        if self.root is None:
            raise ValueError(
                "federation.aggregation=fltrust needs federation.aggregation.root=CLIENT, a client whose utterances "
                "the server trusts"
            )


@stage
class FLAMEConfig:
    """Of the largest cluster of directions (HDBSCAN of scikit-learn) a mean of clipped updates, and noise; needs n >=
    2f + 1 clients a round.
    """

    name: Literal["flame"]
    hostile_share: Hostile = 0.2
    """Of a round's clients, how many may be hostile: f is this share of them, rounded up."""
    noise: NonNegative = 0.001
    """Standard deviation of Gaussian noise on every cell, in median norms of the updates, drawn by (seed, round)."""


RuleConfig = (
    WeightedMeanConfig
    | MajorityConfig
    | MultiKrumConfig
    | BulyanConfig
    | GeometricMedianConfig
    | NormBoundingConfig
    | CentredClippingConfig
    | DnCConfig
    | FLTrustConfig
    | FLAMEConfig
)
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
