"""The CRNN: convolution blocks, bidirectional GRU, attention pooling.

Legend: B batch, F mel bins, L frames, C classes, K channels, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.config.schema import CRNNConfig
from ser_fl.devices import autocast
from ser_fl.models.cpu_convolutions import ConvolutionBlocks, StemConvolution
from ser_fl.models.cpu_gru import BidirectionalGRU
from ser_fl.models.norms import normalisation

_MEL_BANDS = 4
"""Bands of mel bins that the GRU sees, whatever the number of mel bins."""


class CRNN(nn.Module):
    """Emotion classifier for log-mel features of any size from 16 mel bins and 16 frames up.

    The first block halves the resolution in its 5 x 5 convolution and again by max pooling. The second pools both axes,
    the third mel bins only: a frame that reaches the GRU covers 8 frames of the input (0.13 s at a hop of 256 samples,
    16 kHz). Mel bins are then averaged to four bands; 64 to 78 bins make four already, and fewer are repeated to four.
    Dropout is in modules of its own, never inside the GRU, where it would stay on while an attack takes gradients.
    """

    def __init__(self, num_classes: int, config: CRNNConfig) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 1
        for depth, channels in enumerate(config.channels):
            blocks += [
                StemConvolution(channels) if depth == 0 else nn.Conv2d(before, channels, 3, padding=1, bias=False),
                normalisation(config.norm, channels),
            ]
            if depth < 3:
                blocks.append(nn.MaxPool2d((2, 2) if depth < 2 else (2, 1)))
            blocks.append(nn.ReLU(inplace=True))  # commutes with pooling, and has less to do after it
            before = channels
        self.blocks = ConvolutionBlocks(*blocks).to(memory_format=torch.channels_last)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = BidirectionalGRU(before * _MEL_BANDS, config.hidden)
        self.attention = nn.Linear(2 * config.hidden, 1)
        self.output = nn.Linear(2 * config.hidden, num_classes)

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        maps_BKFL = self.blocks(features_BFL.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        if maps_BKFL.shape[2] != _MEL_BANDS:
            maps_BKFL = functional.adaptive_avg_pool2d(maps_BKFL, (_MEL_BANDS, maps_BKFL.shape[3]))
        steps_BLK = self.dropout(maps_BKFL.permute(0, 3, 1, 2).flatten(2))
        hidden_BLH, _ = self.gru(steps_BLK)
        with autocast(hidden_BLH.device, bf16=False):  # little work, and logits want their digits
            hidden_BLH = hidden_BLH.to(self.output.weight.dtype)
            weights_BL1 = torch.softmax(self.attention(hidden_BLH), dim=1)
            logits_BC: Tensor = self.output(self.dropout((weights_BL1 * hidden_BLH).sum(dim=1)))
        return logits_BC
