"""What the page asks: what a model says of a clip, and of the same clip after an attack on its samples.

Legend: T samples of a clip at its own rate, Q frequencies, L columns of a spectrogram, F bins.
"""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ser_fl.attacks.attack import AttackSettings, Problem
from ser_fl.attacks.clips import heard_samples
from ser_fl.attacks.registry import build_on_recordings
from ser_fl.attacks.target import Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.attacks.waveform_domain import Waveform
from ser_fl.data.audio import decode_audio, to_wav
from ser_fl.data.normalisation import Scale
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.prediction import SILENCE, predict_waveform

LONGEST_S = 30.0
SNRS_DB = (0.0, 60.0)
STEPS = 20
_NAME = "the recording"
_COLUMNS, _RANGE_DB = 400, 80.0


def heard(content: bytes, model: EmotionModel) -> dict[str, Any]:
    """What the page shows of a clip, a file's bytes; a `UserError` where it is no usable audio."""
    waveform_T, rate_hz = decode_audio(content, _NAME, LONGEST_S)
    return _shown(waveform_T, rate_hz, model)


def attacked(content: bytes, snr_db: float, model: EmotionModel) -> dict[str, Any]:
    """The same of the clip after PGD on its samples, as a 16-bit file holds them. What is shown is what `predict` says
    of that file, not what the attack hoped for.

    Raises:
        UserError: the clip is no usable audio, nobody speaks in it, or the SNR is out of range.
    """
    if not SNRS_DB[0] <= snr_db <= SNRS_DB[1]:
        raise UserError(f"the SNR must be {SNRS_DB[0]:g} to {SNRS_DB[1]:g} dB, got {snr_db:g}")
    waveform_T, rate_hz = decode_audio(content, _NAME, LONGEST_S)
    said = predict_waveform(waveform_T, rate_hz, model)
    if said.emotion == SILENCE:
        raise UserError("nobody speaks in the recording: there is nothing to attack")
    moved_T = _away_from(model.classes.index(said.emotion), waveform_T, rate_hz, model, snr_db)
    moved_T = decode_audio(to_wav(moved_T, rate_hz), _NAME, LONGEST_S)[0]
    noise = float((moved_T - waveform_T).double().square().sum())
    reached_db = 10 * torch.tensor(float(waveform_T.double().square().sum()) / max(noise, 1e-30)).log10()
    return {**_shown(moved_T, rate_hz, model, loudest=_magnitudes(waveform_T).max()), "snr_db": float(reached_db)}


@exact_arithmetic()
def _away_from(label: int, waveform_T: Tensor, rate_hz: int, model: EmotionModel, snr_db: float) -> Tensor:
    """PGD (Madry et al. 2018) from the emotion that is heard, within an SNR; of a clip that is longer than what the
    model hears at once, on one such piece after the other.
    """
    pieces = {
        f"{number:03d}": piece
        for number, piece in enumerate(torch.split(waveform_T, heard_samples(model.frontend, rate_hz)))
    }
    scale = model.scale or model.fallback

    def scale_of(keys: Sequence[str]) -> Scale:
        assert scale is not None
        return Scale(*(column.expand(len(keys), -1, 1) for column in (scale.mean, scale.deviation)))

    domain = Waveform(
        frontend=model.frontend,
        standardisation=model.standardisation,
        read=lambda key: (pieces[key], rate_hz),
        scale_of=None if scale is None else scale_of,
    )
    attack = build_on_recordings(AttackSettings(name="pgd", snr_db=snr_db, steps=STEPS))
    problem = Problem(
        network=model.network,
        num_classes=len(model.classes),
        clean=torch.zeros(len(pieces)),
        labels_B=torch.full((len(pieces),), label),
        keys_B=list(pieces),
        box=Box.unbounded(),
        settings=attack.settings,
        seed=0,
        passes=Passes(),
    )
    ((_, part),) = domain.problems(problem)
    moved = zip(attack.craft(part), pieces.values(), strict=True)
    return torch.cat([moved_T[: len(piece_T)] for moved_T, piece_T in moved])


def _shown(waveform_T: Tensor, rate_hz: int, model: EmotionModel, loudest: Tensor | None = None) -> dict[str, Any]:
    said = predict_waveform(waveform_T, rate_hz, model)
    magnitude_QL = _magnitudes(waveform_T)
    level_QL = 20 * (magnitude_QL / (magnitude_QL.max() if loudest is None else loudest).clamp(min=1e-9)).log10()
    grey_QL = ((level_QL / _RANGE_DB + 1).clamp(0, 1) * 255).round().to(torch.uint8).flip(0)
    return {
        "emotion": said.emotion,
        "probabilities": said.probabilities,
        "duration_s": len(waveform_T) / rate_hz,
        "rate_hz": rate_hz,
        "wav": base64.b64encode(to_wav(waveform_T, rate_hz)).decode(),
        "spectrogram": {
            "rows": len(grey_QL),
            "columns": grey_QL.shape[1],
            "grey": base64.b64encode(grey_QL.numpy().tobytes()).decode(),
        },
    }


def _magnitudes(waveform_T: Tensor) -> Tensor:
    """A spectrogram to look at, shape (Q, L), of at most so many columns."""
    window = torch.hann_window(512)
    hop = max(128, -(-len(waveform_T) // _COLUMNS))
    spectrum_QL = torch.stft(waveform_T, len(window), hop, window=window, pad_mode="constant", return_complex=True)
    return spectrum_QL.abs() + 1e-9
