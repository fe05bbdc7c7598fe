"""Which device a worker takes, and that no tensor stays behind on another one.

There is no OTHER where these run. The number of OTHERs is a stand-in, and so is the other device: torch's "meta", whose
tensors have no values. What mixes it with the CPU raises, and so does what would wait for a value. Pinned memory and
what cuDNN makes of it need a OTHER: `test_gpu.py`.
"""

from __future__ import annotations

import os
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl import devices
from ser_fl.attacks.pgd import own_starts, pgd, random_start
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.config.data import AugmentationConfig
from ser_fl.config.federation import ExecutorConfig
from ser_fl.data.augmentation import augment, roll_in_time
from ser_fl.data.datamodule import ClientDataModule, ShuffledBatches
from ser_fl.data.features import Examples
from ser_fl.defences import build_defence
from ser_fl.devices import device_for, devices_of
from ser_fl.errors import UserError
from ser_fl.federation.processes import count_workers
from ser_fl.models.networks import build_network
from ser_fl.robustness.evaluator import EVALUATION_BATCH, batches_of
from ser_fl.robustness.trained_run import attack_device
from ser_fl.training.objectives import OBJECTIVES, ClientRound
from ser_fl.training.objectives.adversarial import PerStep

OTHER = torch.device("meta")
AUGMENTED = AugmentationConfig(
    roll=True, time_masks=2, max_time_mask=9, mel_masks=1, max_mel_mask=7, label_smoothing=0.1, splice=0.5
)


def has_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("accelerator", "gpus", "expected"),
    [
        ("cpu", 4, ["cpu"]),
        ("cuda", 1, ["cuda:0"]),
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
    ],
)
def test_devices_are_those_that_are_shown(
    accelerator: str, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, gpus)
    assert [str(device) for device in devices_of(accelerator)] == expected


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices_of("auto") == (torch.device("cpu"),)
    with pytest.raises(UserError, match="accelerator=cuda cannot be used here"):
        devices_of("cuda", "accelerator")


def test_workers_take_the_devices_in_turns_and_evenly() -> None:
    three = [torch.device("cuda", index) for index in range(3)]
    assert [device_for(worker, three).index for worker in range(8)] == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("workers", "gpus", "cohort", "expected"), [("auto", 4, 50, 4), ("auto", 4, 3, 3), (6, 4, 9, 6)]
)
def test_auto_is_one_worker_a_gpu(
    workers: Any, gpus: int, cohort: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)))
    config = ExecutorConfig(name="processes", workers=workers, threads=1, accelerator="cuda")
    assert count_workers(config, cohort) == expected


@pytest.mark.parametrize(
    ("asked", "trained", "gpus", "expected"),
    [
        (None, "cpu", 2, "cpu"),
        (None, "cuda", 2, "cuda:0"),
        (None, "cuda", 0, "cpu"),
        (None, "auto", 1, "cuda:0"),
        (None, "mps", 1, "cpu"),
        ("cpu", "cuda", 1, "cpu"),
        ("cuda", "cpu", 1, "cuda:0"),
        ("auto", "cpu", 0, "cpu"),
    ],
)
def test_a_benchmark_runs_where_the_run_did_or_where_it_is_told(
    asked: str | None, trained: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, gpus)
    overrides = [f"accelerator={asked}"] if asked else []
    run = compose(["experiment=debug", f"executor.accelerator={trained}"])
    assert str(attack_device(compose_benchmark(["run=x", *overrides]).accelerator, run)) == expected


def test_a_benchmark_that_is_told_where_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match="accelerator=cuda cannot be used here"):
        attack_device("cuda", compose(["experiment=debug"]))


def test_streams_are_seeded_alike_and_put_back() -> None:
    before = torch.get_rng_state()
    with devices.seeded_streams(7, torch.device("cpu")):
        drawn = torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(7)))
    with devices.seeded_streams(7, torch.device("cpu"), everywhere=True):
        assert torch.equal(torch.rand(5), drawn)
        expected = (random.Random(7).random(), np.random.RandomState(7).rand())
        assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_every_row_is_rolled_by_its_own_draw() -> None:
    features_BFL = torch.randn(9, 4, 11, generator=torch.Generator().manual_seed(0))
    shifts = torch.randint(11, (9,), generator=torch.Generator().manual_seed(3)).tolist()
    expected = torch.stack([row.roll(shift, -1) for row, shift in zip(features_BFL, shifts, strict=True)])
    assert torch.equal(roll_in_time(features_BFL, torch.Generator().manual_seed(3)), expected)


def test_own_starts_are_those_of_each_utterance_alone() -> None:
    features_BFL = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    streams = [torch.Generator().manual_seed(seed) for seed in range(3)]
    again = [torch.Generator().manual_seed(seed) for seed in range(3)]
    alone = [random_start(row[None], 0.2, stream) for row, stream in zip(features_BFL, again, strict=True)]
    assert torch.equal(own_starts(features_BFL, 0.2, streams), torch.cat(alone))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([40, 40], [40, 40]),
        ([1] * 130, [64, 64, 2]),
        ([30, 30, 10], [60, 10]),
        ([0, 5, 0], [5]),
        ([150, 10], [64, 64, 32]),
        ([], []),
    ],
)
def test_small_holders_share_a_batch(sizes: list[int], expected: list[int]) -> None:
    bounds = np.cumsum([0, *sizes]).tolist()
    parts = [tuple(range(start, stop)) for start, stop in pairwise(bounds)]
    batches = list(batches_of(parts))
    assert [len(batch) for batch in batches] == expected and max([*expected, 0]) <= EVALUATION_BATCH
    assert [row for batch in batches for row in batch] == [row for part in parts for row in part]


def elsewhere(name: str) -> nn.Module:
    """A network on the other device."""
    return build_network(compose(["experiment=debug", f"model={name}"]).model, 4, seed=1).to(OTHER)


def speech(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.empty(count, 64, 60, device=OTHER), torch.zeros(count, dtype=torch.int64, device=OTHER)


def test_the_stand_in_notices_what_it_should() -> None:
    features_BFL, _ = speech()
    with pytest.raises(RuntimeError, match="meta"):
        features_BFL + torch.ones(60)
    with pytest.raises(RuntimeError, match="meta"):
        features_BFL.sum().item()


def test_augmentation_draws_on_the_cpu_and_stays_elsewhere() -> None:
    features_BFL, labels_B = speech()
    augmented = augment(features_BFL, labels_B, AUGMENTED, torch.Generator())
    assert augmented.device == OTHER and augmented.shape == features_BFL.shape


@pytest.mark.parametrize("name", ["crnn_tiny", "vgg15", "resnet"])
def test_a_training_step_elsewhere_meets_no_other_device_and_waits_for_nothing(name: str) -> None:
    network = elsewhere(name).train()
    features_BFL, labels_B = speech()
    loss = functional.cross_entropy(network(augment(features_BFL, labels_B, AUGMENTED, torch.Generator())), labels_B)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.device == OTHER for parameter in network.parameters())


def client_round(examples: Examples) -> ClientRound:
    return ClientRound(
        number=2,
        network=elsewhere("crnn_tiny"),
        examples=examples,
        stream=torch.Generator(),
        augmentation=AUGMENTED,
        box=Box.unbounded(),
    )


@pytest.mark.parametrize("attack", ["fgsm", "bim", "pgd"])
def test_attacks_while_training_stay_elsewhere(attack: str) -> None:
    config = compose(["experiment=debug", f"objective={attack}", "objective.recipe=per_step"])
    objective = OBJECTIVES[config.objective.name](config.objective)
    assert isinstance(objective, PerStep)
    features_BFL, labels_B = speech()
    hardened = objective.harden(
        client_round(Examples(features_BFL, labels_B)), config.objective.epsilon, features_BFL, labels_B
    )
    assert hardened.device == OTHER and hardened.shape == features_BFL.shape


def test_copies_are_made_where_the_network_is_and_fetched_at_the_end() -> None:
    """Only there does it wait for values, which these tensors have not."""
    config = compose(["experiment=debug", "objective=pgd"])
    held = Examples(torch.empty(80, 64, 60), torch.zeros(80, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        OBJECTIVES[config.objective.name](config.objective).start_round(client_round(held))


def test_batches_are_sent_to_the_device() -> None:
    held = Examples(torch.empty(8, 64, 60), torch.zeros(8, dtype=torch.int64))
    module = ClientDataModule(ShuffledBatches(held, 4, torch.Generator()), client_id="a", round=1)
    features_BFL, labels_B = module.transfer_batch_to_device((held.features_NFL, held.labels_N), OTHER, 0)
    assert features_BFL.device == labels_B.device == OTHER


def test_the_selection_attack_starts_from_the_cpus_draws_elsewhere() -> None:
    features_BFL, labels_B = speech(2)
    start_BFL = own_starts(features_BFL, 0.1, (torch.Generator(), torch.Generator()))
    network = elsewhere("crnn_tiny")
    moved = pgd(network, features_BFL, labels_B, epsilon=0.1, step_size=0.05, steps=2, start_BFL=start_BFL)
    assert start_BFL.device == moved.device == OTHER


@pytest.mark.parametrize("name", ["none", "randomisation", "randomisation_expected", "randomisation_ensemble"])
def test_defences_stay_elsewhere(name: str) -> None:
    features_BFL, _ = speech(3)
    defence, network = build_defence(name), elsewhere("crnn_tiny").eval()
    votes_RB = defence.predict(network, features_BFL, ("a", "b", "c"), seed=1)
    assert votes_RB.device == OTHER and votes_RB.shape == (len(defence.run_weights), 3)
