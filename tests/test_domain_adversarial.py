"""Domain-adversarial training: what comes back through the reversal, who has a head, and that it stays there."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

import ser_fl
from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config
from ser_fl.data.features import Examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects, check_network
from ser_fl.models.networks import build_network
from ser_fl.randomness import generator
from ser_fl.runs.records import ClientUpdate
from ser_fl.training.objectives import OBJECTIVES, ClientRound, TrainingPlan
from ser_fl.training.objectives.domain_adversarial import fitted_head, with_gradient_reversed

ASKED = ("objective=domain_adversarial", "federation=centralised")


def config(*more: str) -> Config:
    return ser_fl.compose(["experiment=debug", "tracking=none", "data.utterances_per_emotion=2", *more])


class Small(nn.Module):
    """A linear network with a representation of 3 units."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def embed(self, features_BFL: Tensor) -> Tensor:
        embedded: Tensor = self.below(features_BFL.mean(2)).tanh()
        return embedded

    def classify(self, hidden_BH: Tensor) -> Tensor:
        logits: Tensor = self.last(hidden_BH)
        return logits

    def forward(self, features_BFL: Tensor) -> Tensor:
        return self.classify(self.embed(features_BFL))


def round_of(number: int = 1, num_speakers: int = 3) -> ClientRound:
    torch.manual_seed(0)
    examples = Examples(torch.randn(12, 4, 5), torch.arange(12) % 2)
    return ClientRound(
        number=number,
        network=Small(),
        examples=examples,
        speakers=tuple(f"s{row % num_speakers}" for row in range(12)),
        stream=generator(0),
        augmentation=config().augmentation,
        box=Box.unbounded(),
    )


def plan_of(given: ClientRound, *more: str) -> TrainingPlan:
    return OBJECTIVES["domain_adversarial"](config(*ASKED, *more).stock_objective).start_round(given)


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, network.parameters(), strict=True)]


def test_the_reversed_gradient_is_minus_lambda_times_the_plain_one() -> None:
    hidden = torch.randn(5, 3, generator=generator(1), requires_grad=True)
    assert torch.equal(with_gradient_reversed(hidden, 0.3), hidden)
    target = torch.randn(5, 3, generator=generator(2))
    (plain,) = torch.autograd.grad((hidden * target).sum(), hidden)
    (found,) = torch.autograd.grad((with_gradient_reversed(hidden, 0.3) * target).sum(), hidden)
    torch.testing.assert_close(found, -0.3 * plain)


def test_a_steps_gradient_is_the_clean_one_minus_lambda_times_the_speakers() -> None:
    """By autograd through a network without any reversal, for every parameter; the head's own is the plain one."""
    given = round_of()
    plan = plan_of(given, "objective.weight=0.7", "objective.warm_up_rounds=0")
    assert plan.examples.speakers_N is not None
    features, labels, speakers = plan.examples.features_NFL, plan.examples.labels_N, plan.examples.speakers_N
    head = fitted_head(given.network, plan.examples, 3)
    logits, guesses = given.network(features), head(given.network.embed(features))  # type: ignore[operator]
    clean, told = given.cross_entropy(logits, labels), functional.cross_entropy(guesses, speakers)
    loss, scored = plan.loss(given.network, features, labels, speakers)
    torch.testing.assert_close(loss, clean + told)
    assert torch.equal(scored, logits)
    pairs = zip(gradients(clean, given.network), gradients(told, given.network), strict=True)
    expected = [mine - 0.7 * theirs for mine, theirs in pairs]
    assert all(theirs.abs().max() > 1e-3 for theirs in gradients(told, given.network)[:2])
    for found, wanted in zip(gradients(loss, given.network), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_the_weight_grows_over_the_first_rounds() -> None:
    for number, share in ((1, 0.25), (3, 0.75), (9, 1.0)):
        partial = plan_of(round_of(number), "objective.weight=0.4", "objective.warm_up_rounds=4").loss
        assert partial.args[-1] == pytest.approx(0.4 * share)  # type: ignore[attr-defined]


def test_the_head_begins_as_logistic_regression_and_learns_from_each_batch() -> None:
    """scikit-learn's, with as much decay, says as likely whose each utterance is; its next steps lower its loss."""
    given = round_of()
    speakers_N = torch.arange(12) % 3
    examples = replace(given.examples, speakers_N=speakers_N)
    head = fitted_head(given.network, examples, 3)
    with torch.no_grad():
        hidden = given.network.embed(given.examples.features_NFL)  # type: ignore[operator]
        found = head(hidden).softmax(1)
    theirs = LogisticRegression(C=1 / (2 * 12 * 1e-3), tol=1e-8, max_iter=5000).fit(hidden.numpy(), speakers_N.numpy())
    torch.testing.assert_close(
        found.double(), torch.from_numpy(theirs.predict_proba(hidden.numpy())).double(), atol=0.02, rtol=0
    )
    plan = plan_of(given)
    _, adversary, *_ = plan.loss.args  # type: ignore[attr-defined]
    before = adversary.weight.detach().clone()
    batch = examples.features_NFL, examples.labels_N, speakers_N
    loss, _ = plan.loss(given.network, *batch)
    loss.backward()
    assert torch.equal(adversary.weight, before), "its step comes with the next batch"
    plan.loss(given.network, *batch)
    assert not torch.equal(adversary.weight, before)


def test_who_has_one_speaker_trains_without() -> None:
    plan = plan_of(round_of(num_speakers=1))
    assert plan.examples.speakers_N is None
    assert plan.loss.func.__name__ == "loss"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config(*ASKED))


def update(settings: Config, prepared: Prepared) -> ClientUpdate:
    state = build_network(settings.model, len(prepared.store.classes), seed=1).state_dict()
    task = ClientTask(round=1, client_id="all", state=state, learning_rate=0.01)
    return Clients(settings, prepared).update(task)


def test_the_head_is_in_nothing_that_a_client_sends(prepared: Prepared) -> None:
    """Names and shapes of what comes back are those of clean training, the carried optimiser's too; its values are
    others, the same by the Trainer and the loop."""
    more = ("federation.keep_optimiser=true",)
    clean = update(config("federation=centralised", *more), prepared)
    found, by_loop = (
        update(config(*ASKED, *more, f"executor.engine={engine}"), prepared) for engine in ("trainer", "loop")
    )
    for name in ("state", "optimiser_state"):
        sent, plain = getattr(found, name), getattr(clean, name)
        assert {key: tensor.shape for key, tensor in sent.items()} == {key: each.shape for key, each in plain.items()}
        assert all(torch.equal(tensor, getattr(by_loop, name)[key]) for key, tensor in sent.items())
    assert not all(torch.equal(tensor, clean.state[name]) for name, tensor in found.state.items())


@pytest.mark.parametrize("model", ["crnn_tiny", "vgg15", "resnet", "pooled"])
def test_networks_classify_what_they_embed(model: str) -> None:
    network = build_network(config(f"model={model}").model, 4, seed=1).eval()
    features = torch.randn(2, 64, 64, generator=generator(0))
    with torch.no_grad():
        hidden = network.embed(features)  # type: ignore[operator]
        assert hidden.dim() == 2
        assert torch.equal(network.classify(hidden), network(features))  # type: ignore[operator]


def test_speakers_are_harder_to_tell_apart_afterwards(prepared: Prepared) -> None:
    """After some rounds a new head knows less of who speaks than after as many of clean training."""
    losses = []
    for more in (("objective.warm_up_rounds=0", "objective.weight=1"), ("objective=clean",)):
        settings = config(*ASKED, "executor.engine=loop", *more)
        clients, number = Clients(settings, prepared), len(prepared.store.classes)
        network = build_network(settings.model, number, seed=1)
        for round_number in range(1, 9):
            state = dict(network.state_dict())
            task = ClientTask(round=round_number, client_id="all", state=state, learning_rate=0.003)
            network.load_state_dict(clients.update(task).state)
        rows = prepared.split.train
        names = sorted({prepared.store.utterances[row].speaker for row in rows})
        speakers_N = torch.tensor([names.index(prepared.store.utterances[row].speaker) for row in rows])
        features_NFL = prepared.standardisation(prepared.store.features_NFL[list(rows)])
        head = fitted_head(network.eval(), Examples(features_NFL, speakers_N, speakers_N), len(names))
        with torch.no_grad():
            guesses = head(network.embed(features_NFL))  # type: ignore[operator]
            losses.append(float(functional.cross_entropy(guesses, speakers_N)))
    assert losses[0] > 2 * losses[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["objective=domain_adversarial"], "each client is one speaker: take clients.by=session, iid or dirichlet"),
        ([*ASKED, "augmentation.mixup=0.2"], "mixup goes with objective=clean, got domain_adversarial"),
        ([*ASKED, "augmentation.splice=1"], "augmentation.splice joins speakers"),
        ([*ASKED, "model=pooled", "model.hidden=0"], r"model\.hidden must be 1 or more, got 0"),
        ([*ASKED, "objective.weight=null"], r"needs objective\.weight above 0, got null"),
        (["objective.weight=1"], "objective.weight goes with objective=domain_adversarial, got 1 with objective=clean"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_a_line(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config(*more)
    assert "\n" not in str(caught.value)


def test_a_network_of_ones_own_needs_a_representation() -> None:
    def without(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    with pytest.raises(UserError, match=r"needs the methods embed, .*Sequential has not$"):
        check_network(config(*ASKED), 5, OwnObjects(network=without))
