"""Where the time of a round went: that every moment counts once and for the right part, and that no result changes."""

from __future__ import annotations

import json
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.profilers import PassThroughProfiler

from ser_fl.api import train
from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump
from ser_fl.data import datamodule
from ser_fl.data.prepared import prepare
from ser_fl.federation import client
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.hooks import Hooks
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.processes import pack
from ser_fl.federation.profile import RunProfile, open_stopwatch
from ser_fl.models import classifier
from ser_fl.models.networks import build_network
from ser_fl.report.tables import ALL_CLIENTS, ALL_ROUNDS, profile_table
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import ProfileRecord
from ser_fl.stopwatch import ClientPart, ServerPart, Stopwatch
from ser_fl.training import trainer
from ser_fl.training.objectives import adversarial
from ser_fl.training.trainer import FitProfiler

SMALL = (
    *("experiment=debug", "tracking=none", "data.utterances_per_emotion=2", "optimiser.learning_rate=0.01"),
    *("federation.batch_size=4", "federation.num_rounds=3", "objective.name=pgd"),
)
"""From round 2 on, half of a client's utterances are adversarial copies."""
CLEAN = ("objective.name=clean",)
TWO_WORKERS = ("executor.name=processes", "executor.workers=2")
NUM_CLIENTS = 2


class Hands:
    """A clock that stands still but for what is added to it."""

    def __init__(self) -> None:
        self.time = 0

    def __call__(self) -> int:
        return self.time


def test_each_moment_counts_for_the_innermost_part() -> None:
    hands = Hands()
    watch = Stopwatch("client", clock=hands)
    hands.time += 1
    with watch.part("trainer"):
        hands.time += 10
        with watch.part("forward"):
            hands.time += 100
            with watch.part("attack"):
                hands.time += 1_000
                with watch.part("attack"):
                    hands.time += 10_000
                hands.time += 100_000
            hands.time += 200
        hands.time += 20
    hands.time += 2
    expected = {"client": 3, "trainer": 30, "forward": 300, "attack": 111_000}
    assert watch.read() == expected and sum(expected.values()) == hands.time
    watch.restart()
    assert sum(watch.read().values()) == 0


def test_what_raises_ends_its_parts() -> None:
    hands = Hands()
    watch = Stopwatch("other", clock=hands)

    def fail() -> None:
        with watch.part("waiting"), watch.part("aggregation"):
            hands.time += 5
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    hands.time += 7
    assert watch.read() == {"waiting": 0, "aggregation": 5, "other": 7}


def test_the_device_is_waited_for_before_the_clock_is_read() -> None:
    """The device takes 40 for what it was handed within the part, all of it while it is waited for."""
    hands, handed_over = Hands(), 0

    def synchronise() -> None:
        nonlocal handed_over
        hands.time += handed_over
        handed_over = 0

    watch = Stopwatch("client", synchronise, hands)
    with watch.part("forward"):
        handed_over += 40
    assert watch.read() == {"client": 0, "forward": 40}


@pytest.mark.parametrize(("accelerator", "waits"), [("cpu", False), ("auto", True), ("cuda", True)])
def test_only_an_accelerator_is_waited_for(
    settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, accelerator: str, waits: bool
) -> None:
    """On a fake device: there is none here."""
    waited: list[bool] = []
    monkeypatch.setattr("ser_fl.federation.profile.synchronise", lambda: waited.append(True))
    open_stopwatch(settings("profile=true", f"executor.accelerator={accelerator}"), rest="client").read()
    assert bool(waited) == waits


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """The configuration of this file's runs with some settings changed."""
    folder = tmp_path_factory.mktemp("profile")
    config = compose([*SMALL, f"data.cache_dir={folder / 'cache'}"])
    (folder / "base.yaml").write_text(yaml.safe_dump(dump(config)))
    return lambda *changed: compose(changed, config_file=folder / "base.yaml")


class Takes(pl.Callback):
    """A user's callback that takes its time wherever Lightning asks it, also in the middle of another part."""

    def __init__(self, hands: Hands, ticks: int) -> None:
        self.hands = hands
        self.ticks = ticks

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.hands.time += self.ticks

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.hands.time += self.ticks


@pytest.mark.parametrize("engine", ["trainer", "loop"])
@pytest.mark.parametrize("recipe", ["per_round", "per_step"])
def test_what_a_client_does_counts_for_its_part(
    settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, recipe: str, engine: str
) -> None:
    """A clock that is moved on by the work itself: its hands say how often what was done within which part.

    10 utterances, or 5 and their copies, are three batches an epoch, and there are two epochs. PGD takes 3 steps, each
    with a pass forward and one backward; per_round crafts its copies at once, per_step in every batch.
    """
    hands = Hands()

    def moved_on(what: Any, name: str, ticks: int) -> None:
        original = getattr(what, name)

        def ticking(*arguments: Any, **named: Any) -> Any:
            hands.time += ticks
            return original(*arguments, **named)

        monkeypatch.setattr(what, name, ticking)

    config = settings(
        *("profile=true", f"objective.recipe={recipe}", "objective.steps=3", "federation.local_epochs=2"),
        *("optimiser.name=sgd", f"executor.engine={engine}"),
    )
    prepared = prepare(config)
    monkeypatch.setattr(client, "open_stopwatch", lambda config, rest: Stopwatch(rest, clock=hands))
    clients = Clients(config, prepared, OwnObjects(callbacks=(Takes(hands, 1),) if engine == "trainer" else ()))
    state = dict(build_network(config.model, len(prepared.store.classes), seed=config.seed).state_dict())
    moved_on(client, "load_examples", 3)
    moved_on(client, "derive_seed", 5)
    moved_on(datamodule.ClientDataModule, "transfer_batch_to_device", 100)
    moved_on(classifier, "augment", 10_000)
    moved_on(adversarial, "augment", 7)
    moved_on(type(build_network(config.model, 2, seed=0)), "forward", 1_000_000)
    moved_on(torch.autograd, "backward", 100_000_000)
    moved_on(torch.optim.SGD, "step", 10_000_000_000)
    moved_on(torch.optim.SGD, "zero_grad", 1_000_000_000_000)
    moved_on(torch.autograd, "grad", 100_000_000_000_000)

    spent = clients.update(ClientTask(round=2, client_id="f01", state=state, learning_rate=0.01)).nanoseconds

    assert len(prepared.clients["f01"]) == 10 and set(spent) <= set(get_args(ClientPart))
    batches = 2 * 3
    attacks = 1 if recipe == "per_round" else batches
    assert spent == {
        "client": 5,
        "data": 3 + batches * (100 + 10_000) + (7 if recipe == "per_round" else 0),
        "forward": batches * 1_000_000,
        "backward": batches * 100_000_000,
        "optimiser": batches * (10_000_000_000 + 1_000_000_000_000),
        "attack": attacks * 3 * (1_000_000 + 100_000_000_000_000),
        "trainer": batches * 2 if engine == "trainer" else 0,
    }


def test_clients_and_their_parts_share_a_stopwatch_after_the_way_to_a_worker(settings: Callable[..., Config]) -> None:
    config = settings("profile=true")
    clients = Clients(*pickle.loads(pack(Clients(config, prepare(config))))[:3])
    assert isinstance(clients.stopwatch, Stopwatch)
    profiler = trainer.quiet_trainer(*clients.trainers._made_of).profiler  # type: ignore[attr-defined]
    assert isinstance(profiler, FitProfiler) and profiler._stopwatch is clients.stopwatch


def test_without_profile_nothing_is_measured(settings: Callable[..., Config]) -> None:
    config = settings()
    clients = Clients(config, prepare(config))
    assert clients.stopwatch is None
    assert isinstance(trainer.quiet_trainer(*clients.trainers._made_of).profiler, PassThroughProfiler)  # type: ignore[attr-defined]


Told = list[ProfileRecord]
Runs = dict[str, tuple[RunFolder, Told]]


@pytest.fixture(scope="module")
def runs(settings: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by name, with what their callers were told."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, changed in {
        "plain": ("profile=false",),
        "serial": ("profile=true",),
        "processes": ("profile=true", *TWO_WORKERS),
        "clean": ("profile=true", *CLEAN),
    }.items():
        told: Told = []
        found[name] = train(settings(f"run_dir={folder / name}", *changed), hooks=Hooks(on_profile=told.append)), told
    return found


def spans(run: RunFolder) -> list[dict[str, Any]]:
    """First and later rounds, as they lie on disk."""
    content = json.loads(run.profile.read_text())
    assert content["schema"] == 1
    return [content["first"], content["later"]]


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_no_bit_depends_on_it(runs: Runs, name: str) -> None:
    (plain, told), (run, _) = runs["plain"], runs[name]
    assert told == [] and not plain.profile.exists() and run.profile.exists()
    assert run.weights.read_bytes() == plain.weights.read_bytes()
    assert run.read_json(run.summary) == plain.read_json(plain.summary)
    for mine, theirs in ((run.rounds, plain.rounds), (run.clients, plain.clients)):
        records = [[{**record, "seconds": 0} for record in run.read_jsonl(file)] for file in (mine, theirs)]
        assert len(records[0]) >= 3 and records[0] == records[1]


@pytest.mark.parametrize("name", ["serial", "processes", "clean"])
def test_parts_add_up_and_none_is_less_than_nothing(runs: Runs, name: str) -> None:
    run, _ = runs[name]
    numbers = [(span["first_round"], span["last_round"], span["client_rounds"]) for span in spans(run)]
    assert numbers == [(1, 1, NUM_CLIENTS), (2, 3, 2 * NUM_CLIENTS)]
    for span in spans(run):
        clients, server = span["clients"], span["server"]
        assert tuple(clients) == get_args(ClientPart) and tuple(server) == get_args(ServerPart)
        assert min(*clients.values(), *server.values()) >= 0
        if name == "processes":
            assert sum(server.values()) == pytest.approx(span["seconds"], abs=1e-6)
            assert 0 < sum(clients.values()) <= 2 * span["seconds"], "of two workers"
            assert server["waiting"] > 0
        else:
            assert sum(clients.values()) + sum(server.values()) == pytest.approx(span["seconds"], abs=1e-6)
            assert server["waiting"] == 0
        worked = {part: seconds for part, seconds in (clients | server).items() if part not in ("attack", "waiting")}
        assert min(worked.values()) > 0, worked


@pytest.mark.parametrize("name", ["serial", "processes", "clean"])
def test_the_rounds_own_seconds_are_within(runs: Runs, name: str) -> None:
    """They end before the round is written down, and are taken by another clock."""
    run, _ = runs[name]
    seconds = [record["seconds"] for record in run.read_jsonl(run.rounds)]
    for span in spans(run):
        timed = sum(seconds[span["first_round"] - 1 : span["last_round"]])
        assert 0 < timed <= span["seconds"] - span["server"]["records"] - span["server"]["tracking"] + 1e-6


def test_attacks_take_time_where_there_are_any(runs: Runs) -> None:
    """PGD begins in round 2."""
    attack = {
        name: [span["clients"]["attack"] for span in spans(run)] for name, (run, _) in runs.items() if name != "plain"
    }
    assert attack["clean"] == [0, 0]
    assert attack["serial"][0] == attack["processes"][0] == 0
    assert attack["serial"][1] > 0 and attack["processes"][1] > 0


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_the_table_says_what_the_file_says(runs: Runs, name: str) -> None:
    run, told = runs[name]
    table = profile_table(told[0])
    assert len(told) == 1
    assert table.header == ("part", "round 1, s", "%", "rounds 2–3, s", "%", "ms a client-round")
    shown = {row[0]: [float(cell) for cell in row[1:]] for row in table.rows}
    first, later = spans(run)
    for span, column in ((first, 0), (later, 2)):
        sums = {ALL_CLIENTS: sum(span["clients"].values()), ALL_ROUNDS: span["seconds"]}
        on_disk = {**span["clients"], **span["server"], **sums}
        assert shown.keys() == on_disk.keys()
        for part, seconds in on_disk.items():
            of_clients = name == "processes" and part in (*span["clients"], ALL_CLIENTS)
            whole = sums[ALL_CLIENTS if of_clients else ALL_ROUNDS]
            assert shown[part][column] == pytest.approx(seconds, abs=0.0051)
            assert shown[part][column + 1] == pytest.approx(100 * seconds / whole, abs=0.051)
            if span is later:
                assert shown[part][4] == pytest.approx(1000 * seconds / (2 * NUM_CLIENTS), abs=0.051)
    assert ("worker-seconds" in table.caption) == (name == "processes")


def test_one_round_has_no_later_ones() -> None:
    hands = Hands()
    profile = RunProfile(compose(["experiment=debug"]))
    assert profile.record() is None
    profile.stopwatch = Stopwatch("other", clock=hands)
    with profile.stopwatch.part("waiting"):
        hands.time += 4_000_000_000
    hands.time += 1_000_000_000
    profile.add(7, [{"forward": 1_500_000_000}, {"forward": 500_000_000, "data": 1_000_000_000}])
    record = profile.record()
    assert record is not None and record.later is None
    assert (record.first.first_round, record.first.last_round, record.first.client_rounds) == (7, 7, 2)
    assert (record.first.clients["forward"], record.first.clients["data"]) == (2, 1)
    assert (record.first.server["other"], record.first.server["waiting"], record.first.seconds) == (2, 0, 5)
    table = profile_table(record)
    assert table.header == ("part", "round 7, s", "%", "ms a client-round")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["forward"] == ("2.00", "40.0", "1000.0") and rows[ALL_ROUNDS] == ("5.00", "100.0", "2500.0")


def test_a_run_that_is_cut_short_says_it_too_and_goes_on_with_or_without(
    settings: Callable[..., Config], runs: Runs, tmp_path: Path
) -> None:
    """Ctrl-C after round 1 of a run that is not profiled, after round 2 of one that is, then to the end without."""

    def interrupt(record: Any) -> None:
        raise KeyboardInterrupt

    told: Told = []
    where = (f"run_dir={tmp_path / 'run'}", "resume=true")
    with pytest.raises(KeyboardInterrupt):
        train(settings(*where), hooks=Hooks(on_round=interrupt, on_profile=told.append))
    assert told == []
    with pytest.raises(KeyboardInterrupt):
        train(settings(*where, "profile=true"), hooks=Hooks(on_round=interrupt, on_profile=told.append))
    run = train(settings(*where), hooks=Hooks(on_profile=told.append))
    train(settings(*where, "profile=true"), hooks=Hooks(on_profile=told.append))  # there is nothing left to do
    assert len(told) == 1 and told[0].later is None and told[0].first.first_round == 2
    assert spans(run)[0]["first_round"] == 2
    assert run.weights.read_bytes() == runs["plain"][0].weights.read_bytes()


def test_the_command_prints_the_table(
    settings: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dump(settings("federation.num_rounds=1"))))
    command = ["train", "--config", str(tmp_path / "config.yaml"), f"run_dir={tmp_path / 'run'}", "profile=true"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in (*get_args(ClientPart), *get_args(ServerPart), ALL_CLIENTS, ALL_ROUNDS))


def test_it_is_kept_with_the_results(runs: Runs, tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "keep_results.py"))
    run, _ = runs["serial"]
    script["main"]([run.root], tmp_path)
    assert (tmp_path / run.root.name / "profile.json").read_bytes() == run.profile.read_bytes()
