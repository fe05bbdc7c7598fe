"""Attacks that see no gradient, one perturbation for all, noise as the control, and suites of attacks by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.losses import margin
from ser_fl.attacks.registry import ATTACKS, SUITES, AttackSettings, build
from ser_fl.attacks.score_attacks import HALVINGS, window
from ser_fl.attacks.target import Expectation
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose_benchmark
from ser_fl.errors import UserError
from ser_fl.robustness.benchmark import benchmark
from ser_fl.robustness.plan import Request, listed, subsets_for

BINS, FRAMES, CLASSES = 6, 10, 4
BOX = Box(torch.linspace(-2.0, -1.5, BINS)[:, None], torch.linspace(1.5, 2.5, BINS)[:, None])
QUERIES = ["square", "noise_uniform", "noise_gaussian"]


def problem(number: int = 12, seed: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(BINS * FRAMES, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    features = BOX.clip(torch.randn(number, BINS, FRAMES))
    return model.requires_grad_(False), features, model(features).argmax(1)


def generate(
    name: str,
    attacked: tuple[nn.Module, Tensor, Tensor],
    epsilon: float,
    *,
    rows: Sequence[int] | None = None,
    batch_size: int = 5,
    expectation: Expectation | None = None,
    **settings: int,
) -> Crafted:
    model, features, labels = attacked
    chosen = list(range(len(labels)) if rows is None else rows)
    return made_by(
        build(AttackSettings(name=name, epsilon=epsilon, **settings)),
        model,
        features[chosen],
        labels[chosen],
        box=BOX,
        num_classes=CLASSES,
        keys_B=[f"utterance {row}" for row in chosen],
        seed=1,
        batch_size=batch_size,
        expectation=expectation,
    )


def right(attacked: tuple[nn.Module, Tensor, Tensor], crafted: Crafted) -> int:
    model, _, labels = attacked
    return int((model(crafted.adversarial_NFL).argmax(1) == labels).sum())


@pytest.mark.parametrize("name", [*QUERIES, "universal"])
def test_it_stays_in_ball_and_box_and_epsilon_zero_is_clean(name: str) -> None:
    attacked = problem()
    _, features, _ = attacked
    made = generate(name, attacked, 0.3, steps=30).adversarial_NFL
    assert 0.2 < (made - features).abs().max() <= 0.3 + 1e-6
    assert torch.equal(made, BOX.clip(made))
    assert torch.equal(generate(name, attacked, 0.0, steps=30).adversarial_NFL, features)


@pytest.mark.parametrize("name", [*QUERIES, "universal"])
def test_neither_batch_nor_order_matters(name: str) -> None:
    attacked = problem(9)
    once = generate(name, attacked, 0.2, steps=25, batch_size=9).adversarial_NFL
    assert not torch.equal(once, attacked[1])
    for rows, batch_size in ((list(range(9)), 1), ([3, 8, 1, 0, 2, 7, 4, 6, 5], 4)):
        made = generate(name, attacked, 0.2, rows=rows, batch_size=batch_size, steps=25).adversarial_NFL
        assert torch.allclose(made[torch.tensor(np.argsort(rows))], once, atol=1e-6)


@pytest.mark.parametrize("name", QUERIES)
def test_more_queries_never_lose_what_fewer_have_found(name: str) -> None:
    """Noise draws on; Square's schedule hangs on the number of queries, but its first perturbation does not."""
    attacked = problem(30)
    model, features, labels = attacked
    before = margin(model(features), labels)
    counts = []
    for steps in (1, 40, 200):
        crafted = generate(name, attacked, 0.25, steps=steps)
        now = margin(model(crafted.adversarial_NFL), labels)
        if name != "square" or steps == 1:
            assert (now >= before)[before < 0].all()
        counts.append(right(attacked, crafted))
        before = torch.minimum(now, torch.zeros(())) if name != "square" else before
    assert counts[0] >= counts[1] >= counts[2]
    assert counts[2] < counts[0]


@pytest.mark.parametrize("name", QUERIES)
def test_queries_are_counted_and_end_with_success(name: str) -> None:
    attacked = problem(30)
    crafted = generate(name, attacked, 0.1, steps=60, batch_size=30)
    left = right(attacked, crafted)
    assert crafted.backward_passes == 0
    assert 0 < left < 30
    assert 30 + 60 * left <= crafted.forward_passes < 30 + 60 * 30
    easy = generate(name, attacked, 5.0, steps=60, batch_size=30)
    assert right(attacked, easy) < 15
    one = generate(name, (attacked[0], attacked[1][:1], (attacked[2][:1] + 1) % CLASSES), 0.1, steps=60)
    assert one.forward_passes == 1  # wrong when clean: nothing to ask


class Corner(nn.Module):
    """Class 0 leads by 1 until the mean of the lower right corner falls: a window must lie in the right place."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        corner_B = features_BFL[:, BINS // 2 :, FRAMES // 2 :].mean(dim=(1, 2))
        others = torch.zeros(len(features_BFL), CLASSES - 1)
        return torch.cat([corner_B[:, None], others], dim=1)


def test_square_reaches_the_corner_of_the_ball_that_its_windows_can_reach() -> None:
    """A lead of epsilon * 0.75 against a fall of at most epsilon: seven in eight cells must be at the lower face."""
    features = torch.full((6, BINS, FRAMES), 0.75 * 0.3)
    attacked = (Corner(), features, torch.zeros(6, dtype=torch.long))
    assert right(attacked, generate("square", attacked, 0.3, steps=300)) == 0
    assert right(attacked, generate("noise_uniform", attacked, 0.3, steps=300)) == 6
    beyond = (Corner(), torch.full((6, BINS, FRAMES), 0.301), torch.zeros(6, dtype=torch.long))
    assert right(beyond, generate("square", beyond, 0.3, steps=100)) == 6


def test_windows_have_the_papers_area_also_where_an_utterance_is_long() -> None:
    assert window(0.04, 50, 100) == (14, 14)
    assert window(0.8, 50, 100) == (50, 80)
    assert window(1e-6, 50, 100) == (1, 1)
    assert window(1.0, 50, 100) == (50, 100)
    assert window(0.5, 20, 100) == (20, 50)
    assert tuple(query / 10_000 for query in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)) == HALVINGS


class Coin:
    """A defence of two equally likely draws: the features, or their opposite, which no perturbation breaks as well."""

    weights = (0.5, 0.5)

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        assert step == 0, "what is compared must be asked under the same draws"
        return torch.cat([features_BFL if draw == 0 else features_BFL.clamp(min=0.28) for draw in draws])


@pytest.mark.parametrize("name", [*QUERIES, "universal"])
def test_a_randomised_model_is_attacked_in_expectation(name: str) -> None:
    """One of two draws can be broken: half recognised is not broken, so that queries go on to the last."""
    features = torch.full((4, BINS, FRAMES), 0.02)
    attacked = (Corner(), features, torch.zeros(4, dtype=torch.long))
    crafted = generate(name, attacked, 0.3, steps=40, expectation=Coin())
    assert right(attacked, crafted) == 0
    assert crafted.forward_passes == 2 * 4 * 41
    alone = generate(name, attacked, 0.3, steps=40)
    assert name == "universal" or alone.forward_passes < 4 * 41


def test_the_universal_perturbation_is_one_and_the_best_there_is_of_a_linear_model() -> None:
    """Two classes pulled apart by one weight: all of one class fall to one perturbation, none of the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(BINS * FRAMES, 2)).requires_grad_(False)
    direction = (model[1].weight[1] - model[1].weight[0]).view(BINS, FRAMES).sign()
    features = 0.2 * torch.randn(70, BINS, FRAMES)
    labels = torch.zeros(70, dtype=torch.long)
    model[1].bias.copy_(torch.tensor([0.5 + float((model(features)[:, 1] - model(features)[:, 0]).max()), 0.0]))
    epsilon = 0.12
    crafted = made_by(
        build(AttackSettings(name="universal", epsilon=epsilon)),
        model,
        features,
        labels,
        box=None,
        num_classes=2,
        keys_B=[str(row) for row in range(70)],
        seed=0,
        batch_size=8,
    )
    perturbations = crafted.adversarial_NFL - features
    assert torch.allclose(perturbations, perturbations[:1].expand_as(perturbations), atol=1e-6)
    best = features + epsilon * direction
    assert torch.equal(model(crafted.adversarial_NFL).argmax(1), model(best).argmax(1))
    assert 0 < int(model(best).argmax(1).sum()) <= 70


def test_the_benchmark_gives_the_universal_perturbation_all_utterances_at_once() -> None:
    model, features, labels = problem(20)
    records = [
        benchmark(model, features, labels, attacks=["universal"], epsilons=[0.3], box=BOX, batch_size=size)
        for size in (3, 20)
    ]
    assert [record.robust_uar for record in records[0]] == [record.robust_uar for record in records[1]]
    assert records[0][1].max_linf == records[1][1].max_linf
    assert records[0][1].robust_uar < 1


def test_noise_is_uniform_or_gaussian_in_the_whole_ball() -> None:
    features = torch.zeros(1, 60, 100)
    unbreakable = nn.Sequential(nn.Flatten(), nn.Linear(6000, 2)).requires_grad_(False)
    unbreakable[1].weight.zero_()
    unbreakable[1].bias.copy_(torch.tensor([1.0, 0.0]))
    cells = {}
    for name in ("noise_uniform", "noise_gaussian"):
        # The first draw is no better than the clean utterance, by a tie: a slope makes it so.
        unbreakable[1].weight[1, 0] = 1e-3
        made = [
            made_by(
                build(AttackSettings(name=name, epsilon=0.5, steps=20)),
                unbreakable,
                features,
                torch.zeros(1, dtype=torch.long),
                box=None,
                num_classes=2,
                keys_B=[key],
                seed=0,
                batch_size=1,
            )
            for key in "abc"
        ]
        cells[name] = torch.cat([crafted.adversarial_NFL.flatten()[1:] for crafted in made])
    uniform, gaussian = cells["noise_uniform"], cells["noise_gaussian"]
    assert uniform.std() == pytest.approx(0.5 / 3**0.5, rel=0.02)
    assert (gaussian.abs() == 0.5).float().mean() == pytest.approx(0.3173, abs=0.02)  # beyond one standard deviation
    assert gaussian[gaussian.abs() < 0.5].std() == pytest.approx(0.5 * 0.5396, rel=0.03)  # of a normal within +-1


def test_hopskipjump_knows_decisions_alone() -> None:
    attacked = problem(3)
    crafted = generate("hopskipjump", attacked, 1.0, steps=2)
    assert crafted.backward_passes == 0
    assert right(attacked, crafted) < 3
    named = generate("art:HopSkipJump", attacked, 1.0, steps=2)
    assert torch.equal(crafted.adversarial_NFL, named.adversarial_NFL)


def test_suites_name_attacks_of_the_catalogue_and_grow() -> None:
    names = {suite: set(entry.attacks) for suite, entry in SUITES.items()}
    assert set().union(*names.values()) <= set(ATTACKS)
    assert names["quick"] < names["standard"] < names["thorough"]
    assert {"apgd_ce", "apgd_t", "square", "pgd", "noise_uniform"} <= names["standard"]
    for entry in SUITES.values():
        assert set(entry.subsets) <= set(entry.attacks)
    assert not set(SUITES) & set(ATTACKS)
    assert subsets_for(listed(["thorough", "standard", "pgd"]), None)["square"] == SUITES["thorough"].subsets["square"]
    assert subsets_for(listed("pgd"), None) == {}


@pytest.mark.parametrize(
    ("given", "attacks"),
    [
        ("standard", SUITES["standard"].attacks),
        ("[pgd,quick]", ("pgd", "fgsm", "bim", "apgd_ce", "noise_uniform")),
        ("[bim,quick,bim]", ("bim", "fgsm", "apgd_ce", "noise_uniform")),  # each once
        ("[pgd,square]", ("pgd", "square")),
        ("pgd", ("pgd",)),
        ("art:NewtonFool", ("art:NewtonFool",)),
    ],
)
def test_a_suite_a_list_and_a_single_name_are_all_understood(given: str, attacks: tuple[str, ...]) -> None:
    config = compose_benchmark(["run=RUN", f"attacks={given}", "subsets.square=7"])
    assert names(Request(num_classes=6).attacks(config.attacks, [0.1])) == attacks
    # What is said counts before what a suite asks for.
    assert subsets_for(config.attacks, config.subsets)["square"] == 7


def names(attacks: Sequence[Attack]) -> tuple[str, ...]:
    return tuple(attack.name for attack in attacks)


def test_a_suites_subsets_are_used_where_nothing_is_said() -> None:
    config = compose_benchmark(["run=RUN", "attacks=thorough", "adaptive=thorough"])
    assert subsets_for(config.attacks, config.subsets) == SUITES["thorough"].subsets


def test_a_suite_leaves_out_what_does_not_fit_and_a_name_is_refused() -> None:
    """Three classes are too few for the targeted loss; a decision attack of ART's cannot know of a defence."""
    config = compose_benchmark(["run=RUN", "attacks=standard", "curve_attacks=[]", "adaptive=thorough"])
    request = Request(num_classes=3)
    with pytest.warns(UserWarning, match="standard is run without what does not fit here: apgd_t"):
        attacks = names(request.attacks(config.attacks, [0.1]))
    assert attacks == tuple(name for name in SUITES["standard"].attacks if name != "apgd_t")
    with pytest.warns(UserWarning, match="hopskipjump"):
        adaptive = names(request.attacks(config.adaptive, [0.1], adaptive=True))
    assert set(SUITES["thorough"].attacks) - set(adaptive) == {"apgd_t", "hopskipjump"}
    assert names(request.attacks(listed("apgd_t"), [0.1])) == ("apgd_t",)


def test_a_suite_runs_from_python_as_well() -> None:
    model, features, labels = problem(6)
    records = benchmark(model, features, labels, attacks="quick", epsilons=[0.1], box=BOX)
    assert [record.attack for record in records] == ["clean", *SUITES["quick"].attacks, "worst_case"]
    assert {record.attack: record.knowledge for record in records}["noise_uniform"] == "score"


@pytest.mark.parametrize("name", ["foolbox:LinfPGD", "torchattacks:CW"])
def test_an_attack_of_another_library_is_told_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"the attack '{name}' is of another library than ART: take")) as told:
        build(AttackSettings(name=name, epsilon=0.1))
    assert "\n" not in str(told.value)
