"""What a client trains on: both recipes of adversarial training, against their definitions and the attacks themselves.

Legend: N utterances, B batch, F mel bins, L frames.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ser_fl.attacks.pgd import bim, divergence, fgsm, pgd, random_start
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose
from ser_fl.config.data import AugmentationConfig
from ser_fl.config.training import ObjectiveConfig
from ser_fl.data.augmentation import augment
from ser_fl.data.features import Examples
from ser_fl.errors import UserError
from ser_fl.training.objectives import OBJECTIVES, ClientRound, Objective
from ser_fl.training.objectives.adversarial import Adversarial, FreePerturbation, PerStep

NUM_MELS, NUM_FRAMES, NUM_CLASSES = 6, 5, 3
EPSILON = 0.2
BOX = Box(torch.linspace(-1.5, -0.5, NUM_MELS)[:, None], torch.linspace(0.5, 1.5, NUM_MELS)[:, None])
ROUNDING = 1e-6
AUGMENTATION = AugmentationConfig(
    roll=False, time_masks=0, max_time_mask=1, mel_masks=0, max_mel_mask=1, label_smoothing=0.1
)


class TinyNet(nn.Module):
    """Batch norm, dropout and a hidden layer: whatever an attack could leave in another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(NUM_MELS)
        self.hidden = nn.Linear(NUM_MELS * NUM_FRAMES, 8)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(8, NUM_CLASSES)

    def forward(self, features_BFL: Tensor) -> Tensor:
        hidden_BH = torch.tanh(self.hidden(self.norm(features_BFL).flatten(1)))
        logits_BC: Tensor = self.output(self.dropout(hidden_BH))
        return logits_BC


class Counted(TinyNet):
    """Counts its forward passes."""

    count = 0

    def forward(self, features_BFL: Tensor) -> Tensor:
        self.count += 1
        return super().forward(features_BFL)


@pytest.fixture
def network() -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return TinyNet()


def stream(seed: int = 1) -> Generator:
    return torch.Generator().manual_seed(seed)


def objective(name: str = "pgd", **changed: Any) -> Objective:
    settings: dict[str, Any] = {
        "name": name,
        "recipe": "per_round",
        "from_round": 2,
        "fraction": 0.5,
        "epsilon": EPSILON,
        "steps": 3,
        "step_size": None,
        "random_start": name == "pgd",
    }
    return OBJECTIVES[name](ObjectiveConfig(**{**settings, **changed}))


def given(network: nn.Module, examples: Examples | None = None, number: int = 2, **changed: Any) -> ClientRound:
    """A client's round before its first step."""
    usual: dict[str, Any] = {"stream": stream(), "augmentation": AUGMENTATION, "box": BOX}
    examples = make_examples(4) if examples is None else examples
    return ClientRound(number=number, network=network, examples=examples, **(usual | changed))


def harden(chosen: Objective, at_hand: ClientRound, batch: Examples, epsilon: float = EPSILON) -> Tensor:
    """What a step trains on in place of a batch."""
    assert isinstance(chosen, PerStep)
    return chosen.harden(at_hand, epsilon, batch.features_NFL, batch.labels_N)


def make_examples(count: int) -> Examples:
    """Features inside the box, many of them on its sides, as clipped features are."""
    features_NFL = BOX.clip(torch.randn(count, NUM_MELS, NUM_FRAMES, generator=stream(2)))
    return Examples(features_NFL, torch.randint(NUM_CLASSES, (count,), generator=stream(3)))


def positions(rows_NFL: Tensor, among: Examples) -> list[int]:
    """Which utterance each row is, bit for bit."""
    found = [torch.nonzero((among.features_NFL == row).all(dim=(1, 2))).flatten().tolist() for row in rows_NFL]
    assert all(len(places) == 1 for places in found)
    return [places[0] for places in found]


def loss(network: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(copy.deepcopy(network).eval()(features_BFL), labels_B))


@pytest.mark.parametrize(
    ("count", "fraction", "drawn"), [(20, 0.5, 10), (7, 0.3, 2), (1, 0.5, 1), (8, 1.0, 8), (90, 0.5, 45)]
)
def test_per_round_trains_on_a_share_and_its_adversarial_copies(
    network: TinyNet, count: int, fraction: float, drawn: int
) -> None:
    examples = make_examples(count)
    training = objective(fraction=fraction).start_round(given(network, examples))
    mixed = training.examples
    assert training.num_examples == drawn
    assert len(mixed) == len(mixed.features_NFL) == 2 * drawn
    clean_NFL, copies_NFL = torch.split(mixed.features_NFL, drawn)
    places = positions(clean_NFL, examples)
    assert len(set(places)) == drawn
    expected_N = examples.labels_N[places]
    assert torch.equal(mixed.labels_N, torch.cat([expected_N, expected_N]))
    moved_NFL = (copies_NFL - clean_NFL).abs()
    assert bool((moved_NFL.amax(dim=(1, 2)) > EPSILON / 4).all())
    assert float(moved_NFL.max()) <= EPSILON + ROUNDING
    assert BOX.lower_F1 is not None and BOX.upper_F1 is not None
    assert bool((copies_NFL >= BOX.lower_F1 - ROUNDING).all())
    assert bool((copies_NFL <= BOX.upper_F1 + ROUNDING).all())
    assert loss(network, copies_NFL, expected_N) > loss(network, clean_NFL, expected_N)


def test_per_round_copies_do_not_depend_on_how_they_are_batched(network: TinyNet) -> None:
    """90 utterances are more than one batch; the attack on all at once is the oracle."""
    mixed = objective("bim", fraction=1.0).start_round(given(network, make_examples(90))).examples
    clean_NFL, copies_NFL = torch.split(mixed.features_NFL, 90)
    labels_N = mixed.labels_N[:90]
    expected_NFL = bim(network, clean_NFL, labels_N, epsilon=EPSILON, step_size=EPSILON / 4, steps=3, box=BOX)
    torch.testing.assert_close(copies_NFL, expected_NFL, rtol=0, atol=ROUNDING)


def test_the_half_is_augmented_once_before_its_copies_are_made(network: TinyNet) -> None:
    """A copy that is rotated after the attack would be no adversarial utterance of the model that trains on it."""
    everything = {"roll": True, "splice": 1.0, "time_masks": 1, "mel_masks": 1, "max_mel_warp": 0.1}
    augmentation = replace(AUGMENTATION, **everything, max_equalisation=0.5)
    examples = make_examples(40)
    training = objective(fraction=1.0).start_round(given(network, examples, augmentation=augmentation))
    mixed, left = training.examples, training.augmentation
    clean_NFL, copies_NFL = mixed.features_NFL.chunk(2)
    assert any(not bool((examples.features_NFL == row).all(dim=(1, 2)).any()) for row in clean_NFL)
    assert float((copies_NFL - BOX.clip(clean_NFL)).abs().max()) <= EPSILON + ROUNDING
    assert torch.equal(augment(mixed.features_NFL, mixed.labels_N, left, stream()), mixed.features_NFL)
    assert left.label_smoothing == AUGMENTATION.label_smoothing
    for recipe, number in (("per_round", 1), ("per_step", 2)):  # not adversarial yet; augmented first, attacked then
        other = objective(recipe=recipe).start_round(given(network, examples, number, augmentation=augmentation))
        assert other.augmentation == augmentation and other.examples is examples


def test_the_half_is_drawn_anew_by_the_stream(network: TinyNet) -> None:
    examples = make_examples(20)

    def drawn(seed: int) -> Tensor:
        return objective().start_round(given(network, examples, stream=stream(seed))).examples.features_NFL

    assert torch.equal(drawn(1), drawn(1))
    assert positions(drawn(1)[:10], examples) != positions(drawn(2)[:10], examples)


@pytest.mark.parametrize("recipe", ["per_round", "per_step"])
def test_is_adversarial_from_its_first_round_on(recipe: str) -> None:
    late, clean = objective(recipe=recipe, from_round=3), objective("clean", recipe=recipe, from_round=1)
    for chosen, expected in ((late, [False, False, True, True]), (clean, [False] * 4)):
        attacked = []
        for number in (1, 2, 3, 4):
            passes = Counted()
            training = chosen.start_round(given(passes, make_examples(4), number))
            training.loss(passes, training.examples.features_NFL, training.examples.labels_N)
            attacked.append(passes.count > 1)  # the training step's own
        assert attacked == expected


@pytest.mark.parametrize(
    ("chosen", "number"),
    [
        (objective("pgd", from_round=3), 2),  # not yet
        (objective("clean", from_round=1), 5),
        (objective("pgd", recipe="per_step"), 5),  # that recipe hardens batches
    ],
)
def test_other_rounds_train_on_all_that_there_is(network: TinyNet, chosen: Objective, number: int) -> None:
    examples, unused = make_examples(9), stream()
    before = unused.get_state()
    training = chosen.start_round(given(network, examples, number, stream=unused))
    assert training.examples is examples
    assert training.num_examples == 9 and training.replays == 1
    assert torch.equal(unused.get_state(), before)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_copies_at_epsilon_0_are_the_clean_half(network: TinyNet, name: str) -> None:
    mixed = objective(name, epsilon=0.0).start_round(given(network, make_examples(12))).examples
    clean_NFL, copies_NFL = mixed.features_NFL.chunk(2)
    assert torch.equal(copies_NFL, clean_NFL)


@pytest.mark.parametrize(("size", "fraction", "replaced"), [(8, 0.5, 4), (7, 0.3, 2), (1, 0.5, 1), (6, 1.0, 6)])
def test_per_step_replaces_the_first_share_of_a_batch(
    network: TinyNet, size: int, fraction: float, replaced: int
) -> None:
    batch = make_examples(size)
    hardened = harden(objective(recipe="per_step", fraction=fraction), given(network), batch)
    assert hardened.shape == batch.features_NFL.shape
    moved_B = (hardened - batch.features_NFL).abs().amax(dim=(1, 2))
    assert bool((moved_B[:replaced] > EPSILON / 4).all())
    assert float(moved_B.max()) <= EPSILON + ROUNDING
    assert torch.equal(hardened[replaced:], batch.features_NFL[replaced:])


@pytest.mark.parametrize("changed", [{}, {"steps": 1}, {"step_size": 0.07}], ids=["quarter", "one step", "given"])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_each_name_runs_its_own_attack(network: TinyNet, name: str, random: bool, changed: dict[str, Any]) -> None:
    batch = make_examples(6)
    features_BFL, labels_B = batch.features_NFL, batch.labels_N
    chosen = objective(name, random_start=random, recipe="per_step", fraction=1.0, **changed)
    crafted = harden(chosen, given(network, stream=stream(9)), batch)
    steps = changed.get("steps", 3)
    step_size = changed.get("step_size", EPSILON if steps == 1 else EPSILON / 4)
    start = random_start(features_BFL, EPSILON, stream(9)) if random else None
    attacks = {
        "fgsm": lambda: fgsm(network, features_BFL, labels_B, epsilon=EPSILON, box=BOX, start_BFL=start),
        "bim": lambda: bim(network, features_BFL, labels_B, epsilon=EPSILON, step_size=step_size, steps=steps, box=BOX),
        "pgd": lambda: pgd(
            network,
            features_BFL,
            labels_B,
            epsilon=EPSILON,
            step_size=step_size,
            steps=steps,
            box=BOX,
            start_BFL=start,
        ),
    }
    assert torch.equal(crafted, attacks[name]())


def test_the_three_attacks_differ(network: TinyNet) -> None:
    batch = make_examples(6)
    crafted = [
        harden(objective(name, recipe="per_step", fraction=1.0), given(network), batch)
        for name in ("fgsm", "bim", "pgd")
    ]
    assert not torch.equal(crafted[0], crafted[1])
    assert not torch.equal(crafted[1], crafted[2])


@pytest.mark.parametrize("recipe", ["per_round", "per_step"])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_the_network_is_left_as_it_was(network: TinyNet, name: str, recipe: str) -> None:
    """Mixed modes, gradients that wait to be accumulated, running statistics and the global random state."""
    batch = make_examples(8)
    network.train()
    network.norm.eval()
    torch.autograd.backward(functional.cross_entropy(network(batch.features_NFL), batch.labels_N))
    modes = {key: module.training for key, module in network.named_modules()}
    state = copy.deepcopy(network.state_dict())
    gradients = {
        key: parameter.grad.clone() for key, parameter in network.named_parameters() if parameter.grad is not None
    }
    global_state = torch.get_rng_state()
    chosen = objective(name, recipe=recipe)
    if recipe == "per_round":
        chosen.start_round(given(network, batch))
    else:
        harden(chosen, given(network), batch)
    assert {key: module.training for key, module in network.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert len(gradients) == len(list(network.parameters()))
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, gradients[key])
        assert parameter.requires_grad
    assert torch.equal(torch.get_rng_state(), global_state)


def quick(name: str, **changed: Any) -> Objective:
    """objective=fast or objective=free, as in configs/."""
    settings: dict[str, Any] = {"recipe": "per_step", "from_round": 1, "fraction": 1.0, "steps": 1}
    settings |= {"random_start": name == "fast", "replays": 3 if name == "free" else None}
    return objective(name, **{**settings, **changed})


class Linear(nn.Module):
    """Two logits, (w . x, 0): the sign of every gradient is known."""

    def __init__(self, weight_FL: Tensor) -> None:
        super().__init__()
        self.weight_FL = nn.Parameter(weight_FL.clone())

    def forward(self, features_BFL: Tensor) -> Tensor:
        logit_B = (features_BFL * self.weight_FL).sum(dim=(1, 2))
        return torch.stack([logit_B, torch.zeros_like(logit_B)], dim=1)


def test_fast_is_one_step_of_five_quarters_of_epsilon_from_a_uniform_start() -> None:
    """By hand on a linear model: label 0 falls along -sign(w), label 1 rises along it."""
    weight_FL = torch.randn(NUM_MELS, NUM_FRAMES, generator=stream(4))
    examples = make_examples(40)
    features_BFL, labels_B = examples.features_NFL, examples.labels_N % 2
    batch, at_hand = Examples(features_BFL, labels_B), given(Linear(weight_FL), stream=stream(7))
    fast_BFL = harden(quick("fast"), at_hand, batch)
    unit_BFL = torch.rand(features_BFL.shape, generator=stream(7))
    noise_BFL = BOX.clip(features_BFL + (2 * unit_BFL - 1) * EPSILON) - features_BFL
    direction_BFL = (2 * labels_B - 1)[:, None, None] * weight_FL.sign()
    perturbation_BFL = (noise_BFL + 1.25 * EPSILON * direction_BFL).clamp(-EPSILON, EPSILON)
    expected_BFL = BOX.clip(features_BFL + perturbation_BFL)
    torch.testing.assert_close(fast_BFL, expected_BFL, rtol=0, atol=ROUNDING)
    moved_BFL = (fast_BFL - features_BFL).abs()
    assert bool((moved_BFL < 0.9 * EPSILON).any()), "a start on the far side ends inside the ball"
    assert bool((moved_BFL > 0.999 * EPSILON).any())
    longer_BFL = harden(quick("fast", step_size=2 * EPSILON), at_hand, batch)
    at_the_edge_BFL = BOX.clip(features_BFL + EPSILON * direction_BFL)
    torch.testing.assert_close(longer_BFL, at_the_edge_BFL, rtol=0, atol=ROUNDING)


def perturbation_of(free: FreePerturbation) -> Tensor:
    assert free.perturbation_BFL is not None
    return free.perturbation_BFL


def test_two_replays_of_free_by_hand() -> None:
    """One utterance of one cell, x = 1 with label 0 and w = 1: loss log(1 + exp(-w x)), so both gradients are known.

    The loss falls as w x grows, so that its gradients are -s x by the weight and -s w by the feature, s = sigmoid(-w x)
    being that of the label: the perturbation goes from 0 to -0.25 and stays, clipped to epsilon.
    """
    free = FreePerturbation(0.25, 0.25, Box(torch.tensor([[0.8]]), torch.tensor([[1.5]])))
    network, rate = Linear(torch.tensor([[1.0]])), 0.5
    features_BFL, labels_B = torch.tensor([[[1.0]]]), torch.tensor([0])
    weight = 1.0
    for seen, after in ((1.0, -0.25), (0.8, -0.25), (0.8, -0.25)):  # 1 - 0.25 is outside the box, which ends at 0.8
        moved_BFL = free(features_BFL)
        assert float(moved_BFL.detach()) == pytest.approx(seen)
        functional.cross_entropy(network(moved_BFL), labels_B).backward()
        assert network.weight_FL.grad is not None
        with torch.no_grad():
            network.weight_FL -= rate * network.weight_FL.grad
        network.weight_FL.grad = None
        weight += rate * seen / (1 + math.exp(weight * seen))
        assert float(network.weight_FL.detach()) == pytest.approx(weight)
        assert perturbation_of(free).item() == pytest.approx(after)
    labels_B = torch.tensor([1])  # now up, from where it is: -0.25 + 0.25, then + 0.25
    for seen, after in ((0.8, 0.0), (1.0, 0.25), (1.25, 0.25)):
        moved_BFL = free(features_BFL)
        assert float(moved_BFL.detach()) == pytest.approx(seen)
        functional.cross_entropy(network(moved_BFL), labels_B).backward()
        assert perturbation_of(free).item() == pytest.approx(after)


def test_a_smaller_minibatch_takes_the_first_rows_of_frees_perturbation(network: TinyNet) -> None:
    """And stays in ball and box, and leaves the rows that it does not use as they are."""
    free, chosen = FreePerturbation(EPSILON, EPSILON, BOX), make_examples(15)
    labels_N = chosen.labels_N
    assert BOX.lower_F1 is not None and BOX.upper_F1 is not None
    before_BFL = torch.zeros(8, NUM_MELS, NUM_FRAMES)
    moves = 0
    for rows in (range(8), range(8), range(8, 15), range(8, 15), range(8)):
        features_BFL = chosen.features_NFL[list(rows)]
        moved_BFL = free(features_BFL)
        expected_BFL = BOX.clip(features_BFL + before_BFL[: len(rows)])
        assert torch.equal(moved_BFL.detach(), expected_BFL)
        assert float((moved_BFL.detach() - features_BFL).abs().max()) <= EPSILON + ROUNDING
        assert bool((moved_BFL >= BOX.lower_F1).all()) and bool((moved_BFL <= BOX.upper_F1).all())
        functional.cross_entropy(network(moved_BFL), labels_N[list(rows)]).backward()
        after_BFL = perturbation_of(free).clone()
        assert torch.equal(after_BFL[len(rows) :], before_BFL[len(rows) :])
        assert float(after_BFL.abs().max()) <= EPSILON + ROUNDING
        moves += int(not torch.equal(after_BFL, before_BFL))
        before_BFL = after_BFL
    assert moves == 5


@pytest.mark.parametrize("name", ["fast", "free"])
def test_the_named_objectives_begin_at_their_round(network: TinyNet, name: str) -> None:
    late, examples = quick(name, from_round=3), make_examples(6)
    network.eval()
    for number, is_clean in ((2, True), (3, False)):
        training = late.start_round(given(network, examples, number))
        assert training.replays == (3 if name == "free" and not is_clean else 1)
        assert training.examples is examples and training.augmentation == AUGMENTATION
        clean = functional.cross_entropy(network(examples.features_NFL), examples.labels_N, label_smoothing=0.1)
        for _ in range(2):  # free's first step is clean too
            found, _ = training.loss(network, examples.features_NFL, examples.labels_N)
            found.backward()
        assert (found.item() == pytest.approx(clean.item())) == is_clean


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("fast", {"recipe": "per_round"}, "objective.recipe must be per_step with objective=fast, got per_round"),
        ("free", {"recipe": "per_round"}, "objective.recipe must be per_step with objective=free, got per_round"),
        ("fast", {"steps": 2}, "objective.steps must be 1 with objective=fast, got 2"),
        ("fast", {"random_start": False}, "objective.random_start must be true with objective=fast, got false"),
        ("free", {"random_start": True}, "objective.random_start must be false with objective=free, got true"),
        ("free", {"fraction": 0.5}, "objective.fraction must be 1 with objective=free, got 0.5"),
        ("free", {"replays": None}, "objective=free needs objective.replays of at least 1, got null"),
        ("fast", {"replays": 4}, "objective.replays goes with objective=free, got 4 with objective=fast"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(name: str, changed: dict[str, Any], message: str) -> None:
    overrides = [f"objective.{key}={json.dumps(value)}".replace('"', "") for key, value in changed.items()]
    with pytest.raises(UserError) as refused:
        compose([f"objective={name}", *overrides])
    assert str(refused.value) == message


def trades(**changed: Any) -> Objective:
    settings = {"recipe": "per_step", "from_round": 1, "fraction": 1.0, "random_start": True, "beta": 3.0}
    return objective("trades", **(settings | changed))


def test_trades_is_the_clean_loss_where_nothing_may_move(network: TinyNet) -> None:
    """At epsilon 0 the divergence is that of a prediction from itself."""
    batch = make_examples(7)
    network.eval()  # dropout would tell the two halves apart
    step_loss = trades(epsilon=0.0).start_round(given(network)).loss
    found, logits_BC = step_loss(network, batch.features_NFL, batch.labels_N)
    torch.testing.assert_close(logits_BC, network(batch.features_NFL))
    torch.testing.assert_close(found, functional.cross_entropy(logits_BC, batch.labels_N, label_smoothing=0.1))


def test_trades_adds_beta_times_the_divergence_that_its_attack_found(network: TinyNet) -> None:
    """The loss is linear in beta, and its slope is the divergence of torch.distributions at the attack's features."""
    batch = make_examples(6)
    network.eval()
    found = {}
    for beta in (1.0, 2.0, 4.0):
        step_loss = trades(beta=beta).start_round(given(network, stream=stream(9))).loss
        found[beta] = step_loss(network, batch.features_NFL, batch.labels_N)[0]
    start_BFL = random_start(batch.features_NFL, 0.02 * EPSILON, stream(9))
    adversarial_BFL = pgd(
        network, batch.features_NFL, None, epsilon=EPSILON, step_size=EPSILON / 4, steps=3, box=BOX, start_BFL=start_BFL
    )
    clean, moved = (
        torch.distributions.Categorical(logits=network(features)) for features in (batch.features_NFL, adversarial_BFL)
    )
    expected = torch.distributions.kl_divergence(clean, moved).mean()
    assert expected > 1e-4, "nothing moved"
    torch.testing.assert_close(found[2.0] - found[1.0], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[4.0] - found[2.0], 2 * expected, rtol=1e-4, atol=1e-6)


def test_the_attack_of_trades_raises_the_divergence_step_by_step(network: TinyNet) -> None:
    features_BFL = make_examples(8).features_NFL
    network.eval()
    start_BFL = random_start(features_BFL, 0.02 * EPSILON, stream())
    reached = []
    for steps in (0, 1, 4, 12):
        moved_BFL = pgd(
            network,
            features_BFL,
            None,
            epsilon=EPSILON,
            step_size=EPSILON / 4,
            steps=steps,
            box=BOX,
            start_BFL=start_BFL,
        )
        assert float((moved_BFL - features_BFL).abs().max()) <= EPSILON + ROUNDING
        assert torch.equal(BOX.clip(moved_BFL), moved_BFL)
        with torch.no_grad():
            reached.append(float(divergence(network(features_BFL), network(moved_BFL)).mean()))
    assert reached == sorted(reached) and reached[1] > 2 * reached[0] and reached[3] > reached[1]


def test_trades_trains_both_sides_of_the_divergence(network: TinyNet) -> None:
    batch = make_examples(6)
    step_loss = trades().start_round(given(network)).loss
    found, logits_BC = step_loss(network.train(), batch.features_NFL, batch.labels_N)
    found.backward()
    assert logits_BC.shape == (6, NUM_CLASSES) and network.training
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters())


def test_trades_begins_in_its_round(network: TinyNet) -> None:
    late, batch = trades(from_round=4), make_examples(6)
    network.eval()
    clean, found = (
        late.start_round(given(network, batch, number)).loss(network, batch.features_NFL, batch.labels_N)[0].item()
        for number in (3, 4)
    )
    logits_BC = network(batch.features_NFL)
    assert clean == pytest.approx(functional.cross_entropy(logits_BC, batch.labels_N, label_smoothing=0.1).item())
    assert found > clean + 1e-3


def test_an_objective_of_ones_own_says_its_loss(network: TinyNet) -> None:
    class Doubled(Objective):
        def loss(
            self, given: ClientRound, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
        ) -> tuple[Tensor, Tensor]:
            found, logits_BC = super().loss(given, network, features_BFL, labels_B)
            return 2 * found, logits_BC

    batch = make_examples(6)
    network.eval()
    losses = [
        chosen.start_round(given(network, batch)).loss(network, batch.features_NFL, batch.labels_N)[0]
        for chosen in (Objective(), Doubled())
    ]
    torch.testing.assert_close(losses[1], 2 * losses[0])


def test_epsilon_grows_in_equal_steps_from_the_first_adversarial_round() -> None:
    warming = objective(recipe="per_step", from_round=3, warm_up_rounds=4)
    full = objective(from_round=3)
    assert isinstance(warming, Adversarial) and isinstance(full, Adversarial)
    grown = [warming.epsilon(number) / EPSILON for number in range(3, 9)]
    assert grown == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert warming.epsilon(6) == EPSILON
    assert full.epsilon(3) == EPSILON


@pytest.mark.parametrize("recipe", ["per_step", "per_round"])
def test_a_round_of_the_warm_up_keeps_to_its_own_epsilon(network: TinyNet, recipe: str) -> None:
    """A quarter of the way: nobody moves further than that, and somebody that far."""
    warming = objective(recipe=recipe, from_round=1, fraction=1.0, warm_up_rounds=4, step_size=EPSILON)
    examples = make_examples(8)
    if recipe == "per_step":
        assert isinstance(warming, Adversarial)
        moved = (harden(warming, given(network), examples, warming.epsilon(1)) - examples.features_NFL).abs()
    else:
        mixed = warming.start_round(given(network, examples, 1)).examples
        moved = (mixed.features_NFL[8:] - mixed.features_NFL[:8]).abs()
    assert EPSILON / 4 - ROUNDING <= float(moved.max()) <= EPSILON / 4 + ROUNDING


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("trades", {"beta": None}, "objective=trades needs objective.beta above 0, got null"),
        ("pgd", {"beta": 2.0}, "objective.beta goes with objective=trades, got 2 with objective=pgd"),
        ("trades", {"recipe": "per_round"}, "objective.recipe must be per_step with objective=trades, got per_round"),
    ],
)
def test_settings_of_trades_are_checked(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trades(**changed) if name == "trades" else objective(name, **changed)
