"""Networks by name: an entry here and a dataclass in `ser_fl.config.schema` make a new one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ser_fl.config.objects import ObjectConfig, refusal
from ser_fl.config.schema import ModelConfig
from ser_fl.devices import float32_by_default
from ser_fl.models.crnn import CRNN
from ser_fl.models.resnet import ResNet
from ser_fl.models.vgg import VGG15
from ser_fl.randomness import derive_seed

NETWORKS: Mapping[str, Callable[[int, Any], nn.Module]] = {"crnn": CRNN, "vgg15": VGG15, "resnet": ResNet}


NetworkSource = nn.Module | Callable[[int], nn.Module]
"""A network of the caller's own, whose weights are the initial ones; or a class or function that makes one for so many
classes. It gives logits of shape (B, C) for features of shape (B, F, L)."""


def build_network(
    config: ModelConfig | ObjectConfig, num_classes: int, *, seed: int, own: NetworkSource | None = None
) -> nn.Module:
    """A network with initial weights drawn from ``seed``; torch's global random state stays as it was.

    Args:
        config: which, and how large.
        num_classes: C.
        seed: of the weights.
        own: what takes the place of the configured one.
    """
    if isinstance(own, nn.Module):
        return copy.deepcopy(own)
    with torch.random.fork_rng(devices=[]), float32_by_default():
        torch.default_generator.manual_seed(derive_seed("weights", seed))  # the CPU's: a GPU's would not be put back
        if own is not None:
            return own(num_classes)
        if isinstance(config, ObjectConfig):
            raise refusal(config)
        return NETWORKS[config.name](num_classes, config)
