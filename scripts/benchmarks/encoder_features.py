"""A frozen encoder as front end: clips a second, what the cache holds, and a client's epoch on it against log-mel."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.figures import Figure, alternately
from ser_fl.config.compose import compose
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.prepared import prepare
from ser_fl.devices import threads_limited_to
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.models.networks import build_network
from ser_fl.runs.records import State

CLIPS_A_SECOND_BAR = 25.0
"""Of 3 s, on one core."""
REPEATS = 5


def figures() -> Iterator[Figure]:
    """None where the weights of GE2E are not installed."""
    config = compose(["experiment=strangers", "data=builtin"]).frontend
    try:
        frontend = build_frontend(config)
    except UserError as error:
        print(f"left out: {error}")
        return
    clips_BT = 0.1 * torch.randn((64, frontend.num_samples), generator=torch.Generator().manual_seed(1))

    def computed(size: int) -> None:
        with torch.inference_mode():
            for batch_BT in torch.split(clips_BT, size):
                frontend(batch_BT)

    with threads_limited_to(1):
        seconds = alternately({"alone": lambda: computed(1), "batch": lambda: computed(frontend.at_once)}, REPEATS)
    for name, words in (("batch", f"{frontend.at_once} at a time, as features are"), ("alone", "one at a time")):
        speeds = sorted(len(clips_BT) / taken for taken in seconds[name])
        yield Figure(
            name=f"GE2E, clips of 3 s a second on one core, {words}",
            value=statistics.median(speeds),
            bar=CLIPS_A_SECOND_BAR if name == "batch" else None,
            reach="at least",
            detail={"lowest": speeds[0], "highest": speeds[-1], "repeats": REPEATS, "clips": len(clips_BT)},
        )
    kilobytes = config.num_features * config.num_frames * 4 / 1e3
    yield Figure(
        name="GE2E, cache, MB per 1,000 clips of 3 s",
        value=kilobytes,
        detail={"frames": config.num_frames, "log-mel": 1e-3 * 64 * 186 * 4},
    )
    yield epoch()


def epoch() -> Figure:
    """A client's local epoch from the cache, encoder and linear classifier against log-mel and CRNN; copies off."""
    with tempfile.TemporaryDirectory() as name:
        data = ["data=builtin", f"data.cache_dir={Path(name)}", "augmentation=none", "precision=32-true"]
        same = ["split=speaker_independent", "federation.batch_size=16", "executor.engine=loop"]
        encoder = client_of([*data, *same, "experiment=strangers"])
        logmel = client_of([*data, *same])
        with threads_limited_to(1):
            seconds = alternately({"encoder": lambda: train(*encoder), "log-mel": lambda: train(*logmel)}, REPEATS)
    medians = {front_end: statistics.median(taken) for front_end, taken in seconds.items()}
    return Figure(
        name="a client's epoch on cached features of GE2E (linear) against log-mel (CRNN)",
        value=medians["encoder"] / medians["log-mel"],
        bar=1.0,
        detail={"median_s": medians, "repeats": REPEATS},
    )


def client_of(words: list[str]) -> tuple[Clients, ClientTask]:
    """The first client of an experiment, and its first round."""
    config = compose(words)
    data = prepare(config)
    network = build_network(config.model, len(data.store.classes), seed=1)
    state: State = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    task = ClientTask(
        round=1, client_id=next(iter(data.clients)), state=state, learning_rate=config.optimiser.learning_rate
    )
    return Clients(config, data), task


def train(clients: Clients, task: ClientTask) -> None:
    """One local epoch."""
    clients.update(task)
