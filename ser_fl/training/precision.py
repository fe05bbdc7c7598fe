"""`precision=auto`: whether clients train in bfloat16 is decided by a measurement on the machine that trains."""

import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.config.schema import Config
from ser_fl.devices import autocast, devices_of
from ser_fl.models.networks import NetworkSource, build_network

WORTH_IT = 1.1
"""How many times as fast a step must be in bfloat16 to be taken in it: below, fp32 is the better bargain."""
_STEPS = 5
_PATIENCE_S = 2.0


def resolve_precision(config: Config, num_classes: int, own: NetworkSource | None = None) -> Config:
    """The configuration with one of the two precisions in place of "auto"; it goes into the run's ``config.yaml``.
    Training steps of the configured network and batch size are timed in turns in both. Runs to be compared bit by bit
    name their precision: another machine, or the same one under load, may come to another result.
    """
    if config.precision != "auto":
        return config
    device = devices_of(config.executor.accelerator)[0]
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
        pays = _has_bf16(device) and speed_up(config, num_classes, device, own) >= WORTH_IT
    return replace(config, precision="bf16-mixed" if pays else "32-true")


def speed_up(config: Config, num_classes: int, device: torch.device, own: NetworkSource | None = None) -> float:
    """How many times as fast a training step is in bfloat16 as in float32: median of steps taken in turns."""
    network = build_network(config.model, num_classes, seed=config.seed, own=own, frontend=config.frontend)
    network.to(device).train()
    shape = (config.federation.batch_size, config.frontend.num_features, config.frontend.num_frames)
    features_BFL = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels_B = (torch.arange(len(features_BFL)) % num_classes).to(device)
    ratios: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        started = time.perf_counter()
        for step in range(1 + _STEPS):
            seconds = [_seconds(network, features_BFL, labels_B, low=low) for low in (False, True)]
            if step > 0 or time.perf_counter() - started > _PATIENCE_S:  # the first warms up
                ratios.append(seconds[0] / seconds[1])
            if time.perf_counter() - started > _PATIENCE_S:
                break
    return statistics.median(ratios)


def _seconds(network: nn.Module, features_BFL: Tensor, labels_B: Tensor, *, low: bool) -> float:
    device = features_BFL.device
    started = time.perf_counter()
    with autocast(device, bf16=low):
        loss = functional.cross_entropy(network(features_BFL), labels_B)
    torch.autograd.grad(loss, list(network.parameters()))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _has_bf16(device: torch.device) -> bool:
    """Whether it is worth a measurement: torch has kernels for it that this hardware can run."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
