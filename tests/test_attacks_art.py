"""The catalogue: attacks on models whose nearest adversarial utterance is known, and its bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attacking import generate as made_by
from torch import Tensor, nn

from ser_fl.attacks.art.any_attack import attack_classes
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.pgd import bim, fgsm, pgd, random_start
from ser_fl.attacks.registry import ATTACKS, AttackSettings, build
from ser_fl.attacks.threat_model import Box, budget_of, distance, keep_within
from ser_fl.errors import UserError
from ser_fl.randomness import generator

BINS, FRAMES, CLASSES = 6, 8, 4
WIDE = Box(torch.full((BINS, 1), -8.0), torch.full((BINS, 1), 8.0))


def linear_problem(num: int = 8, scale: float = 1.0, seed: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier, its logits scaled, and utterances that it gets right."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(BINS * FRAMES, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    features = torch.randn(num, BINS, FRAMES)
    return model, features, model(features).argmax(1)


def curved_problem(num: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, where a start matters, and labels of which some are wrong when clean."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(BINS * FRAMES, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    features = torch.randn(num, BINS, FRAMES)
    labels = model(3 * features).argmax(1)
    labels[0] = (model(features[:1]).argmax() + 1) % CLASSES
    return model, features, labels


def margins(model: nn.Module, features: Tensor, labels: Tensor, order: float) -> Tensor:
    """Distance to the nearest boundary of a linear classifier: min over classes of margin / |w_y - w_j|, dual norm."""
    weight, logits = model[1].weight.detach(), model(features).detach()  # type: ignore[index]
    rows = []
    for row, label in enumerate(labels.tolist()):
        others = [other for other in range(CLASSES) if other != label]
        gaps = torch.stack([logits[row, label] - logits[row, other] for other in others])
        norms = torch.stack([torch.linalg.vector_norm(weight[label] - weight[other], ord=order) for other in others])
        rows.append((gaps / norms).min())
    return torch.stack(rows)


def generate(
    name: str,
    problem: tuple[nn.Module, Tensor, Tensor],
    epsilon: float,
    box: Box | None = WIDE,
    **settings: int | float,
) -> Crafted:
    attack = build(AttackSettings(name=name, epsilon=epsilon, **settings))  # type: ignore[arg-type]
    keys = [f"utterance {row}" for row in range(len(problem[1]))]
    return made_by(attack, *problem, box=box, num_classes=CLASSES, keys_B=keys, seed=1, batch_size=5)


@pytest.mark.parametrize(
    ("name", "half", "every"), [("deepfool", 1.03, 1.03), ("cw_l2", 1.03, 1.1), ("fmn_l2", 1.02, 1.05)]
)
def test_minimal_attacks_find_the_known_nearest_utterance(name: str, half: float, every: float) -> None:
    model, features, labels = linear_problem()
    crafted = generate(name, (model, features, labels), epsilon=5.0)
    nearest = margins(model, features, labels, 2).double()
    ratios = distance(features, crafted.adversarial_NFL, "2") / nearest
    assert (model(crafted.adversarial_NFL).argmax(1) != labels).all()
    assert ratios.min() >= 0.999
    assert ratios.median() <= half
    assert ratios.max() <= every


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cw_l2_comes_near_whatever_the_scale_of_the_logits(scale: float, seed: int) -> None:
    """The constant that is right depends on the slope of the logits."""
    model, features, labels = linear_problem(16, scale, seed)
    crafted = generate("cw_l2", (model, features, labels), epsilon=5.0)
    ratios = distance(features, crafted.adversarial_NFL, "2") / margins(model, features, labels, 2).double()
    assert (model(crafted.adversarial_NFL).argmax(1) != labels).all()
    assert ratios.min() >= 0.999
    assert ratios.max() <= 1.25


@pytest.mark.parametrize("name", ["cw_l2", "cw_linf", "fmn", "fmn_l2"])
def test_our_minimal_attacks_do_not_depend_on_batches(name: str) -> None:
    """Utterances are through at different times, and leave the batch when they are."""
    model, features, labels = curved_problem(7)
    attack = build(AttackSettings(name=name, epsilon=5.0))
    keys = [str(row) for row in range(7)]
    results = [
        made_by(
            attack, model, features, labels, box=WIDE, num_classes=CLASSES, keys_B=keys, seed=1, batch_size=size
        ).adversarial_NFL
        for size in (1, 5, 16)
    ]
    assert not torch.equal(results[0], features)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-5)


class Tied(nn.Module):
    """Class 0 wins where the mean is above 0, and by a tie below."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        lead_B = features_BFL.mean(dim=(1, 2)).clamp(min=0)
        return torch.stack([lead_B, torch.zeros_like(lead_B), lead_B - 1, lead_B - 1], dim=1)


@pytest.mark.parametrize("name", ["cw_l2", "cw_linf", "fmn", "fmn_l2"])
def test_a_tie_is_no_success(name: str) -> None:
    """ART takes equal logits for a success of C&W, while the true class is still the prediction."""
    features = torch.full((2, BINS, FRAMES), 0.1)
    labels = Tied()(features).argmax(1)
    crafted = generate(name, (Tied(), features, labels), epsilon=5.0)
    assert crafted.backward_passes > 0
    assert torch.equal(crafted.adversarial_NFL, features)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mim", "cw_linf", "fmn"])
def test_attacks_of_a_ball_break_what_lies_within_and_nothing_else(name: str) -> None:
    model, features, labels = linear_problem(5)
    critical = margins(model, features, labels, 1)
    epsilon = float(critical.median())
    crafted = generate(name, (model, features, labels), epsilon)
    broken = model(crafted.adversarial_NFL).argmax(1) != labels
    sure = (critical / epsilon < 0.9) | (critical > epsilon * 1.0001)
    assert 0 < int(broken.sum()) < len(labels)
    assert torch.equal(broken[sure], (critical < epsilon)[sure])


def test_minimal_attacks_count_within_the_budget_only() -> None:
    model, features, labels = linear_problem()
    nearest = margins(model, features, labels, 2)
    epsilon = float(nearest.median()) * 1.02 / (BINS * FRAMES) ** 0.5
    crafted = generate("deepfool", (model, features, labels), epsilon)
    norms = distance(features, crafted.adversarial_NFL, "2")
    beyond = nearest > epsilon * (BINS * FRAMES) ** 0.5
    assert torch.equal(crafted.adversarial_NFL[beyond], features[beyond])
    assert (norms <= epsilon * (BINS * FRAMES) ** 0.5 * (1 + 1e-6)).all()
    assert 0 < int(beyond.sum()) < len(labels)
    assert (model(crafted.adversarial_NFL).argmax(1) != labels)[~beyond].all()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd_paper"])
@pytest.mark.parametrize("box", [None, WIDE])
def test_the_catalogue_runs_what_training_runs(name: str, box: Box | None) -> None:
    model, features, labels = curved_problem(5)
    crafted = generate(name, (model, features, labels), 0.2, box)
    ours = {
        "fgsm": lambda: fgsm(model, features, labels, epsilon=0.2, box=box),
        "bim": lambda: bim(model, features, labels, epsilon=0.2, step_size=0.05, steps=10, box=box),
        "pgd_paper": lambda: pgd(model, features, labels, epsilon=0.2, step_size=0.1, steps=5, box=box),
    }[name]()
    assert torch.equal(crafted.adversarial_NFL, ours)


def test_pgd_starts_at_the_utterances_own_point() -> None:
    model, features, labels = curved_problem(3)
    crafted = generate("pgd", (model, features, labels), 0.2, steps=4, restarts=1)
    starts = [
        random_start(features[row : row + 1], 0.2, generator("pgd", 1, f"utterance {row}", 0)) for row in range(3)
    ]
    ours = pgd(model, features, labels, epsilon=0.2, step_size=0.05, steps=4, box=WIDE, start_BFL=torch.cat(starts))
    assert torch.equal(crafted.adversarial_NFL, ours)


@pytest.mark.parametrize("name", ["pgd", "mim", "cw_l2", "cw_linf", "fmn", "deepfool", "art:SquareAttack"])
def test_batches_and_their_order_do_not_matter(name: str) -> None:
    model, features, labels = curved_problem(6)
    attack = build(AttackSettings(name=name, epsilon=0.3, steps=4))
    keys = [f"utterance {row}" for row in range(len(labels))]

    def run(batch_size: int, order: list[int]) -> Tensor:
        ordered = [keys[row] for row in order]
        crafted = made_by(
            attack,
            model,
            features[order],
            labels[order],
            box=WIDE,
            num_classes=CLASSES,
            keys_B=ordered,
            seed=1,
            batch_size=batch_size,
        )
        return crafted.adversarial_NFL[np.argsort(order)]

    at_once = run(8, list(range(6)))
    assert not torch.equal(at_once, features)
    for batch_size, order in ((1, list(range(6))), (3, list(range(6))), (4, [5, 2, 0, 1, 4, 3])):
        torch.testing.assert_close(run(batch_size, order), at_once, rtol=0, atol=1e-5)


def test_restarts_never_lose_a_success_and_stop_where_there_is_one() -> None:
    problem = curved_problem(16)
    model, _, labels = problem
    broken = []
    for restarts in (1, 2, 6):
        crafted = generate("pgd", problem, 0.12, steps=3, restarts=restarts)
        broken.append(model(crafted.adversarial_NFL).argmax(1) != labels)
    assert (broken[1] | ~broken[0]).all()
    assert (broken[2] | ~broken[1]).all()
    assert int(broken[0].sum()) < len(labels)
    survivors = int((~broken[0]).sum())
    two = generate("pgd", problem, 0.12, steps=3, restarts=2)
    # A start is 3 steps and a look at the result.
    assert two.backward_passes == 3 * (16 + survivors)
    assert two.forward_passes == 4 * (16 + survivors)


@pytest.mark.parametrize("name", [*ATTACKS, "art:MomentumIterativeMethod", "art:SquareAttack"])
def test_every_attack_keeps_to_box_and_budget(name: str) -> None:
    """Also where a mel bin may take one value only, as above the band of a telephone."""
    model, features, labels = curved_problem()
    upper = torch.linspace(0.4, 1.5, BINS)[:, None]
    lower = -upper
    lower[2] = upper[2]
    box = Box(lower, upper)
    clean = box.clip(features)
    steps = None if name == "fgsm" else 5
    attack = build(AttackSettings(name=name, epsilon=0.3, steps=steps))
    keys = [str(row) for row in range(len(labels))]
    crafted = made_by(attack, model, clean, labels, box=box, num_classes=CLASSES, keys_B=keys, seed=1, batch_size=4)
    norms = distance(clean, crafted.adversarial_NFL, attack.entry.norm)
    assert (norms <= budget_of(0.3, attack.entry.norm, (BINS, FRAMES)) + 1e-6).all()
    assert float((box.clip(crafted.adversarial_NFL) - crafted.adversarial_NFL).abs().max()) <= 1e-6
    assert (norms > 0).any()
    assert crafted.forward_passes > 0


@pytest.mark.parametrize("name", [*ATTACKS, "art:MomentumIterativeMethod", "art:SquareAttack"])
def test_features_outside_the_box_are_clipped_to_it_first(name: str) -> None:
    model, features, labels = curved_problem(4)
    box = Box(torch.full((BINS, 1), -0.5), torch.full((BINS, 1), 0.5))
    outside = generate(name, (model, features, labels), 0.2, box)
    inside = generate(name, (model, box.clip(features), labels), 0.2, box)
    assert float((features - box.clip(features)).abs().max()) > 1
    assert torch.equal(outside.adversarial_NFL, inside.adversarial_NFL)
    assert float((outside.adversarial_NFL - box.clip(outside.adversarial_NFL)).abs().max()) <= 1e-6
    assert torch.equal(generate(name, (model, features, labels), 0.0, box).adversarial_NFL, box.clip(features))


@pytest.mark.parametrize("name", [*ATTACKS, "art:SquareAttack"])
def test_epsilon_zero_costs_and_changes_nothing(name: str) -> None:
    problem = curved_problem(2)
    crafted = generate(name, problem, 0.0)
    assert torch.equal(crafted.adversarial_NFL, problem[1])
    assert (crafted.forward_passes, crafted.backward_passes) == (0, 0)


@pytest.mark.parametrize("name", ["deepfool", "cw_l2", "cw_linf", "fmn", "fmn_l2", "art:MomentumIterativeMethod"])
def test_what_is_wrong_already_is_left_alone(name: str) -> None:
    """ART's DeepFool leads away from the predicted class, for a wrong prediction perhaps to the right one."""
    model, features, labels = curved_problem()
    wrong = model(features).argmax(1) != labels
    assert wrong.any()
    crafted = generate(name, (model, features, labels), 5.0, steps=4)
    assert torch.equal(crafted.adversarial_NFL[wrong], features[wrong])


def test_every_attack_is_told_the_true_labels() -> None:
    """From predicted labels, FGSM would push a wrong utterance towards the right class."""
    model, features, labels = curved_problem()
    wrong = (model(features).argmax(1) != labels).nonzero().flatten()
    for name, settings in (("fgsm", {}), ("bim", {}), ("pgd", {"steps": 5, "restarts": 2})):
        crafted = generate(name, (model, features, labels), 0.05, **settings)
        loss = nn.CrossEntropyLoss(reduction="none")
        assert (loss(model(crafted.adversarial_NFL), labels) > loss(model(features), labels))[wrong].all()


def test_defaults() -> None:
    def of(name: str, epsilon: float = 0.08) -> tuple[int | None, float | None, int | None]:
        settings = build(AttackSettings(name=name, epsilon=epsilon)).settings
        return settings.steps, settings.step_size, settings.restarts

    assert of("fgsm") == (1, 0.08, 0)
    assert of("bim") == (10, 0.02, 0)
    assert of("pgd") == (50, 0.02, 5)
    assert of("pgd_paper") == (5, 0.1, 0)
    assert of("mim") == (10, 0.008, 0)
    assert of("deepfool")[:2] == (50, None)
    assert of("art:MomentumIterativeMethod") == (100, 0.02, None)
    assert of("art:HopSkipJump") == (50, None, None)


@pytest.mark.parametrize(
    ("name", "norm", "library", "knowledge"),
    [
        ("pgd", "inf", "art.ProjectedGradientDescentPyTorch", "undefended"),
        ("mim", "inf", "art.MomentumIterativeMethod", "undefended"),
        ("cw_l2", "2", "ser_fl.carlini_wagner_l2", "undefended"),
        ("fmn", "inf", "ser_fl.fast_minimum_norm", "undefended"),
        ("art:SquareAttack", "inf", "art.SquareAttack", "score"),
        ("art:HopSkipJump", "inf", "art.HopSkipJump", "decision"),
        ("art:NewtonFool", "2", "art.NewtonFool", "undefended"),
        ("art:VirtualAdversarialMethod", "2", "art.VirtualAdversarialMethod", "score"),
    ],
)
def test_what_a_record_says_of_an_attack(name: str, norm: str, library: str, knowledge: str) -> None:
    attack = build(AttackSettings(name=name, epsilon=0.5))
    assert (attack.entry.norm, attack.entry.library, attack.entry.knowledge) == (norm, library, knowledge)
    assert budget_of(0.5, attack.entry.norm, (64, 100)) == (0.5 if norm == "inf" else 40.0)


OF_ART = [name for name, entry in ATTACKS.items() if entry.library.startswith("art.")]


@pytest.mark.parametrize("name", [*OF_ART, "art:MomentumIterativeMethod", "art:SquareAttack"])
def test_library_names_the_class_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All classes are watched; of calls within calls only the outermost counts."""
    ran: list[type] = []
    depth = 0

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(self: object, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if depth == 0:
                ran.append(type(self))
            depth += 1
            try:
                return original(self, *args, **kwargs)
            finally:
                depth -= 1

        return generate

    classes = attack_classes()
    for one in classes.values():
        if "generate" in vars(one):
            monkeypatch.setattr(one, "generate", watched(one.generate))
    attack = build(AttackSettings(name=name, epsilon=0.3, steps=None if name == "fgsm" else 2))
    problem = curved_problem(2)
    made_by(attack, *problem, box=WIDE, num_classes=CLASSES, keys_B=["a", "b"], seed=1, batch_size=2)
    # A class of ours may stand in for one of ART's; the nearest ancestor among ART's is what runs.
    names = {next(parent.__name__ for parent in one.__mro__ if parent in classes.values()) for one in ran}
    assert {f"art.{one}" for one in names} == (
        {attack.entry.library} if attack.entry.library.startswith("art.") else set()
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pdg", "unknown attack 'pdg', did you mean 'pgd'.*bim, cw_l2"),
        ("art:SquareAtack", "unknown attack 'art:SquareAtack', did you mean 'art:SquareAttack'.*art:ZooAttack"),
    ],
)
def test_unknown_names_list_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(AttackSettings(name=name, epsilon=0.1))


def test_only_a_class_of_arts_needs_a_box() -> None:
    """Without one ART's C&W would take the range of each batch."""
    with pytest.raises(UserError, match="art:CarliniL2Method needs a box"):
        generate("art:CarliniL2Method", linear_problem(2), 0.1, box=None)
    for name in ATTACKS:
        model, features, labels = linear_problem(2)
        crafted = generate(name, (model, features, labels), 1.0, box=WIDE if ATTACKS[name].needs_box else None)
        assert (model(crafted.adversarial_NFL).argmax(1) != labels).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -0.01}, "epsilon must be >= 0 and finite, got -0.01"),
        ({"epsilon": float("inf")}, "epsilon must be >= 0"),
        ({"epsilon": 0.1, "steps": 0}, "steps must be >= 1, got 0"),
        ({"epsilon": 0.1, "step_size": 0.0}, "step_size must be > 0"),
        ({"epsilon": 0.1, "restarts": -1}, "restarts must be >= 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttackSettings(name="pgd", **settings)  # type: ignore[arg-type]


def test_questionable_settings_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="step size of 0.2 exceeds epsilon 0.1"):
        build(AttackSettings(name="pgd", epsilon=0.1, step_size=0.2))
    with pytest.warns(UserWarning, match="fgsm has its own steps: 1"):
        assert build(AttackSettings(name="fgsm", epsilon=0.1, steps=20)).settings.steps == 1


def test_numpy_scalars_are_settings_too() -> None:
    settings = AttackSettings(name="pgd", epsilon=np.float32(0.25), step_size=np.float32(0.125), steps=2, restarts=1)
    assert type(settings.epsilon) is float
    problem = linear_problem(2)
    keys = ["a", "b"]
    made_by(build(settings), *problem, box=WIDE, num_classes=CLASSES, keys_B=keys, seed=1, batch_size=2)


def test_keep_within_gives_back_what_went_too_far() -> None:
    clean = torch.zeros(3, 2, 2)
    adversarial = clean + torch.tensor([0.1, 0.1000001, 0.2])[:, None, None]
    kept = keep_within(clean, adversarial, "inf", 0.1)
    assert torch.equal(kept[:2], adversarial[:2])
    assert torch.equal(kept[2], clean[2])
    assert budget_of(0.1, "2", (3, 2, 2)) == pytest.approx(0.2)
    assert torch.equal(keep_within(clean, adversarial, "2", 0.2), kept)
