"""The front ends: from clips of one length to features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Discriminator, Field, Tag

from ser_fl.config.encoder_folder import EncoderForm, read_form
from ser_fl.config.resumable import Resumable
from ser_fl.config.values import Count, Folder, Positive, is_count, must_be, stage


@stage
class FrontendConfig:
    """Log-mel spectrogram of clips repeated to one length."""

    floor: ClassVar[float | None] = None
    """Least value of bins that follow the mel bins; None where there is none that is known."""
    is_waveform: ClassVar[bool] = False
    """Whether features are the clips, and the network begins with the encoder."""

    name: str
    sample_rate_hz: Annotated[int, Field(ge=4000, le=768_000)]
    """Recordings of another rate are resampled to it."""
    window_samples: Annotated[int, Field(ge=16, le=1 << 16)]
    """Samples of one frame."""
    hop_samples: Count
    """Samples from one frame to the next."""
    num_mels: Annotated[int, Field(ge=8, le=4096)]
    """Mel bins of a frame."""
    fmin_hz: Annotated[float, Field(ge=0)]
    """Lower edge of the lowest mel bin."""
    fmax_hz: Positive
    """Upper edge of the highest mel bin, at most half the sampling rate."""
    duration_s: Annotated[float, Field(gt=0, le=3600)]
    """Clips shorter than this are repeated, longer ones cut."""
    log_offset: Positive
    """The logarithm is taken of the mel magnitude plus this."""
    clip: Literal["training", "none"]
    """Box that features are clipped to and attacks stay in: per bin the log floor to the training maximum, or none; of
    deltas ten deviations about their mean."""
    deltas: bool = False
    """First and second differences over time (torchaudio's, of five frames) after the mel bins: to convolutions two
    more channels, to an attack on features bins like all others."""

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
        return self.num_mels * self.num_channels

    @property
    def num_channels(self) -> int:
        """Spectrograms that a frame's bins are of, one after the other."""
        return 3 if self.deltas else 1

    @property
    def num_frames(self) -> int:
        """Frames of a clip, L, without centring."""
        return (self.num_samples - self.window_samples) // self.hop_samples + 1

    @property
    def num_heard(self) -> int:
        """First bins, which are log-mel magnitudes: by frame, or of one frame at so many moments of the clip."""
        return self.num_mels

    @property
    def pooled(self) -> tuple[int, int | None]:
        """Bins of a layer that `model=pooled` reads, and how many layers; None for one."""
        return self.num_features, None

    @property
    def key(self) -> tuple[object, ...]:
        """What the values depend on: neither the name of the settings, nor the box, which is applied later."""
        form = self.sample_rate_hz, self.window_samples, self.hop_samples, self.num_mels
        key = *form, self.fmin_hz, self.fmax_hz, self.num_samples, self.log_offset
        return (*key, "deltas") if self.deltas else key


MOMENTS = 16
"""Of a clip, at which the log-mel magnitudes are kept where frames are not."""
Pool = Annotated[
    int | Literal["clip"],
    must_be(
        "frontend.pool must be a number of frames from 1 to 1000, or clip",
        lambda given: given == "clip" or (is_count(given) and cast(int, given) <= 1000),
    ),
]


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
    num_outputs: ClassVar[int] = 40 + 3 * 256
    """Of a frame, mel bins included."""
    is_waveform: ClassVar[bool] = False
    num_channels: ClassVar[int] = 1

    name: Literal["ge2e"]
    duration_s: Annotated[float, Field(ge=0.1, le=3600)]
    """Clips shorter than this are repeated, longer ones cut."""
    pool: Pool
    """Frames of 10 ms that are averaged to one. clip: features are mean and deviation over time, of the whole clip."""
    clip: Literal["training", "none"]
    """As of log-mel; of the encoder's outputs the lower side is -1."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"frontend.pool must be at most the frames of a clip, got {self.pool}")

    @property
    def floor(self) -> float | None:
        """As of log-mel."""
        return None if self.pool == "clip" else -1.0

    @property
    def num_heard(self) -> int:
        """As of log-mel."""
        return self.num_mels * MOMENTS if self.pool == "clip" else self.num_mels

    @property
    def pooled(self) -> tuple[int, int | None]:
        """As of log-mel."""
        return self.num_outputs * (2 if self.pool == "clip" else 1), None

    @property
    def num_features(self) -> int:
        """Bins of a frame, F."""
        return self.num_heard + self.pooled[0] if self.pool == "clip" else self.num_outputs

    @property
    def num_samples(self) -> int:
        """Length of a clip, T."""
        return round(self.duration_s * self.sample_rate_hz)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, L: centred, then pooled."""
        return 1 if self.pool == "clip" else (self.num_samples // self.hop_samples + 1) // self.pool

    @property
    def key(self) -> tuple[object, ...]:
        """As of log-mel."""
        return "ge2e", self.num_samples, self.pool


Layer = Annotated[
    int | Literal["all"],
    must_be(
        "frontend.layer must be the number of a hidden layer, from 0 up, or all",
        lambda given: given in ("all", 0) or is_count(given),
    ),
]


@stage
class TransformersConfig:
    """The hidden layers of a pretrained encoder (`ser_fl.data.encoder`), of clips repeated to one length."""

    num_mels: ClassVar[int] = 40
    """The first bins are log-mel magnitudes, by which recordings are known again; `model=pooled` reads those after."""
    fmin_hz: ClassVar[float] = 0.0
    log_offset: ClassVar[float] = 1e-8
    floor: ClassVar[float | None] = None
    num_channels: ClassVar[int] = 1

    name: Literal["transformers"]
    path: Resumable[Folder | None]
    """A folder as `save_pretrained` of model and feature extractor writes it: Wav2Vec2, HuBERT, WavLM or Whisper, whose
    encoder alone is taken; weights in safetensors. It stays where it is: the run needs it again."""
    encoder: EncoderForm | None
    """What the folder holds; null is found out."""
    layer: Layer
    """Which hidden layer; 0 is what enters the first. all: every one of them, of which `model=pooled` learns a weighted
    sum (S3PRL: Yang et al., arXiv 2105.01051)."""
    tune: Literal["none", "lora"]
    """none: the encoder is frozen, and its features are computed once. lora: clients tune it by low-rank adapters of
    its feed-forward layers (PEFT-SER: Feng and Narayanan, arXiv 2306.05350), which travel and are kept with the head;
    features are then the clips."""
    rank: Count
    """lora: of the adapters, which are scaled by 2."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Of the encoder's own arithmetic; features are float32."""
    duration_s: Annotated[float, Field(ge=0.1, le=3600)]
    """Clips shorter than this are repeated, longer ones cut."""
    pool: Pool
    """Frames, mostly of 20 ms, that are averaged to one. clip: features are mean and deviation over time of each
    layer, of the whole clip."""
    clip: Literal["training", "none"]
    """As of log-mel; of the encoder's outputs ten deviations about their mean, of clips full scale."""

    def __post_init__(self) -> None:
        if self.encoder is None:
            if self.path is None:
                raise ValueError("frontend=transformers needs frontend.path=DIR, the folder of an encoder")
            object.__setattr__(self, "encoder", read_form(self.path))
        if self.layer != "all" and self.layer >= self.form.num_layers:
            raise ValueError(
                f"frontend.layer must be at most {self.form.num_layers - 1} with this encoder, or all, got {self.layer}"
            )
        if (longest := self.form.longest_samples) and self.num_samples > longest:
            longest_s = longest / self.sample_rate_hz
            raise ValueError(
                f"frontend.duration_s must be at most {longest_s:g} with {self.form.kind}, got {self.duration_s:g}"
            )
        if self.num_frames < 1:
            raise ValueError(f"frontend.pool must be at most the frames of a clip, got {self.pool}")

    @property
    def form(self) -> EncoderForm:
        """Of the encoder, found out by now."""
        assert self.encoder is not None
        return self.encoder

    @property
    def sample_rate_hz(self) -> int:
        return self.form.sample_rate_hz

    @property
    def fmax_hz(self) -> float:
        return self.sample_rate_hz / 2

    @property
    def window_samples(self) -> int:
        """Of the log-mel magnitudes."""
        return round(0.025 * self.sample_rate_hz)

    @property
    def heard(self) -> FrontendConfig:
        """The log-mel magnitudes."""
        return FrontendConfig(
            name="heard",
            sample_rate_hz=self.sample_rate_hz,
            window_samples=self.window_samples,
            hop_samples=self.hop_samples,
            num_mels=self.num_mels,
            fmin_hz=self.fmin_hz,
            fmax_hz=self.fmax_hz,
            duration_s=self.duration_s,
            log_offset=self.log_offset,
            clip="none",
        )

    @property
    def hop_samples(self) -> int:
        return self.form.hop_samples

    @property
    def num_heard(self) -> int:
        """As of log-mel."""
        return self.num_mels * MOMENTS if self.pool == "clip" else self.num_mels

    @property
    def is_waveform(self) -> bool:
        """As of log-mel."""
        return self.tune == "lora"

    @property
    def num_samples(self) -> int:
        """Length of a clip, T."""
        return round(self.duration_s * self.sample_rate_hz)

    @property
    def pooled(self) -> tuple[int, int | None]:
        """As of log-mel."""
        size = self.form.size * (2 if self.pool == "clip" else 1)
        return size, self.form.num_layers if self.layer == "all" else None

    @property
    def num_hidden_frames(self) -> int:
        """Frames that the encoder has for a clip; of Whisper those that the clip fills, and not its padding."""
        return max(0, self.num_samples - self.form.window_samples) // self.form.hop_samples + 1

    @property
    def num_features(self) -> int:
        """Bins of a frame, F."""
        return 1 if self.is_waveform else self.num_heard + self.pooled[0] * (self.pooled[1] or 1)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, L."""
        if self.is_waveform:
            return self.num_samples
        return 1 if self.pool == "clip" else self.num_hidden_frames // self.pool

    @property
    def key(self) -> tuple[object, ...]:
        """As of log-mel: the encoder by what it is, not by where it lies."""
        if self.is_waveform:
            return "waveform", self.sample_rate_hz, self.num_samples
        return "transformers", self.form.digest, self.layer, self.precision, self.num_samples, self.pool


def _kind_of_frontend(given: object) -> str:
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
    return f"[{name}]" if name in ("ge2e", "transformers") else "[logmel]"


AnyFrontend = Annotated[
    Annotated[FrontendConfig, Tag("[logmel]")]
    | Annotated[GE2EConfig, Tag("[ge2e]")]
    | Annotated[TransformersConfig, Tag("[transformers]")],
    Discriminator(_kind_of_frontend),
]
