"""The networks, and how one is built by name.

Legend: B batch, F mel bins, L frames, C classes, K channels, H hidden units, N layers of an encoder; of maps, H and
W are rows and columns.
"""

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.config.frontend import AnyFrontend, TransformersConfig
from ser_fl.config.training import CRNNConfig, ModelConfig, PooledConfig, ResNetConfig, VGG15Config
from ser_fl.config.values import ObjectConfig
from ser_fl.devices import autocast, float32_by_default
from ser_fl.models.cpu_kernels import BidirectionalGRU, ConvolutionBlocks, StemConvolution
from ser_fl.models.normalisation import normalisation
from ser_fl.randomness import derive_seed

_MEL_BANDS = 4
"""Bands of mel bins that the CRNN's GRU sees, whatever the number of mel bins."""
_VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage; each ends in max pooling by 2."""


def _channels(features_BFL: Tensor, num_channels: int) -> Tensor:
    """Features as an image: one channel, or as many as there are spectrograms one above the other."""
    image = torch.unflatten(features_BFL, 1, (num_channels, -1))
    return image.contiguous(memory_format=torch.channels_last)


class CRNN(nn.Module):
    """Emotion classifier for log-mel features of any size from 16 mel bins and 16 frames up.

    Convolution blocks, bidirectional GRU, attention pooling. The first block halves the resolution in its 5 x 5
    convolution and again by max pooling. The second pools both axes, the third mel bins only: a frame that reaches the
    GRU covers 8 of the input (0.13 s at a hop of 256 samples, 16 kHz). Mel bins are then averaged to four bands; 64 to
    78 bins make four already, and fewer are repeated to four. Dropout is in modules of its own, never inside the GRU,
    where it would stay on while an attack takes gradients.
    """

    def __init__(self, num_classes: int, config: CRNNConfig, num_channels: int = 1) -> None:
        super().__init__()
        self.num_channels = before = num_channels
        blocks: list[nn.Module] = []
        for depth, channels in enumerate(config.channels):
            blocks += [
                (StemConvolution if before == 1 else nn.Conv2d)(before, channels, 5, stride=2, padding=2, bias=False)
                if depth == 0
                else nn.Conv2d(before, channels, 3, padding=1, bias=False),
                normalisation(config.norm, channels),
            ]
            if depth < 3:
                blocks.append(nn.MaxPool2d((2, 2) if depth < 2 else (2, 1)))
            blocks.append(nn.ReLU(inplace=True))  # commutes with pooling, and has less to do after it
            before = channels
        self.blocks = ConvolutionBlocks(*blocks).to(memory_format=torch.channels_last)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = BidirectionalGRU(before * _MEL_BANDS, config.hidden, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(2 * config.hidden, 1)
        self.output = nn.Linear(2 * config.hidden, num_classes)

    def embed(self, features_BFL: Tensor) -> Tensor:
        """What the last layer sees of standardised features of shape (B, F, L): (B, H)."""
        maps_BKFL = self.blocks(_channels(features_BFL, self.num_channels))
        if maps_BKFL.shape[2] != _MEL_BANDS:
            maps_BKFL = functional.adaptive_avg_pool2d(maps_BKFL, (_MEL_BANDS, maps_BKFL.shape[3]))
        steps_BLK = self.dropout(maps_BKFL.permute(0, 3, 1, 2).flatten(2))
        hidden_BLH, _ = self.gru(steps_BLK)
        with autocast(hidden_BLH.device, bf16=False):  # little work, and logits want their digits
            hidden_BLH = hidden_BLH.to(self.output.weight.dtype)
            weights_BL1 = torch.softmax(self.attention(hidden_BLH), dim=1)
            pooled_BH: Tensor = (weights_BL1 * hidden_BLH).sum(dim=1)
        return pooled_BH

    def classify(self, hidden_BH: Tensor) -> Tensor:
        """Logits of shape (B, C) from what `embed` gives."""
        with autocast(hidden_BH.device, bf16=False):
            logits_BC: Tensor = self.output(self.dropout(hidden_BH))
        return logits_BC

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        return self.classify(self.embed(features_BFL))


class _Headed(nn.Module):
    """What `pool` makes of features, and dense layers, the ``head`` of a subclass, of which the last one classifies."""

    head: nn.Sequential

    def pool(self, features_BFL: Tensor) -> Tensor:
        """One vector of each utterance."""
        raise NotImplementedError

    def embed(self, features_BFL: Tensor) -> Tensor:
        """What the last layer sees of standardised features of shape (B, F, L): (B, H)."""
        hidden_BH: Tensor = self.head[:-1](self.pool(features_BFL))
        return hidden_BH

    def classify(self, hidden_BH: Tensor) -> Tensor:
        """Logits of shape (B, C) from what `embed` gives."""
        logits_BC: Tensor = self.head[-1](hidden_BH)
        return logits_BC

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        return self.classify(self.embed(features_BFL))


class _Convolutional(_Headed):
    """Convolutions, the ``features`` of a subclass, and global average pooling."""

    features: nn.Module
    num_channels: int

    def pool(self, features_BFL: Tensor) -> Tensor:
        maps: Tensor = self.features(_channels(features_BFL, self.num_channels))
        return maps.mean(dim=(2, 3))


class VGG15(_Convolutional):
    """VGG-15 as in the paper authors' code (arXiv 2203.04696); any input of 32 x 32 up. 13 convolutions 3 x 3 with
    batch norm and ReLU, global average pooling, FC 256, logits.
    """

    def __init__(self, num_classes: int, config: VGG15Config, num_channels: int = 1) -> None:
        super().__init__()
        self.num_channels = before = num_channels
        layers: list[nn.Module] = []
        for channels, convolutions in _VGG_STAGES:
            for _ in range(convolutions):
                norm = normalisation(config.norm, channels)
                layers += [nn.Conv2d(before, channels, 3, padding=1), norm, nn.ReLU(inplace=True)]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Linear(before, 256), nn.ReLU(inplace=True), nn.Linear(256, num_classes))


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
        return functional.relu(self.body(maps) + self.shortcut(maps))


class ResNet(_Convolutional):
    """The residual network of the paper authors' code (arXiv 2203.04696), used there for IEMOCAP. conv 7x7/2-64, pool,
    residual 128, pool, residual 256/2, pool, average, dropout, FC 128, logits.
    """

    def __init__(self, num_classes: int, config: ResNetConfig, num_channels: int = 1) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.features = nn.Sequential(
            nn.Conv2d(num_channels, 64, 7, stride=2, padding=3, bias=False),
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


class Pooled(_Headed):
    """Mean and deviation of each bin over time, brought to one scale by batch norm without weights, and dense layers.
    With attention both are weighted (attentive statistics pooling: Okabe et al., arXiv 1803.10963). Of several layers
    of an encoder, the last bins of a frame, it pools a sum with weights of its own, all alike at first.
    """

    def __init__(self, num_classes: int, config: PooledConfig) -> None:
        super().__init__()
        assert config.num_features is not None, "settled with the front end"
        self.deviation = config.deviation is not False
        size = config.num_features * (2 if self.deviation else 1)
        self.form = (config.layers or 1, config.num_features)
        self.layers = nn.Parameter(torch.zeros(config.layers)) if config.layers else None
        self.attention = nn.Conv1d(config.num_features, 1, 1) if config.attention else None
        self.scale = nn.BatchNorm1d(size, affine=False)
        layers: list[nn.Module] = [nn.Dropout(config.dropout)]
        if config.hidden:
            layers += [nn.Linear(size, config.hidden), nn.ReLU(inplace=True), nn.Dropout(config.dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(config.hidden or size, num_classes))

    def pool(self, features_BFL: Tensor) -> Tensor:
        features_BFL = features_BFL[:, -math.prod(self.form) :]
        if self.layers is not None:
            features_BFL = torch.einsum(
                "n,bnfl->bfl", self.layers.softmax(0), torch.unflatten(features_BFL, 1, self.form)
            )
        if self.attention is None:
            rows, _, frames = features_BFL.shape
            weights_B1L = features_BFL.new_full((rows, 1, frames), 1 / frames)
        else:
            weights_B1L = torch.softmax(self.attention(features_BFL), dim=2)
        mean_BF1 = (weights_B1L * features_BFL).sum(dim=2, keepdim=True)
        pooled_BF = mean_BF1[:, :, 0]
        if self.deviation:
            variance_BF = (weights_B1L * (features_BFL - mean_BF1).square()).sum(dim=2)
            pooled_BF = torch.cat([pooled_BF, (variance_BF + 1e-5).sqrt()], dim=1)
        scaled_BF: Tensor = self.scale(pooled_BF)
        return scaled_BF


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "crnn": CRNN,
    "vgg15": VGG15,
    "resnet": ResNet,
    "pooled": Pooled,
}
"""By name: an entry here and a dataclass in `ser_fl.config.training` make a new one."""
NetworkSource = nn.Module | Callable[[int], nn.Module]
"""A network of the caller's own, whose weights are the initial ones; or a class or function that makes one for so many
classes. It gives logits of shape (B, C) for features of shape (B, F, L)."""


def build_network(
    config: ModelConfig | ObjectConfig,
    num_classes: int,
    *,
    seed: int,
    own: NetworkSource | None = None,
    frontend: AnyFrontend | None = None,
) -> nn.Module:
    """The configured network, or one of the caller's, with initial weights drawn from ``seed`` and nothing else. Of a
    ``frontend`` that gives the clips themselves it begins with the encoder.
    """
    if isinstance(own, nn.Module):
        return copy.deepcopy(own)
    with torch.random.fork_rng(devices=[]), float32_by_default():
        torch.default_generator.manual_seed(derive_seed("weights", seed))  # the CPU's: a GPU's would not be put back
        if own is not None:
            return own(num_classes)
        if isinstance(config, ObjectConfig):
            raise config.refusal()
        if frontend is not None and frontend.num_channels > 1 and not isinstance(config, PooledConfig):
            return NETWORKS[config.name](num_classes, config, frontend.num_channels)
        network = NETWORKS[config.name](num_classes, config)
        if isinstance(frontend, TransformersConfig) and frontend.is_waveform:
            from ser_fl.models.tuned import Tuned

            return Tuned(frontend, network)
        return network
