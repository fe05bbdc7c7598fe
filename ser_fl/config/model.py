"""The networks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ser_fl.config.values import Count, Share, stage

Norm = Literal["batch", "renorm", "group"]


@stage
class CRNNConfig:
    """Convolution blocks, bidirectional GRU, attention pooling."""

    least_size: ClassVar[int] = 16
    """Mel bins and frames that it needs."""

    name: Literal["crnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=3)]
    """Output channels of each convolution block."""
    hidden: Count
    """Units of the GRU in each direction."""
    norm: Norm
    dropout: Share


@stage
class VGG15Config:
    """VGG-15 of the authors' code: 13 convolutions, global average pooling, two dense layers."""

    least_size: ClassVar[int] = 32

    name: Literal["vgg15"]
    norm: Norm


@stage
class ResNetConfig:
    """The residual network of the authors' code."""

    least_size: ClassVar[int] = 32

    name: Literal["resnet"]
    norm: Norm
    dropout: Share


ModelConfig = Annotated[CRNNConfig | VGG15Config | ResNetConfig, Field(discriminator="name")]
