"""VGG-15 as in the paper authors' code (arXiv 2203.04696): 13 convolutions and two dense layers.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ser_fl.config.schema import VGG15Config
from ser_fl.models.norms import normalisation

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage; each ends in max pooling by 2."""


class VGG15(nn.Module):
    """Convolutions 3 x 3 with batch norm and ReLU, global average pooling, FC 256, logits; any input of 32 x 32 up."""

    def __init__(self, num_classes: int, config: VGG15Config) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels, convolutions in _STAGES:
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(before, channels, 3, padding=1),
                    normalisation(config.norm, channels),
                    nn.ReLU(inplace=True),
                ]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Linear(before, 256), nn.ReLU(inplace=True), nn.Linear(256, num_classes))

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        maps = self.features(features_BFL.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        logits_BC: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits_BC
