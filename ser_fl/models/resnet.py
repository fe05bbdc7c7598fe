"""The residual network of the paper authors' code (arXiv 2203.04696), used there for IEMOCAP.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.config.schema import ResNetConfig
from ser_fl.models.norms import normalisation


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 shortcut."""

    def __init__(self, before: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
            normalisation(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            normalisation(norm, channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, channels, 1, stride=stride, bias=False), normalisation(norm, channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of shape (B, channels, F / stride, L / stride)."""
        return functional.relu(self.body(maps) + self.shortcut(maps))


class ResNet(nn.Module):
    """conv 7x7/2-64, pool, residual 128, pool, residual 256/2, pool, average, dropout, FC 128, logits."""

    def __init__(self, num_classes: int, config: ResNetConfig) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False),
            normalisation(config.norm, 64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            ResidualBlock(64, 128, 1, config.norm),
            nn.MaxPool2d(2),
            ResidualBlock(128, 256, 2, config.norm),
            nn.MaxPool2d(2),
        ).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(256, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes)
        )

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        maps = self.features(features_BFL.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        logits_BC: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits_BC
