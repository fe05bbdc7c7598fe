"""Pretrained encoders of speech from a folder, as front ends, by transformers: Wav2Vec2 (Baevski et al., arXiv
2006.11477), HuBERT (Hsu et al., arXiv 2106.07447), WavLM (Chen et al., arXiv 2110.13900) and the encoder of Whisper
(Radford et al., arXiv 2212.04356).

Legend: B batch, T samples, M mel bins, S frames of the encoder, D units of its layers, F features, L frames after
pooling.
"""

from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.config.encoder_folder import (
    SCALING,
    SETTINGS,
    digest_of,
    folder_of,
    refuse_without,
    settings_of,
    weights_of,
)
from ser_fl.config.frontend import TransformersConfig
from ser_fl.data.frontend import FrontEnd, LogMel, at_moments, mel_filters, pool_frames
from ser_fl.devices import float32_by_default
from ser_fl.errors import UserError, one_line
from ser_fl.files import from_safetensors
from ser_fl.runs.records import State

_CLASSES = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
_OF_EARLIER_VERSIONS = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


class Encoder(nn.Module):
    """Hidden layers, shape (B, layers * D, L), of waveforms, shape (B, T). Input is scaled as the model's own feature
    extractor does, but differentiably. Frozen, and always in evaluation mode. Whisper hears a clip padded with silence
    to 30 s, and gives the frames that the clip fills.

    Raises:
        UserError: the folder is not there, its content is not that of ``config.encoder``, or it is damaged.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: TransformersConfig) -> None:
        super().__init__()
        refuse_without("transformers")
        assert config.path is not None
        folder, form = folder_of(config.path), config.form
        if (digest := digest_of(folder)) != form.digest:
            raise UserError(
                f"{folder} holds another encoder than the run was made with: digest {digest[:16]}, expected "
                f"{form.digest[:16]}; put that one back, or start a new run"
            )
        self.config, self.scaling = config, settings_of(folder, SCALING)
        try:
            self.model = _loaded(config)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the encoder in {folder} cannot be loaded: {one_line(str(error), 300)}") from None
        if form.kind == "whisper":
            window, num_mels = self.scaling["n_fft"], self.scaling["feature_size"]
            heard = replace(config.heard, window_samples=window, num_mels=num_mels)
            self.register_buffer("window", torch.hann_window(window, dtype=torch.float32))
            self.register_buffer("filters", mel_filters(heard))
        self.requires_grad_(False).eval()

    def forward(self, waveform_BT: Tensor) -> Tensor:
        config, inputs = self.config, waveform_BT
        if config.form.kind == "whisper":
            inputs = self.log_mel(inputs)
        elif self.scaling.get("do_normalize", True):
            centred_BT = inputs - inputs.mean(dim=1, keepdim=True)
            inputs = centred_BT / (centred_BT.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()
        if config.precision == "float32":
            states = self.model(inputs, output_hidden_states=True).hidden_states
        else:
            with torch.autocast(inputs.device.type, getattr(torch, config.precision)):
                states = self.model(inputs, output_hidden_states=True).hidden_states
        chosen = states if config.layer == "all" else [states[config.layer]]
        frames_BSF = torch.cat([state_BSD[:, : config.num_hidden_frames] for state_BSD in chosen], dim=2)
        return pool_frames(frames_BSF.to(waveform_BT.dtype).transpose(1, 2), config.pool, len(chosen))

    def log_mel(self, waveform_BT: Tensor) -> Tensor:
        """As Whisper's feature extractor: log10 of power in mel bins, shape (B, M, S), the loudest 80 dB, scaled."""
        longest, hop = self.config.form.longest_samples, self.config.form.hop_samples // 2
        assert longest is not None
        padded_BT = functional.pad(waveform_BT, (0, longest - waveform_BT.shape[1]))
        spectrum_BQS = torch.stft(padded_BT, len(self.window), hop, window=self.window, return_complex=True)[..., :-1]
        power_BMS = self.filters.T @ (spectrum_BQS.real.square() + spectrum_BQS.imag.square())
        log_BMS = power_BMS.clamp(min=1e-10).log10()
        return (torch.maximum(log_BMS, log_BMS.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def _loaded(config: TransformersConfig) -> Any:
    """The model with the weights of its folder, in float32. Heads, Whisper's decoder and what else the file holds is
    left out; of what the encoder has, nothing may be missing.
    """
    import transformers

    assert config.path is not None
    folder = folder_of(config.path)
    settings = dict(settings_of(folder, SETTINGS))
    with torch.device("meta"), float32_by_default():
        if config.form.kind == "whisper":
            from transformers.models.whisper.modeling_whisper import WhisperEncoder

            model = WhisperEncoder(transformers.WhisperConfig.from_dict(settings))
            prefixes: tuple[str, ...] = ("model.encoder.", "encoder.")
        else:
            kind = getattr(transformers, _CLASSES[config.form.kind])
            model = kind(kind.config_class.from_dict(settings))
            prefixes = (f"{config.form.kind}.",)
    own = model.state_dict()
    state: State = {"masked_spec_embed": torch.zeros(config.form.size)}  # not in all files, and of training alone
    for file in weights_of(folder):
        for name, tensor in from_safetensors(file.read_bytes()).items():
            name = name.removeprefix(next(filter(name.startswith, prefixes), ""))
            for before, now in _OF_EARLIER_VERSIONS.items():
                name = name.replace(before, now)
            state[name] = tensor.float()
    if missing := sorted(own.keys() - state.keys()):
        raise ValueError(f"its weights lack {missing[0]}")
    model.load_state_dict({name: state[name] for name in own}, assign=True)
    return model


class TransformersFrontEnd(FrontEnd):
    """Log-mel magnitudes, by which recordings are known again, and the encoder's hidden layers, frames averaged
    ``pool`` at a time or pooled over the clip: shape (B, F, L). Errors are those of `Encoder`.
    """

    at_once = 8

    def __init__(self, config: TransformersConfig) -> None:
        super().__init__(config)
        self.heard = LogMel(config.heard)
        self.encoder = Encoder(config)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        layers_BFL = self.encoder(waveform_BT)
        log_mel_BML = self.heard(waveform_BT)
        if self.encoder.config.pool == "clip":
            return torch.cat([at_moments(log_mel_BML), layers_BFL], dim=1)
        return torch.cat([functional.adaptive_avg_pool1d(log_mel_BML, layers_BFL.shape[2]), layers_BFL], dim=1)


class Clips(FrontEnd):
    """The clips themselves, shape (B, 1, T): the network begins with the encoder."""

    def forward(self, waveform_BT: Tensor) -> Tensor:
        return waveform_BT[:, None]
