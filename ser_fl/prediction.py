"""Emotions of audio files, by a trained run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ser_fl.data.audio import read_audio
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import load_model
from ser_fl.runs.folder import RunFolder

SYNTHETIC_NOTE = (
    "note: this model was trained on SYNTHETIC speech (the built-in corpus); it knows nothing of real speech"
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one file."""

    path: Path
    emotion: str
    probabilities: dict[str, float]
    synthetic: bool = False
    """Whether the model was trained on the built-in corpus, and so knows nothing of real speech."""


@exact_arithmetic()
def predict(
    files: Path | str | Sequence[Path | str], run: Path | str | RunFolder, *, channel: str = "first"
) -> list[Prediction]:
    """Classify audio files with the selected model of a run, a prediction for each in their order. A model that was
    trained on the built-in corpus says so, in a warning of this module's logger.

    Args:
        files: One file, or several.
        run: The run folder, or what `ser_fl.train` gave.
        channel: "first", "second" or "mean", see `ser_fl.data.audio.CHANNELS`.

    Raises:
        UserError: a file cannot be read, or the run holds no model.
    """
    bundle = load_model(run)
    predictions = []
    for file in map(Path, [files] if isinstance(files, (str, Path)) else files):
        recording_T, rate_hz = read_audio(file, channel)
        try:
            clip_T = bundle.frontend.clip(recording_T, rate_hz)
        except UserError as error:
            raise UserError(f"cannot use {file}: {error}") from None
        with torch.no_grad():
            probabilities = bundle.from_waveform(clip_T[None]).softmax(dim=1)[0].tolist()
        by_emotion = dict(zip(bundle.classes, probabilities, strict=True))
        emotion = max(by_emotion, key=by_emotion.__getitem__)
        predictions.append(Prediction(file, emotion, by_emotion, bundle.synthetic))
    if bundle.synthetic:
        _LOG.warning(SYNTHETIC_NOTE)
    return predictions
