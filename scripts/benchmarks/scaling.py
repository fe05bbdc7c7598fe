"""How the seconds of a round grow with clients, workers, attack steps and clip length."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from benchmarks.figures import Figure, alternately, slope
from benchmarks.workload import PGD5, Rounds, Shape, drawn, workload
from ser_fl.devices import threads_limited_to

CLIENTS = (4, 8, 16, 32, 64)
STEPS = (0, 1, 2, 3, 5, 7, 10)
FRAMES = (50, 100, 200, 400)
STRAIGHT = 1.1
"""Exponent of what should grow in proportion, at most."""


def figures() -> Iterator[Figure]:
    """All of them on one thread a client."""
    with threads_limited_to(1):
        yield from over_clients()
        yield from over_attack_steps()
        yield from over_clip_length()


def over_clients(sizes: Sequence[int] = CLIENTS, repeats: int = 5, clips: int = 24) -> Iterator[Figure]:
    """Rounds of more and more of the same clients; workers are started and warm."""
    shape = Shape(num_clients=max(sizes), clips=clips)
    with drawn(shape) as prepared, ExitStack() as stack:
        measurements = {}
        for workers in (1, 2):
            mine = workload(prepared, shape, "executor=processes", f"executor.workers={workers}")
            federation = stack.enter_context(mine.rounds()).federation
            for size in sizes:
                manifest = federation.client_manifest
                few = replace(manifest, client_ids=manifest.client_ids[:size])
                some = replace(federation, client_manifest=few)
                measurements[f"{workers} {size}"] = Rounds(some, mine.server()).play
        seconds = alternately(measurements, repeats)
    for workers in (1, 2):
        curve = {size: seconds[f"{workers} {size}"] for size in sizes}
        yield growth(f"exponent of a round's seconds over {sizes[0]} to {sizes[-1]} clients, workers: {workers}", curve)


def over_attack_steps(steps: Sequence[int] = STEPS, repeats: int = 5) -> Iterator[Figure]:
    """Adversarial training with more and more steps; no step is clean training."""
    shape = Shape(num_clients=4)
    with drawn(shape) as prepared:
        measurements = {}
        for count in steps:
            settings = (*PGD5, f"objective.steps={count}") if count else ()
            measurements[str(count)] = workload(prepared, shape, *settings).update_all
        seconds = alternately(measurements, repeats)
    curve = {count: statistics.median(seconds[str(count)]) for count in steps}
    per_step, start = np.polyfit(steps, list(curve.values()), 1)
    detail = {"median_s": curve, "start_s": float(start), "per_step_s": float(per_step), "repeats": repeats}
    yield Figure(
        name="an attack step on half of every batch, in clean rounds", value=float(per_step) / curve[0], detail=detail
    )
    yield Figure(
        name=f"R squared of a straight line over {steps[0]} to {steps[-1]} attack steps",
        value=float(np.corrcoef(steps, list(curve.values()))[0, 1] ** 2),
        reach="at least",
        detail=detail,
    )


def over_clip_length(frames: Sequence[int] = FRAMES, repeats: int = 7) -> Iterator[Figure]:
    """Client-rounds on longer and longer clips."""
    with ExitStack() as stack:
        measurements = {}
        for count in frames:
            shape = Shape(num_clients=2, num_frames=count)
            measurements[str(count)] = workload(stack.enter_context(drawn(shape)), shape).update_all
        seconds = alternately(measurements, repeats)
    curve = {count: seconds[str(count)] for count in frames}
    yield growth(f"exponent of a round's seconds over {frames[0]} to {frames[-1]} frames", curve)


def growth(name: str, curve: Mapping[int, Sequence[float]]) -> Figure:
    """Exponent over all sizes. What is paid once a round lowers it, so the last doubling is told too."""
    sizes, medians = list(curve), [statistics.median(seconds) for seconds in curve.values()]
    exponent, _ = slope(sizes, medians)
    return Figure(
        name=name,
        value=exponent,
        bar=STRAIGHT,
        detail={
            "median_s": dict(zip(sizes, medians, strict=True)),
            "spread_s": {size: [min(seconds), max(seconds)] for size, seconds in curve.items()},
            "exponent_of_last_doubling": slope(sizes[-2:], medians[-2:])[0],
        },
    )
