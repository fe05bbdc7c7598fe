"""Who trains in a round."""

from collections.abc import Sequence

import torch

from ser_fl.randomness import generator


def cohort_size(num_clients: int, fraction: float) -> int:
    """Clients of a round: a share of all, and at least one."""
    return max(1, round(fraction * num_clients))


def sample_cohort(
    client_ids: Sequence[str], fraction: float, seed: int, number: int, always: str | None = None
) -> tuple[str, ...]:
    """Clients of a round: a share of all, drawn without replacement by (seed, round); kept in their order. One that is
    in all of them, ``always``, is the first.
    """
    count = cohort_size(len(client_ids), fraction)
    drawn = torch.randperm(len(client_ids), generator=generator(seed, "cohort", number))[:count]
    cohort = tuple(client_ids[index] for index in sorted(drawn.tolist()))
    if always is None or always not in client_ids:
        return cohort
    return always, *(each for each in cohort if each != always)
