"""The GE2E encoder as a front end. Skipped where the weights are not installed: ``make install`` installs them."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ser_fl
from ser_fl.attacks.enrolment import scale_by
from ser_fl.config.frontend import GE2EConfig
from ser_fl.data import ge2e
from ser_fl.data.audio import write_wav
from ser_fl.data.frontend import FrontEnd
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.heard import SAME_SOUND, fingerprints
from ser_fl.errors import UserError
from ser_fl.models.networks import Pooled
from ser_fl.robustness.strangers import Strangers
from ser_fl.robustness.trained_run import load_run

CONFIG = GE2EConfig(name="ge2e", duration_s=3.0, pool=1, clip="training")
SETTINGS = (
    *("experiment=debug", "tracking=none", "data.num_speakers=8", "split=speaker_independent"),
    *("frontend=ge2e", "frontend.duration_s=0.6", "model=pooled", "model.hidden=8"),
    *("normalisation=speaker", "enrolment=3", "augmentation=none"),
)


@pytest.fixture(scope="module", autouse=True)
def published() -> None:
    try:
        metadata.distribution(ge2e.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"the weights are not installed: pip install --no-deps {ge2e.PACKAGE}=={ge2e.VERSION}")


@pytest.fixture(scope="module")
def encoder() -> FrontEnd:
    return build_frontend(CONFIG)


def chirp(level: float) -> Tensor:
    time = np.arange(48000) / 16000
    wave = 0.1 * np.sin(2 * np.pi * (200 * time + 150 * time**2)) * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    return torch.from_numpy(wave.astype(np.float32) * np.float32(level))[None]


@pytest.mark.parametrize(
    ("level", "mels", "states", "means"),
    [
        (
            1.0,
            [-8.1106, -0.34243, -10.85303],
            [[0.01085, -0.01861, -0.05577], [-0.06297, 0.07519, 0.27192], [0.05545, 0.36966, 0.15938]],
            (-0.021392, 0.445355),
        ),
        (
            0.01,
            [-8.97421, -1.20604, -11.71664],
            [[0.00503, -0.03915, 0.00565], [-0.01461, 0.00622, 0.15153], [-0.04743, 0.43102, 0.4763]],
            (-0.026162, 0.590996),
        ),
    ],
)
def test_features_are_those_of_the_original(
    encoder: FrontEnd, level: float, mels: list[float], states: list[list[float]], means: tuple[float, float]
) -> None:
    """Pinned: Resemblyzer 0.1.4 with librosa 0.11.0 on this chirp: `normalize_volume`, `wav_to_mel_spectrogram` (bins
    0, 5 and 20 of frame 100, as log magnitudes), the first units of each layer's last state, and means of the last
    layer, of all and of unit 7.
    """
    features_FL = encoder(chirp(level))[0]
    assert features_FL.shape == (808, 301)
    assert features_FL[[0, 5, 20], 100].tolist() == pytest.approx(mels, abs=2e-3)
    for layer, expected in enumerate(states):
        start = 40 + 256 * layer
        assert features_FL[start : start + 3, -1].tolist() == pytest.approx(expected, abs=1e-4)
    last = features_FL[40 + 512 :]
    assert (float(last.mean()), float(last[7].mean())) == pytest.approx(means, abs=1e-4)


def test_frames_are_averaged(encoder: FrontEnd) -> None:
    pooled = build_frontend(GE2EConfig(name="ge2e", duration_s=3.0, pool=4, clip="training"))(chirp(1.0))
    plain = encoder(chirp(1.0))[:, :, :300].reshape(1, 808, 75, 4).mean(3)
    torch.testing.assert_close(pooled, plain)


CLIP = GE2EConfig(name="ge2e", duration_s=3.0, pool="clip", clip="training")


def test_a_clip_is_its_mean_and_deviation(encoder: FrontEnd) -> None:
    """NumPy's moments of the frames, after log-mel magnitudes by which the recording is known again as it was."""
    features_F, frames_FL = build_frontend(CLIP)(chirp(1.0))[0, :, 0], encoder(chirp(1.0))[0].double().numpy()
    assert len(features_F) == CLIP.num_features == 40 * 16 + 2 * 808
    moments = np.concatenate([frames_FL.mean(1), frames_FL.std(1)])
    torch.testing.assert_close(features_F[640:].double(), torch.from_numpy(moments), rtol=1e-3, atol=2e-4)
    by_clip, by_frame = (
        fingerprints(build_frontend(config)(torch.cat([chirp(1.0), chirp(0.3).flip(1)])), config)
        for config in (CLIP, CONFIG)
    )
    torch.testing.assert_close(by_clip, by_frame, rtol=0, atol=2e-2)
    assert float((by_clip[0] - by_clip[1]).float().square().mean().sqrt()) > SAME_SOUND


def test_speakers_are_scaled_by_clips_as_a_whole(tmp_path: Path) -> None:
    """Enrolment by all clips is plain z-scoring of functionals, and the head reads them as they are. Of one
    clip nobody knows a deviation: five of training speakers count, or it is refused.
    """
    given = (*SETTINGS, "frontend.pool=clip", "normalisation.share_mean=true", "enrolment=all")
    config = ser_fl.compose([*given, f"run_dir={tmp_path / 'run'}", "federation.num_rounds=1", "selection=last"])
    assert config.model.deviation is False  # type: ignore[union-attr]
    run = ser_fl.train(config)
    test_set = load_run(tmp_path / "run").test_set()
    speakers, features_NF = np.array(test_set.speakers), test_set.features_NFL[:, 640:, 0].numpy()
    for speaker in set(speakers.tolist()):
        own = features_NF[speakers == speaker]
        np.testing.assert_allclose(own.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(own.std(0)[own.std(0) > 1e-2], 1, atol=1e-2)
    assert ser_fl.load(run).network.scale.num_features == 2 * 808
    by_three = load_run(tmp_path / "run", ["enrolment=3"])
    clean = Strangers.of(by_three.test_set(), by_three.model.standardisation)
    for who, clips in clean.enrolments.items():
        scale, row = clean.test_set.scale, clean.test_set.speakers.index(who)
        assert scale is not None and torch.equal(scale_by(clips).deviation, scale.deviation[row])
    model = ser_fl.load(run)
    one_by_one = torch.stack([model.enrolled(clip[None]).scale.deviation for clip in chirp(1.0)[:, :9600]])  # type: ignore[union-attr]
    torch.testing.assert_close(one_by_one[0], model.fallback.deviation * (5 / 6) ** 0.5)  # type: ignore[union-attr]
    model.fallback = None
    with pytest.raises(UserError, match=r"enrolled by 1 clip, and features of one frame"):
        model.enrolled(chirp(1.0)[:, :9600])


@pytest.mark.parametrize("config", [CONFIG, CLIP], ids=["frames", "clip"])
def test_it_is_differentiable_from_the_waveform(config: GE2EConfig) -> None:
    """Finite differences along the gradient, in float64; a soft clip too, whose level is raised."""
    double = build_frontend(config).double()
    outputs = list(range(40, 808) if config is CONFIG else (*range(680, 1448), *range(1488, 2256)))
    """All but log-mel magnitudes, which have no slope to go by where a bin is silent."""
    for level in (1.0, 0.01):
        inputs = chirp(level)[:, :12000].double().requires_grad_()
        (gradient,) = torch.autograd.grad(double(inputs)[:, outputs].square().mean(), inputs)
        direction, step = gradient / gradient.norm(), 1e-6
        there, back = (double(inputs + sign * step * direction)[:, outputs].square().mean() for sign in (1, -1))
        assert float(((there - back) / (2 * step)).detach()) == pytest.approx(float(gradient.norm()), rel=1e-3)


def test_silence_has_finite_features_and_gradients(encoder: FrontEnd) -> None:
    inputs = torch.zeros(1, 48000).requires_grad_()
    features = encoder(inputs)
    (gradient,) = torch.autograd.grad(features.mean(), inputs)
    assert features.isfinite().all() and gradient.isfinite().all()


def test_weights_are_converted_once_and_never_taken_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = ge2e.weights()
    (kept,) = (tmp_path / "ser_fl" / "encoders").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-4] + b"\0\0\0\0")
    assert ge2e.digest_of(ge2e.weights()) == ge2e.digest_of(whole) == ge2e.DIGEST
    assert kept.read_bytes() == content, "a changed file is written anew"
    kept.write_bytes(b"")
    monkeypatch.setattr(ge2e, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"needs the weights that no_such_package 0.1.4 ships: pip install --no-deps"):
        ge2e.weights()
    kept.write_bytes(content)
    assert ge2e.digest_of(ge2e.weights()) == ge2e.DIGEST, "the package may be gone once they are kept"


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "pretrained.pt"
    torch.save({"model_state": {}}, other)
    with pytest.raises(UserError, match="holds other weights than resemblyzer"):
        ge2e._published(other)
    with pytest.raises(UserError, match="cannot read the weights of frontend=ge2e"):
        ge2e._published(tmp_path / "none.pt")


def test_settings_that_do_not_fit_are_refused() -> None:
    for setting, said in (
        ("augmentation.max_mel_warp=0.1", "max_mel_warp is of mel bins"),
        ("model.num_features=64", "model.num_features must be the front end's 808, got 64"),
        ("frontend.pool=500", "frontend.pool must be at most the frames of a clip, got 500"),
        ("frontend.pool=0", "frontend.pool must be a number of frames from 1 to 1000, or clip, got 0"),
        ("frontend.pool=whole", "frontend.pool must be a number of frames from 1 to 1000, or clip, got 'whole'"),
    ):
        with pytest.raises(UserError, match=said):
            ser_fl.compose([*SETTINGS, setting])


def test_pooling_is_mean_and_deviation() -> None:
    config = ser_fl.compose([*SETTINGS, "model.hidden=0", "model.dropout=0"]).model
    network = Pooled(3, config).eval()  # type: ignore[arg-type]
    features = torch.randn(2, 808, 9)
    pooled = torch.cat([features.mean(2), features.var(2, correction=0).add(1e-5).sqrt()], dim=1)
    (linear,) = (layer for layer in network.head if isinstance(layer, torch.nn.Linear))
    torch.testing.assert_close(network(features), linear(pooled / (1 + 1e-5) ** 0.5))


def test_from_training_to_an_attack_on_recordings(tmp_path: Path) -> None:
    """The whole way; what was heard is known again by the log-mel that the encoder hears."""
    run = ser_fl.train(ser_fl.compose([*SETTINGS, f"run_dir={tmp_path / 'run'}"]))
    assert ser_fl.evaluate(run).uar == pytest.approx(run.metrics().uar)
    with pytest.raises(UserError, match="were heard in training"):
        ser_fl.evaluate(run, part="train")
    with pytest.raises(UserError, match="randomisation shifts mel bins, and model=pooled knows each feature"):
        ser_fl.benchmark(run, defences=["none", "randomisation"])
    records = ser_fl.benchmark(  # by default, to what defences there are
        run,
        domain="waveform",
        attacks=["pgd"],
        steps=3,
        restarts=1,
        snr_dbs=[30.0],
        curve_attacks=[],
        max_examples=6,
    )
    assert {record.defence for record in records} == {"none"}
    checks = json.loads((Path(run.root) / "attacks.json").read_text())["checks"]
    assert "epsilon 0 changes nothing" in checks["passed"]  # though front ends round otherwise in other batches
    attacked = next(record for record in records if record.attack == "pgd")
    assert attacked.backward_passes > 0 and attacked.median_snr_db == pytest.approx(30, abs=0.5)
    model = load_run(run.root).model
    write_wav(tmp_path / "clip.wav", chirp(1.0)[0], 16000)
    (found,) = ser_fl.predict(tmp_path / "clip.wav", model, enrol=[tmp_path / "clip.wav"])
    assert set(found.probabilities) == set(model.classes)
