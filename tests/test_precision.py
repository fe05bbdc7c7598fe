"""`precision=auto`: resolved once, recorded, and kept by a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from ser_fl import train
from ser_fl.attacks.pgd import pgd
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.models.networks import build_network
from ser_fl.runs.records import RoundRecord
from ser_fl.training import precision
from ser_fl.training.precision import resolve_precision, speed_up


def settings(*changed: str) -> Config:
    base = ("experiment=debug", "tracking=none", "data.utterances_per_emotion=2", "federation.batch_size=4")
    return compose([*base, *changed])


def measured(monkeypatch: pytest.MonkeyPatch, ratio: float, *, bf16: bool = True) -> None:
    """A machine on which a step is so many times as fast in bfloat16: another one than this, so a stand-in."""
    monkeypatch.setattr(precision, "speed_up", lambda *_: ratio)
    monkeypatch.setattr(precision, "_has_bf16", lambda _: bf16)


@pytest.mark.parametrize(
    ("ratio", "bf16", "resolved"),
    [(2.0, True, "bf16-mixed"), (1.05, True, "32-true"), (0.5, True, "32-true"), (2.0, False, "32-true")],
)
def test_auto_is_what_pays(monkeypatch: pytest.MonkeyPatch, ratio: float, bf16: bool, resolved: str) -> None:
    measured(monkeypatch, ratio, bf16=bf16)
    assert resolve_precision(settings("precision=auto"), 5).precision == resolved


def test_what_is_given_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "speed_up")
    monkeypatch.setattr(precision, "_has_bf16", lambda _: True)  # also on a processor that has none
    for given in ("32-true", "bf16-mixed"):
        assert resolve_precision(settings(f"precision={given}"), 5).precision == given
    with pytest.raises(NameError):
        resolve_precision(settings("precision=auto"), 5)


def test_the_measurement_takes_gradients_whatever_the_caller_has_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bf16", lambda _: True)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert resolve_precision(settings("precision=auto"), 5).precision in ("32-true", "bf16-mixed")


def test_the_measurement_leaves_random_streams_alone() -> None:
    before = torch.get_rng_state()
    assert 0 < speed_up(settings(), 5, torch.device("cpu")) < float("inf")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    auto = [cache, "precision=auto", f"run_dir={tmp_path / 'auto'}"]
    measured(monkeypatch, 2.0)
    with pytest.raises(KeyboardInterrupt):
        train(settings(*auto), on_round=stop_after_one)
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["precision"] == "bf16-mixed"
    measured(monkeypatch, 0.5)
    train(settings(*auto, "resume=true"))
    train(settings(cache, "precision=bf16-mixed", f"run_dir={tmp_path / 'named'}"))
    last = "checkpoint/round-00002.safetensors"  # the selected model may be that of round 1
    weights = [(tmp_path / run / last).read_bytes() for run in ("auto", "named")]
    assert weights[0] == weights[1]


def stop_after_one(record: RoundRecord) -> None:
    if record.round == 1:
        raise KeyboardInterrupt


def test_an_attack_in_low_precision_is_one_in_the_ball() -> None:
    """It differs from the one in float32, reaches about the same loss, and leaves parameters as they were."""
    network = build_network(settings().model, 5, seed=1)
    network.output.weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    before = [parameter.requires_grad for parameter in network.parameters()]
    features_BFL = torch.randn(6, 64, 40, generator=torch.Generator().manual_seed(1))
    labels_B = torch.arange(6) % 5
    results = [
        pgd(network, features_BFL, labels_B, epsilon=0.5, step_size=0.1, steps=5, low_precision=low)
        for low in (False, True)
    ]
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert not torch.equal(*results)
    network.eval()
    with torch.no_grad():
        clean, full, low = (
            torch.nn.functional.cross_entropy(network(given), labels_B).item() for given in (features_BFL, *results)
        )
    assert (results[1] - features_BFL).abs().max() <= 0.5 + 1e-6
    assert low - clean > 0.9 * (full - clean) > 0
