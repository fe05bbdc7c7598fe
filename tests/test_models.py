"""The networks: shapes, sizes, independence of the batch, and a model that comes back from disk as it went."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ser_fl.config.compose import compose
from ser_fl.config.frontend import FrontendConfig
from ser_fl.config.training import CRNNConfig, ModelConfig, ResNetConfig, VGG15Config
from ser_fl.data.frontend import Standardisation
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel, load_model, save_model
from ser_fl.models.networks import NETWORKS, build_network

CRNN = CRNNConfig(name="crnn", channels=(8, 8, 8), hidden=8, norm="batch", dropout=0.5)
DEEP_CRNN = CRNNConfig(name="crnn", channels=(4, 8, 12, 16), hidden=8, norm="batch", dropout=0.5)
VGG = VGG15Config(name="vgg15", norm="batch")
RESNET = ResNetConfig(name="resnet", norm="batch", dropout=0.5)
RENORMALISED = CRNNConfig(name="crnn", channels=(8, 8, 8), hidden=8, norm="renorm", dropout=0.5)
GROUP_NORM = [
    CRNNConfig(name="crnn", channels=(6, 7, 9), hidden=8, norm="group", dropout=0.5),
    VGG15Config(name="vgg15", norm="group"),
    ResNetConfig(name="resnet", norm="group", dropout=0.5),
]
FRONTEND = FrontendConfig(
    name="small",
    sample_rate_hz=16000,
    window_samples=512,
    hop_samples=256,
    num_mels=64,
    fmin_hz=20.0,
    fmax_hz=8000.0,
    duration_s=0.6,
    log_offset=1e-8,
    clip="training",
)
CLASSES = ("anger", "fear", "sadness")


def config_id(config: object) -> str:
    return "-".join(str(getattr(config, field)) for field in ("name", "norm", "channels") if hasattr(config, field))


networks = pytest.mark.parametrize("config", [CRNN, DEEP_CRNN, VGG, RESNET, RENORMALISED], ids=config_id)


def features(batch: int = 3, num_mels: int = 64, num_frames: int = 40) -> Tensor:
    return torch.randn(batch, num_mels, num_frames, generator=torch.Generator().manual_seed(5))


def settled(config: ModelConfig, seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose batch norm has seen something: fresh statistics would hide mistakes."""
    network = build_network(config, len(CLASSES), seed=seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network.train()(1 + 2 * features(8))
    return network.eval()


def gradient(network: nn.Module, features_BFL: Tensor) -> Tensor:
    given = features_BFL.clone().requires_grad_()
    return torch.autograd.grad(network(given).logsumexp(1).sum(), given)[0]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


SHAPES = [(64, 186), (64, 61), (65, 62), (66, 193), (79, 40), (80, 40), (100, 41), (128, 40)]
FEW_SHAPES = [(64, 61), (66, 193), (128, 40)]


@pytest.mark.parametrize(
    ("config", "num_mels", "num_frames"),
    [(config, *shape) for config in (CRNN, DEEP_CRNN) for shape in SHAPES]
    + [(config, *shape) for config in (VGG, RESNET) for shape in FEW_SHAPES],
    ids=lambda value: value if isinstance(value, int) else config_id(value),
)
def test_logits_for_any_number_of_mel_bins_and_frames(config: ModelConfig, num_mels: int, num_frames: int) -> None:
    """66 x 193: what test-time randomisation makes of 64 bins and the 186 frames of a 3 s clip."""
    network = build_network(config, 7, seed=0).eval()
    with torch.no_grad():
        logits_BC = network(features(2, num_mels, num_frames))
    assert logits_BC.shape == (2, 7)
    assert logits_BC.isfinite().all()
    assert not torch.equal(logits_BC[0], logits_BC[1])


@pytest.mark.parametrize(("config", "least"), [(CRNN, 16), (DEEP_CRNN, 16), (VGG, 32), (RESNET, 32)])
def test_the_smallest_features_that_settings_allow_are_enough(config: ModelConfig, least: int) -> None:
    network = build_network(config, 7, seed=0).eval()
    logits_BC = network(features(2, least, least))
    assert logits_BC.isfinite().all() and not torch.equal(logits_BC[0], logits_BC[1])
    settings = ["experiment=debug", f"model={config.name}", "frontend.duration_s=2"]
    compose([*settings, f"frontend.num_mels={least}"])
    with pytest.raises(UserError, match=f"needs at least {least} mel bins"):
        compose([*settings, f"frontend.num_mels={least - 1}"])


@networks
def test_logits_do_not_depend_on_the_batch(config: ModelConfig) -> None:
    network, together_BFL = settled(config), features(7)
    with torch.no_grad():
        together = network(together_BFL)
        alone = torch.cat([network(row[None]) for row in together_BFL])
        reversed_halves = torch.cat([network(half) for half in together_BFL.flip(0).tensor_split(2)]).flip(0)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(reversed_halves, together, rtol=0, atol=1e-5)


@networks
def test_weights_follow_the_seed_and_leave_torchs_random_state_alone(config: ModelConfig) -> None:
    torch.manual_seed(1)
    first = build_network(config, 3, seed=4).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build_network(config, 3, seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_network(config, 3, seed=5).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@networks
def test_gradients_in_evaluation_are_equal_twice(config: ModelConfig) -> None:
    network = settled(config)
    assert torch.equal(gradient(network, features()), gradient(network, features()))


@networks
def test_dropout_is_in_modules_that_can_be_switched_off(config: ModelConfig) -> None:
    """As attack libraries do it with recurrent networks: training mode, but dropout and batch norm modules frozen.

    Dropout inside the GRU would stay on and make two gradients of one input differ.
    """
    network = settled(config).train()
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.BatchNorm2d)):
            module.eval()
    assert torch.equal(gradient(network, features()), gradient(network, features()))
    assert not any(isinstance(module, nn.RNNBase) and module.dropout for module in network.modules())


@pytest.mark.parametrize("config", [CRNN, RESNET], ids=config_id)
def test_dropout_is_on_in_training(config: ModelConfig) -> None:
    network = settled(config).train()
    with torch.no_grad():
        assert not torch.equal(network(features()), network(features()))


def test_vgg15_is_thirteen_convolutions_and_two_dense_layers() -> None:
    network = build_network(VGG, 7, seed=0)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (1, 64), (64, 64),
        (64, 128), (128, 128),
        (128, 256), (256, 256), (256, 256),
        (256, 512), (512, 512), (512, 512),
        (512, 512), (512, 512), (512, 512),
    ]  # fmt: skip
    assert all(convolution.kernel_size == (3, 3) for convolution in convolutions)
    dense = [(module.in_features, module.out_features) for module in network.modules() if isinstance(module, nn.Linear)]
    assert dense == [(512, 256), (256, 7)]
    assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == 5


def test_number_of_parameters_of_vgg15() -> None:
    """Kernels 9 x in x out and a bias; batch norm's scale and shift; the dense layers with theirs."""
    kernels = 9 * (1 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 2 * 256 * 256 + 256 * 512 + 5 * 512 * 512)
    outputs = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    dense = (512 * 256 + 256) + (256 * 7 + 7)
    assert count(build_network(VGG, 7, seed=0)) == kernels + 3 * outputs + dense == 14_855_111


def test_number_of_parameters_of_the_resnet() -> None:
    """7 x 7 to 64; blocks to 128 and 256 of two 3 x 3 and a 1 x 1 shortcut, without biases; norms; 128; classes."""
    kernels = 49 * 64 + (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128) + (9 * 128 * 256 + 9 * 256 * 256 + 128 * 256)
    norms = 2 * (64 + 3 * 128 + 3 * 256)
    dense = (256 * 128 + 128) + (128 * 4 + 4)
    assert count(build_network(RESNET, 4, seed=0)) == kernels + norms + dense


def test_number_of_parameters_of_the_crnn() -> None:
    """5 x 5 to 8, twice 3 x 3, norms; a GRU: 3 gates, 2 directions, 8 channels of 4 bands; attention; output."""
    kernels = 25 * 8 + 2 * 9 * 8 * 8
    norms = 2 * 3 * 8
    gru = 2 * 3 * (32 * 8 + 8 * 8 + 2 * 8)
    heads = (16 + 1) + (16 * 7 + 7)
    assert count(build_network(CRNN, 7, seed=0)) == kernels + norms + gru + heads


@pytest.mark.parametrize("config", GROUP_NORM, ids=config_id)
def test_group_norm_keeps_no_statistics(config: ModelConfig) -> None:
    network = build_network(config, 3, seed=0)
    assert list(network.buffers()) == []
    assert any(isinstance(module, nn.GroupNorm) for module in network.modules())
    with torch.no_grad():
        assert network.eval()(features()).shape == (3, 3)


@networks
def test_batch_norm_keeps_statistics_that_clients_share(config: ModelConfig) -> None:
    names = [name for name, _ in build_network(config, 3, seed=0).named_buffers()]
    assert {name.rpartition(".")[2] for name in names} == {"running_mean", "running_var", "num_batches_tracked"}


@networks
def test_every_parameter_is_trained(config: ModelConfig) -> None:
    """A parameter without a gradient would be averaged for nothing."""
    network = build_network(config, 3, seed=0).train()
    network(features()).logsumexp(1).sum().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def standardisation(clip: str = "training") -> Standardisation:
    """Values that decimal fractions do not hold exactly, so that a rounded round trip shows."""
    stream = torch.Generator().manual_seed(3)
    mean_F, deviation_F = torch.randn(64, generator=stream) - 9, torch.rand(64, generator=stream) + 0.3
    if clip == "none":
        side_F = torch.full((64,), torch.inf)
        return Standardisation(mean_F, deviation_F, -side_F, side_F)
    return Standardisation(mean_F, deviation_F, torch.full((64,), -3 / 7), torch.full((64,), 1.1))


def bundle(config: ModelConfig = CRNN, clip: str = "training") -> EmotionModel:
    network = settled(config)
    return EmotionModel(network, standardisation(clip), classes=CLASSES, model=config, frontend=FRONTEND).eval()


@pytest.mark.parametrize("config", [CRNN, RESNET, VGG, GROUP_NORM[0]], ids=config_id)
def test_model_comes_back_from_disk_as_it_went(tmp_path: Path, config: ModelConfig) -> None:
    saved = bundle(config)
    save_model(tmp_path, saved)
    loaded = load_model(tmp_path)
    assert (loaded.classes, loaded.model_config, loaded.frontend_config) == (CLASSES, config, FRONTEND)
    assert not any(module.training for module in loaded.modules())
    state = saved.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    waveforms_BT = 0.1 * torch.randn(2, FRONTEND.num_samples, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        standardised = saved.standardisation(saved.frontend(waveforms_BT))
        assert torch.equal(loaded.standardisation(loaded.frontend(waveforms_BT)), standardised)
        assert torch.equal(loaded(standardised), saved(standardised))
        assert torch.equal(loaded.from_waveform(waveforms_BT), saved(standardised))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_temperature_comes_back_and_models_before_there_was_one_have_1(tmp_path: Path) -> None:
    saved = bundle()
    saved.temperature = 2.5
    save_model(tmp_path, saved)
    assert load_model(tmp_path).temperature == 2.5
    change_card(tmp_path, lambda card: card.pop("temperature"))
    assert load_model(tmp_path).temperature == 1


def test_open_box_comes_back_open(tmp_path: Path) -> None:
    """JSON has no infinities."""
    save_model(tmp_path, bundle(clip="none"))
    loaded = load_model(tmp_path).standardisation
    assert torch.equal(loaded.lower_F1, torch.full((64, 1), -torch.inf))
    assert torch.equal(loaded.upper_F1, torch.full((64, 1), torch.inf))


def test_gradient_reaches_the_waveform(tmp_path: Path) -> None:
    save_model(tmp_path, bundle(clip="none"))
    waveforms_BT = 0.1 * torch.randn(2, FRONTEND.num_samples, generator=torch.Generator().manual_seed(0))
    assert gradient_of_waveform(load_model(tmp_path), waveforms_BT).abs().sum(1).min() > 0


def gradient_of_waveform(model: EmotionModel, waveforms_BT: Tensor) -> Tensor:
    given = waveforms_BT.clone().requires_grad_()
    return torch.autograd.grad(model.from_waveform(given).logsumexp(1).sum(), given)[0]


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    change(card)
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(schema=99), r"model\.json has schema 99, this version reads 1: train it again"),
        (lambda card: card.pop("schema"), "has schema None"),
        (lambda card: card.pop("classes"), "cannot be loaded: 'classes'"),
        (
            lambda card: card["classes"].append("joy"),
            "weights are not as model.json describes: it has .*, expected",
        ),
        (lambda card: card["model"].update(name="crn"), "cannot be loaded: .*crn"),
        (
            lambda card: card["model"].update(hidden=16),
            "weights are not as model.json describes: it has .*, expected",
        ),
        (lambda card: card["classes"].append(7), "cannot be loaded: .*string"),
        (
            lambda card: card["model"].update(hidden=1 << 20),
            "weights are not as model.json describes: it has .*, expected",
        ),
        (lambda card: card["frontend"].update(num_mels=1 << 40), "cannot be loaded: .*num_mels"),
        (lambda card: card["frontend"].update(duration_s=1e18), "cannot be loaded: .*duration_s"),
        (lambda card: card["frontend"].update(fmax_hz=9e9), "cannot be loaded: .*fmax_hz"),
        (lambda card: card["standardisation"]["mean_F1"].pop(), "cannot be loaded: .*mean_F1"),
        (lambda card: card["standardisation"].pop("lower_F1"), "cannot be loaded: .*lower_F1"),
        (lambda card: card.update(temperature=0), "cannot be loaded: a temperature of 0"),
        (lambda card: card.update(temperature="1"), "cannot be loaded: a temperature of '1'"),
        (lambda card: card.update(temperature=None), "cannot be loaded: a temperature of None"),
    ],
)
def test_model_card_that_does_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    save_model(tmp_path, bundle())
    change_card(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    lambda card: card.update(standardisation=[1, 2]),
    lambda card: card["standardisation"].update(mean_F1=["a"] * 64),
], ids=["list", "words"])  # fmt: skip
def test_model_card_changed_by_hand(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    save_model(tmp_path, bundle())
    change_card(tmp_path, change)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)


def test_damaged_or_missing_weights(tmp_path: Path) -> None:
    save_model(tmp_path, bundle())
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not weights at all" * 10):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be loaded"):
            load_model(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors: only its records were kept"):
        load_model(tmp_path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_model(tmp_path / "a", bundle())
    save_model(tmp_path / "b", bundle(DEEP_CRNN))
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path / "a")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.json: is it the folder of a finished run\?"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.json is not JSON"):
        load_model(tmp_path)


def test_catalogue_has_an_entry_for_every_configuration() -> None:
    assert sorted(NETWORKS) == ["crnn", "pooled", "resnet", "vgg15"]
    for config in (CRNN, VGG, RESNET):
        assert type(build_network(config, 2, seed=0)) is NETWORKS[config.name]
