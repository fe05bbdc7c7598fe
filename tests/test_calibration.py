"""Temperature scaling: against SciPy, scikit-learn and torchmetrics on the same logits, and what applies it.

Legend: N utterances, C classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

import ser_fl
from ser_fl.calibration import TEMPERATURES, calibration_of, confidence_sums, fitted
from ser_fl.config.schema import Config
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import prepare
from ser_fl.data.splits import Part
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Clients, Scored
from ser_fl.federation.own_objects import NOTHING, OwnObjects
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.runs.records import ClientFailure, State

Floats = NDArray[np.float64]
SETTINGS = (
    *("experiment=debug", "tracking=none", "precision=32-true", "federation.num_rounds=12"),
    *("split.validation_fraction=0.4", "data.utterances_per_emotion=6"),
)
Shown = tuple[Floats, list[int]]
"""Logits of some utterances, and their labels."""
STEP = np.log2(TEMPERATURES[1] / TEMPERATURES[0])


def drawn(seed: int, scale: float, count: int = 400) -> Shown:
    """Labels drawn from the softmax of logits, and those logits times ``scale``, which is their temperature."""
    stream = np.random.default_rng(seed)
    logits_NC = stream.normal(scale=2, size=(count, 5))
    labels = [int(stream.choice(5, p=softmax(row))) for row in logits_NC]
    return scale * logits_NC, labels


def least_nll(logits_NC: Floats, labels: Sequence[int]) -> float:
    """The temperature, by SciPy."""

    def nll(log2: float) -> float:
        return -float(log_softmax(logits_NC / 2**log2, axis=1)[np.arange(len(labels)), labels].sum())

    return float(2 ** minimize_scalar(nll, bounds=(-4, 5), method="bounded", options={"xatol": 1e-9}).x)


@pytest.mark.parametrize("scale", [0.4, 0.97, 1.6, 5.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_of_sums_is_that_of_all_logits_together(seed: int, scale: float) -> None:
    """Of three holders, to a fiftieth of the distance between two temperatures that are tried."""
    logits_NC, labels = drawn(seed, scale)
    parts = (slice(0, 7), slice(7, 180), slice(180, 400))
    sums = {str(part): confidence_sums(logits_NC[part], labels[part], None) for part in parts}
    fit, expected = fitted(sums, ()), least_nll(logits_NC, labels)
    assert abs(np.log2(fit.temperature / expected)) < STEP / 50
    assert expected == pytest.approx(scale, rel=0.25) and fit.temperature not in TEMPERATURES
    assert (fit.num_utterances, fit.words) == (400, ())


def test_sums_at_every_temperature_are_those_of_scikit_learn() -> None:
    logits_NC, labels = drawn(4, 2.0, 50)
    sums_GS = confidence_sums(logits_NC, labels, None)
    assert TEMPERATURES[0] == 0.25 and TEMPERATURES[-1] == 8 and 1 in TEMPERATURES
    for (nll, count, confidence, right), temperature in zip(sums_GS, TEMPERATURES, strict=True):
        shares_NC = softmax(logits_NC / temperature, axis=1)
        assert nll == pytest.approx(log_loss(labels, shares_NC, normalize=False, labels=range(5)))
        assert confidence == pytest.approx(shares_NC.max(1).sum())
        assert (count, right) == (50, (shares_NC.argmax(1) == labels).sum())


def test_expected_calibration_error_of_an_example() -> None:
    """Bins of confidence are a fifteenth wide: 0.88 and 0.92 share the 14th, 0.5 lies in the 8th, 1 in the last."""
    shares = [(0.88, 0.12), (0.92, 0.08), (0.5, 0.5), (1.0, 0.0)]
    with np.errstate(divide="ignore"):
        logits_NC = np.log(shares)
    before, after = map(calibration_of, confidence_sums(logits_NC, [0, 1, 1, 0], 2.0))
    assert before.ece == pytest.approx((abs(1 - 1.8) + abs(0 - 0.5) + 0) / 4)
    assert before.nll == pytest.approx(-np.log([0.88, 0.08, 0.5, 1.0]).mean())
    likelier = np.sqrt([0.88, 0.92]) / (np.sqrt([0.88, 0.92]) + np.sqrt([0.12, 0.08]))  # 0.730, 0.772: bins 11 and 12
    assert after.ece == pytest.approx(((1 - likelier[0]) + likelier[1] + 0.5 + 0) / 4)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_expected_calibration_error_is_that_of_torchmetrics(temperature: float) -> None:
    logits_NC, labels = drawn(5, 3.0)
    for sums_S, divisor in zip(confidence_sums(logits_NC, labels, temperature), (1.0, temperature), strict=True):
        shares_NC = torch.tensor(softmax(logits_NC / divisor, axis=1))
        expected = multiclass_calibration_error(shares_NC, torch.tensor(labels), num_classes=5, n_bins=15)
        assert calibration_of(sums_S).ece == pytest.approx(float(expected), abs=1e-6)


def test_what_there_is_to_doubt_in_a_temperature_is_said() -> None:
    logits_NC, labels = drawn(6, 1.0)
    sure = confidence_sums(logits_NC, logits_NC.argmax(1).tolist(), None)
    unsure = confidence_sums(100 * logits_NC, labels[::-1], None)
    for sums, border in ((sure, 0.25), (unsure, 8.0)):
        fit = fitted({"a": sums}, ())
        assert fit.temperature == border and f"{border:g}, the border of those tried" in fit.words[0]
    without = fitted({"a": confidence_sums(logits_NC, labels, None)}, ["f01", "m01"])
    assert without.words == ("without the validation utterances of 2 speakers, first f01",)
    nothing = confidence_sums(np.empty((0, 5)), (), None)
    for by_holder in ({}, {"a": nothing}):
        none = fitted(by_holder, ())
        assert (none.temperature, none.num_utterances) == (1.0, 0) and "no validation utterance" in none.words[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


def settings(home: Path, name: str, *changes: str) -> Config:
    return ser_fl.compose([*SETTINGS, f"data.cache_dir={home / 'cache'}", f"run_dir={home / name}", *changes])


@pytest.fixture(scope="module")
def run(home: Path) -> ser_fl.Run:
    return ser_fl.train(settings(home, "run"))


def logits_of(model: EmotionModel, config: Config, part: Part, speakers: Sequence[str]) -> Shown:
    """Of the utterances of a part, one at a time, with nothing that scores models."""
    prepared = prepare(config)
    rows = [row for row in getattr(prepared.split, part) if prepared.store.utterances[row].speaker in speakers]
    examples = load_examples(prepared.store, rows, model.standardisation)
    with torch.no_grad():
        logits_NC = torch.cat([model.network(features_FL[None]) for features_FL in examples.features_NFL])
    return logits_NC.double().numpy(), examples.labels_N.tolist()


def check_record(calibration: Mapping[str, Any], validation: Shown, test: Shown) -> None:
    """What ``summary.json`` says, from the logits themselves."""
    assert abs(np.log2(calibration["temperature"] / least_nll(*validation))) < STEP / 10
    assert calibration["num_utterances"] == len(validation[1]) and calibration["words"] == []
    for name, divisor in (("uncalibrated", 1.0), ("calibrated", calibration["temperature"])):
        shares_NC = softmax(test[0] / divisor, axis=1)
        expected = multiclass_calibration_error(torch.tensor(shares_NC), torch.tensor(test[1]), 7, n_bins=15)
        assert calibration[name]["ece"] == pytest.approx(float(expected), abs=1e-5)
        assert calibration[name]["nll"] == pytest.approx(log_loss(test[1], shares_NC, labels=range(7)), abs=1e-5)


def test_a_run_has_the_temperature_of_its_validation_utterances(run: ser_fl.Run, home: Path) -> None:
    model, config = run.load(), settings(home, "run")
    parts = (logits_of(model, config, part, ("f01", "m01")) for part in ("validation", "test"))
    calibration = run.read_json(run.summary)["calibration"]
    check_record(calibration, *parts)
    assert run.read_json(run.model)["temperature"] == model.temperature == calibration["temperature"] != 1


def test_models_of_local_only_share_one(home: Path) -> None:
    """Each is asked about its own speaker, as where it is scored."""
    config = settings(home, "local", "federation=local_only", "data.utterances_per_emotion=5")
    local = ser_fl.train(config)
    models = {speaker: load_model(local, client_id=speaker) for speaker in ("f01", "m01")}
    pooled = []
    for part in ("validation", "test"):
        logits, labels = zip(*(logits_of(model, config, part, [name]) for name, model in models.items()), strict=True)
        pooled.append((np.concatenate(logits), [label for own in labels for label in own]))
    calibration = local.read_json(local.summary)["calibration"]
    check_record(calibration, *pooled)
    assert {model.temperature for model in models.values()} == {calibration["temperature"]}


def test_a_run_that_begins_with_another_has_a_temperature_of_its_own(run: ser_fl.Run, home: Path) -> None:
    config = settings(home, "tuned", f"init_from={run.root}", "federation.num_rounds=1", "split.seed=5")
    tuned = ser_fl.train(config).load()
    expected = least_nll(*logits_of(tuned, config, "validation", ("f01", "m01")))
    assert abs(np.log2(tuned.temperature / expected)) < STEP / 10
    assert abs(np.log2(tuned.temperature / run.load().temperature)) > STEP


def test_a_finished_run_that_is_resumed_keeps_it(run: ser_fl.Run, home: Path, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    again = ser_fl.train(settings(home, "run", f"run_dir={tmp_path / 'run'}", "resume=true"))
    assert again.read_json(again.summary) == run.read_json(run.summary)
    assert again.model.read_bytes() == run.model.read_bytes()


def test_holders_that_say_nothing_are_named_and_cost_no_run(
    run: ser_fl.Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without f01 the temperature is m01's, and there are no test figures."""
    ask, silent = Clients.confidences, ClientFailure(client_id="f01", error="no reply", stage="validation")

    def deaf(clients: Clients, models: Mapping[str, State], part: Part, temperature: float | None = None) -> Scored:
        by_holder = dict(ask(clients, models, part, temperature).by_holder)
        del by_holder["f01"]
        return Scored(by_holder, (silent,))

    monkeypatch.setattr(Clients, "confidences", deaf)
    other = ser_fl.train(settings(home, "deaf"))
    calibration = other.read_json(other.summary)["calibration"]
    expected = least_nll(*logits_of(other.load(), settings(home, "deaf"), "validation", ["m01"]))
    assert abs(np.log2(calibration["temperature"] / expected)) < STEP / 10
    assert calibration["words"] == ["without the validation utterances of 1 speakers, first f01"]
    assert calibration["uncalibrated"] is calibration["calibrated"] is None
    assert other.metrics() == run.metrics()


class Sociable(nn.Module):
    """What it says of an utterance hangs on the others of the batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features_BFL: Tensor) -> Tensor:
        return features_BFL.mean(dim=2)[:, : self.num_classes] * features_BFL.std()


def test_sums_of_a_speaker_do_not_hang_on_who_else_is_there(run: ser_fl.Run, home: Path) -> None:
    """Bit for bit; and a model that gives no finite output gives none."""
    config = settings(home, "-")
    both = prepare(config)
    rows = tuple(row for row in both.split.validation if both.store.utterances[row].speaker == "f01")
    alone = replace(both, split=both.split._replace(validation=rows))
    state: State = run.load().network.state_dict()
    for temperature, own in ((None, NOTHING), (1.5, NOTHING), (1.5, OwnObjects(network=Sociable))):
        told: State = {} if own.network else state
        sums = [
            Clients(config, prepared, own).confidences({GLOBAL: told}, "validation", temperature).by_holder
            for prepared in (both, alone)
        ]
        assert sums[0].keys() == {"f01", "m01"} and sums[1].keys() == {"f01"}
        assert np.array_equal(sums[0]["f01"], sums[1]["f01"])
    broken = {name: tensor * float("nan") for name, tensor in state.items()}
    scored = Clients(config, both).confidences({GLOBAL: broken}, "validation")
    assert not scored.by_holder and [failure.client_id for failure in scored.failures] == ["f01", "m01"]


@pytest.fixture
def at_eight(run: ser_fl.Run, tmp_path: Path) -> ser_fl.Run:
    """The run with a temperature of 8."""
    shutil.copytree(run.root, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    (tmp_path / "run" / "model.json").write_text(json.dumps(card | {"temperature": 8.0}))
    return ser_fl.Run(tmp_path / "run")


def test_a_loaded_model_gives_raw_logits_and_calibrated_probabilities(run: ser_fl.Run, at_eight: ser_fl.Run) -> None:
    features_NFL = run.test_set().features_NFL
    with torch.no_grad():
        logits_NC = run.load()(features_NFL)
        assert torch.equal(at_eight.load()(features_NFL), logits_NC)
    expected = softmax(logits_NC.double().numpy() / 8, axis=1)
    assert at_eight.load().probabilities(logits_NC).numpy() == pytest.approx(expected, abs=1e-6)


def test_attacks_see_no_temperature(run: ser_fl.Run, at_eight: ser_fl.Run, tmp_path: Path) -> None:
    """Not a figure of a benchmark moves, of an attack whose steps hang on the scale of logits either."""
    quick: dict[str, Any] = {"curve_attacks": [], "epsilons": [0.05], "defences": ["none"], "checks": False, "steps": 5}
    shutil.copytree(run.root, tmp_path / "as it is")
    before, after = (
        [asdict(record) | {"seconds": 0} for record in ser_fl.benchmark(each, attacks=["pgd", "cw_l2"], **quick)]
        for each in (ser_fl.Run(tmp_path / "as it is"), at_eight)
    )
    assert before == after and [record["attack"] for record in before][:3] == ["clean", "pgd", "cw_l2"]


def test_evaluate_calibrates_probabilities_and_no_emotion(run: ser_fl.Run, at_eight: ser_fl.Run) -> None:
    found, flat = ser_fl.evaluate(run), ser_fl.evaluate(at_eight)
    record = run.read_json(run.summary)["calibration"]
    for name in ("uncalibrated", "calibrated"):
        assert asdict(getattr(found, name)) == pytest.approx(record[name], abs=1e-5)
    assert (found.temperature, flat.temperature) == (record["temperature"], 8.0)
    assert flat.uncalibrated == found.uncalibrated and flat.calibrated != found.calibrated
    assert (flat.uar, flat.confusion) == (found.uar, found.confusion)
    true, classes = [one.emotion for one in flat.utterances], list(flat.recall)
    for one, other in zip(found.utterances, flat.utterances, strict=True):
        assert one.predicted == other.predicted
        logits = found.temperature * np.log([one.probabilities[name] for name in classes])
        assert [other.probabilities[name] for name in classes] == pytest.approx(softmax(logits / 8), abs=1e-5)
    shares_NC = np.array([[one.probabilities[name] for name in classes] for one in flat.utterances])
    shares_NC /= shares_NC.sum(axis=1, keepdims=True)
    assert flat.calibrated.nll == pytest.approx(log_loss(true, shares_NC, labels=classes), abs=1e-5)
