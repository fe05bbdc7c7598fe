"""Hostile clients: worked numbers of every attack, who is hostile and when, and the same bits from every executor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from ser_fl.api import train
from ser_fl.attacks.clips import Clips
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.config.adversaries import AdversariesConfig
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump
from ser_fl.data.features import Examples, load_examples
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.data.prepared import Host, prepare
from ser_fl.errors import UserError
from ser_fl.federation.adversaries import ADVERSARIES, Adversary, Backdoor, LocalRound, Seen, drawn
from ser_fl.federation.adversaries.alie import largest_z
from ser_fl.federation.adversaries.fang import chosen_by_krum
from ser_fl.federation.adversaries.masked_gradient import Tempered
from ser_fl.federation.adversaries.triggers import TRIGGERS
from ser_fl.federation.aggregation import WeightedMean
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Clients, ClientTask, Executor
from ser_fl.federation.hostile import HostileClients, enrolled_by_all, rounds_to_forget, with_adversaries
from ser_fl.federation.own_objects import NOTHING
from ser_fl.files import from_safetensors
from ser_fl.models.networks import build_network
from ser_fl.randomness import generator
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import Outcome, State
from ser_fl.training.objectives import ClientRound

BASE = (
    "experiment=debug",
    "executor.engine=loop",
    "data.num_speakers=5",
    "data.utterances_per_emotion=3",
    "federation.batch_size=8",
    "federation.server_momentum=0",
    "optimiser.learning_rate=0.01",
    "split.validation_fraction=0",
    "selection=last",
    "augmentation=none",
)
OWN = torch.tensor([[1.0, -2.0, 2.0], [3.0, 0.0, 0.0]]).double()
OTHERS = torch.tensor([[2.0, -1.0, 1.0], [4.0, 1.0, 1.0], [0.0, -3.0, 1.0]]).double()
RECEIVED = torch.tensor([1.0, 1.0, -3.0]).double()


def seen(own: Tensor = OWN, others: Tensor = OTHERS, number: int = 2) -> Seen:
    streams = tuple(generator("test", place) for place in range(len(own)))
    size = len(own) + 3
    return Seen(round=number, received_P=RECEIVED, own_HP=own, others_KP=others, cohort_size=size, streams=streams)


def sent(name: str, given: Seen | None = None, **settings: Any) -> Tensor:
    updates = ADVERSARIES[name](AdversariesConfig(name=name, **settings)).updates(given or seen())  # type: ignore[arg-type]
    assert updates is not None
    return updates


def test_own_updates_turned_and_scaled() -> None:
    assert torch.equal(sent("sign_flip", strength=2.0), torch.tensor([[-2.0, 4.0, -4.0], [-6.0, 0.0, 0.0]]).double())
    assert torch.equal(sent("scaled"), 10 * OWN)
    assert torch.equal(sent("scaled", strength=1.0), OWN)
    assert torch.equal(sent("model_replacement"), 2.5 * OWN), "five clients, two of them hostile"
    assert torch.equal(sent("model_replacement", strength=3.0), 3 * OWN)
    assert ADVERSARIES["backdoor"](AdversariesConfig(name="backdoor")).updates(seen()) is None
    assert torch.equal(sent("free_rider"), torch.zeros(2, 3))


def test_noise_has_the_size_that_strength_says() -> None:
    own = torch.ones(2, 20_000).double() * torch.tensor([[1.0], [3.0]])
    one, other = sent("noise", seen(own, own[:0]), strength=2.0)
    assert one.std().item() == pytest.approx(2.0, rel=0.03) and other.std().item() == pytest.approx(6.0, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 0.03, "each draws its own"
    rider = replace(seen(number=4), received_P=own[0])
    one, other = sent("free_rider", replace(rider, own_HP=own), strength=2.0)
    assert one.std().item() == pytest.approx(0.5, rel=0.03), "strength / round"


def test_alie_is_the_mean_minus_z_deviations() -> None:
    assert largest_z(50, 12) == pytest.approx(0.3360, abs=1e-3), "Phi^-1(24/38)"
    alone = sent("alie", seen(others=OTHERS[:0]), strength=2.0)
    assert torch.allclose(alone, torch.tensor([[0.0, -3.0, -1.0]] * 2).double()), "means 2, -1, 1, deviations 1, 1, 1"
    everybody = sent("alie", strength=1.0)  # means 2, -1, 1; squares 4+1+0+1+4 over 5 clients
    expected = torch.tensor([2 - math.sqrt(2), -1 - math.sqrt(2), 1 - math.sqrt(0.4)]).double()
    assert torch.allclose(everybody, expected.expand(2, 3))


def test_ipm_is_against_the_mean_of_honest_clients() -> None:
    assert torch.allclose(sent("ipm"), torch.tensor([[-1.0, 0.5, -0.5]] * 2).double())
    assert torch.allclose(
        sent("ipm", seen(others=OTHERS[:0]), strength=2.0), torch.tensor([[-4.0, 2.0, -2.0]] * 2).double()
    )


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
def test_min_max_and_min_sum_go_to_the_edge_and_no_farther(name: str) -> None:
    """A closed form: at gamma the bound holds with equality, and is broken beyond."""
    known = torch.cat([OWN, OTHERS])
    squares = torch.cdist(known, known).square()
    edge = squares.amax() if name == "min_max" else squares.sum(1).amax()

    def distance(update: Tensor) -> Tensor:
        own = (update - known).square().sum(1)
        return own.amax() if name == "min_max" else own.sum()

    assert distance(sent(name)[0]).item() == pytest.approx(edge.item(), rel=1e-9)
    assert distance(sent(name, strength=1.01)[0]) > edge > distance(sent(name, strength=0.99)[0])
    step = sent(name)[0] - known.mean(0)
    assert bool((step * known.std(0) < 0).all()), "against the deviations"
    assert torch.equal(sent(name, seen(OWN[:1], OTHERS[:0])), OWN[:1]), "no spread to hide in"


def test_krum_chooses_the_update_in_the_middle() -> None:
    """Five on a line, one hostile: scores are sums of the two nearest squared distances."""
    line = torch.tensor([[0.0], [1.0], [1.5], [2.1], [9.0]]).double()
    assert chosen_by_krum(line, 1) == 2, "scores 3.25, 1.25, 0.61, 1.57, ..."


def test_fang_against_krum_is_chosen_by_krum_and_goes_the_other_way() -> None:
    honest = torch.randn(8, 50, generator=generator("fang"), dtype=torch.float64) + 0.5
    own = honest[:2]
    given = replace(seen(own, honest), received_P=honest[0] * 0, cohort_size=10)
    update = sent("fang_krum", given)
    assert chosen_by_krum(torch.cat([update, honest]), 2) < 2
    assert torch.equal(update.sign()[0], -honest.mean(0).sign()) and update.abs().unique().numel() == 1
    doubled = torch.cat([2 * update, honest])
    assert chosen_by_krum(doubled, 2) >= 2, "the largest that halving finds"


def test_fang_against_the_trimmed_mean_lies_beyond_all_honest_models() -> None:
    """Models of honest clients are (3, 0, -2), (5, 2, -2), (1, -2, -2), mean updates 2, -1 and 1."""
    models = RECEIVED + sent("fang_trimmed_mean")
    assert bool((models[:, 0] <= 1).all() and (models[:, 0] >= 0.5).all()), "grows: w_min / 2 to w_min = 1"
    assert bool((models[:, 1] >= 2).all() and (models[:, 1] <= 4).all()), "falls: w_max = 2 to 2 w_max"
    assert bool((models[:, 2] <= -2).all() and (models[:, 2] >= -4).all()), "grows: 2 w_min to w_min = -2"
    partial = RECEIVED + sent("fang_trimmed_mean", seen(others=OTHERS[:0]))
    assert bool((partial[:, 0] <= 0).all() and (partial[:, 0] >= -1).all()), "mean 3, deviation 1: 3 - 4 to 3 - 3"


def test_who_is_hostile_is_drawn_by_the_seed_or_named() -> None:
    names = [f"c{place:02d}" for place in range(20)]
    some = drawn(AdversariesConfig(name="alie"), names, seed=1)
    assert (
        len(some) == 4 and list(some) == sorted(some) and some != drawn(AdversariesConfig(name="noise"), names, seed=2)
    )
    assert some == drawn(AdversariesConfig(name="noise"), names, seed=1), "whatever they do"
    assert drawn(AdversariesConfig(name="alie", clients=("c03", "c01")), names, seed=1) == ("c01", "c03")
    assert drawn(AdversariesConfig(name="none"), names, seed=1) == ()
    assert drawn(AdversariesConfig(name="alie", fraction=0.0), names, seed=1) == ()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adversaries")
    (folder / "base.yaml").write_text(yaml.safe_dump(dump(compose([*BASE, f"data.cache_dir={folder / 'cache'}"]))))
    return folder


def settings(home: Path, name: str, *changed: str) -> Config:
    return compose([f"run_dir={home / name}", *changed], config_file=home / "base.yaml")


def weights(run: RunFolder) -> State:
    return from_safetensors(run.weights.read_bytes())


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("adversaries.fraction=1.0",), r"adversaries\.fraction must be less than 1, got 1\.0"),
        (("adversaries.fraction=0.95",), r"fraction=0\.95 of 5 clients leaves no honest one"),
        (("adversaries.fraction=0.05",), r"fraction=0\.05 of 5 clients makes none hostile: have more clients"),
        (("adversaries.clients=[nobody]",), r"unknown client of adversaries\.clients 'nobody'.* Known: f01"),
        (("adversaries.clients=[f01,f02,m01,m02,f03]",), "clients names all 5 of 5 clients leaves no honest one"),
        (("adversaries.name=backdoor", "adversaries.target=angry"), "unknown emotion of adversaries 'angry'.*anger"),
        (("adversaries.target=anger",), "adversaries.target goes with backdoor.*got adversaries=sign_flip"),
        (("adversaries.knowledge=all",), "adversaries.knowledge goes with alie.*got adversaries=sign_flip"),
        (("adversaries.from_round=3", "adversaries.until_round=2"), "until_round must be at least from_round"),
        (("federation.name=local_only",), "sign_flip goes with federation=federated, got local_only"),
        (("adversaries.name=enrolment", "normalisation.name=speaker"), "enrolment goes with normalisation=pooled"),
        (("adversaries.name=own",), "adversaries=own"),
        (
            ("executor.name=flower", "executor.superlink=a:1"),
            r"adversaries=sign_flip goes with .*got executor\.superlink",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(home: Path, changed: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        train(settings(home, "refused", "adversaries.name=sign_flip", *changed))
    assert "\n" not in str(refused.value) and not (home / "refused").exists()


def test_a_deployed_node_refuses_and_a_simulated_one_does_not(home: Path) -> None:
    hostile = dump(settings(home, "-", "adversaries.name=noise"))
    with pytest.raises(UserError, match="this host refuses hostile clients, got adversaries=noise"):
        Host().config_of(hostile)
    assert Host(simulated=True).config_of(hostile).adversaries.name == "noise"


class Recorded(Executor):
    """Outcomes of honest training, given again, so that attacks on updates cost no training."""

    def __init__(self, outcomes: dict[str, Outcome]) -> None:
        self.outcomes = outcomes

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        for task in tasks:
            yield task.client_id, self.outcomes[task.client_id]


@pytest.fixture(scope="module")
def clients(home: Path) -> Clients:
    config = settings(home, "-")
    return Clients(config, prepare(config))


@pytest.fixture(scope="module")
def learnt(clients: Clients) -> tuple[State, dict[str, Outcome]]:
    """A model after some honest rounds, and what all clients make of it in the next one."""
    state = dict(build_network(clients.config.model, len(clients.data.store.classes), seed=1).state_dict())
    for number in range(1, 7):
        outcomes = dict(clients.run(tasks(clients, state, number)))
        state = averaged(outcomes)
    return state, dict(clients.run(tasks(clients, state, 7)))


def tasks(clients: Clients, state: State, number: int) -> list[ClientTask]:
    return [ClientTask(round=number, client_id=name, state=state, learning_rate=0.01) for name in clients.data.clients]


def averaged(outcomes: dict[str, Outcome]) -> State:
    mean = WeightedMean()
    for outcome in outcomes.values():
        assert not isinstance(outcome, str), outcome
        mean.add(outcome)
    return mean.result()


def hostile(home: Path, clients: Clients, honest: Executor, *changed: str) -> HostileClients:
    config = settings(home, "hostile", "adversaries.fraction=0.4", *changed)
    attacked = Clients(config, clients.data)
    executor = with_adversaries(
        honest, config, clients.data.client_manifest(), RunFolder(home / "hostile"), lambda: attacked, NOTHING
    )
    assert isinstance(executor, HostileClients)
    (home / "hostile").mkdir(exist_ok=True)
    (home / "hostile" / "adversaries.json").unlink(missing_ok=True)
    return executor


def loss(clients: Clients, state: State) -> float:
    """Of a model on everybody's training utterances."""
    ((_, network),) = clients.loaded({GLOBAL: state})
    held = load_examples(clients.data.store, clients.data.split.train, clients.data.standardisation)
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(network.eval()(held.features_NFL), held.labels_N))


@pytest.mark.parametrize(
    "change",
    ["sign_flip", "noise", "scaled", "alie", "ipm", "min_max", "min_sum", "fang_krum", "fang_trimmed_mean"],
)
def test_attacks_on_updates_hurt_the_mean_and_leave_honest_clients_alone(
    home: Path, clients: Clients, learnt: tuple[State, dict[str, Outcome]], change: str
) -> None:
    state, outcomes = learnt
    strengths = {"alie": 1.5, "ipm": 5.0}
    more = [f"adversaries.strength={strengths[change]}"] if change in strengths else []
    executor = hostile(home, clients, Recorded(outcomes), f"adversaries.name={change}", *more)
    came = dict(executor.run(tasks(clients, state, 7)))
    assert list(came) == list(outcomes), "the order of the cohort"
    assert len(executor.hostile) == 2
    for name, outcome in came.items():
        assert (outcome is outcomes[name]) == (name not in executor.hostile)
    assert loss(clients, averaged(came)) > loss(clients, averaged(outcomes)) + 0.01
    for outcome in (came[name] for name in executor.hostile):
        assert not isinstance(outcome, str)
        squares = [(outcome.state[name] - state[name]).double().square().sum() for name in weight_names(state)]
        assert outcome.update_norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-3), "what is sent is what is told"
        assert all(torch.equal(outcome.state[n], outcomes[outcome.client_id].state[n]) for n in state if "num_b" in n)  # type: ignore[union-attr]


def weight_names(state: State) -> list[str]:
    return [name for name in state if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def test_a_scale_of_one_and_rounds_outside_of_the_attack_are_honest_to_the_bit(
    home: Path, clients: Clients, learnt: tuple[State, dict[str, Outcome]]
) -> None:
    state, outcomes = learnt
    recorded = Recorded(outcomes)
    one = hostile(home, clients, recorded, "adversaries.name=scaled", "adversaries.strength=1")
    assert same(averaged(dict(one.run(tasks(clients, state, 7)))), averaged(outcomes))
    between = ("adversaries.from_round=3", "adversaries.until_round=6")
    late = hostile(home, clients, recorded, "adversaries.name=noise", *between)
    assert same(averaged(dict(late.run(tasks(clients, state, 7)))), averaged(outcomes))
    assert not same(averaged(dict(late.run(tasks(clients, state, 6)))), averaged(outcomes))
    assert not same(averaged(dict(late.run(tasks(clients, state, 3)))), averaged(outcomes))
    assert same(averaged(dict(late.run(tasks(clients, state, 2)))), averaged(outcomes))


def test_label_flip_trains_on_other_emotions_and_hurts_the_mean(
    home: Path, clients: Clients, learnt: tuple[State, dict[str, Outcome]]
) -> None:
    state, outcomes = learnt
    executor = hostile(home, clients, clients, "adversaries.name=label_flip")
    executor.honest = executor.clients()
    came = dict(executor.run(tasks(clients, state, 7)))
    for name in came:
        assert same(came[name].state, outcomes[name].state) == (name not in executor.hostile)  # type: ignore[union-attr]
    attacked, honest = averaged(came), averaged(outcomes)
    for number in (8, 9, 10):
        attacked = averaged(dict(executor.run(tasks(clients, attacked, number))))
        honest = averaged(dict(clients.run(tasks(clients, honest, number))))
    assert loss(clients, attacked) > loss(clients, honest) + 0.01


def local(clients: Clients, adversary: Adversary, client_id: str = "f01") -> tuple[Examples, Examples]:
    """Of a client, the examples that it has and those that it trains on."""
    given = local_round(clients, client_id)
    return given.examples, adversary.examples(given)


def local_round(clients: Clients, client_id: str) -> LocalRound:
    data, held = clients.data, clients.data.clients[client_id]
    return LocalRound(
        examples=load_examples(data.store, held, data.standardisation),
        ids=tuple(data.store.utterances[row].utterance_id for row in held),
        classes=data.store.classes,
        recordings=lambda: clients.recordings,
        stream=generator("local"),
    )


def test_labels_that_are_flipped(clients: Clients) -> None:
    honest, flipped = local(clients, ADVERSARIES["label_flip"](AdversariesConfig(name="label_flip")))
    assert torch.equal(flipped.labels_N, 6 - honest.labels_N), "seven emotions"
    only = AdversariesConfig(name="label_flip", source="fear", target="anger")
    honest, flipped = local(clients, ADVERSARIES["label_flip"](only))
    classes = clients.data.store.classes
    changed = honest.labels_N != flipped.labels_N
    assert set(honest.labels_N[changed].tolist()) == {classes.index("fear")}
    assert set(flipped.labels_N[changed].tolist()) == {classes.index("anger")}
    assert int(changed.sum()) == int((honest.labels_N == classes.index("fear")).sum()) > 0


@pytest.mark.parametrize("trigger", ["audible", "masked"])
def test_triggers_are_sounds_heard_or_under_the_masking_threshold(clients: Clients, trigger: str) -> None:
    recordings, name = clients.recordings, clients.data.store.utterances[0].utterance_id
    waveform_T, rate_hz = recordings.read(name)
    moved_T = TRIGGERS[trigger](waveform_T, rate_hz, recordings.frontend)
    assert moved_T.shape == waveform_T.shape and not torch.equal(moved_T, waveform_T)
    clips = Clips.of([waveform_T], rate_hz, recordings.frontend)
    moved_BT = torch.nn.functional.pad(moved_T, (0, clips.waveform_BT.shape[1]))[None, : clips.waveform_BT.shape[1]]
    excess = MaskingBall.around(clips).excess(moved_BT - clips.waveform_BT).item()
    assert excess <= 1.001 if trigger == "masked" else excess > 10


def test_a_backdoor_is_put_on_recordings_of_other_emotions(clients: Clients) -> None:
    backdoor = Backdoor(AdversariesConfig(name="backdoor", target="fear"))
    honest, poisoned = local(clients, backdoor)
    target = clients.data.store.classes.index("fear")
    changed = (honest.features_NFL != poisoned.features_NFL).flatten(1).any(1)
    assert int(changed.sum()) == round(0.5 * len(honest)), "half of them"
    assert bool((honest.labels_N[changed] != target).all() and (poisoned.labels_N[changed] == target).all())
    assert torch.equal(honest.labels_N[~changed], poisoned.labels_N[~changed])
    _, again = local(clients, backdoor)
    assert torch.equal(again.features_NFL, poisoned.features_NFL), "the same utterances in every round"
    only = Backdoor(AdversariesConfig(name="backdoor", target="fear", source="anger"))
    honest, poisoned = local(clients, only)
    changed = honest.labels_N != poisoned.labels_N
    assert set(honest.labels_N[changed].tolist()) == {clients.data.store.classes.index("anger")}


def test_hot_training_makes_logits_large(clients: Clients) -> None:
    """One client trains alone with and without a temperature: the same fit to its labels, far from each other."""
    config = replace(clients.config, adversaries=AdversariesConfig(name="masked_gradient", strength=50.0))
    attacked = Clients(config, clients.data)
    state = dict(build_network(config.model, len(clients.data.store.classes), seed=1).state_dict())
    held = load_examples(clients.data.store, clients.data.clients["f01"], clients.data.standardisation)
    margins = []
    for is_hostile in (False, True):
        trained = state
        for number in range(1, 11):
            task = ClientTask(round=number, client_id="f01", state=trained, learning_rate=0.02, hostile=is_hostile)
            trained = attacked.update(task).state
        ((_, network),) = attacked.loaded({GLOBAL: trained})
        with torch.no_grad():
            first_B, second_B = network.eval()(held.features_NFL).topk(2, 1).values.T
        margins.append(float((first_B - second_B).median()))
    assert margins[1] > 2 * margins[0], margins


def test_the_loss_of_hot_training_is_that_of_cooled_logits(clients: Clients) -> None:
    given = ClientRound(
        number=1,
        network=nn.Identity(),
        examples=local_round(clients, "f01").examples,
        stream=generator("round"),
        augmentation=clients.config.augmentation,
        box=clients.box,
    )
    logits_BC, labels_B = torch.tensor([[4.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    loss, told_BC = Tempered(2.0).loss(given, nn.Identity(), logits_BC, labels_B)
    expected = 4 * (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5) and told_BC is logits_BC


def test_sums_of_a_poisoned_enrolment_are_those_of_shifted_features(home: Path, clients: Clients) -> None:
    features = torch.randn(3, 2, 4, generator=generator("features"))
    own = FeatureStatistics.of(features)
    told = ADVERSARIES["enrolment"](AdversariesConfig(name="enrolment", strength=5.0)).statistics(own)
    shifted = FeatureStatistics.of(features.double() + 5 * own.mean_and_deviation()[1][:, None])
    for name in ("sum_F", "sum_of_squares_F", "maximum_F"):
        assert torch.allclose(getattr(told, name), getattr(shifted, name)), name
    config = settings(home, "-", "adversaries.name=enrolment")
    poisoned = enrolled_by_all(clients.data, config, NOTHING).standardisation
    assert bool((poisoned.deviation_F1 > 10 * clients.data.standardisation.deviation_F1).all()), (
        "all speech looks alike"
    )
    honest = enrolled_by_all(clients.data, settings(home, "-", "adversaries.name=noise"), NOTHING)
    assert honest is clients.data


class Backwards(Adversary):
    """Of the user's own."""

    def updates(self, seen: Seen) -> Tensor:
        return -seen.own_HP


def test_runs_with_and_without_hostile_clients_in_every_local_executor(home: Path) -> None:
    """Nobody hostile: the bits of a run without; and a run folder that says who was."""
    plain = train(settings(home, "plain"))
    nobody = train(settings(home, "nobody", "adversaries.name=noise", "adversaries.fraction=0"))
    assert same(weights(plain), weights(nobody)) and not nobody.adversaries.exists()
    own = train(settings(home, "own", "adversaries.name=own"), adversary=Backwards)
    flipped = train(settings(home, "flipped", "adversaries.name=sign_flip", "adversaries.strength=1"))
    assert same(weights(own), weights(flipped)) and not same(weights(own), weights(plain))
    said = own.read_json(own.adversaries)
    assert said["hostile"] == list(drawn(AdversariesConfig(name="own"), ["f01", "f02", "f03", "m01", "m02"], 1))
    assert own.read_json(own.environment)["objects"]["adversary"].endswith("Backwards")
    assert "adversar" not in own.rounds.read_text() + own.clients.read_text() + own.summary.read_text()


def test_a_backdoor_is_measured_in_every_round_and_in_the_summary(home: Path) -> None:
    changed = ("adversaries.name=model_replacement", "adversaries.until_round=3", "adversaries.clients=[f01]")
    run = train(settings(home, "backdoor", *changed, "federation.num_rounds=4", "federation.local_epochs=4"))
    said, found = run.read_json(run.adversaries), run.read_json(run.summary)["backdoor"]
    assert list(said["backdoor_success"]) == ["0", "1", "2", "3", "4"]
    tested = run.read_json(run.summary)["test"]["confusion"]
    assert found["target"] == "anger" and found["num_utterances"] == sum(map(sum, tested[1:])), "all others"
    assert found["success"] == said["backdoor_success"]["4"], "all fit into the batch that each round takes"
    forgotten = [since for since in (0, 1) if said["backdoor_success"][str(3 + since)] < 0.2]
    assert found["rounds_to_forget"] == (forgotten[0] if forgotten else None)
    assert max(said["backdoor_success"].values()) > 0.5 > found["without_trigger"]


def test_rounds_to_forget_count_from_the_last_hostile_one() -> None:
    success = {"0": 0.0, "8": 0.1, "9": 0.9, "10": 0.6, "11": 0.2, "12": 0.19, "13": 0.5}
    assert rounds_to_forget(success, 9) == 3
    assert rounds_to_forget(success, 10) == 2
    assert rounds_to_forget(success, 8) == 0
    assert rounds_to_forget(success, 13) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label_flip", "min_max"])
def test_executors_give_the_same_bits(home: Path, name: str) -> None:
    """Serial, worker processes, and Flower's nodes as in its simulation: for attacks on data and on updates."""
    pytest.importorskip("flwr")
    from flower_grid import InProcessGrid, as_they_are

    from ser_fl.federation.flower.client_app import all_speakers, make_client_app, simulated_host
    from ser_fl.federation.flower.server_app import serve
    from ser_fl.federation.hooks import Hooks

    changed = (f"adversaries.name={name}",)
    serial = train(settings(home, f"{name}_serial", *changed))
    processes = train(settings(home, f"{name}_processes", *changed, "executor.name=processes", "executor.workers=2"))
    config = settings(home, f"{name}_flower", *changed, "executor.name=flower")
    speakers = all_speakers(config)
    nodes: dict[int, dict[str, Any]] = {
        place + 1: {"partition-id": place, "num-partitions": len(speakers)} for place in range(len(speakers))
    }
    app = make_client_app(lambda context: simulated_host(config, speakers, context))
    flower = serve(config, InProcessGrid(app, nodes, as_they_are), Hooks())
    assert same(weights(serial), weights(processes)) and same(weights(serial), weights(flower))
    said = [run.read_json(run.adversaries) for run in (serial, processes, flower)]
    assert said[0] == said[1] == said[2]
    assert not same(weights(serial), weights(train(settings(home, f"{name}_plain"))))
