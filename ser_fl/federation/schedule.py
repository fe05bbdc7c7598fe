"""What a round is given by its number alone: who takes part, the share of a learning rate, whether norms are frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ser_fl.config.schema import FederationConfig, OptimiserConfig
from ser_fl.randomness import generator


def cohort_size(num_clients: int, fraction: float) -> int:
    """Clients of a round: a share of all, and at least one."""
    return max(1, round(fraction * num_clients))


def sample_cohort(client_ids: Sequence[str], fraction: float, seed: int, number: int) -> tuple[str, ...]:
    """Clients of a round: a share of all, drawn without replacement by (seed, round); kept in their order."""
    count = cohort_size(len(client_ids), fraction)
    drawn = torch.randperm(len(client_ids), generator=generator(seed, "cohort", number))[:count]
    return tuple(client_ids[index] for index in sorted(drawn.tolist()))


def scheduled_share(optimiser: OptimiserConfig, number: int) -> float:
    """Share of a learning rate in a round: constant, or a cosine from 1 to its final fraction at `decay_rounds`."""
    if optimiser.schedule == "constant":
        return 1.0
    done = min((number - 1) / optimiser.decay_rounds, 1.0)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return optimiser.final_fraction + (1 - optimiser.final_fraction) * cosine


def norm_is_frozen(federation: FederationConfig, number: int) -> bool:
    """Whether batch norm keeps the statistics that the clients received (`freeze_norm_from`)."""
    return 0 < federation.freeze_norm_from <= number
