"""Exported models: what other programs compute from the files is what the model says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
import yaml
from torch import Tensor, nn

import ser_fl
from ser_fl.cli.main import main
from ser_fl.errors import UserError
from ser_fl.exporting import export as exporting
from ser_fl.exporting.graph import ConvolvedLogMel, ScannedGRU, exportable
from ser_fl.models.cpu_kernels import BidirectionalGRU
from ser_fl.runs.zoo import readable_run

TINY = ["experiment=debug", "data.num_speakers=4", "data.utterances_per_emotion=4", "federation.num_rounds=1"]
SMALL = ["model=pooled", "model.hidden=8"]


def trained(folder: Path, *settings: str) -> ser_fl.Run:
    return ser_fl.train(ser_fl.compose([*TINY, "tracking=none", *settings, f"run_dir={folder}"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    return trained(tmp_path_factory.mktemp("run") / "pooled", *SMALL, "frontend.deltas=true")


@pytest.fixture(scope="module")
def by_speaker(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    return trained(
        tmp_path_factory.mktemp("run") / "speakers", "normalisation=speaker", "normalisation.share_mean=true"
    )


def speech(rows: int, samples: int) -> Tensor:
    """Voiced sound of changing pitch over noise."""
    time = torch.arange(samples) / 16000
    pitch = torch.linspace(90, 240, rows)[:, None] * (1 + 0.1 * torch.sin(7 * time))
    voice = sum(torch.sin(2 * torch.pi * harmonic * pitch * time) / harmonic for harmonic in range(1, 9))
    return (0.1 * voice + 0.003 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(3))).float()


def answers(file: Path, **inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(file)
    return list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))


def test_recurrence_by_steps_is_torchs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    ours, theirs = (
        BidirectionalGRU(6, 5, batch_first=True, bidirectional=True),
        nn.GRU(6, 5, batch_first=True, bidirectional=True),
    )
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(3, 11, 6)
    with torch.no_grad():
        torch.testing.assert_close(ScannedGRU(ours)(inputs)[0], theirs(inputs)[0])


@pytest.mark.parametrize("deltas", [False, True])
def test_convolution_is_the_fourier_transform_of_the_front_end(deltas: bool) -> None:
    config = ser_fl.compose([*TINY, f"frontend.deltas={deltas}"]).frontend
    from ser_fl.data.frontend_registry import build_frontend

    frontend = build_frontend(config)
    heard = exportable(frontend, config)
    assert isinstance(heard, nn.Module) and isinstance(heard.frontend, ConvolvedLogMel)
    clips = speech(2, config.num_samples)
    torch.testing.assert_close(heard(clips), frontend(clips), atol=2e-4, rtol=0)


def test_onnx_hears_what_predict_hears(run: ser_fl.Run, tmp_path: Path) -> None:
    folder = ser_fl.export(run, "onnx", tmp_path / "out")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "features.onnx", "model.onnx"]
    model = run.load()
    clip = speech(1, 9001)  # shorter than those of training, which predict repeats
    soundfile.write(tmp_path / "clip.wav", clip[0].numpy(), 16000, subtype="FLOAT")
    (said,) = ser_fl.predict(tmp_path / "clip.wav", model)
    _, probabilities = answers(folder / "model.onnx", waveform=clip)
    assert probabilities[0] == pytest.approx(list(said.probabilities.values()), abs=1e-3)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    features = model.frontend(speech(5, model.frontend.num_samples))
    logits, _ = answers(folder / "features.onnx", features=features)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(model.standardised(features)), atol=1e-4)
    told = {each.key: each.value for each in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(told["classes"]) == list(model.classes) and told["sample_rate_hz"] == "16000"
    assert str(Path.cwd()).encode() not in (folder / "model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_speakers_scale_is_taken_and_the_mean_speaker_is_the_default(
    by_speaker: ser_fl.Run, tmp_path: Path, form: str
) -> None:
    folder, model = ser_fl.export(by_speaker, form, tmp_path / "out"), by_speaker.load()
    clips = speech(3, model.frontend.num_samples)
    enrolled = model.enrolled(clips[1:])
    assert model.fallback is not None and enrolled.scale is not None
    with torch.no_grad():
        expected, default = (each.from_waveform(clips) for each in (enrolled, model))
    if form == "onnx":
        scale = answers(folder / "enrol.onnx", waveform=clips[1:])
        given = dict(zip(("speaker_mean", "speaker_deviation"), map(torch.from_numpy, scale), strict=True))
        found, _ = answers(folder / "model.onnx", waveform=clips, **given)
        unknown, _ = answers(folder / "model.onnx", waveform=clips)
    else:
        mean, deviation = torch.export.load(folder / "enrol.pt2").module()(clips[1:])
        program: Any = torch.export.load(folder / "model.pt2").module()
        unknown = program(clips)[0]
        program.speaker_mean.copy_(mean)
        program.speaker_deviation.copy_(deviation)
        found, scale = program(clips)[0], [mean, deviation]
    np.testing.assert_allclose(np.asarray(scale[0]), enrolled.scale.mean, atol=2e-4)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-3)
    np.testing.assert_allclose(np.asarray(unknown), default, atol=1e-3)
    assert abs(expected - default).max() > 0.01


@pytest.mark.slow
def test_model_that_knows_no_mean_speaker_says_nothing_before_one_is_given(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *SMALL, "normalisation=speaker")
    folder, model = ser_fl.export(run, "torch", tmp_path / "out"), run.load()
    assert model.fallback is None
    clips, program = speech(2, model.frontend.num_samples), torch.export.load(folder / "features.pt2").module()
    assert bool(program(model.frontend(clips))[1].isnan().all())


def test_folder_for_hugging_face_is_loaded_again(run: ser_fl.Run, tmp_path: Path) -> None:
    folder = ser_fl.export(run, "hf", tmp_path / "out")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again, model = ser_fl.load(folder), run.load()
    clips = speech(2, model.frontend.num_samples)
    with torch.no_grad():
        assert torch.equal(again.from_waveform(clips), model.from_waveform(clips))
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == list(model.classes) and config["architectures"] == ["Pooled"]


def test_card_tells_licence_data_figures_and_what_the_model_is_not_for(run: ser_fl.Run, tmp_path: Path) -> None:
    _, front, text = (ser_fl.export(run, "hf", tmp_path / "out") / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["license"] == "apache-2.0" and told["pipeline_tag"] == "audio-classification"
    (result,) = told["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == run.metrics().uar and "SYNTHETIC" in result["dataset"]["name"]
    for words in ("SYNTHETIC speech", "## Intended use", "Regulation 2024/1689", f"{100 * run.metrics().uar:.1f}"):
        assert words in text
    published = ser_fl.export("zoo:nemo_fl_best", "hf", tmp_path / "zoo") / "README.md"
    _, front, text = published.read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-nc-sa-4.0"
    assert text.strip().startswith((readable_run("zoo:nemo_fl_best") / "card.md").read_text().strip())


def test_file_that_does_not_agree_is_not_left(run: ser_fl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.TOLERANCES, "features", 0.0)
    monkeypatch.setattr(exporting, "_apart", lambda *_: 1e-9)
    with pytest.raises(UserError, match="not written"):
        ser_fl.export(run, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Listens(nn.Module):
    """Its way depends on what it hears: no graph says that."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(1, num_classes)

    def forward(self, features_BFL: Tensor) -> Tensor:
        mean = features_BFL.mean((1, 2))[:, None]
        return self.output(mean if float(mean.sum()) > 0 else -mean)


def test_networks_that_cannot_be_exported_say_why(tmp_path: Path) -> None:
    config = ser_fl.compose([*TINY, "tracking=none", f"run_dir={tmp_path / 'own'}"])
    run = ser_fl.train(config, network=Listens)
    with pytest.raises(UserError, match="Listens cannot be exported"):
        ser_fl.export(run, "torch", tmp_path / "out")
    with pytest.raises(UserError, match="hf keeps no code"):
        ser_fl.export(run, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line_tells_mistakes_in_a_line(
    run: ser_fl.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: str) -> str:
        assert main(["export", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "did you mean 'onnx'" in told(str(run.root), "onx")
    assert "did you mean 'output'" in told(str(run.root), "hf", "outptu=x")
    assert "unknown model of the zoo 'nobody'" in told("zoo:nobody", "hf")
    (tmp_path / "file").write_text("mine")
    assert "must be a folder" in told(str(run.root), "hf", f"output={tmp_path / 'file'}")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'ser-fl[export]'" in told(str(run.root), "onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run.root), "hf"]) == 0
    assert f"exports/{run.root.name}-hf" in capsys.readouterr().out
