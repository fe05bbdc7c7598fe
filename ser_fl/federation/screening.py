"""What the server measures of an update itself, and when it is too large to be an honest one."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ser_fl.randomness import generator
from ser_fl.runs.records import State

REMEMBERED = 64
"""Updates that a new one is held against: the last ones that came, whether they were refused or not."""
_FEWEST = 3
"""Below that, an update is held against the model alone."""
MOST_TIMES, MOST_TIMES_OF_BATCHES, _MOST_TIMES_OF_STATISTICS = 6.0, 20.0, 60.0
"""How many times the median an honest update may be, the largest median so far: clients that the model does not fit, or
that a rule drops, go on with long updates while those of others shrink. Of 443,346 updates in some 1,240 runs of ours,
most of them small ones of tests, the largest was 2.1 times the last median after whole epochs, and 7.6 times in the 42
runs with few minibatches (`federation.local_batches`)."""
_MOST_OF_MODEL, _MOST_OF_STATISTICS = 10.0, 1e6
"""In the first updates of a run: how many times the model's own norm."""

_WIDTH = 1024

Magnitude = tuple[float, float, int]
"""L2 norms of how far parameters went and of how far running statistics did, and utterances."""


def norm_of_change(state: State, received: State, layout: Mapping[str, tuple[int, ...]]) -> float:
    """L2 norm of a difference over these entries, in float64. It is summed in the layout that each has at a client, its
    strides, so that the last bit is that of the client too, and the same whatever brought the tensors here.
    """
    squares = []
    for name, strides in layout.items():
        moved = torch.empty_strided(state[name].shape, strides, dtype=state[name].dtype)
        squares.append(moved.copy_(state[name] - received[name]).double().square().sum())
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def sketch_of(state: State, received: State, names: Collection[str]) -> Tensor:
    """A difference over these entries in `_WIDTH` numbers, so that angles between updates are known when none is kept:
    each value is added to one of them with a sign, both drawn (Charikar et al., ICALP 2002). Cosines of sketches differ
    from those of updates by 0.03 (one deviation, 1 / sqrt(1024)) at most.
    """
    sums = torch.zeros(2 * _WIDTH, dtype=torch.float64)
    for name in names:
        moved_N = (state[name] - received[name]).double().reshape(-1)
        sums += torch.bincount(_places(name, moved_N.numel()), weights=moved_N, minlength=2 * _WIDTH)
    return sums[:_WIDTH] - sums[_WIDTH:]


@lru_cache(maxsize=1024)
def _places(name: str, count: int) -> Tensor:
    return torch.randint(2 * _WIDTH, (count,), generator=generator(0, "sketch", name))


def usual_norms(averaged: Sequence[Magnitude], earlier: Sequence[float]) -> list[float]:
    """The largest medians of both norms so far, of the updates that a round averaged; 0 while rounds had too few."""
    if len(averaged) < _FEWEST:
        return [*earlier]
    return [max(statistics.median_low(each[place] for each in averaged), earlier[place]) for place in range(2)]


def find_excess(
    new: Magnitude,
    before: Sequence[Magnitude],
    usual: Sequence[float],
    received: State,
    parameters: Collection[str],
    most_times: float,
) -> str | None:
    """Why an update is too large to be averaged, or None. A client takes at most as many steps more as it has more
    utterances, so that it may go as much further than the median of those before, or than ever was ``usual``
    (`usual_norms`). One that is refused is remembered too, lest a change of all clients look like an attack for ever.
    """
    held = statistics_of(received, parameters)
    kinds = (
        ("update", "parameters", parameters, most_times, _MOST_OF_MODEL),
        ("change of running statistics", "statistics", held, _MOST_TIMES_OF_STATISTICS, _MOST_OF_STATISTICS),
    )
    for place, (what, of, names, times, most) in enumerate(kinds):
        norm = new[place]
        if not math.isfinite(norm):
            return f"its {what} is too large: its norm is not finite"
        if len(before) >= _FEWEST:
            larger = max(1.0, new[2] / statistics.median(magnitude[2] for magnitude in before))
            median = max(statistics.median_low(magnitude[place] for magnitude in before), usual[place])
            if 0 < times * larger * median < norm:
                return (
                    f"its {what} is too large: of norm {norm:.3g}, {norm / median:.3g} times what is usual; "
                    f"{times * larger:.3g} times is the most (federation.strikes=0 allows any)"
                )
        own = math.sqrt(sum(float(received[name].double().square().sum()) for name in names))
        if norm > most * (own + math.sqrt(sum(received[name].numel() for name in names))):
            return (
                f"its {what} is too large: of norm {norm:.3g}, where the model's {of} are of norm {own:.3g} "
                "(federation.strikes=0 allows any)"
            )
    return None


def statistics_of(state: State, parameters: Collection[str]) -> dict[str, tuple[int, ...]]:
    """What is averaged beside parameters, a batch norm's running mean and variance, with its strides."""
    held = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and name not in parameters}
    return {name: tensor.contiguous().stride() for name, tensor in held.items()}
