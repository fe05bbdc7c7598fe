"""Predicting from Python: what may be given, and what a model of synthetic speech says of itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fl.compose import compose
from ser_fl.data.frontend import Standardisation
from ser_fl.models.bundle import EmotionModel, load_model, save_model
from ser_fl.models.catalogue import build_network
from ser_fl.prediction import SYNTHETIC_NOTE, predict
from ser_fl.records import RunFolder


def write_run(root: Path, *, corpus: str | None = None, synthetic: bool | None = None) -> Path:
    """A run folder with an untrained model, and a configuration that names the corpus."""
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
    if corpus is not None:
        RunFolder(root).config.write_text(f"data:\n  name: {corpus}\n", encoding="utf-8")
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
    run = write_run(tmp_path / "run", corpus="nemo")
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


@pytest.mark.parametrize(
    ("corpus", "said", "expected"),
    [
        ("builtin", None, True),
        ("nemo", None, False),
        (None, None, False),
        ("nemo", True, True),
        ("builtin", False, False),
    ],
)
def test_model_of_synthetic_speech_says_so(
    tmp_path: Path,
    clip: Path,
    caplog: pytest.LogCaptureFixture,
    corpus: str | None,
    said: bool | None,
    expected: bool,
) -> None:
    """What is said when it is saved counts; where nothing is, the run's configuration."""
    run = write_run(tmp_path / "run", corpus=corpus, synthetic=said)
    assert json.loads(RunFolder(run).model.read_text(encoding="utf-8"))["synthetic"] is expected
    with caplog.at_level(logging.WARNING):
        (prediction,) = predict(clip, run)
    assert prediction.synthetic is expected
    assert load_model(run).synthetic is expected
    assert notes(caplog) == [SYNTHETIC_NOTE] * expected
    assert "SYNTHETIC" in SYNTHETIC_NOTE


@pytest.mark.parametrize(("corpus", "expected"), [("builtin", True), ("nemo", False), (None, False)])
def test_older_model_without_the_field_goes_by_its_configuration(
    tmp_path: Path, corpus: str | None, expected: bool
) -> None:
    run = RunFolder(write_run(tmp_path / "run", corpus=corpus))
    card = json.loads(run.model.read_text(encoding="utf-8"))
    del card["synthetic"]
    run.model.write_text(json.dumps(card), encoding="utf-8")
    assert load_model(run).synthetic is expected
