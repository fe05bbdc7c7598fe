"""Predicting from Python: what may be given, and what a model of synthetic speech says of itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fl.config.compose import compose
from ser_fl.data.frontend import Standardisation
from ser_fl.models.emotion_model import EmotionModel, load_model, save_model
from ser_fl.models.networks import build_network
from ser_fl.prediction import SYNTHETIC_NOTE, predict
from ser_fl.runs.folder import RunFolder


def write_run(root: Path, *, synthetic: bool = False) -> Path:
    """A run folder with an untrained model."""
    config = compose(["experiment=debug"])
    bins = config.frontend.num_mels
    sides = (torch.zeros(bins), torch.ones(bins), torch.full((bins,), -9.0), torch.full((bins,), 9.0))
    bundle = EmotionModel(
        build_network(config.model, 2, seed=0),
        Standardisation(*sides),
        classes=("anger", "fear"),
        model=config.model,
        frontend=config.frontend,
        synthetic=synthetic,
    )
    root.mkdir(parents=True)
    save_model(root, bundle.eval())
    return root


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "ser_fl.prediction"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 4000), 16000)
    return path


def test_one_file_or_several_and_any_name_of_the_run(tmp_path: Path, clip: Path) -> None:
    run = write_run(tmp_path / "run")
    (expected,) = predict([clip], run)
    assert expected.path == clip
    assert sum(expected.probabilities.values()) == pytest.approx(1)
    assert expected.probabilities[expected.emotion] == max(expected.probabilities.values())
    for files in (clip, str(clip), [str(clip)], (clip,)):
        for folder in (run, str(run), RunFolder(run)):
            assert predict(files, folder) == [expected]
    assert predict([clip, clip], run) == [expected, expected]


def test_model_is_loaded_by_any_name_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    weights = [load_model(folder).network.state_dict() for folder in (run, str(run), RunFolder(run))]
    assert all(torch.equal(weights[0][name], state[name]) for state in weights[1:] for name in weights[0])


@pytest.mark.parametrize("synthetic", [True, False])
def test_model_of_synthetic_speech_says_so(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture, synthetic: bool
) -> None:
    run = write_run(tmp_path / "run", synthetic=synthetic)
    assert json.loads(RunFolder(run).model.read_text(encoding="utf-8"))["synthetic"] is synthetic
    with caplog.at_level(logging.WARNING):
        (prediction,) = predict(clip, run)
    assert prediction.synthetic is load_model(run).synthetic is synthetic
    assert notes(caplog) == [SYNTHETIC_NOTE] * synthetic
    assert "SYNTHETIC" in SYNTHETIC_NOTE
