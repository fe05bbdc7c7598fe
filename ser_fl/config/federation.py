"""The round loop and the server."""

from __future__ import annotations

from typing import Literal

from ser_fl.config.objects import Own
from ser_fl.config.values import Amount, Count, Fraction, Positive, Share, stage


@stage
class FederationConfig:
    """The round loop."""

    name: Literal["federated", "centralised", "local_only"]
    """federated: FedAvg. centralised: one client with all training data. local_only: no averaging."""
    num_rounds: Count
    patience: Amount
    """Stop after so many rounds without a new best; 0: never."""
    fraction_train: Fraction
    """Share of clients sampled each round."""
    local_epochs: Count
    batch_size: Count
    min_clients: Count
    """A round with fewer updates stops the run."""
    keep_optimiser: bool
    """Carry each client's optimiser state to its next round; FedAvg starts anew."""
    freeze_norm_from: Amount
    """From this round on, batch norm keeps the averaged statistics it received, while clients train too; 0: never.
    Else a client normalises by its own speaker while it trains and by the average of all when it is tested. Not of
    `model.norm=renorm`, which trains what is tested, and of group norm, which has no statistics."""
    server_momentum: Share
    """Momentum of the server over rounds (FedAvgM; 0 is FedAvg), or of its Adam (beta 1). Not for local_only, where
    nothing is averaged."""
    weight_average: Share = 0.0
    """Decay of an average of the shared model over rounds, which is then what is validated, selected and kept, while
    clients go on from the last round's; 0: none. Not for local_only."""
    local_batches: Count | None = None
    """Minibatches of each local epoch, drawn anew every round; null: all. The fewer, the less a client goes its own way
    before it is averaged (1 is FedSGD), for more rounds. A client's weight stays the number of its utterances."""
    server_optimiser: Literal["momentum", "adam"] = "momentum"
    """adam: FedAdam, for updates whose scale differs from parameter to parameter. Not for local_only."""
    server_learning_rate: Positive | None = None
    """Of adam, and null without it. `optimiser.schedule` is then of this rate, and leaves the clients' as it is."""
    server_second_momentum: Share | None = None
    """Of adam (beta 2), and null without it."""
    server_tau: Positive | None = None
    """Of adam, and null without it: added to the root of an update's mean square. For single gradients, where
    `local_batches` is 1, it must be far smaller than for epochs."""

    algorithm: Own | None = None
    """An algorithm of the server of your own; null: the one that the settings above describe."""
    aggregation: Own | None = None
    """An aggregation of client updates of your own; null: the weighted average."""

    def __post_init__(self) -> None:
        for setting, given in (("server_momentum", self.server_momentum), ("weight_average", self.weight_average)):
            if self.name == "local_only" and given:
                raise ValueError(
                    f"federation.{setting} must be 0 with federation=local_only, which averages nothing, got {given:g}"
                )
        if self.name == "local_only" and self.server_optimiser != "momentum":
            raise ValueError(
                "federation.server_optimiser must be momentum (at 0) with federation=local_only, which averages "
                f"nothing, got {self.server_optimiser}"
            )
        for setting in ("server_learning_rate", "server_second_momentum", "server_tau"):
            given = getattr(self, setting)
            if self.server_optimiser == "adam" and given is None:
                raise ValueError(
                    f"federation.{setting} is needed with federation.server_optimiser=adam: start from "
                    "federation=federated_adam, or federated_sgd"
                )
            if self.server_optimiser != "adam" and given is not None:
                raise ValueError(
                    f"federation.{setting} goes with federation.server_optimiser=adam, got {given:g} with "
                    f"{self.server_optimiser}"
                )
