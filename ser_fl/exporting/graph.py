"""A trained model as one graph of plain operators, whatever the number of clips and their length: front end, speaker's
scale, standardisation, network and temperature.

Some layers of ours are made for speed in training, and no exporter takes them; here each has a twin of equal weights
and, up to rounding, equal results.

Legend: B clips, T samples, W samples of a window, Q frequencies, F bins, L frames or steps, I inputs, H hidden units, C
classes, N clips that enrol a speaker.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.config.frontend import FrontendConfig
from ser_fl.data.frontend import FeatureStatistics, FrontEnd, LogMel
from ser_fl.data.normalisation import Scale
from ser_fl.devices import float32_by_default
from ser_fl.errors import UserError
from ser_fl.models.cpu_kernels import BidirectionalGRU
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.models.tuned import Tuned

LARGEST_WINDOW = 4096
"""Samples: the matrix of a longer window's transform has more than 67 MB."""


class ScannedGRU(nn.Module):
    """`BidirectionalGRU` as a loop over steps inside the graph: one that is unrolled knows one length only."""

    def __init__(self, gru: BidirectionalGRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, inputs_BLI: Tensor) -> tuple[Tensor, None]:
        """Outputs of shape (B, L, 2 H); nobody asks for the last states."""
        from torch._higher_order_ops.scan import scan

        both = list[Tensor]()
        for suffix in ("", "_reverse"):
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            by_input, by_state, input_bias, state_bias = (getattr(self.gru, name + suffix) for name in names)
            gates_LBG = functional.linear(inputs_BLI, by_input, input_bias).transpose(0, 1)

            def step(
                state_BH: Tensor, gates_BG: Tensor, weight: Tensor = by_state, bias: Tensor = state_bias
            ) -> tuple[Tensor, Tensor]:
                reset_in, update_in, new_in = gates_BG.chunk(3, dim=1)
                reset, update, new = functional.linear(state_BH, weight, bias).chunk(3, dim=1)
                new = torch.tanh(new_in + torch.sigmoid(reset_in + reset) * new)
                following_BH = new + torch.sigmoid(update_in + update) * (state_BH - new)
                return following_BH, following_BH.clone()

            start_BH = gates_LBG.new_zeros(gates_LBG.shape[1], self.gru.hidden_size)
            states_LBH: Tensor = scan(step, start_BH, gates_LBG.flip(0) if suffix else gates_LBG)[1]
            both.append(states_LBH.flip(0) if suffix else states_LBH)
        return torch.cat(both, dim=2).transpose(0, 1), None


class ConvolvedLogMel(nn.Module):
    """`LogMel` with a convolution by the windowed cosines and sines in the place of a Fourier transform, and the
    differences over time of `LogMelDeltas`.
    """

    basis: Tensor
    filters: Tensor
    slope: Tensor

    def __init__(self, frontend: LogMel, config: FrontendConfig) -> None:
        super().__init__()
        self.log_offset, self.hop_samples, self.deltas = config.log_offset, config.hop_samples, config.deltas
        window = frontend.window.double()
        turns_WQ = torch.outer(torch.arange(len(window)), torch.arange(len(window) // 2 + 1)) % len(window)
        angles_WQ = turns_WQ.double() * (2 * math.pi / len(window))
        basis_WQ = torch.cat([angles_WQ.cos(), angles_WQ.sin()], dim=1) * window[:, None]
        self.register_buffer("basis", basis_WQ.T[:, None].float().contiguous())
        self.register_buffer("filters", frontend.filters.T.contiguous())
        self.register_buffer("slope", torch.tensor([[[-2.0, -1.0, 0.0, 1.0, 2.0]]]) / 10)  # torchaudio's, of 5 frames

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Features of shape (B, F, L)."""
        spectrum_BQL = functional.conv1d(waveform_BT[:, None], self.basis, stride=self.hop_samples)
        real_BQL, imaginary_BQL = spectrum_BQL.chunk(2, dim=1)
        magnitude_BQL = (real_BQL.square() + imaginary_BQL.square() + 1e-30).sqrt()
        log_mel_BFL = (self.filters @ magnitude_BQL + self.log_offset).log()
        if not self.deltas:
            return log_mel_BFL
        first_BFL = self._difference(log_mel_BFL)
        return torch.cat([log_mel_BFL, first_BFL, self._difference(first_BFL)], dim=1)

    def _difference(self, features_BFL: Tensor) -> Tensor:
        rows = features_BFL.flatten(0, 1)[:, None]
        sloped = functional.conv1d(functional.pad(rows, (2, 2), mode="replicate"), self.slope)
        return sloped.view(features_BFL.shape)


class Heard(nn.Module):
    """From clips at the front end's rate, all of one length, to features: a clip that is shorter than those of training
    is repeated, as there, and a longer one is heard as a whole.
    """

    def __init__(self, frontend: nn.Module, num_samples: int) -> None:
        super().__init__()
        self.frontend, self.num_samples = frontend, num_samples

    def forward(self, waveform_BT: Tensor) -> Tensor:
        length = waveform_BT.shape[1]
        places_T = torch.arange(torch.sym_max(length, self.num_samples)) % torch.scalar_tensor(
            length, dtype=torch.int64
        )
        features_BFL: Tensor = self.frontend(waveform_BT[:, places_T])
        return features_BFL


class ModelGraph(nn.Module):
    """Logits, and calibrated probabilities, of clips of shape (B, T), or of what the front end makes of them, (B, F,
    L). Where the model scales speakers, by the buffers ``speaker_mean`` and ``speaker_deviation``, of shape (F, 1):
    those of the mean training speaker, NaN where training told none, until others take their place or are given.

    Raises:
        UserError: the network begins with an encoder, whose weights stay where they are.
    """

    def __init__(self, model: EmotionModel, heard: nn.Module) -> None:
        super().__init__()
        if isinstance(model.network, Tuned):
            raise UserError(
                "a network that tunes an encoder (frontend.tune=lora) cannot be exported: the encoder's weights stay "
                "in their folder; train with frontend.tune=none"
            )
        self.heard, self.temperature = heard, model.temperature
        self.standardisation, self.network = copy.deepcopy((model.standardisation, model.network))
        for name, module in list(self.network.named_modules()):
            if isinstance(module, BidirectionalGRU):
                self.network.set_submodule(name, ScannedGRU(module))
        self.speaker_mean: Tensor
        self.speaker_deviation: Tensor
        self.scales = model.by_speaker or model.fallback is not None
        if self.scales:
            scale, unknown = model.scale or model.fallback, torch.full_like(model.standardisation.mean_F1, math.nan)
            self.register_buffer("speaker_mean", scale.mean.clone() if scale else unknown)
            self.register_buffer("speaker_deviation", scale.deviation.clone() if scale else unknown.clone())
        self.requires_grad_(False).eval()

    @property
    def speaker(self) -> tuple[Tensor, ...]:
        """Mean and deviation of the speaker; nothing where all speakers are scaled alike."""
        return (self.speaker_mean, self.speaker_deviation) if self.scales else ()

    def forward(
        self, inputs: Tensor, mean_F1: Tensor | None = None, deviation_F1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        features_BFL = self.heard(inputs)
        if mean_F1 is None and self.scales:
            mean_F1, deviation_F1 = self.speaker
        if mean_F1 is not None and deviation_F1 is not None:
            features_BFL = (features_BFL - mean_F1) / deviation_F1
        logits_BC = self.network(self.standardisation(features_BFL))
        return logits_BC, (logits_BC / self.temperature).softmax(dim=1)


class EnrolmentGraph(nn.Module):
    """Mean and deviation per bin, each of shape (F, 1), of a speaker's clips: by which `ModelGraph` scales."""

    def __init__(self, heard: nn.Module) -> None:
        super().__init__()
        self.heard, self.speaker = heard, tuple[Tensor, ...]()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        scale = Scale.of(FeatureStatistics.of(self.heard(inputs)))
        return scale.mean, scale.deviation


def exportable(frontend: FrontEnd, config: object) -> nn.Module | str:
    """From clips to features in plain operators; of a front end that has no such form, why."""
    if not isinstance(config, FrontendConfig) or not isinstance(frontend, LogMel):
        return f"the front end {getattr(config, 'name', '')} is an encoder, which ser_fl runs"
    if config.window_samples > LARGEST_WINDOW:
        return f"windows of {config.window_samples} samples are too long for a transform by convolution"
    with float32_by_default():
        return Heard(ConvolvedLogMel(frontend, config), config.num_samples)
