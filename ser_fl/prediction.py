"""Emotions of audio files, by a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ser_fl.data.audio import read_audio
from ser_fl.models.bundle import load_model


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one file."""

    path: Path
    emotion: str
    probabilities: dict[str, float]


def predict(files: Sequence[Path | str], run: Path | str, *, channel: str = "first") -> list[Prediction]:
    """Classify audio files with the selected model of a run.

    Raises:
        UserError: a file cannot be read, or the run holds no model.
    """
    bundle = load_model(Path(run))
    predictions = []
    for file in map(Path, files):
        clip_T = bundle.frontend.clip(*read_audio(file, channel))
        with torch.inference_mode():
            probabilities = bundle.from_waveform(clip_T[None]).softmax(dim=1)[0].tolist()
        by_emotion = dict(zip(bundle.classes, probabilities, strict=True))
        predictions.append(Prediction(file, max(by_emotion, key=by_emotion.__getitem__), by_emotion))
    return predictions
