"""The front ends: from clips of one length to features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from ser_fl.config.values import Count, Positive, stage


@stage
class FrontendConfig:
    """Log-mel spectrogram of clips repeated to one length."""

    name: str
    sample_rate_hz: Annotated[int, Field(ge=4000, le=768_000)]
    window_samples: Annotated[int, Field(ge=16, le=1 << 16)]
    hop_samples: Count
    num_mels: Annotated[int, Field(ge=8, le=4096)]
    fmin_hz: Annotated[float, Field(ge=0)]
    fmax_hz: Positive
    duration_s: Annotated[float, Field(gt=0, le=3600)]
    """Clips shorter than this are repeated, longer ones cut."""
    log_offset: Positive
    """The logarithm is taken of the mel magnitude plus this."""
    clip: Literal["training", "none"]
    """Box that features are clipped to and attacks stay in: per bin the log floor to the training maximum, or none."""

    def __post_init__(self) -> None:
        if self.fmax_hz > self.sample_rate_hz / 2 or self.fmin_hz >= self.fmax_hz:
            raise ValueError(
                f"frontend.fmax_hz must be above fmin_hz ({self.fmin_hz:g}) and at most half the sampling rate "
                f"({self.sample_rate_hz / 2:g}), got {self.fmax_hz:g}"
            )
        if self.num_samples < self.window_samples:
            raise ValueError(f"frontend.duration_s must hold one window, got {self.duration_s:g} s")

    @property
    def num_samples(self) -> int:
        """Length of a clip, T."""
        return round(self.duration_s * self.sample_rate_hz)

    @property
    def num_features(self) -> int:
        """Bins of a frame, F."""
        return self.num_mels

    @property
    def num_frames(self) -> int:
        """Frames of a clip, L, without centring."""
        return (self.num_samples - self.window_samples) // self.hop_samples + 1

    @property
    def key(self) -> tuple[object, ...]:
        """What the values depend on: neither the name of the settings, nor the box, which is applied later."""
        form = self.sample_rate_hz, self.window_samples, self.hop_samples, self.num_mels
        return *form, self.fmin_hz, self.fmax_hz, self.num_samples, self.log_offset


@stage
class GE2EConfig:
    """The layers of a frozen speaker encoder (`ser_fl.data.ge2e`), of clips repeated to one length."""

    sample_rate_hz: ClassVar[int] = 16000
    window_samples: ClassVar[int] = 400
    num_mels: ClassVar[int] = 40
    """The first bins are log-mel magnitudes, what the encoder hears."""
    fmin_hz: ClassVar[float] = 0.0
    fmax_hz: ClassVar[float] = 8000.0
    log_offset: ClassVar[float] = 1e-8
    hop_samples: ClassVar[int] = 160
    num_features: ClassVar[int] = 40 + 3 * 256

    name: Literal["ge2e"]
    duration_s: Annotated[float, Field(ge=0.1, le=3600)]
    """Clips shorter than this are repeated, longer ones cut."""
    pool: Annotated[int, Field(ge=1, le=1000)]
    """Frames of 10 ms that are averaged to one."""
    clip: Literal["training", "none"]
    """As of log-mel; of the encoder's outputs the lower side is -1."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"frontend.pool must be at most the frames of a clip, got {self.pool}")

    @property
    def num_samples(self) -> int:
        """Length of a clip, T."""
        return round(self.duration_s * self.sample_rate_hz)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, L: centred, then pooled."""
        return (self.num_samples // self.hop_samples + 1) // self.pool

    @property
    def key(self) -> tuple[object, ...]:
        """As of log-mel."""
        return "ge2e", self.num_samples, self.pool


def _kind_of_frontend(given: object) -> str:
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
    return "[ge2e]" if name == "ge2e" else "[logmel]"


AnyFrontend = Annotated[
    Annotated[FrontendConfig, Tag("[logmel]")] | Annotated[GE2EConfig, Tag("[ge2e]")], Discriminator(_kind_of_frontend)
]
