"""Networks, objectives, aggregations and algorithms of one's own in `train`: they run, and the run says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from ser_fl import load, train
from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.config.schema import Config, dump
from ser_fl.data.prepared import prepare
from ser_fl.errors import UserError
from ser_fl.federation.aggregation import Aggregation, WeightedMean
from ser_fl.federation.algorithm import Algorithm, FedAvg
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import ClientUpdate, State
from ser_fl.training.objectives import ClientRound, Objective

SMALL = (
    "experiment=debug",
    "tracking=none",
    "data.utterances_per_emotion=2",
    "federation.batch_size=4",
    "federation.server_momentum=0",
    "executor.engine=loop",
)


class Pooled(nn.Module):
    """Logits from the mean over frames."""

    def __init__(self, num_classes: int, num_mels: int = 64) -> None:
        super().__init__()
        self.output = nn.Linear(num_mels, num_classes)

    def forward(self, features_BFL: Tensor) -> Tensor:
        logits_BC: Tensor = self.output(features_BFL.mean(dim=2))
        return logits_BC


class Confident(Objective):
    """Twice the cross-entropy."""

    def loss(
        self, given: ClientRound, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        found, logits_BC = super().loss(given, network, features_BFL, labels_B)
        return 2 * found, logits_BC


class Median(Aggregation):
    """Of each cell over clients; the lower one of two."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def add(self, update: ClientUpdate) -> None:
        self.states.append(update.state)

    def result(self) -> State:
        return {name: torch.stack([state[name] for state in self.states]).median(0).values for name in self.states[0]}


class Half(Algorithm):
    """Goes half of the way to the average."""

    def step(self, received: State, average: State, round_number: int) -> State:
        return {name: (received[name] + average[name]) / 2 for name in average}


class Silent(pl.Callback):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


def settings(home: Path, name: str, *changed: str) -> Config:
    return compose([*SMALL, f"data.cache_dir={home / 'cache'}", f"run_dir={home / name}", *changed])


@pytest.fixture(scope="module")
def all_own(home: Path) -> RunFolder:
    config = settings(home, "all own", "federation.num_rounds=3")
    return train(config, network=Pooled, objective=Confident(), aggregation=Median(), algorithm=Half)


def test_one_round_of_ones_own_by_hand(home: Path) -> None:
    """Half of the way from the given weights to the cell-wise median of what clients send."""
    config, given = settings(home, "by hand", "federation.num_rounds=1"), Pooled(7).eval()
    run = train(config, network=given, objective=Confident, aggregation=Median, algorithm=Half())
    prepared = prepare(config)
    clients = Clients(config, prepared, OwnObjects(network=given, objective=Confident()))
    initial = {name: tensor.clone() for name, tensor in given.state_dict().items()}

    rate = config.optimiser.learning_rate
    sent = [
        clients.update(ClientTask(round=1, client_id=client_id, state=initial, learning_rate=rate)).state
        for client_id in prepared.clients
    ]
    weights = load_file(run.weights)
    for name, tensor in weights.items():
        lower = np.minimum(*(state[name].numpy() for state in sent))
        np.testing.assert_allclose(tensor.numpy(), (initial[name].numpy() + lower) / 2, rtol=0, atol=1e-7)
        assert torch.equal(given.state_dict()[name], initial[name]), "the given network is a copy's template"
    plain = train(settings(home, "plain loss", "federation.num_rounds=1"), network=given, aggregation=Median)
    assert not torch.equal(load_file(plain.weights)["output.weight"], weights["output.weight"])


def test_a_run_says_what_it_was_given(all_own: RunFolder) -> None:
    expected = {"network": "Pooled", "objective": "Confident", "aggregation": "Median", "algorithm": "Half"}
    names = {name: f"{__name__}.{value}" for name, value in expected.items()}
    assert yaml.safe_load(all_own.config.read_text())["objects"] == names
    assert all_own.read_json(all_own.environment)["objects"] == names
    assert all_own.read_json(all_own.model)["network"] == names["network"]


def test_an_ordinary_run_names_nothing_but_its_callbacks(home: Path) -> None:
    config = settings(home, "ordinary", "executor.engine=trainer", "federation.num_rounds=1")
    run = train(config, callbacks=[Silent()])
    assert yaml.safe_load(run.config.read_text())["objects"] == {}
    environment = run.read_json(run.environment)
    assert (environment["objects"], environment["callbacks"]) == ({}, [f"{__name__}.Silent"])
    assert run.read_json(run.model)["network"] is None
    with pytest.raises(UserError, match="was trained with the configured network"):
        load(run.root, network=Pooled)


@pytest.mark.parametrize("network", [Pooled, Pooled(7), lambda num_classes: Pooled(num_classes)])
def test_its_model_is_loaded_with_the_network_it_was_given(all_own: RunFolder, network: Any) -> None:
    model = load(all_own.root, network=network)
    assert not model.training
    assert torch.equal(model.network.output.weight, load_file(all_own.weights)["output.weight"])
    assert model(torch.zeros(2, 64, 60)).shape == (2, 7)


def test_without_it_what_is_missing_is_told_in_one_line(all_own: RunFolder) -> None:
    line = rf"a network of its own, '{__name__}\.Pooled'.*ser_fl\.load\(run, network=\.\.\.\)"
    with pytest.raises(UserError, match=line):
        load(all_own.root)
    with pytest.raises(UserError, match=line):
        benchmark_run(compose_benchmark([f"run={all_own.root}", "attacks=[fgsm]"]))
    with pytest.raises(UserError, match=r"cannot be loaded: .*output\.weight"):
        load(all_own.root, network=lambda num_classes: Pooled(num_classes, num_mels=32))


def test_a_run_goes_on_with_the_same_objects_alone(home: Path, all_own: RunFolder) -> None:
    def stop(record: Any) -> None:
        raise KeyboardInterrupt

    own: dict[str, Any] = {"network": Pooled, "objective": Confident, "aggregation": Median, "algorithm": Half}
    three = "federation.num_rounds=3"
    with pytest.raises(KeyboardInterrupt):
        train(settings(home, "resumed", three), **own, on_round=stop)
    with pytest.raises(UserError, match="another objects: resume with the same"):
        train(settings(home, "resumed", three, "resume=true"))
    with pytest.raises(UserError, match="another objects: resume with the same"):
        train(settings(home, "resumed", three, "resume=true"), **{**own, "aggregation": WeightedMean})
    run = train(settings(home, "resumed", three, "resume=true"), **own)
    assert run.weights.read_bytes() == all_own.weights.read_bytes()


def test_a_configuration_alone_does_not_repeat_it(all_own: RunFolder, home: Path) -> None:
    config = compose([f"run_dir={home / 'repeated'}"], config_file=all_own.config)
    with pytest.raises(UserError, match=rf"a run with network={__name__}\.Pooled: give it to ser_fl\.train"):
        train(config)


def test_worker_processes_give_the_same_bits(all_own: RunFolder, home: Path) -> None:
    where = ("federation.num_rounds=3", "executor.name=processes", "executor.workers=2")
    own: dict[str, Any] = {"network": Pooled, "objective": Confident, "aggregation": Median, "algorithm": Half}
    run = train(settings(home, "processes", *where), **own)
    assert run.weights.read_bytes() == all_own.weights.read_bytes()


class Lossy(Algorithm):
    """Forgets the bias."""

    def step(self, received: State, average: State, round_number: int) -> State:
        return {"output.weight": average["output.weight"]}


def test_an_algorithm_that_gives_another_model_ends_the_run_in_one_line(home: Path) -> None:
    message = "Lossy with WeightedMean gives another model .*nothing for output.bias, expected .7,."
    with pytest.raises(UserError, match=message):
        train(settings(home, "lossy"), network=Pooled, algorithm=Lossy)


class Apart(Algorithm):
    """A model of each client."""

    def start(self, network: nn.Module, client_ids: Sequence[str]) -> None:
        super().start(network, client_ids)
        self.models = dict.fromkeys(client_ids, self.models["global"])


def test_an_algorithm_without_a_shared_model_has_no_average_over_rounds(home: Path) -> None:
    with pytest.raises(UserError, match=rf"weight_average averages a shared model, {__name__}\.Apart has none"):
        train(settings(home, "apart", "federation.weight_average=0.5"), algorithm=Apart)


class Nothing(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features_BFL: Tensor) -> Any:
        return self.scale * features_BFL


class Untrained(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features_BFL: Tensor) -> Tensor:
        return features_BFL.mean(2)[:, : self.num_classes]


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ({"network": Nothing}, (), r"Nothing must give logits of shape \(2, 7\) for \(2, 64, 61\), got \(2, 64, 61\)"),
        ({"network": Untrained}, (), "Untrained has no parameter to train"),
        ({"network": lambda num_classes: 3}, (), r"must make a torch\.nn\.Module, got builtins\.int"),
        ({"network": lambda num_classes: Pooled(num_classes, 32)}, (), "Pooled cannot take features of shape .*Error"),
        ({"network": 3}, (), "network must be a module, or make one"),
        ({"objective": Median}, (), r"objective must be a ser_fl\..*Objective, got .*Median"),
        ({"aggregation": FedAvg()}, (), r"aggregation must be a ser_fl\..*Aggregation, got .*FedAvg"),
        ({"algorithm": FedAvg}, ("federation.name=local_only",), "local_only averages nothing, got algorithm="),
        ({"network": Pooled}, ("executor.name=flower", "executor.engine=auto"), "sends no code .*Pooled"),
        (
            {"network": lambda num_classes: Pooled(num_classes)},
            ("executor.name=processes",),
            "network .*lambda> cannot be sent to a worker process",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_written(
    home: Path, given: dict[str, Any], changed: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        train(settings(home, "refused", *changed), **given)
    assert "\n" not in str(refused.value) and not (home / "refused").exists()


def test_settings_round_trip_with_objects() -> None:
    config = compose(["experiment=debug"])
    assert dump(config)["objects"] == {}


def test_objects_that_a_configuration_names_are_taken_from_python_too(tmp_path: Path) -> None:
    """``train(compose(...))`` needs nobody to hand them on."""
    target = "ser_fl.federation.algorithm.FedAvg"
    settings = ["experiment=debug", "federation.num_rounds=1", f"run_dir={tmp_path / 'run'}"]
    run = train(compose([*settings, f"federation.algorithm._target_={target}"]))
    assert RunFolder(run.root).read_json(run.environment)["objects"]["algorithm"] == target
