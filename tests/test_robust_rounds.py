"""Rules against hostile clients in rounds: what the run says, what it refuses, and where the model goes from there."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from test_robust_aggregation import aggregated, rule, update
from torch import nn

from ser_fl.api import train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data.prepared import prepare
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.aggregation import make_aggregation
from ser_fl.federation.algorithm import GLOBAL, Algorithm, FedAdam, FedAvg, FedAvgM
from ser_fl.federation.client import Clients, ClientTask, Executor
from ser_fl.federation.cohort import sample_cohort
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.rounds import Federation
from ser_fl.federation.server import Server, new_server
from ser_fl.report.reader import read_run
from ser_fl.report.tables import training_table
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import Outcome

FIVE = ("experiment=debug", "data.utterances_per_emotion=3", "clients.by=iid", "clients.num_clients=5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robust")


def settings(home: Path, name: str, *changed: str) -> Config:
    one_round = ("federation.num_rounds=1", f"data.cache_dir={home / 'cache'}", f"run_dir={home / name}")
    return compose([*FIVE, *one_round, *changed])


def test_a_round_is_the_rule_over_what_the_clients_send_and_says_whom_it_took(home: Path) -> None:
    """Of single gradients too (FedSGD), with a step of plain size 1 at the server."""
    config = settings(home, "krum", "federation.aggregation=multi_krum", "federation.local_batches=1")
    config = replace(config, federation=replace(config.federation, server_momentum=0.0))
    run, prepared = train(config), prepare(config)
    initial = dict(new_server(config, prepared.client_manifest()).algorithm.models[GLOBAL])
    clients, rate = Clients(config, prepared, OwnObjects()), config.optimiser.learning_rate
    tasks = (ClientTask(round=1, client_id=name, state=initial, learning_rate=rate) for name in prepared.clients)
    sent = [clients.update(task).state for task in tasks]
    by_hand = rule("multi_krum")
    expected = aggregated(by_hand, sent, initial)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(run.weights).items())

    (record,) = run.read_jsonl(run.rounds)
    shares = record["shares"]
    assert [*shares.values()] == [*by_hand.shares().values()] and sorted(shares.values()) == [0.0, *[0.25] * 4]
    (dropped,) = (name for name, share in shares.items() if not share)
    rows = dict(training_table([read_run(run.root)]).rows)
    assert rows["Updates dropped"] == f"1, most of them of {dropped}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("federation.aggregation=bulyan",), r"bulyan needs n >= 4f \+ 3 clients a round.*have 7 clients"),
        (("federation.aggregation=krum", "federation.fraction_train=0.6"), r"krum needs n >= 2f \+ 3.*of n = 3"),
        (("federation.aggregation={name: fltrust, root: client9}",), r"'client9' .* is none of client0, client1"),
    ],
)
def test_too_small_a_cohort_is_refused_before_anything_is_written(
    home: Path, changed: tuple[str, ...], message: str
) -> None:
    config = settings(home, "refused", *changed)
    with pytest.raises(UserError, match=message):
        train(config)
    run = RunFolder(home / "refused")
    assert not run.rounds.exists() and not run.config.exists()


class Sending(Executor):
    """Everybody sends the model back with a weight of its own, but who has failed."""

    def __init__(self, *failed: str) -> None:
        self.failed = failed

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        for number, task in enumerate(tasks):
            state = {name: torch.full_like(tensor, float(number)) for name, tensor in task.state.items()}
            failed = task.client_id in self.failed
            yield task.client_id, "microphone unplugged" if failed else update(task.client_id, state)


def one_round(home: Path, aggregation: str, *failed: str, algorithm: Algorithm | None = None) -> Server:
    """Of clients a to e, who send 0, 1, 2, 3 and 4."""
    config = compose(["experiment=debug", f"federation.aggregation={aggregation}"])
    rule_settings: Any = config.federation.aggregation
    server = Server(algorithm or FedAvg())
    server.algorithm.aggregation = make_aggregation(rule_settings, config.seed)
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    server.algorithm.start(network, tuple("abcde"))
    manifest = cast(Any, SimpleNamespace(client_ids=tuple("abcde"), num_examples=dict.fromkeys("abcde", 1)))
    federation = Federation(config=config, run=RunFolder(home), client_manifest=manifest, executor=Sending(*failed))
    federation.train(server, tuple("abcde"), 1, 0.1)
    return server


def test_a_round_that_lost_too_many_says_why_the_rule_cannot_go_on(home: Path) -> None:
    """Of 0, 1, 2, 3 and 4, Krum takes the first of three with two neighbours at 1."""
    assert one_round(home, "krum").algorithm.models[GLOBAL]["weight"].item() == 1.0
    lost = r"round 1 has 4 updates; federation\.aggregation=krum needs n >= 2f \+ 3 .*\nclient c: microphone unplugged"
    with pytest.raises(RoundFailed, match=lost):
        one_round(home, "krum", "c")
    with pytest.raises(RoundFailed, match=r"root client in every round: 'a' .*is none of b, c, d, e:\nclient a: micro"):
        one_round(home, "{name: fltrust, root: a}", "a")
    assert one_round(home, "median", "c").algorithm.shares == {"a": 0.0, "b": 0.5, "d": 0.5, "e": 0.0}


@pytest.mark.parametrize("algorithm", [FedAvg(), FedAvgM(0.5), FedAdam(0.1)], ids=["FedAvg", "FedAvgM", "FedAdam"])
def test_every_algorithm_of_the_server_steps_to_what_the_rule_gives(home: Path, algorithm: Algorithm) -> None:
    """Of 0, 1, 3 and 4 that is 2, which Adam's first step goes its rate towards."""
    server = one_round(home, "median", "c", algorithm=algorithm)
    expected = 0.1 if isinstance(algorithm, FedAdam) else 2.0
    assert server.algorithm.models[GLOBAL]["weight"].item() == pytest.approx(expected, rel=1e-3)


def test_a_trusted_root_is_the_first_of_every_cohort() -> None:
    names = tuple("abcdef")
    for number in range(1, 30):
        plain, rooted = (sample_cohort(names, 0.5, 1, number, root) for root in (None, "e"))
        assert rooted[0] == "e" and rooted[1:] == tuple(name for name in plain if name != "e")
    assert sample_cohort(names, 0.5, 1, 1, "x") == sample_cohort(names, 0.5, 1, 1)
