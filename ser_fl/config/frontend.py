"""The log-mel spectrogram."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    def num_frames(self) -> int:
        """Frames of a clip, L, without centring."""
        return (self.num_samples - self.window_samples) // self.hop_samples + 1
