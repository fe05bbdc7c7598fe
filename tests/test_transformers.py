"""Encoders of transformers as front ends, and tuned ones. Small ones of random weights; skipped without the package."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ser_fl
from ser_fl.cli.main import main
from ser_fl.config.frontend import TransformersConfig
from ser_fl.config.training import PooledConfig
from ser_fl.data.audio import write_wav
from ser_fl.data.frontend import FeatureStatistics, LogMel, Standardisation
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.heard import fingerprints
from ser_fl.errors import UserError
from ser_fl.models.networks import Pooled, build_network
from ser_fl.models.tuned import Tuned

transformers = pytest.importorskip("transformers")

KINDS = ("wav2vec2", "hubert", "wavlm", "whisper")
RATE, SECONDS = 16000, 0.6
SETTINGS = (
    *("experiment=debug", "tracking=none", "frontend=transformers", f"frontend.duration_s={SECONDS}"),
    *("model=pooled", "model.hidden=8", "augmentation=none", "precision=32-true"),
)


def save(folder: Path, kind: str, *, stable: bool = False, do_normalize: bool = True) -> Any:
    """A small model of random weights in a folder, and the model."""
    torch.manual_seed(7)
    if kind == "whisper":
        config = transformers.WhisperConfig(
            vocab_size=32,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_source_positions=50,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        model = transformers.WhisperModel(config)
        extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    else:
        names = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
        config = getattr(transformers, f"{names[kind]}Config")(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8, 8),
            conv_kernel=(40, 8),
            conv_stride=(20, 8),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            num_feat_extract_layers=2,
            feat_extract_norm="layer" if stable else "group",
            do_stable_layer_norm=stable,
        )
        model = getattr(transformers, f"{names[kind]}Model")(config)
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model.eval()


def config_of(folder: Path, **settings: Any) -> TransformersConfig:
    given = {"encoder": None, "layer": "all", "tune": "none", "rank": 2, "precision": "float32", "pool": 1}
    return TransformersConfig(
        name="transformers", path=str(folder), **{**given, "duration_s": SECONDS, "clip": "training", **settings}
    )


def noise(seconds: float = SECONDS) -> Tensor:
    time = torch.arange(round(seconds * RATE)) / RATE
    voice = torch.sin(2 * torch.pi * (200 * time + 90 * time**2)) * (0.2 + 0.1 * torch.sin(20 * time))
    return torch.stack([voice, 0.3 * voice.flip(0) + 0.01])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", [False, True])
def test_layers_are_those_of_transformers(tmp_path: Path, kind: str, variant: bool) -> None:
    """By its own feature extractor, which pads Whisper's clips, of whose frames those of the clip are left."""
    model = save(tmp_path, kind, stable=variant, do_normalize=not variant)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    inputs = dict(extractor(list(noise().numpy()), sampling_rate=RATE, return_tensors="pt"))
    with torch.no_grad():
        told = (model.encoder if kind == "whisper" else model)(**inputs, output_hidden_states=True).hidden_states
        config = config_of(tmp_path)
        features_BFL = build_frontend(config)(noise())
        expected = torch.cat([state[:, : config.num_frames] for state in told], dim=2).transpose(1, 2)
        assert features_BFL.shape == (2, 40 + 3 * 16, 30 if kind == "whisper" else 59)
        assert features_BFL.shape[1:] == (config.num_features, config.num_frames)
        torch.testing.assert_close(features_BFL[:, 40:], expected, rtol=1e-4, atol=1e-4)
        assert float(expected.std()) > 0.02
        whole = build_frontend(config_of(tmp_path, pool="clip"))(noise())
        for layer in range(3):
            own = expected[:, 16 * layer : 16 * layer + 16]
            moments = torch.cat([own.mean(2), own.std(2, correction=0)], dim=1)
            torch.testing.assert_close(whole[:, 640 + 32 * layer :][:, :32, 0], moments, rtol=1e-4, atol=2e-4)
        for layer in range(3):
            one = build_frontend(config_of(tmp_path, layer=layer, pool=4))(noise())
            length = config.num_frames // 4
            means = expected[:, 16 * layer : 16 * layer + 16, : 4 * length].unflatten(2, (length, 4)).mean(3)
            torch.testing.assert_close(one[:, 40:], means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_differentiable_from_the_waveform(tmp_path: Path, kind: str) -> None:
    """Finite differences along the gradient, in float64."""
    save(tmp_path, kind)
    frontend = build_frontend(config_of(tmp_path)).double()
    assert not any(weight.requires_grad for weight in frontend.parameters())
    inputs = noise().double().requires_grad_()
    weights = torch.randn(frontend(inputs)[:, 40:].shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((frontend(inputs)[:, 40:] * weights).mean(), inputs)
    direction, step = gradient / gradient.norm(), 1e-6
    there, back = ((frontend(inputs + sign * step * direction)[:, 40:] * weights).mean() for sign in (1, -1))
    assert float(((there - back) / (2 * step)).detach()) == pytest.approx(float(gradient.norm()), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_and_given_in_float32(tmp_path: Path, kind: str) -> None:
    save(tmp_path, kind)
    whole, half = (build_frontend(config_of(tmp_path, precision=name))(noise()) for name in ("float32", "bfloat16"))
    assert half.dtype == torch.float32 and not torch.equal(half[:, 40:], whole[:, 40:])
    assert float((half - whole)[:, 40:].square().mean().sqrt()) < 0.05 * float(whole[:, 40:].std())


def test_silence_has_finite_features_and_gradients(tmp_path: Path) -> None:
    for kind in ("wav2vec2", "whisper"):
        save(tmp_path / kind, kind)
        inputs = torch.zeros(1, noise().shape[1]).requires_grad_()
        features = build_frontend(config_of(tmp_path / kind))(inputs)
        (gradient,) = torch.autograd.grad(features.mean(), inputs)
        assert features.isfinite().all() and gradient.isfinite().all()


def test_weights_of_other_files_are_the_same(tmp_path: Path) -> None:
    """A model with a head, in half precision, in several files, and by the names of earlier versions."""
    from safetensors.torch import load_file, save_file

    save(tmp_path / "plain", "wav2vec2")
    expected = build_frontend(config_of(tmp_path / "plain"))(noise())
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "plain", other)
    state = load_file(other / "model.safetensors")
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {"lm_head.weight": torch.zeros(3, 16)}
    for name, tensor in state.items():
        for now, before in names.items():
            name = name.replace(now, before)
        if name != "masked_spec_embed":
            renamed[f"wav2vec2.{name}"] = tensor
    (other / "model.safetensors").unlink()
    first = dict(list(renamed.items())[:20])
    save_file(first, other / "model-00001-of-00002.safetensors")
    save_file({k: v for k, v in renamed.items() if k not in first}, other / "model-00002-of-00002.safetensors")
    assert torch.equal(build_frontend(config_of(other))(noise()), expected)
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "plain" / "model.safetensors")
    halved = build_frontend(config_of(tmp_path / "plain"))(noise())
    torch.testing.assert_close(halved, expected, rtol=0.05, atol=0.01)
    assert halved.dtype == torch.float32 and not torch.equal(halved, expected)


def test_the_cache_knows_content_and_not_place(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path / "here", "hubert")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    config = config_of(tmp_path / "here")
    assert config.key == config_of(tmp_path / "there").key
    for changed in (config_of(tmp_path / "here", layer=1), config_of(tmp_path / "here", precision="bfloat16")):
        assert changed.key != config.key
    state = load_file(tmp_path / "there" / "model.safetensors")
    state["encoder.layer_norm.bias"] = state["encoder.layer_norm.bias"] + 1e-3
    save_file(state, tmp_path / "there" / "model.safetensors")
    assert config_of(tmp_path / "there").key != config.key
    scaling = tmp_path / "here" / "preprocessor_config.json"
    scaling.write_text(json.dumps(json.loads(scaling.read_text()) | {"do_normalize": False}))
    assert config_of(tmp_path / "here").key != config.key
    with pytest.raises(UserError, match="holds another encoder than the run was made with: digest "):
        build_frontend(config)


def test_what_encoders_give_is_standardised_in_a_box_of_ten_deviations(tmp_path: Path) -> None:
    save(tmp_path, "wavlm")
    config = config_of(tmp_path, layer=1)
    features = build_frontend(config)(noise())
    standardisation = Standardisation.from_statistics([FeatureStatistics.of(features)], config)
    given = standardisation(features)
    torch.testing.assert_close(given.mean((0, 2)), torch.zeros(56), rtol=0, atol=1e-3)
    assert standardisation.lower_F1[40:].unique().tolist() == [-10] and standardisation.upper_F1[40:].min() == 10
    floor = (np.log(1e-8) - standardisation.mean_F1[:40]) / standardisation.deviation_F1[:40]
    torch.testing.assert_close(standardisation.lower_F1[:40], floor.float())
    torch.testing.assert_close(standardisation.upper_F1[:40, 0], given.amax((0, 2))[:40])


def test_the_weighted_sum_of_layers_is_a_softmax() -> None:
    """Worked by hand: three layers of two bins after one that is not read."""
    config = PooledConfig(name="pooled", num_features=2, hidden=0, attention=False, dropout=0.0, layers=3)
    network = Pooled(4, config).eval()
    features = torch.randn(5, 1 + 6, 9)
    assert network.layers is not None and network.layers.tolist() == [0, 0, 0]
    with torch.no_grad():
        network.layers.copy_(torch.tensor([1.0, 2.0, -1.0]))
    shares = np.exp([1.0, 2.0, -1.0]) / np.exp([1.0, 2.0, -1.0]).sum()
    summed = sum(share * features[:, 1 + 2 * layer : 3 + 2 * layer] for layer, share in enumerate(shares))
    plain = Pooled(4, PooledConfig(name="pooled", num_features=2, hidden=0, attention=False, dropout=0.0)).eval()
    plain.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if name != "layers"})
    torch.testing.assert_close(network(features), plain(summed))
    features[:, 0] = 99.0
    torch.testing.assert_close(network(features), plain(summed))


def test_settings_are_whole_and_read_again(tmp_path: Path) -> None:
    save(tmp_path, "whisper")
    config = ser_fl.compose([*SETTINGS, f"frontend.path={tmp_path}"])
    assert isinstance(config.frontend, TransformersConfig) and isinstance(config.model, PooledConfig)
    assert (config.model.num_features, config.model.layers) == (16, 3)
    shutil.rmtree(tmp_path)
    from ser_fl.config.schema import dump, parse

    assert parse(dump(config)) == config, "without a look at the folder"


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _text(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))


def _weightless(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _unscaled(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _damaged(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _lacking(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    del settings["conv_stride"]
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (_gone, (), "the encoder's folder, .*, is not on this machine: say where it is, with frontend.path=DIR"),
        (_text, (), r"must hold an encoder of speech \(wav2vec2, hubert, wavlm, whisper\), got 'bert' in "),
        (_weightless, (), "must hold weights in safetensors, got none: save it anew by transformers"),
        (_pickled, (), "got pytorch_model.bin alone, a pickle, which may hold code: save it anew"),
        (_unscaled, (), "must hold preprocessor_config.json: No such file or directory; save it anew"),
        (_damaged, (), r"config.json is damaged \("),
        (_lacking, (), "has damaged settings, .*conv_stride"),
        (None, ("frontend.layer=3",), "frontend.layer must be at most 2 with this encoder, or all, got 3"),
        (None, ("frontend.layer=last",), "must be the number of a hidden layer, from 0 up, or all, got 'last'"),
        (None, ("frontend.pool=60",), "frontend.pool must be at most the frames of a clip, got 60"),
        (None, ("model.layers=2",), "model.layers must be the front end's 3, got 2"),
        (None, ("augmentation.max_mel_warp=0.1",), "got 0.1 with frontend=transformers"),
        (None, ("frontend.tune=lora", "model=crnn_tiny"), "frontend.tune=lora needs model=pooled"),
        (None, ("frontend.tune=lora", "normalisation=speaker"), "goes with normalisation=pooled, got speaker"),
        (
            None,
            ("executor=flower", "executor.superlink=a:1", "executor.num_nodes=2"),
            "got executor.superlink: nodes have no encoder",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(
    tmp_path: Path, change: Callable[[Path], None] | None, settings: tuple[str, ...], said: str
) -> None:
    save(tmp_path / "encoder", "wav2vec2")
    if change is not None:
        change(tmp_path / "encoder")
    with pytest.raises(UserError, match=said) as caught:
        ser_fl.compose([*SETTINGS, f"frontend.path={tmp_path / 'encoder'}", *settings])
    assert "\n" not in str(caught.value)


def test_the_command_line_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SETTINGS, f"frontend.path={tmp_path / 'none'}", f"run_dir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "is not on this machine" in told[0] and not (tmp_path / "run").exists()


def test_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"frontend=transformers needs frontend\.path=DIR"):
        ser_fl.compose(SETTINGS)
    save(tmp_path / "whisper", "whisper")
    with pytest.raises(UserError, match=r"frontend\.duration_s must be at most 1 with whisper, got 1\.1"):
        ser_fl.compose([*SETTINGS, f"frontend.path={tmp_path / 'whisper'}", "frontend.duration_s=1.1"])
    save(tmp_path / "wavlm", "wavlm")
    shutil.copy(tmp_path / "whisper" / "model.safetensors", tmp_path / "wavlm" / "model.safetensors")
    with pytest.raises(UserError, match=r"the encoder in .* cannot be loaded: its weights lack encoder"):
        build_frontend(config_of(tmp_path / "wavlm"))
    (tmp_path / "wavlm" / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"the encoder in .* cannot be loaded"):
        build_frontend(config_of(tmp_path / "wavlm"))
    monkeypatch.setattr("ser_fl.config.encoder_folder.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package transformers: pip install 'ser-fl\[ssl\]'"):
        ser_fl.compose([*SETTINGS, f"frontend.path={tmp_path / 'whisper'}"])


def test_from_training_to_an_attack_on_recordings(tmp_path: Path) -> None:
    """The whole way; the run needs its encoder again, wherever it lies, and no other."""
    folder, root = tmp_path / "encoder", tmp_path / "run"
    save(folder, "wav2vec2")
    settings = [*SETTINGS, f"frontend.path={folder}", f"data.cache_dir={tmp_path / 'cache'}"]
    run = ser_fl.train(ser_fl.compose([*settings, f"run_dir={root}", "federation.num_rounds=2"]))
    assert ser_fl.evaluate(run).uar == pytest.approx(run.metrics().uar)
    with pytest.raises(UserError, match="were heard in training"):
        ser_fl.evaluate(run, part="train")
    plain = {"defences": ["none"], "attacks": ["pgd"], "steps": 3, "restarts": 1, "curve_attacks": [], "checks": False}
    for more in ({"epsilons": [0.3]}, {"domain": "waveform", "snr_dbs": [30.0]}):
        records = ser_fl.benchmark(run, max_examples=6, **plain, **more)
        attacked = next(record for record in records if record.attack == "pgd")
        assert attacked.backward_passes > 0
    assert attacked.median_snr_db is None or attacked.median_snr_db == pytest.approx(30, abs=0.5)
    model = run.load()
    write_wav(tmp_path / "clip.wav", noise()[0], RATE)
    (found,) = ser_fl.predict(tmp_path / "clip.wav", model)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    for name in ("config.yaml", "model.json"):
        assert str(tmp_path) not in (root / name).read_text(), "folders of this machine are not published"
    assert not [file for file in root.rglob("*") if file.is_file() and b"feature_projection" in file.read_bytes()]

    assert ser_fl.compose(config_file=root / "config.yaml").frontend.path == str(folder)
    more_rounds = ser_fl.compose([*settings, f"run_dir={root}", "federation.num_rounds=3", "resume=true"])
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot be loaded: the encoder's folder, .*, is not on this machine"):
        run.load()
    shutil.copytree(moved, folder)
    scaling = folder / "preprocessor_config.json"
    scaling.write_text(scaling.read_text() + " ")
    with pytest.raises(UserError, match="holds another encoder than the run was made with"):
        run.load()
    shutil.rmtree(folder)
    from dataclasses import replace

    again = ser_fl.train(replace(more_rounds, frontend=replace(more_rounds.frontend, path=str(moved))))
    assert [json.loads(line)["round"] for line in again.rounds.read_text().splitlines()] == [1, 2, 3]
    assert ser_fl.evaluate(again).uar == pytest.approx(again.metrics().uar)


def test_clips_are_known_again_by_their_log_mel(tmp_path: Path) -> None:
    """Where features are the clips: the fingerprints are those of log-mel, at any volume."""
    save(tmp_path, "hubert")
    config = config_of(tmp_path, tune="lora")
    log_mel = LogMel(config.heard)(noise())
    known = fingerprints(log_mel, config.heard)
    assert torch.equal(fingerprints(build_frontend(config)(noise()), config), known)
    torch.testing.assert_close(fingerprints(0.3 * noise()[:, None], config), known, rtol=0, atol=0.02)


def lora(folder: Path, *settings: str) -> Any:
    return ser_fl.compose(
        [*SETTINGS, f"frontend.path={folder}", "frontend.tune=lora", "frontend.rank=2", "model.dropout=0", *settings]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tuned_layers_begin_as_the_encoder_and_all_learn(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("peft")
    save(tmp_path, kind)
    config = lora(tmp_path, f"model.attention={'true' if kind == 'hubert' else 'false'}")
    network = build_network(config.model, 3, seed=4, frontend=config.frontend).eval()
    assert isinstance(network, Tuned)
    hidden = build_frontend(config_of(tmp_path, pool=4))(noise())
    torch.testing.assert_close(network(noise()[:, None]), network.head(hidden))
    state = network.state_dict()
    assert {name.split(".")[0] for name in state} == {"adapters", "head"}
    adapters = {name: tensor for name, tensor in state.items() if name.startswith("adapters.")}
    assert len(adapters) == 2 * 2 * 2, "two factors of two dense layers in two layers"
    assert all(("lora_B" in name) == (not tensor.any()) for name, tensor in adapters.items())
    frozen = {name: tensor.clone() for name, tensor in network._encoder[0].state_dict().items() if "lora" not in name}
    optimiser, labels, losses = torch.optim.Adam(network.parameters(), 0.02), torch.tensor([0, 2]), []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(network(noise()[:, None]), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(tensor.any() for name, tensor in network.state_dict().items() if "lora_B" in name)
    for name, tensor in network._encoder[0].state_dict().items():
        assert "lora" in name or torch.equal(tensor, frozen[name]), name
    other = build_network(config.model, 3, seed=9, frontend=config.frontend).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(noise()[:, None]), network(noise()[:, None]))
    double = network.double()(noise()[:, None].double())
    torch.testing.assert_close(double.float(), other(noise()[:, None]), rtol=1e-4, atol=1e-4)


def test_clients_tune_an_encoder(tmp_path: Path) -> None:
    """Only adapters and head travel, are averaged and are kept; the run is loaded and attacked like any other."""
    pytest.importorskip("peft")
    save(tmp_path / "encoder", "wavlm")
    config = lora(tmp_path / "encoder", f"run_dir={tmp_path / 'run'}", "federation.num_rounds=2")
    run = ser_fl.train(config)
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[0] for name in kept} == {"adapters", "head"}
    assert sum(tensor.nbytes for tensor in kept.values()) < (tmp_path / "encoder" / "model.safetensors").stat().st_size
    for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines():
        assert json.loads(line)["bytes_up"] == sum(tensor.nbytes for tensor in kept.values())
    begun = build_network(config.model, len(run.load().classes), seed=config.seed, frontend=config.frontend)
    assert any(not torch.equal(kept[name], tensor) for name, tensor in begun.state_dict().items() if "lora_B" in name)
    assert ser_fl.evaluate(run).uar == pytest.approx(run.metrics().uar)
    with pytest.raises(UserError, match="were heard in training"):
        ser_fl.evaluate(run, part="train")
    records = ser_fl.benchmark(
        run,
        domain="waveform",
        defences=["none"],
        attacks=["pgd"],
        steps=2,
        restarts=1,
        snr_dbs=[20.0],
        curve_attacks=[],
        max_examples=4,
        checks=False,
    )
    assert next(record for record in records if record.attack == "pgd").backward_passes > 0
