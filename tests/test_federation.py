"""The round loop as a whole: who trains, what is averaged, what is recorded, when it stops, what it leaves alone."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score
from torch import Tensor

from ser_fl import load, train
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.data.splits import Part, holders
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.algorithm import GLOBAL, FedAvg, make_algorithm, scheduled_share
from ser_fl.federation.checkpoint import checkpoint_key, go_on_from, load_checkpoint
from ser_fl.federation.client import Clients, ClientTask, Scored
from ser_fl.federation.cohort import sample_cohort
from ser_fl.federation.server import Server, new_server
from ser_fl.metrics import Confusion
from ser_fl.metrics import confusion_matrix as our_confusion_matrix
from ser_fl.models.networks import build_network
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import ClientFailure, ClientUpdate, State

SMALL = (
    "experiment=debug",
    "tracking=none",
    "data.utterances_per_emotion=2",
    "optimiser.learning_rate=0.01",
    "federation.batch_size=4",
)
ADAM = (
    *("federation.server_optimiser=adam", "federation.server_learning_rate=0.003"),
    *("federation.server_second_momentum=0.99", "federation.server_tau=0.001"),
)
THREE_CLIENTS = ("clients.by=iid", "clients.num_clients=3", "federation.num_rounds=1")


class Watcher(pl.Callback):
    """A user's callback: counts what it sees."""

    def __init__(self) -> None:
        self.fits = 0
        self.batches = 0
        self.labels: Counter[int] = Counter()
        self.learning_rates: list[float] = []
        self.optimiser_steps: list[int] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fits += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        self.labels.update(batch[1].tolist())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimiser = trainer.optimizers[0]
        self.learning_rates.append(optimiser.param_groups[0]["lr"])
        self.optimiser_steps.append(int(next(iter(optimiser.state.values()))["step"]))


class Breaker(Watcher):
    """Spoils one client's training, counted from 0 over the whole run: raises, or leaves a weight that is NaN."""

    def __init__(self, spoilt: int, how: str) -> None:
        super().__init__()
        self.spoilt = spoilt
        self.how = how

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.fits - 1 != self.spoilt:
            return
        if self.how == "raises":
            raise RuntimeError("microphone unplugged")
        with torch.no_grad():
            next(pl_module.parameters()).view(-1)[0] = math.nan


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs and features of this file go, and the settings that all of them start from."""
    folder = tmp_path_factory.mktemp("federation")
    config = compose([*SMALL, f"data.cache_dir={folder / 'cache'}"])
    (folder / "base.yaml").write_text(yaml.safe_dump(dump(config)))
    return folder


def settings(home: Path, name: str, *changed: str) -> Config:
    return compose([f"run_dir={home / name}", *changed], config_file=home / "base.yaml")


@pytest.fixture(scope="module")
def reference(home: Path) -> tuple[Config, RunFolder]:
    """Two clients, two rounds."""
    config = settings(home, "reference")
    return config, train(config)


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> dict[str, ClientUpdate]:
    """What three clients send in a round in which nothing goes wrong."""
    config = settings(home, "undisturbed", *THREE_CLIENTS)
    prepared = prepare(config)
    clients = Clients(config, prepared)
    initial = initial_state(config, prepared)
    return {name: clients.update(task(1, name, initial, config)) for name in prepared.clients}


def task(number: int, client_id: str, state: State, config: Config, optimiser_state: State | None = None) -> ClientTask:
    rate = config.optimiser.learning_rate
    return ClientTask(
        round=number, client_id=client_id, state=state, learning_rate=rate, optimiser_state=optimiser_state or {}
    )


def initial_state(config: Config, prepared: Prepared) -> State:
    return dict(build_network(config.model, len(prepared.store.classes), seed=config.seed).state_dict())


def server_of(run: RunFolder, config: Config) -> Server:
    """As the last checkpoint has it."""
    manifest = prepare(config).client_manifest()
    server, checkpoint = new_server(config, manifest), load_checkpoint(run.checkpoint, checkpoint_key(config))
    assert checkpoint is not None
    go_on_from(checkpoint, server, manifest.client_ids)
    return server


def average(updates: list[ClientUpdate]) -> dict[str, Any]:
    """FedAvg by NumPy; counters by their maximum."""
    weights = [update.num_examples for update in updates]
    averaged = {}
    for name, first in updates[0].state.items():
        stacked = np.stack([update.state[name].double().numpy() for update in updates])
        averaged[name] = np.average(stacked, axis=0, weights=weights) if first.is_floating_point() else stacked.max(0)
    return averaged


def without_times(run: RunFolder) -> list[dict[str, Any]]:
    records = run.read_jsonl(run.rounds) + run.read_jsonl(run.clients)
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def column(run: RunFolder, name: str) -> list[Any]:
    return [record[name] for record in run.read_jsonl(run.rounds)]


def assert_same_state(actual: Mapping[str, Tensor], expected: Mapping[str, Any], atol: float = 0.0) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        np.testing.assert_allclose(tensor.double().numpy(), np.asarray(expected[name]), rtol=0, atol=atol)


def test_one_seed_gives_the_same_bits_twice(home: Path, reference: tuple[Config, RunFolder]) -> None:
    _, first = reference
    again = train(settings(home, "again"))
    assert again.weights.read_bytes() == first.weights.read_bytes()
    assert without_times(again) == without_times(first)
    assert again.read_json(again.summary) == first.read_json(first.summary)


def test_another_seed_gives_another_model(home: Path, reference: tuple[Config, RunFolder]) -> None:
    _, first = reference
    other = train(settings(home, "other", "seed=2"))
    assert other.weights.read_bytes() != first.weights.read_bytes()
    assert column(other, "train_loss") != column(first, "train_loss")


def test_one_client_with_all_data_is_centralised_training(home: Path) -> None:
    alone = train(settings(home, "alone", "clients.by=iid", "clients.num_clients=1"))
    centralised = train(settings(home, "centralised", "federation.name=centralised", "federation.keep_optimiser=false"))
    assert column(alone, "train_loss") == column(centralised, "train_loss")
    assert alone.weights.read_bytes() == centralised.weights.read_bytes()


def test_centralised_trains_on_what_the_clients_hold(home: Path) -> None:
    """Where their number is capped, the baseline has no more data than they have."""
    capped = ("clients.num_clients=1",)
    federated, centralised = (
        prepare(settings(home, name, *capped, f"federation.name={name}")) for name in ("federated", "centralised")
    )
    assert list(centralised.clients.values()) == list(federated.clients.values())
    assert len(centralised.clients["all"]) < len(centralised.split.train)


def test_federating_is_the_average_of_what_clients_send(home: Path, undisturbed: dict[str, ClientUpdate]) -> None:
    run = train(settings(home, "average", *THREE_CLIENTS))
    assert_same_state(load_file(run.weights), average(list(undisturbed.values())), atol=1e-7)
    assert [record["num_examples"] for record in run.read_jsonl(run.clients)] == [7, 7, 6]


@pytest.mark.parametrize(("how", "said"), [("raises", "microphone unplugged"), ("spoils", "is not finite")])
def test_a_client_that_fails_is_left_out_counted_and_named(
    home: Path, undisturbed: dict[str, ClientUpdate], how: str, said: str
) -> None:
    """The others' average is as if it had not been sampled."""
    run = train(settings(home, how, *THREE_CLIENTS), callbacks=[Breaker(1, how)])
    (record,) = run.read_jsonl(run.rounds)
    assert record["cohort"] == ["client0", "client1", "client2"]
    (failure,) = record["failures"]
    assert failure["client_id"] == "client1"
    assert said in failure["error"]
    left = [undisturbed["client0"], undisturbed["client2"]]
    assert [entry["client_id"] for entry in run.read_jsonl(run.clients)] == ["client0", "client2"]
    assert_same_state(load_file(run.weights), average(left), atol=1e-7)
    weighted = np.average([update.train_loss for update in left], weights=[update.num_examples for update in left])
    assert record["train_loss"] == pytest.approx(float(weighted))


def test_a_round_without_enough_clients_stops_with_their_own_error(home: Path) -> None:
    config = settings(home, "too few", "federation.min_clients=2")
    with pytest.raises(RoundFailed, match=r"round 1 has 1 updates, needs 2:\nclient f01: (.|\n)*microphone unplugged"):
        train(config, callbacks=[Breaker(0, "raises")])
    run = RunFolder(home / "too few")
    assert run.read_jsonl(run.rounds) == run.read_jsonl(run.clients) == []
    assert not run.summary.exists() and not run.weights.exists()


def test_a_callback_sees_every_batch_of_every_client(home: Path) -> None:
    """Ten utterances a client in batches of up to four, two local epochs, two rounds."""
    config, watcher = settings(home, "watched", "federation.local_epochs=2"), Watcher()
    train(config, callbacks=[watcher])
    prepared = prepare(config)
    assert [len(held) for held in prepared.clients.values()] == [10, 10]
    assert watcher.fits == 2 * 2
    assert watcher.batches == 2 * 2 * 2 * 3
    held = Counter(prepared.store.labels_N[list(prepared.split.train)].tolist())
    assert watcher.labels == Counter({label: 4 * count for label, count in held.items()})


def test_no_update_is_kept_while_the_next_client_trains(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty clients whose tensors are counted: when one begins, those of all others are gone."""
    sent: list[ReferenceType[Tensor]] = []
    alive: list[int] = []

    def counted(self: Clients, task: ClientTask) -> ClientUpdate:
        alive.append(sum(tensor() is not None for tensor in sent))
        state = {name: tensor.clone() for name, tensor in task.state.items()}
        sent.extend(ref(tensor) for tensor in state.values())
        return ClientUpdate(
            client_id=task.client_id, state=state, num_examples=1, train_loss=1.0, seconds=0.0, update_norm=0.0
        )

    monkeypatch.setattr(Clients, "update", counted)
    many = ("clients.by=iid", "clients.num_clients=50", "data.utterances_per_emotion=6")
    run = train(settings(home, "many", *many))
    assert len(run.read_jsonl(run.clients)) == len(alive) == 100
    assert max(alive) == 0


def test_cohorts_depend_on_seed_and_round_alone() -> None:
    names = tuple("abcdef")
    cohorts = [sample_cohort(names, 0.5, 1, number) for number in range(1, 301)]
    assert cohorts == [sample_cohort(names, 0.5, 1, number) for number in range(1, 301)]
    assert all(len(cohort) == len(set(cohort)) == 3 and list(cohort) == sorted(cohort) for cohort in cohorts)
    assert cohorts != [sample_cohort(names, 0.5, 2, number) for number in range(1, 301)]
    drawn = Counter(name for cohort in cohorts for name in cohort)
    # Each is drawn by a fair coin: 150 of 300 times, with a standard deviation of 9.
    assert all(abs(drawn[name] - 150) < 45 for name in names)


@pytest.mark.parametrize(("fraction", "size"), [(1.0, 6), (0.67, 4), (0.34, 2), (0.01, 1)])
def test_a_cohort_is_a_share_of_the_clients_and_never_empty(fraction: float, size: int) -> None:
    assert len(sample_cohort(tuple("abcdef"), fraction, 1, 1)) == size


def test_only_the_cohort_trains(home: Path) -> None:
    config = settings(home, "cohorts", "clients.by=iid", "clients.num_clients=4", "federation.fraction_train=0.5")
    run = train(config)
    expected = [list(sample_cohort(tuple(prepare(config).clients), 0.5, 1, number)) for number in (1, 2)]
    assert column(run, "cohort") == expected
    trained = [[e["client_id"] for e in run.read_jsonl(run.clients) if e["round"] == number] for number in (1, 2)]
    assert trained == expected


def test_training_loss_is_weighted_like_the_model(home: Path) -> None:
    run = train(settings(home, "weighted", "clients.by=dirichlet", "clients.num_clients=3", "federation.num_rounds=1"))
    told = run.read_jsonl(run.clients)
    sizes, losses = ([client[name] for client in told] for name in ("num_examples", "train_loss"))
    assert len(set(sizes)) > 1
    assert column(run, "train_loss") == pytest.approx([np.average(losses, weights=sizes)], rel=1e-12)


def test_local_only_never_averages(home: Path) -> None:
    """Each client's model is what that client alone, carrying its weights and its optimiser on, comes to."""
    config = settings(
        home, "local", "federation.name=local_only", "federation.server_momentum=0", "federation.keep_optimiser=true"
    )
    run = train(config)
    algorithm = server_of(run, config).algorithm
    prepared = prepare(config)
    clients, initial = Clients(config, prepared), initial_state(config, prepared)
    assert algorithm.models.keys() == {"f01", "m01"}
    for name, model in algorithm.models.items():
        first = clients.update(task(1, name, initial, config))
        second = clients.update(task(2, name, first.state, config, first.optimiser_state))
        assert_same_state(model, second.state)
    one, other = algorithm.models.values()
    assert not torch.equal(one["output.weight"], other["output.weight"])


def test_local_only_scores_each_model_on_its_own_speaker(home: Path) -> None:
    config = settings(home, "local scored", "federation.name=local_only", "federation.server_momentum=0")
    run, prepared = train(config), prepare(config)
    checkpoint = load_checkpoint(run.checkpoint, checkpoint_key(config))
    assert checkpoint is not None
    held = holders(prepared.store.utterances, prepared.split.test)
    expected = np.zeros((len(prepared.store.classes),) * 2)
    for name, model in checkpoint.best.items():
        network = build_network(config.model, len(prepared.store.classes), seed=1)
        network.load_state_dict(model)
        examples = load_examples(prepared.store, held[name], prepared.standardisation)
        with torch.no_grad():
            predictions = network.eval()(examples.features_NFL).argmax(1).tolist()
        expected += our_confusion_matrix(examples.labels_N.tolist(), predictions, len(expected))
    assert run.read_json(run.summary)["test"]["confusion"] == expected.tolist()


def test_what_is_validated_selected_and_kept_is_the_average_over_rounds(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the average in the last checkpoint, which is another model than the clients go on from."""
    judged: list[State] = []
    score = Clients.score

    def watched(scorer: Clients, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        if part == "validation":
            judged.append(models[GLOBAL])
        return score(scorer, models, part, attacked=attacked)

    monkeypatch.setattr(Clients, "score", watched)
    config = settings(home, "averaged", "federation.weight_average=0.9", "federation.num_rounds=3")
    run = train(config)
    server = server_of(run, config)
    assert server.average is not None and len(judged) == 3
    average_state, last = server.average.model, server.algorithm.models[GLOBAL]
    assert not torch.equal(average_state["output.weight"], last["output.weight"])
    assert_same_state(judged[-1], average_state)
    server.best, server.best_score = {}, -1.0
    server.select(0.5)
    assert_same_state(server.best[GLOBAL], average_state)


def test_cosine_schedule_by_worked_numbers(home: Path) -> None:
    """0.1 * (0.1 + 0.9 * (1 + cos(pi * (round - 1) / 4)) / 2), and 0.01 from round 5 on."""
    changed = ("learning_rate=0.1", "schedule=cosine", "decay_rounds=4", "final_fraction=0.1")
    config = settings(home, "-", *(f"optimiser.{setting}" for setting in changed))
    rates = [0.1 * scheduled_share(config.optimiser, number) for number in range(1, 8)]
    assert rates == pytest.approx([0.1, 0.0868198052, 0.055, 0.0231801948, 0.01, 0.01, 0.01])
    constant = settings(home, "-", "optimiser.learning_rate=0.1")
    assert {scheduled_share(constant.optimiser, number) for number in range(1, 51)} == {1.0}
    with_adam = (*ADAM, "federation.server_learning_rate=0.01")
    config = settings(home, "-", *(f"optimiser.{setting}" for setting in changed), *with_adam)
    server_rates = [make_algorithm(config).learning_rate(number) for number in range(1, 8)]
    assert server_rates == pytest.approx([rate / 10 for rate in rates])
    cosine = ("optimiser.schedule=cosine", "optimiser.decay_rounds=2")
    run = train(settings(home, "scheduled clients", *cosine))
    assert column(run, "learning_rate") == pytest.approx([0.01, 0.01 * (0.01 + 0.99 / 2)])
    assert column(run, "server_learning_rate") == [None, None]
    run = train(settings(home, "scheduled", *ADAM, *cosine))
    assert column(run, "server_learning_rate") == pytest.approx([0.003, 0.003 * (0.01 + 0.99 / 2)])
    assert column(run, "learning_rate") == [0.01, 0.01]


@pytest.mark.parametrize(("keep", "steps"), [("true", [3, 3, 6, 6]), ("false", [3, 3, 3, 3])])
def test_clients_train_at_the_rounds_rate_and_keep_their_optimiser_where_told(
    home: Path, keep: str, steps: list[int]
) -> None:
    watcher = Watcher()
    changed = (f"federation.keep_optimiser={keep}", "optimiser.schedule=cosine", "optimiser.decay_rounds=2")
    run = train(settings(home, f"keep {keep}", *changed), callbacks=[watcher])
    assert watcher.optimiser_steps == steps
    halfway = 0.01 * (0.01 + 0.99 / 2)
    assert watcher.learning_rates == pytest.approx([0.01, 0.01, halfway, halfway])
    assert column(run, "learning_rate") == pytest.approx([0.01, halfway])


def test_from_its_round_on_batch_norm_keeps_the_statistics_that_were_received(home: Path) -> None:
    """Round 1 moves them, rounds 2 and 3 do not, while scale and shift go on learning in every round."""
    states: list[State] = []

    class Received(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            states.append({name.removeprefix("network."): t.clone() for name, t in pl_module.state_dict().items()})

    config = settings(home, "frozen", "federation.freeze_norm_from=2", "federation.num_rounds=3")
    train(config, callbacks=[Received()])
    statistics = [name for name in states[0] if "running_" in name]
    scales = [name.replace("running_mean", "weight") for name in statistics if "running_mean" in name]
    assert len(statistics) == 6 and len(states) == 6
    initial = initial_state(config, prepare(config))
    for name in statistics:
        assert not torch.equal(states[0][name], initial[name])
        averaged = states[2][name]
        assert not torch.equal(averaged, states[0][name])
        assert all(torch.equal(state[name], averaged) for state in states[2:])
    for name in scales:
        assert not torch.equal(states[0][name], states[2][name])
        assert not torch.equal(states[2][name], states[4][name])


def test_a_run_that_learns_nothing_keeps_its_weights_and_stops_at_the_plateau(home: Path) -> None:
    """At a rate of 1e-30 weights stay; group norm has no statistics that would move either."""
    changed = ("optimiser.learning_rate=1e-30", "model.norm=group", "federation.num_rounds=50", "federation.patience=2")
    config = settings(home, "plateau", *changed)
    run = train(config)
    assert column(run, "round") == [1, 2, 3]
    assert len(set(column(run, "uar"))) == 1
    summary = run.read_json(run.summary)
    assert (summary["selected_round"], summary["num_rounds"]) == (1, 3)
    assert "2 rounds" in summary["stopped"]
    norms = [record["update_norm"] for record in run.read_jsonl(run.clients)]
    assert norms == pytest.approx([0.0] * 6, abs=1e-20)
    assert_same_state(load_file(run.weights), initial_state(config, prepare(config)), atol=1e-20)


def test_fedsgd_with_adam_at_the_server_is_adam_in_one_place(home: Path) -> None:
    """One step of every client on all it holds, and one step on all there is: gradients are means over utterances."""
    same = ("experiment=debug", "tracking=none", "data.utterances_per_emotion=2", f"data.cache_dir={home / 'cache'}")
    same += ("model.norm=group", "model.dropout=0", "augmentation=none", "federation.batch_size=1000")
    same += ("federation.num_rounds=5", "federation.patience=0", "federation.weight_average=0.5", "selection.every=9")
    plain = ("optimiser=sgd", "optimiser.learning_rate=1", "optimiser.momentum=0")
    clients = ("clients.by=iid", "clients.num_clients=3")
    apart = compose([*same, "federation=federated_sgd", *plain, *clients, f"run_dir={home / 'apart'}"])
    rate = f"optimiser.learning_rate={apart.federation.server_learning_rate}"
    together = compose([*same, "federation=centralised", rate, f"run_dir={home / 'together'}"])
    assert apart.federation.local_batches == 1
    found, expected = (load_file(train(config).weights) for config in (apart, together))
    for state in (found, expected):  # no gradient but rounding: a softmax over frames does not see it
        del state["attention.bias"]
    assert_same_state(found, expected, atol=1e-4)
    initial = initial_state(apart, prepare(apart))
    assert max(float((tensor - initial[name]).abs().max()) for name, tensor in found.items()) > 5e-3


def confusion_of(uar: float) -> Confusion:
    return np.array([[1000 * uar, 1000 - 1000 * uar], [1000 - 1000 * uar, 1000 * uar]])


def test_robust_selection_takes_the_round_with_the_best_robust_uar(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean figures say round 1; robust ones, measured every second round, say round 4 before round 6."""
    clean, robust = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.2, 0.6, 0.6]
    models: list[State] = []

    def scripted(scorer: Clients, scored: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        if part == "test":
            return score(scorer, scored, part, attacked=attacked)
        if attacked:
            return Scored({"all": confusion_of(robust[len(models) // 2 - 1])})
        models.append(scored[GLOBAL])
        return Scored({"all": confusion_of(clean[len(models) - 1])})

    score = Clients.score
    monkeypatch.setattr(Clients, "score", scripted)
    changed = ("selection.by=robust", "selection.robust_every=2", "federation.num_rounds=6")
    one_client = "federation.fraction_train=0.5"  # a round, which is enough here
    run = train(settings(home, "robust", *changed, one_client))
    assert column(run, "uar") == pytest.approx(clean)
    assert column(run, "robust_uar") == [None, pytest.approx(0.2), None, pytest.approx(0.6), None, pytest.approx(0.6)]
    summary = run.read_json(run.summary)
    assert summary["selected_round"] == 4
    assert summary["selection_score"] == pytest.approx(0.6)
    assert_same_state(load_file(run.weights), models[3])


def test_only_scored_rounds_have_figures_and_are_selected(home: Path) -> None:
    """Every second round and the last: the same rounds, clients and figures as where all are scored."""
    every, each = (
        train(settings(home, f"every {n}", "federation.num_rounds=5", f"selection.every={n}")) for n in (2, 1)
    )
    for name in ("uar", "accuracy", "macro_f1"):
        figures = column(each, name)
        assert column(every, name) == [None, figures[1], None, *figures[3:]]
    assert column(every, "train_loss") == column(each, "train_loss")
    assert column(every, "server_learning_rate") == [None] * 5
    scored = {number: uar for number, uar in enumerate(column(every, "uar"), start=1) if uar is not None}
    summary = every.read_json(every.summary)
    assert summary["selection_score"] == max(scored.values())
    assert summary["selected_round"] == min(n for n, uar in scored.items() if uar == max(scored.values()))


def test_patience_ends_after_a_round_that_is_scored(home: Path) -> None:
    """Round 2 is the best, as in a run that learns nothing; 5 rounds later nothing is known, 6 later there is."""
    still = ("optimiser.learning_rate=1e-30", "model.norm=group", "federation.num_rounds=50", "federation.patience=5")
    run = train(settings(home, "plateau, scored", *still, "selection.every=2"))
    assert run.read_json(run.summary)["selected_round"] == 2
    assert column(run, "round")[-1] == 8 and column(run, "uar")[-1] is not None


def test_renormalisation_is_never_frozen(home: Path) -> None:
    """The model after the last round, and what clients trained on in each, is that of a run that freezes nothing."""
    changed = ("model.norm=renorm", "federation.num_rounds=3", "selection.every=3")  # so that the last one is kept
    frozen, free = (
        train(settings(home, f"renorm {first}", *changed, f"federation.freeze_norm_from={first}")) for first in (2, 0)
    )
    assert frozen.read_json(frozen.summary)["selected_round"] == 3
    assert_same_state(load_file(frozen.weights), load_file(free.weights))
    assert column(frozen, "train_loss") == column(free, "train_loss")


def test_a_round_that_not_all_holders_scored_is_not_selected(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 2 has the best figures, of fewer utterances than the others'; its record names the holder."""
    uars, models = [0.6, 0.9, 0.7], list[State]()
    lost = ClientFailure(client_id="f01", error="no reply", stage="validation")
    score = Clients.score

    def scripted(scorer: Clients, scored: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        if part == "test":
            return score(scorer, scored, part, attacked=attacked)
        models.append(scored[GLOBAL])
        return Scored({"m01": confusion_of(uars[len(models) - 1])}, (lost,) if len(models) == 2 else ())

    monkeypatch.setattr(Clients, "score", scripted)
    run = train(settings(home, "incomplete", "federation.num_rounds=3"))
    assert run.read_json(run.summary)["selected_round"] == 3
    assert_same_state(load_file(run.weights), models[2])
    told = {"client_id": "f01", "error": "no reply", "stage": "validation", "offence": False}
    assert column(run, "failures") == [[], [told], []]


def test_incomplete_test_figures_are_no_figures(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops with a reason, keeps its rounds, and with resume=true it is as if nothing had happened."""
    score, silent = Clients.score, ClientFailure(client_id="f01", error="no reply")

    def deaf(scorer: Clients, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        scored = score(scorer, models, part, attacked=attacked)
        return Scored(scored.by_holder, (silent,)) if part == "test" else scored

    config = settings(home, "untested")
    with monkeypatch.context() as patched:
        patched.setattr(Clients, "score", deaf)
        with pytest.raises(RoundFailed, match=r"1 of 2 holders.*resume=true") as caught:
            train(config)
    run = RunFolder(Path(str(config.run_dir)))
    assert "f01: no reply" in str(caught.value) and not run.summary.exists()
    assert train(settings(home, "untested", "resume=true")).summary.exists()
    other = train(settings(home, "tested"))
    assert run.read_json(run.summary) == other.read_json(other.summary)


def test_robust_uar_at_epsilon_0_is_the_clean_uar_and_falls_with_epsilon(home: Path) -> None:
    changed = ("selection.robust_every=1", "selection.steps=3", "split.validation_fraction=0.6")
    run = train(settings(home, "epsilon 0", *changed, "selection.epsilon=0"))
    assert column(run, "robust_uar") == column(run, "uar")
    attacked = train(settings(home, "epsilon 1", *changed, "selection.epsilon=1"))
    assert column(attacked, "uar") == column(run, "uar")
    assert sum(column(attacked, "robust_uar")) < sum(column(attacked, "uar"))


def test_patience_waits_for_the_first_score_and_the_last_round_is_scored(home: Path) -> None:
    """Robust UAR in rounds 5 and 7 alone: with a patience of 3 nothing may stop before there is anything to compare."""
    changed = ("selection.by=robust", "selection.robust_every=5", "selection.steps=1", "federation.patience=5")
    run = train(settings(home, "patient", *changed, "federation.num_rounds=7", "federation.fraction_train=0.5"))
    scored = [number for number, robust in enumerate(column(run, "robust_uar"), start=1) if robust is not None]
    assert scored == [5, 7]
    summary = run.read_json(run.summary)
    assert summary["num_rounds"] == 7 and summary["selected_round"] in scored
    assert summary["selection_score"] == max(robust for robust in column(run, "robust_uar") if robust is not None)


def test_more_clients_than_a_round_has_are_refused_before_the_first(home: Path) -> None:
    config = settings(home, "too many", "federation.min_clients=2", "federation.fraction_train=0.5")
    with pytest.raises(UserError, match=r"min_clients must be at most 1, the clients of a round .*=0\.5 of 2\), got 2"):
        train(config)
    assert not (home / "too many").exists()


def test_rounds_that_were_not_scored_are_not_selected() -> None:
    states: list[State] = [{"weight": torch.tensor([float(number)])} for number in range(6)]
    algorithm = FedAvg()
    server = Server(algorithm)
    selected = []
    for number, score in enumerate([None, None, 0.3, None, 0.3], start=1):
        server.round, algorithm.models = number, {GLOBAL: states[number]}
        server.select(score)
        selected.append(server.best_round)
        assert server.best[GLOBAL] is states[server.best_round]
    assert selected == [1, 2, 3, 3, 3]  # the newest, as long as none was scored


def test_training_leaves_global_state_alone(home: Path) -> None:
    torch.manual_seed(7)
    torch_state, python_state, default_dtype = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    numpy_state = repr(np.random.get_state())  # noqa: NPY002
    threads = torch.get_num_threads()
    train(settings(home, "global state", "executor.threads=2", "objective.name=pgd", "federation.num_rounds=1"))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads
    assert random.getstate() == python_state
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.get_default_dtype() == default_dtype
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_records_keep_the_contract(reference: tuple[Config, RunFolder]) -> None:
    config, run = reference
    contract = {"round", "cohort", "train_loss", "uar", "accuracy", "macro_f1", "seconds", "failures"}
    rounds, clients = run.read_jsonl(run.rounds), run.read_jsonl(run.clients)
    assert all(contract <= record.keys() for record in rounds)
    assert [(record["round"], record["cohort"], record["failures"]) for record in rounds] == [
        (1, ["f01", "m01"], []),
        (2, ["f01", "m01"], []),
    ]
    figures = {"num_examples", "train_loss", "seconds", "update_norm", "cosine"}
    contract = figures | {"round", "client_id", "bytes_down", "bytes_up"}
    assert all(contract == record.keys() for record in clients)
    assert [(e["round"], e["client_id"]) for e in clients] == [(1, "f01"), (1, "m01"), (2, "f01"), (2, "m01")]
    assert [record["num_examples"] for record in clients] == [10] * 4
    size = sum(tensor.numel() * tensor.element_size() for tensor in load_file(run.weights).values())
    assert {(record["bytes_down"], record["bytes_up"]) for record in clients} == {(size, size)}
    losses = [np.mean([e["train_loss"] for e in clients if e["round"] == number]) for number in (1, 2)]
    assert column(run, "train_loss") == pytest.approx(losses)
    assert checkpoint_key(compose(config_file=run.config)) == checkpoint_key(config)


def test_update_norm_is_how_far_the_parameters_went(undisturbed: dict[str, ClientUpdate], home: Path) -> None:
    config = settings(home, "-", *THREE_CLIENTS)
    initial = initial_state(config, prepare(config))
    parameters = dict(build_network(config.model, 7, seed=1).named_parameters())
    for update in undisturbed.values():
        moved = np.concatenate([(update.state[name] - initial[name]).double().numpy().ravel() for name in parameters])
        assert update.update_norm == pytest.approx(float(np.linalg.norm(moved)), rel=1e-6)
        assert update.update_norm > 0.01


def test_test_figures_are_those_of_the_saved_model(reference: tuple[Config, RunFolder]) -> None:
    """Recomputed from the run folder, one utterance at a time, by scikit-learn."""
    config, run = reference
    prepared, model = prepare(config), load(run.root)
    rows = list(prepared.split.test)
    with torch.inference_mode():
        features_NFL = model.standardisation(prepared.store.features_NFL[rows])
        predicted = [int(model(features_FL[None]).argmax()) for features_FL in features_NFL]
    true = prepared.store.labels_N[rows].tolist()
    summary = json.loads(run.summary.read_text())
    test, present = summary["test"], sorted(set(true))
    assert tuple(summary["classes"]) == model.classes == prepared.store.classes
    assert test["confusion"] == confusion_matrix(true, predicted, labels=range(7)).tolist()
    assert test["uar"] == pytest.approx(recall_score(true, predicted, labels=present, average="macro", zero_division=0))
    assert test["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert test["macro_f1"] == pytest.approx(
        f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    )
    recalls = recall_score(true, predicted, labels=range(7), average=None, zero_division=0)
    assert test["per_class_recall"] == [pytest.approx(recalls[c]) if c in present else None for c in range(7)]
    speakers = np.array([prepared.store.utterances[row].speaker for row in rows])
    for speaker, uar in test["per_speaker_uar"].items():
        own = np.flatnonzero(speakers == speaker)
        of_true, of_predicted = [true[i] for i in own], [predicted[i] for i in own]
        labels = sorted(set(of_true))
        assert uar == pytest.approx(recall_score(of_true, of_predicted, labels=labels, average="macro"))
    assert set(test["per_speaker_uar"]) == set(speakers)
