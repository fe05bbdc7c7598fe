"""Speed of a round: against loops written by hand, Flower, one worker, and clean training."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import flower_peer
from benchmarks.figures import Figure, Measurement, alternately, ratio
from benchmarks.plain_loop import PlainLoop
from benchmarks.workload import CLASSES, PGD5, TINY, Shape, Workload, default_precision, drawn, workload
from ser_fl.config.compose import compose
from ser_fl.devices import threads_limited_to
from ser_fl.federation.client import ClientTask
from ser_fl.models.networks import build_network
from ser_fl.runs.environment import keep_freed_memory

SHORT = Shape()
"""16 clients of 56 clips of 64 x 100 frames, batches of 8."""
LONG = Shape(num_clients=2, clips=64, num_frames=188, batch_size=32)
"""Three seconds, at a hop of 256 samples with padding; a batch that fills the cores."""
BATCHES = (4, 8, 16, 32)
"""A client's, where the Trainer's own cost is measured."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Client-rounds on one thread of this process, one each in turns: seconds of the clock, and of the CPU.

    On one thread the latter are what a quiet machine's clock would show, unless somebody waits: where the two say
    different things, something else was running.
    """

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]

    @classmethod
    def of(cls, measurements: Mapping[str, Measurement], repeats: int, warm_ups: int = 1) -> Turns:
        """Measure."""
        used: dict[str, list[float]] = {name: [] for name in measurements}

        def noting(name: str, measure: Measurement) -> Measurement:
            def noted() -> None:
                before = time.process_time()
                measure()
                used[name].append(time.process_time() - before)

            return noted

        seconds = alternately({name: noting(name, each) for name, each in measurements.items()}, repeats, warm_ups)
        return cls(seconds, {name: each[warm_ups:] for name, each in used.items()})

    def ratio(self, name: str, of: str, to: str, shape: Shape, **promise: Any) -> Figure:
        """Of two measurements' seconds, with that of their CPU seconds beside it."""
        cpu = ratio("", self.cpu_seconds[of], self.cpu_seconds[to]).value
        detail = {"cpu_seconds_ratio": cpu} | described(shape)
        return ratio(name, self.seconds[of], self.seconds[to], **promise, **detail)


def figures() -> Iterator[Figure]:
    """All of them on one thread a client.

    This process keeps freed memory, as `ser-fl train` does: the loops written by hand gain from it too.
    """
    keep_freed_memory()
    with threads_limited_to(1):
        yield from client_rounds()
        yield from fixed_cost()
        yield from adversarial_rounds()
        yield from long_clips()
        yield from compiled()
        yield from workers()
        yield from against_flower()


def client_rounds(shape: Shape = SHORT, rounds: int = 7) -> Iterator[Figure]:
    """`Clients.update` of all clients against both loops."""
    default = default_precision()
    with drawn(shape) as prepared:
        ours = {
            precision: workload(prepared, shape, f"precision={precision}")
            for precision in dict.fromkeys(("32-true", "bf16-mixed", default))
        }
        measurements = {f"ours {precision}": by_us(mine) for precision, mine in ours.items()}
        compared = tuple(dict.fromkeys(("32-true", default)))
        for precision in compared:
            measurements[f"plain {precision}"] = by_hand(ours[precision], "same layout")
        measurements["trainer"] = by_us(workload(prepared, shape, "precision=32-true", "executor.engine=trainer"))
        measurements["contiguous"] = by_hand(ours["32-true"], "contiguous")
        check_logits(ours["32-true"])
        turns = Turns.of(measurements, rounds * shape.num_clients)
    for precision in compared:
        yield turns.ratio(
            f"client-round, one thread, against a plain loop of the same layout and precision ({precision})",
            f"ours {precision}",
            f"plain {precision}",
            shape,
            bar=1.05,
        )
    yield turns.ratio(
        "client-round, fp32, one thread, against the contiguous plain loop",
        "ours 32-true",
        "contiguous",
        shape,
        bar=0.80,
    )
    yield turns.ratio(
        "client-round, fp32, one thread, by Lightning's Trainer (the default) against our loop",
        "trainer",
        "ours 32-true",
        shape,
    )
    yield turns.ratio(
        "client-round, one thread, ours in fp32 against ours in bf16", "ours 32-true", "ours bf16-mixed", shape
    )


def fixed_cost(batches: Sequence[int] = BATCHES, rounds: int = 10) -> Iterator[Figure]:
    """What the Trainer costs, which is the default, and the loop that can be chosen instead."""
    yield from engine_cost("trainer", "Trainer's", (8.0, 0.5), batches, rounds)
    yield from engine_cost("loop", "our own loop's", (None, None), batches, rounds)


def engine_cost(
    engine: str, whose: str, bars: tuple[float | None, float | None], batches: Sequence[int], rounds: int
) -> Iterator[Figure]:
    """Ours minus the plain loop of the same layout, over the number of batches: a straight line."""
    with ExitStack() as stack:
        measurements = {}
        for count in batches:
            shape = Shape(num_clients=4, clips=8 * count, num_mels=16, num_frames=16)
            settings = (*TINY, "precision=32-true", f"executor.engine={engine}")
            mine = workload(stack.enter_context(drawn(shape)), shape, *settings)
            measurements[f"ours {count}"] = by_us(mine)
            measurements[f"plain {count}"] = by_hand(mine, "same layout")
        turns = Turns.of(measurements, rounds * shape.num_clients)
    extra_ms, extra_cpu_ms = (
        1e3 * np.array([np.subtract(taken[f"ours {count}"], taken[f"plain {count}"]) for count in batches])
        for taken in (turns.seconds, turns.cpu_seconds)
    )
    medians = np.median(extra_ms, axis=1)
    line, cpu_line = (np.polyfit(batches, each, 1) for each in (medians, np.median(extra_cpu_ms, axis=1)))
    of_repeats = np.polyfit(batches, extra_ms, 1)
    for name, bar, place in (
        (f"{whose} fixed cost per client-round, ms", bars[0], 1),
        (f"{whose} cost per batch, ms", bars[1], 0),
    ):
        yield Figure(
            name=name,
            value=float(line[place]),
            bar=bar,
            detail={
                "quartiles_of_repeats": np.quantile(of_repeats[place], (0.25, 0.75)).tolist(),
                "in_cpu_seconds": float(cpu_line[place]),
                "extra_ms_by_batches": dict(zip(batches, medians.tolist(), strict=True)),
                "repeats": len(extra_ms[0]),
            },
        )


def adversarial_rounds(shape: Shape = SHORT, rounds: int = 5) -> Iterator[Figure]:
    """PGD-5 on half of every batch against none. Counted in passes the ratio is 3.5: 5 x 1/2 + 1."""
    precisions = tuple(dict.fromkeys(("32-true", default_precision())))
    with drawn(shape) as prepared:
        measurements = {}
        for precision in precisions:
            for objective, settings in (("clean", ()), ("pgd", PGD5)):
                mine = workload(prepared, shape, f"precision={precision}", *settings)
                measurements[f"{objective} {precision}"] = by_us(mine)
        turns = Turns.of(measurements, rounds * shape.num_clients)
    for precision in precisions:
        yield turns.ratio(
            f"a PGD-5 half-batch adversarial round against a clean one ({precision})",
            f"pgd {precision}",
            f"clean {precision}",
            shape,
            bar=3.7,
        )


def long_clips(shape: Shape = LONG, rounds: int = 8) -> Iterator[Figure]:
    """The default CRNN on clips of three seconds."""
    with drawn(shape) as prepared:

        def mine(precision: str, *settings: str) -> Workload:
            return workload(prepared, shape, "model=crnn", f"precision={precision}", *settings)

        turns = Turns.of(
            {
                "contiguous": by_hand(mine("32-true", *PGD5), "contiguous"),
                "adversarial": by_us(mine("bf16-mixed", *PGD5)),
                "adversarial fp32": by_us(mine("32-true", *PGD5)),
                "fp32": by_us(mine("32-true")),
                "bf16": by_us(mine("bf16-mixed")),
            },
            rounds * shape.num_clients,
        )
    yield turns.ratio(
        "bf16 channels-last against contiguous fp32, adversarial round at 32 x 188 frames",
        "contiguous",
        "adversarial",
        shape,
        bar=2.5,
        reach="at least",
    )
    yield turns.ratio("the same in fp32", "contiguous", "adversarial fp32", shape)
    yield turns.ratio(
        "client-round at 32 x 188 frames, one thread, ours in fp32 against ours in bf16", "fp32", "bf16", shape
    )


def compiled(shape: Shape = LONG, repeats: int = 15) -> Iterator[Figure]:
    """A step of the default CRNN through torch.compile, which writes C++, against its layers as they are."""
    network = build_network(compose(["model=crnn"]).model, len(CLASSES), seed=1).train()
    features_BFL = torch.rand(shape.batch_size, shape.num_mels, shape.num_frames)
    labels_B = torch.arange(shape.batch_size) % len(CLASSES)
    took: dict[str, Any] = {}

    def step(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(features_BFL), labels_B)
        torch.autograd.grad(loss, list(network.parameters()))

    faster = torch.compile(network, dynamic=False)
    started = time.perf_counter()
    try:
        step(faster)
    except Exception as error:  # no C++ compiler, or a graph that it cannot take
        print(f"torch.compile is left out: {error}", file=sys.stderr, flush=True)
        return
    took["compilation_s"] = time.perf_counter() - started
    seconds = alternately({"eager": lambda: step(network), "compiled": lambda: step(faster)}, repeats, warm_ups=3)
    yield ratio(
        "a training step in bf16 at 32 x 188 frames, as it is against compiled by torch.compile",
        seconds["eager"],
        seconds["compiled"],
        **took,
        **described(shape),
    )


def workers(shape: Shape = SHORT, repeats: int = 7) -> Iterator[Figure]:
    """Worker processes, started and warm."""
    with drawn(shape) as prepared, ExitStack() as stack:
        seconds = alternately(
            {
                name: stack.enter_context(workload(prepared, shape, *with_workers(count)).rounds()).play
                for name, count in (("one", 1), ("two", 2))
            },
            repeats,
        )
    yield ratio(
        "two workers against one", seconds["one"], seconds["two"], bar=1.85, reach="at least", **described(shape)
    )


def against_flower(shape: Shape = SHORT, blocks: int = 3, rounds: int = 4) -> Iterator[Figure]:
    """Blocks of rounds in turns, each side started anew; seconds of a block are the median of its rounds."""
    if not flower_peer.is_installed():
        print(flower_peer.HOW_TO_INSTALL, file=sys.stderr, flush=True)
        return
    default = default_precision()
    starts: list[float] = []
    with drawn(shape) as prepared, tempfile.TemporaryDirectory() as folder:
        mine = {
            precision: workload(prepared, shape, f"precision={precision}", *with_workers(2))
            for precision in dict.fromkeys(("32-true", default))
        }
        flower_peer.save(mine["32-true"], Path(folder))

        def flower() -> float:
            simulated = flower_peer.play(Path(folder), 1 + rounds)
            starts.append(simulated.first_s)
            return statistics.median(simulated.later_s)

        measurements: dict[str, Callable[[], float]] = {"flower": flower}
        for precision, peer in mine.items():
            measurements[precision] = block_of(peer, rounds)
        seconds = alternately(measurements, blocks, warm_ups=0)
    for name, precision, bar in (
        (
            "client-rounds a second against Flower around the contiguous plain loop, two workers each, fp32",
            "32-true",
            2.5,
        ),
        (f"the same with our default precision ({default})", default, 4.0),
    ):
        yield ratio(
            name,
            seconds["flower"],
            seconds[precision],
            bar=bar,
            reach="at least",
            **described(shape),
            client_rounds_per_s=[
                shape.num_clients / statistics.median(seconds[side]) for side in (precision, "flower")
            ],
            flower=flower_peer.SET_UP,
            flower_first_round_and_start_s=starts,
            rounds_of_a_block=rounds,
        )


def block_of(mine: Workload, rounds: int) -> Callable[[], float]:
    """Start the workers, play a round, then take the time of some."""

    def block() -> float:
        with mine.rounds() as started:
            return statistics.median(alternately({"round": started.play}, rounds, warm_ups=0)["round"])

    return block


def with_workers(count: int) -> tuple[str, str]:
    """Overrides for so many worker processes."""
    return "executor=processes", f"executor.workers={count}"


def by_us(mine: Workload) -> Measurement:
    """A client-round by `Clients.update`."""
    return next_client(mine, mine.clients.update)


def by_hand(mine: Workload, written: Literal["same layout", "contiguous"]) -> Measurement:
    """The same client-round in a plain loop."""
    loop = plain_loop(mine, written)
    return next_client(mine, lambda task: loop.client_round(task.state, task.client_id, task.round))


def next_client(mine: Workload, train: Callable[[ClientTask], object]) -> Measurement:
    """One client after the other, a call each and over and over: turns so short that others' load falls on all."""
    tasks = cycle(mine.tasks)

    def measure() -> None:
        train(next(tasks))

    return measure


def plain_loop(mine: Workload, written: Literal["same layout", "contiguous"]) -> PlainLoop:
    """The loop that does what this workload's clients do."""
    num_classes, box = len(mine.prepared.store.classes), mine.clients.box
    return PlainLoop(mine.config, mine.examples(), num_classes, written=written, box=box)


def check_logits(mine: Workload) -> None:
    """Both networks are one function."""
    ours, theirs = (plain_loop(mine, written) for written in ("same layout", "contiguous"))
    features_BFL = next(iter(ours.examples.values())).features_NFL[:8]
    logits = []
    for loop in (ours, theirs):
        loop.network.load_state_dict(mine.tasks[0].state)
        loop.network.eval()
        with torch.no_grad():
            logits.append(loop.network(features_BFL))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def described(shape: Shape) -> dict[str, Any]:
    """What was trained."""
    return {
        "clients": shape.num_clients,
        "clips_of_a_client": shape.clips,
        "clip": [shape.num_mels, shape.num_frames],
        "batch": shape.batch_size,
    }
