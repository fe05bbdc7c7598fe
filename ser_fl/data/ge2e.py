"""GE2E, a speaker encoder of 1.4 million parameters (Wan et al., arXiv 1710.10467), as a frozen front end.

The weights are those of Resemblyzer 0.1.4 (Apache-2.0), three LSTM layers trained to tell speakers apart on LibriSpeech
and VoxCeleb. What they hear of a voice tells its emotion too, once the speaker's own scale is known
(`normalisation=speaker`). Nothing of that package runs: its weights file is read from where it is installed.

Legend: B batch, T samples, F features, L frames of the encoder, P frames that are left after pooling.
"""

from contextlib import suppress
from hashlib import blake2b, sha256
from importlib import metadata
from io import BytesIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ser_fl.config.frontend import GE2EConfig
from ser_fl.data.frontend import FrontEnd, at_moments, mel_filters, pool_frames
from ser_fl.devices import float32_by_default
from ser_fl.errors import UserError
from ser_fl.files import from_safetensors, to_safetensors, user_folder, write_bytes
from ser_fl.runs.records import State

PACKAGE, VERSION = "resemblyzer", "0.1.4"
SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
"""Of ``resemblyzer/pretrained.pt``, as its wheel on PyPI has it."""
DIGEST = "8d7fb314d3df2568773a6eaca3de95bd"
"""Of the layers' weights in it (`digest_of`)."""
_INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
_UNITS, _LAYERS, _LOUDNESS_DBFS = 256, 3, -30.0


class GE2E(FrontEnd):
    """The layers' outputs, in (-1, 1), and the log-mel magnitudes that they hear; frames averaged ``pool`` at a time,
    or mean and deviation over the whole clip.

    Input is raised to -30 dBFS where it is softer; 40 mel bins of Slaney's scale, from power spectra of Hann windows of
    25 ms every 10 ms, centred and padded with zeros; not logged before they enter the encoder. Differentiable from the
    waveform. Deviation from Resemblyzer: pauses are not cut out, and frames of every layer are given, not the embedding
    of the last one.

    Raises:
        UserError: the weights are not installed, or others than were published.
    """

    at_once = 8
    """Two and a half times as fast as one by one; more gain nothing on a CPU."""
    window: Tensor
    filters: Tensor

    def __init__(self, config: GE2EConfig) -> None:
        super().__init__(config)
        self.pool = config.pool
        self.log_offset = config.log_offset
        self.register_buffer("window", torch.hann_window(config.window_samples, dtype=torch.float32))
        self.register_buffer("filters", mel_filters(config))
        with float32_by_default():
            sizes = (config.num_mels, *[_UNITS] * (_LAYERS - 1))
            self.layers = nn.ModuleList(nn.LSTM(size, _UNITS, batch_first=True) for size in sizes)
        self.layers.load_state_dict(weights())
        self.requires_grad_(False).eval()

    def forward(self, waveform_BT: Tensor) -> Tensor:
        power_B1 = waveform_BT.square().mean(dim=1, keepdim=True)
        target = 10 ** (_LOUDNESS_DBFS / 10)
        raised_BT = waveform_BT * (target / power_B1.clamp(min=1e-12)).clamp(min=1).sqrt()
        half = len(self.window) // 2
        padded_BT = nn.functional.pad(raised_BT, (half, half))
        frames_BLT = padded_BT.unfold(1, len(self.window), self.hop_samples) * self.window
        spectrum_BLQ = torch.fft.rfft(frames_BLT)
        power_BLQ = spectrum_BLQ.real.square() + spectrum_BLQ.imag.square()
        heard_BLF = power_BLQ @ self.filters
        given = [(heard_BLF + self.log_offset**2).log() / 2]
        with torch.backends.cudnn.flags(enabled=False):  # its backward pass refuses evaluation mode
            for layer in self.layers:
                heard_BLF, _ = layer(heard_BLF)
                given.append(heard_BLF)
        features_BFL = torch.cat(given, dim=2).transpose(1, 2)
        pooled_BFP = pool_frames(features_BFL, self.pool)
        if self.pool != "clip":
            return pooled_BFP
        return torch.cat([at_moments(features_BFL[:, : self.filters.shape[1]]), pooled_BFP], dim=1)


def weights() -> State:
    """The layers' weights: from the user's cache, or converted once from where the package is installed. What was
    changed since is converted anew.
    """
    kept = user_folder("XDG_CACHE_HOME", ".cache") / "encoders" / f"ge2e-{SHA256[:16]}.safetensors"
    with suppress(OSError, KeyError, SafetensorError):
        if digest_of(state := from_safetensors(kept.read_bytes())) == DIGEST:
            return state
    state = _published(_installed())
    with suppress(OSError, UserError):  # a home that cannot be written costs a second a start
        write_bytes(kept, to_safetensors(state))
    return state


def digest_of(state: State) -> str:
    """Of names and values."""
    digest = blake2b(digest_size=16)
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def _installed() -> Path:
    """Where the package's weights are; nothing of it is imported."""
    try:
        file = metadata.distribution(PACKAGE).locate_file("resemblyzer/pretrained.pt")
    except metadata.PackageNotFoundError:
        raise UserError(f"frontend=ge2e needs the weights that {PACKAGE} {VERSION} ships: {_INSTALL}") from None
    return Path(str(file))


def _published(file: Path) -> State:
    """The weights in a file, if it is the published one."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the weights of frontend=ge2e, {file}: {error.strerror}; {_INSTALL}") from None
    if (digest := sha256(content).hexdigest()) != SHA256:
        raise UserError(
            f"{file} holds other weights than {PACKAGE} {VERSION} was published with: SHA-256 {digest[:16]}..., "
            f"expected {SHA256[:16]}...; {_INSTALL}"
        )
    told: State = torch.load(BytesIO(content), map_location="cpu", weights_only=True)["model_state"]
    return {
        f"{layer}.{kind}_l0": told[f"lstm.{kind}_l{layer}"]
        for layer in range(_LAYERS)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
