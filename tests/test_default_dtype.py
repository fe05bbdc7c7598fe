"""A caller who works in float64: draws, features, weights and statistics are float32, and the same bits as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ser_fl.config.compose import compose
from ser_fl.config.data import AugmentationConfig
from ser_fl.config.training import ModelConfig
from ser_fl.data.augmentation import augment
from ser_fl.data.features import compute_features
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.defences import DEFENCES, build_defence
from ser_fl.devices import float32_by_default
from ser_fl.models.networks import build_network
from ser_fl.models.normalisation import BatchRenorm2d
from ser_fl.randomness import generator

CONFIG = compose(["experiment=debug"])
FEATURES = torch.randn(6, 64, 90, generator=generator("features"), dtype=torch.float32)
LABELS = torch.tensor([0, 1, 0, 1, 0, 2])


@pytest.fixture
def float64() -> Iterator[Callable[[], None]]:
    """Makes float64 the default when it is called."""
    yield lambda: torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)


def augmented(tmp_path: Path) -> list[Tensor]:
    everything = AugmentationConfig(
        roll=True,
        time_masks=2,
        max_time_mask=9,
        mel_masks=1,
        max_mel_mask=5,
        label_smoothing=0.0,
        max_mel_warp=0.1,
        max_equalisation=0.5,
        splice=0.5,
    )
    return [augment(FEATURES, LABELS, everything, generator("augment"))]


def computed(tmp_path: Path) -> list[Tensor]:
    """Features of a corpus that must be resampled, afresh."""
    folder = tmp_path / str(torch.get_default_dtype())
    store = compute_features(SyntheticCorpus(2, 1, sample_rate_hz=22050), CONFIG.frontend, cache_dir=folder)
    statistics = FeatureStatistics.of(store.features_NFL)
    standardisation = Standardisation.from_statistics([statistics], CONFIG.frontend)
    return [store.features_NFL, standardisation(store.features_NFL)]


def initialised(tmp_path: Path) -> list[Tensor]:
    configs: list[ModelConfig] = [compose(["experiment=debug", f"model={name}"]).model for name in ("crnn", "resnet")]
    networks = [build_network(config, 5, seed=1).eval() for config in configs]
    return [*(tensor for network in networks for tensor in network.parameters()), *(net(FEATURES) for net in networks)]


def renormalised(tmp_path: Path) -> list[Tensor]:
    with float32_by_default():
        norm = BatchRenorm2d(3)
    for _ in range(7):  # a seventh of a third of the bounds is no round number
        maps = norm(FEATURES[:, :3, None] * 3 + 1)
    return [maps, norm.running_mean, norm.running_var]  # type: ignore[list-item]


def defended(tmp_path: Path) -> list[Tensor]:
    defences = [build_defence(name) for name in DEFENCES]
    return [defence.transform(FEATURES, "abcdef", seed=1, draw=2) for defence in defences]


@pytest.mark.parametrize("make", [augmented, computed, initialised, renormalised, defended])
def test_the_default_dtype_changes_nothing(
    make: Callable[[Path], list[Tensor]], tmp_path: Path, float64: Callable[[], None]
) -> None:
    expected = make(tmp_path)
    float64()
    found = make(tmp_path)
    assert torch.get_default_dtype() == torch.float64, "the caller's default stays the caller's"
    assert [tensor.dtype for tensor in found if tensor.is_floating_point()] == [torch.float32] * len(found)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_an_error_inside_leaves_the_callers_default(float64: Callable[[], None]) -> None:
    float64()
    with suppress(KeyError), float32_by_default():
        assert torch.get_default_dtype() == torch.float32
        raise KeyError
    assert torch.get_default_dtype() == torch.float64


def test_a_network_in_float64_is_left_as_it_is() -> None:
    """The layers themselves follow what they are given."""
    network = build_network(replace(CONFIG.model, dropout=0.0), 5, seed=1).double().eval()
    logits_BC = network(FEATURES.double())
    assert logits_BC.dtype == torch.float64
    single_BC = build_network(replace(CONFIG.model, dropout=0.0), 5, seed=1).eval()(FEATURES)
    torch.testing.assert_close(logits_BC, single_BC.double(), rtol=1e-4, atol=1e-4)
