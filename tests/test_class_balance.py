"""Balance of classes in a client's training: by weights of the loss, or by how often utterances are drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch import Generator, Tensor
from torch.nn import functional

from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import Batch, ShuffledBatches, balanced_order
from ser_fl.data.features import Examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.models.networks import build_network
from ser_fl.runs.records import ClientUpdate
from ser_fl.training.objectives import OBJECTIVES, ClientRound, balanced_weights

LABELS = torch.tensor([0] * 12 + [1] * 3 + [3] * 5)
"""Of four classes; one is missing."""


def stream(seed: int = 1) -> Generator:
    return Generator().manual_seed(seed)


def given(labels_N: Tensor, *, smoothing: float = 0.0) -> ClientRound:
    """A round whose loss is weighted by a client's labels."""
    config = compose(["augmentation=none", f"augmentation.label_smoothing={smoothing}"])
    return ClientRound(
        number=1,
        network=torch.nn.Identity(),
        examples=Examples(torch.zeros(len(labels_N), 1, 1), labels_N),
        stream=stream(),
        augmentation=config.augmentation,
        box=Box.unbounded(),
        class_weights_C=balanced_weights(labels_N, 4),
    )


def test_weights_are_those_of_scikit_learn() -> None:
    theirs = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS.numpy())
    ours = balanced_weights(LABELS, 4)
    np.testing.assert_allclose(ours[[0, 1, 3]], theirs, rtol=1e-6)
    assert float(ours[LABELS].mean()) == pytest.approx(1), "as large a loss as without, on the average"
    assert balanced_weights(torch.tensor([2, 2]), 4)[2] == 1, "of one class alone"


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_over_an_epoch_every_class_has_the_same_share_of_the_loss_whatever_the_batches(batch_size: int) -> None:
    """Mean of the classes' mean losses, and scikit-learn's log loss with balanced weights."""
    logits_NC = torch.randn(len(LABELS), 4, generator=stream(3))
    at_hand = given(LABELS)
    parts = zip(logits_NC.split(batch_size), LABELS.split(batch_size), strict=True)
    found = sum(float(at_hand.cross_entropy(logits_BC, labels_B)) * len(labels_B) for logits_BC, labels_B in parts)
    by_class = [functional.cross_entropy(logits_NC[label == LABELS], LABELS[label == LABELS]) for label in (0, 1, 3)]
    assert found / len(LABELS) == pytest.approx(float(torch.stack(by_class).mean()), rel=1e-5)
    weights = compute_sample_weight("balanced", LABELS.numpy())
    theirs = log_loss(LABELS, logits_NC.double().softmax(dim=1), sample_weight=weights, labels=[0, 1, 2, 3])
    assert found / len(LABELS) == pytest.approx(theirs, rel=1e-5)


def test_equal_counts_change_no_loss() -> None:
    labels_N, logits_NC = torch.arange(8) % 4, torch.randn(8, 4, generator=stream())
    smoothed = functional.cross_entropy(logits_NC, labels_N, label_smoothing=0.1)
    torch.testing.assert_close(given(labels_N, smoothing=0.1).cross_entropy(logits_NC, labels_N), smoothed)


def test_both_terms_of_trades_are_weighted() -> None:
    """What one class adds and what the other adds make up the whole, of the clean loss and of the divergence."""
    labels_B, features_BFL = torch.tensor([0, 0, 0, 1]), torch.randn(4, 2, 3, generator=stream())
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))

    def loss(beta: float, *weights: float) -> float:
        config = compose(["objective=trades", "objective.epsilon=0.5", f"objective.beta={beta}"])
        at_hand = replace(given(labels_B), stream=stream(), network=network, class_weights_C=torch.tensor(weights))
        plan = OBJECTIVES["trades"](config.stock_objective).start_round(at_hand)
        return plan.loss(network, features_BFL, labels_B)[0].item()

    for beta in (1.0, 5.0):
        assert loss(beta, 1, 0) + loss(beta, 0, 1) == pytest.approx(loss(beta, 1, 1), rel=1e-5)
    assert loss(5.0, 1, 1) > loss(1.0, 1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_balanced_order_draws_every_class_equally_often_and_nobody_needlessly_twice(seed: int) -> None:
    rows = balanced_order(LABELS, stream(seed))
    counts = Counter(LABELS[rows].tolist())
    assert sorted(counts.values()) == [6, 7, 7] and counts.keys() == {0, 1, 3}
    assert sorted(Counter(LABELS[1:][balanced_order(LABELS[1:], stream(seed))].tolist()).values()) == [6, 6, 7]
    for label, count in counts.items():
        often = Counter(rows[LABELS[rows] == label].tolist())
        held = int((label == LABELS).sum())
        assert set(often.values()) <= {count // held, -(-count // held)}
    assert torch.equal(rows, balanced_order(LABELS, stream(seed)))
    assert int(LABELS[rows].diff().count_nonzero()) > 5, "in one order, and not class after class"


def test_who_comes_once_more_is_drawn() -> None:
    labels_N = torch.tensor([0, 1, 1])
    assert len({tuple(labels_N[balanced_order(labels_N, stream(seed))].sort()[0].tolist()) for seed in range(20)}) == 2


@pytest.mark.parametrize(("most", "replays"), [(None, 1), (2, 1), (None, 4)])
def test_balanced_batches_are_as_many_as_others(most: int | None, replays: int) -> None:
    examples = Examples(torch.zeros(len(LABELS), 1, 1), LABELS)
    plain, balanced = (
        ShuffledBatches(examples, 6, stream(), most=most, replays=replays, balanced=each) for each in (False, True)
    )
    assert [len(batch[1]) for batch in plain] == [len(batch[1]) for batch in balanced]
    assert len(plain) == len(balanced)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Prepared]:
    """A client with nine utterances of one emotion and a few of the others."""
    cache = tmp_path_factory.mktemp("cache")
    small = [
        "experiment=debug",
        "data.utterances_per_emotion=6",
        "federation.batch_size=4",
        "federation.local_epochs=2",
    ]
    config = compose([*small, f"data.cache_dir={cache}"])
    prepared = prepare(config)
    held, emotions = prepared.clients["f01"], [utterance.emotion for utterance in prepared.store.utterances]
    common = max(Counter(emotions[row] for row in held))
    kept = [row for place, row in enumerate(held) if emotions[row] == common or place % 4 == 0]
    assert len({*Counter(emotions[row] for row in kept).values()}) > 1
    return config, replace(prepared, clients={**prepared.clients, "f01": tuple(kept)})


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.labels: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, _: int) -> None:
        self.labels += batch[1].tolist()


def update(config: Config, prepared: Prepared, *callbacks: pl.Callback, number: int = 2) -> ClientUpdate:
    clients = Clients(config, prepared, OwnObjects(callbacks=callbacks))
    state = dict(build_network(config.model, len(prepared.store.classes), seed=config.seed).state_dict())
    return clients.update(ClientTask(round=number, client_id="f01", state=state, learning_rate=0.01))


OBJECTIVES_TRIED = {
    "clean": (),
    "per_round": ("objective=pgd", "objective.steps=2"),
    "per_step": ("objective=pgd", "objective.recipe=per_step", "objective.steps=2"),
    "fast": ("objective=fast",),
    "free": ("objective=free",),
    "trades": ("objective=trades", "objective.steps=2"),
    "splice, one batch": ("augmentation.splice=1", "federation=federated_sgd", "optimiser=sgd"),
}


@pytest.mark.parametrize("balance", ["loss", "sampling"])
@pytest.mark.parametrize("name", OBJECTIVES_TRIED)
def test_with_every_objective_and_both_engines_to_the_same_bits(
    skewed: tuple[Config, Prepared], name: str, balance: str
) -> None:
    config, prepared = skewed
    small = ["experiment=debug", f"data.cache_dir={config.data.cache_dir}", "federation.batch_size=4"]
    chosen = compose([*small, *OBJECTIVES_TRIED[name], f"class_balance={balance}"])
    trainer = update(chosen, prepared)
    loop = update(replace(chosen, executor=replace(chosen.executor, engine="loop")), prepared)
    without = update(replace(chosen, class_balance="none"), prepared)
    assert all(torch.equal(tensor, loop.state[key]) for key, tensor in trainer.state.items())
    assert not all(torch.equal(tensor, without.state[key]) for key, tensor in trainer.state.items())
    assert trainer.num_examples == without.num_examples


def test_a_client_is_fed_every_emotion_equally_often_each_epoch(skewed: tuple[Config, Prepared]) -> None:
    config, prepared = skewed
    seen, plain = Seen(), Seen()
    update(replace(config, class_balance="sampling"), prepared, seen)
    update(config, prepared, plain)
    size = len(prepared.clients["f01"])
    assert len(seen.labels) == len(plain.labels) == 2 * size
    for epoch in (seen.labels[:size], seen.labels[size:]):
        counts = Counter(epoch).values()
        assert max(counts) - min(counts) <= 1
    assert max(Counter(plain.labels).values()) > max(Counter(seen.labels).values())


def test_an_unknown_balance_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown class_balance 'balanced'\. Known: loss, none, sampling"):
        compose(["class_balance=balanced"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_balanced", [False, True])
def test_a_mixed_utterance_costs_what_its_two_labels_do(smoothing: float, is_balanced: bool) -> None:
    """By hand: 0.7 of class 0 and 0.3 of class 3, each label's loss by its share, as often as its class counts."""
    round_of_one = given(LABELS, smoothing=smoothing)
    weights = round_of_one.class_weights_C if is_balanced else None
    round_of_one = replace(round_of_one, class_weights_C=weights)
    logits = torch.tensor([[2.0, -1.0, 0.5, 1.0], [0.0, 1.0, 0.0, -2.0]])
    targets = torch.tensor([[0.7, 0.0, 0.0, 0.3], [0.0, 1.0, 0.0, 0.0]])
    log = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    costs = -(1 - smoothing) * log - smoothing * log.mean(1, keepdim=True)
    counts = weights if weights is not None else torch.ones(4)
    first = 0.7 * counts[0] * costs[0, 0] + 0.3 * counts[3] * costs[0, 3]
    torch.testing.assert_close(round_of_one.cross_entropy(logits, targets), (first + counts[1] * costs[1, 1]) / 2)
    plain = torch.tensor([0, 1])
    torch.testing.assert_close(
        round_of_one.cross_entropy(logits, torch.nn.functional.one_hot(plain, 4).float()),
        round_of_one.cross_entropy(logits, plain),
    )
    losses = torch.tensor([2.0, 5.0])
    expected = (2 * (0.7 * counts[0] + 0.3 * counts[3]) + 5 * counts[1]) / 2
    torch.testing.assert_close(round_of_one.mean(losses, targets), expected)
