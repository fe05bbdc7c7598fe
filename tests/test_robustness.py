"""Robustness benchmark: figures against models whose decision boundary is known, and against each other.

Legend: N utterances, F mel bins, L frames, C classes, R runs of a defence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attacking import benchmark_attacks
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks import registry
from ser_fl.attacks.attack import AttackSettings, Problem
from ser_fl.attacks.registry import ATTACKS, Attack, Entry, build
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose_benchmark
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.defences import Classifier, NoDefence, Randomisation, build_defence
from ser_fl.errors import UserError
from ser_fl.robustness import benchmark as benchmark_module
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.robustness.test_set import TestSet, balanced_rows
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

F, L = 8, 12
CELLS = F * L
BOX = Box(torch.full((F, 1), -2.0), torch.full((F, 1), 2.0))
PGD = AttackSettings(name="pgd", epsilon=0.2, steps=5, restarts=2)
CONTRACT = {
    *("attack", "library", "knowledge", "domain", "norm", "epsilon", "snr_db", "steps", "step_size", "restarts"),
    *("eot_samples", "defence", "clean_uar", "robust_uar", "attack_success_rate", "mean_l2", "max_linf"),
    *("median_snr_db", "num_examples", "forward_passes", "backward_passes", "seconds", "seed"),
}


class Sign(nn.Module):
    """Class 1 where the mean m of all cells is above 0.

    The boundary is at a distance of |m| in the L-infinity norm, and of |m| * sqrt(F * L) in the L2 norm.
    """

    def forward(self, features_NFL: Tensor) -> Tensor:
        mean_N = features_NFL.mean(dim=(1, 2))
        return torch.stack([-mean_N, mean_N], dim=1)


class LeftEdge(nn.Module):
    """Class 1 where the first frames are louder than a threshold: what randomisation's padding changes."""

    def forward(self, features_NFL: Tensor) -> Tensor:
        edge_N = features_NFL[:, :, :3].mean(dim=(1, 2)) - 0.25
        return torch.stack([-edge_N, edge_N], dim=1)


class Convolutional(nn.Module):
    """A small classifier into three classes, of any F and L."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(36, 3),
        )

    def forward(self, features_NFL: Tensor) -> Tensor:
        logits_NC: Tensor = self.layers(features_NFL[:, None])
        return logits_NC


def flat(means: Sequence[float]) -> Tensor:
    """Utterances with the same value in every cell."""
    return torch.tensor(means)[:, None, None].expand(-1, F, L).clone()


def only(records: Sequence[AttackRecord], attack: str, defence: str = "none") -> AttackRecord:
    """The one record of an attack under a defence."""
    (found,) = [record for record in records if (record.attack, record.defence) == (attack, defence)]
    return found


def timeless(records: Sequence[AttackRecord]) -> list[AttackRecord]:
    return [replace(record, seconds=0.0) for record in records]


def made(
    name: str,
    moves: Mapping[str, float],
    *,
    epsilon: float = 0.5,
    seen: list[str] | None = None,
    knowledge: str = "undefended",
) -> Attack:
    """An attack that adds a known value to every cell of the utterances it names."""

    def craft(problem: Problem) -> Tensor:
        if seen is not None:
            seen.extend(problem.keys_B)
        return problem.clean + torch.tensor([moves.get(key, 0.0) for key in problem.keys_B])[:, None, None]

    entry = Entry(craft=craft, library="t", norm="inf", paper="", knowledge=knowledge)
    return Attack(settings=AttackSettings(name=name, epsilon=epsilon), entry=entry)


def broken(name: str) -> Attack:
    """An attack that fails when it runs."""

    def craft(problem: Problem) -> Tensor:
        raise UserError(f"{name} does not work")

    return Attack(
        settings=AttackSettings(name=name, epsilon=0.5), entry=Entry(craft=craft, library="t", norm="inf", paper="")
    )


def sign_challenge(means: Sequence[float], labels: Sequence[int], ids: Sequence[str]) -> TestSet:
    return TestSet(
        model=Sign(),
        features_NFL=flat(means),
        labels_N=torch.tensor(labels),
        ids=tuple(ids),
        num_classes=2,
        box=Box.unbounded(),
        seed=0,
    )


@pytest.fixture(scope="module")
def speech() -> tuple[Tensor, Tensor]:
    """Noisy utterances of three classes, each a coarse pattern of its own, for training and test."""
    stream = torch.Generator().manual_seed(5)
    patterns_CFL = torch.randn(3, 2, 3, generator=stream).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels_N = torch.arange(60) % 3
    noise_NFL = torch.randn(60, F, L, generator=stream)
    return (0.3 * patterns_CFL[labels_N] + 0.6 * noise_NFL).clamp(-2, 2), labels_N


@pytest.fixture(scope="module")
def trained(speech: tuple[Tensor, Tensor]) -> nn.Module:
    """A small convolutional classifier of any F and L, trained on the first half."""
    features_NFL, labels_N = speech[0][:30], speech[1][:30]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Convolutional()
        optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(features_NFL), labels_N).backward()
            optimiser.step()
    optimiser.zero_grad()
    return network.eval()


def attacked(model: nn.Module, speech: tuple[Tensor, Tensor], **changes: Any) -> list[AttackRecord]:
    """The benchmark on the test half."""
    settings: dict[str, Any] = {"attacks": ("fgsm", PGD), "epsilons": (0.2,), "box": BOX}
    return ser_fl.benchmark(model, speech[0][30:], speech[1][30:], **(settings | changes))


@pytest.mark.parametrize(
    "attack", ["fgsm", "bim", "mim", "pgd", "pgd_paper", "deepfool", "cw_l2", "cw_linf", "fmn", "art:SquareAttack"]
)
def test_epsilon_0_is_the_clean_score(attack: str, trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    defences = ("none", "randomisation")
    records = attacked(trained, speech, attacks=(attack,), epsilons=(0.0,), defences=defences)
    for defence in defences:
        record, clean = only(records, attack, defence), only(records, "clean", defence)
        assert record.robust_uar == record.clean_uar == clean.robust_uar
        assert record.confusion == clean.confusion
        assert (record.attack_success_rate, record.mean_l2, record.max_linf) == (0.0, 0.0, 0.0)


def test_clean_score_is_scikit_learns(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    labels = speech[1][30:]
    predicted = trained(speech[0][30:]).argmax(dim=1)
    clean = only(attacked(trained, speech, attacks=()), "clean")
    assert clean.robust_uar == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert clean.confusion == tuple(map(tuple, confusion_matrix(labels, predicted).tolist()))
    assert clean.robust_uar > 0.6  # worth attacking


def test_fgsm_harms_and_pgd_harms_no_less(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    strong = AttackSettings(name="pgd", epsilon=0.2, steps=10, restarts=2)
    records = attacked(trained, speech, attacks=("fgsm", strong))
    clean, fgsm, pgd = (only(records, name).robust_uar for name in ("clean", "fgsm", "pgd"))
    assert pgd <= fgsm + 1e-9
    assert fgsm < clean  # equal would leave the comparison above empty


def test_success_counts_utterances_that_were_right_when_clean() -> None:
    """Epsilon 0.2 turns the two of four right utterances that lie 0.1 from the boundary; the fifth is wrong anyway."""
    features_NFL = flat([0.1, 0.3, -0.1, -0.3, -0.15])
    labels_N = torch.tensor([1, 1, 0, 0, 1])
    records = ser_fl.benchmark(Sign(), features_NFL, labels_N, attacks=("fgsm", "bim"), epsilons=(0.2,))
    for attack in ("fgsm", "bim"):
        record = only(records, attack)
        assert record.attack_success_rate == 2 / 4
        assert record.clean_uar == pytest.approx((2 / 3 + 2 / 2) / 2)
        assert record.robust_uar == pytest.approx((1 / 3 + 1 / 2) / 2)
        assert record.confusion == ((1.0, 1.0), (2.0, 1.0))
        assert record.mean_l2 == pytest.approx(0.2 * math.sqrt(CELLS), rel=1e-5)
        assert record.max_linf == pytest.approx(0.2, rel=1e-5)


def test_success_rate_is_0_where_nothing_was_right() -> None:
    record = only(ser_fl.benchmark(Sign(), flat([0.1, -0.1]), torch.tensor([0, 1]), attacks=("fgsm",)), "fgsm")
    assert (record.attack_success_rate, record.clean_uar, record.mean_l2) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("attack", "detour"), [("deepfool", 1.05), ("cw_l2", 1.05), ("fmn_l2", 1.05)])
@pytest.mark.parametrize(("epsilon", "successes"), [(0.05, 0), (0.2, 1), (0.5, 2)])
def test_minimal_norm_attack_succeeds_only_within_the_budget(
    attack: str, detour: float, epsilon: float, successes: int
) -> None:
    """Utterances lie at L2 distances 0.1 and 0.3 times sqrt(F L); the budget is epsilon times sqrt(F L).

    The detour is how much further than the boundary an attack goes.
    """
    records = ser_fl.benchmark(
        Sign(), flat([0.1, -0.3]), torch.tensor([1, 0]), attacks=(attack,), epsilons=(epsilon,), box=BOX
    )
    record = only(records, attack)
    assert record.attack_success_rate == successes / 2
    assert record.robust_uar == 1 - successes / 2
    assert record.norm == "2"
    assert record.epsilon == pytest.approx(epsilon * math.sqrt(CELLS))
    nearest = [0.0, 0.1, 0.2][successes] * math.sqrt(CELLS)
    assert nearest <= record.mean_l2 <= detour * nearest  # 0 where both failed: the clean utterance is what is shown


def test_worst_case_is_what_withstood_every_attack() -> None:
    """a, b, c, d, e are right when clean. "one" breaks a and d; "two" breaks a and b, and puts f right."""
    test_set = sign_challenge([0.1, 0.1, 0.1, -0.1, -0.1, 0.1], [1, 1, 1, 0, 0, 0], "abcdef")
    attacks = [made("one", {"a": -0.3, "d": 0.3}), made("two", {"a": -0.3, "b": -0.3, "f": -0.3})]
    records = benchmark_attacks(test_set, attacks, [NoDefence()])
    assert only(records, "one").robust_uar == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert only(records, "two").robust_uar == pytest.approx((1 / 3 + 3 / 3) / 2)
    worst = only(records, "worst_case")
    assert worst.robust_uar == pytest.approx((1 / 3 + 1 / 3) / 2)  # c, and e: f was wrong when clean
    assert worst.attack_success_rate == pytest.approx(3 / 5)
    assert worst.clean_uar == pytest.approx((3 / 3 + 2 / 3) / 2)
    assert worst.epsilon == 0.5
    assert [sum(row) for row in worst.confusion] == [3.0, 3.0]


def test_worst_case_is_taken_per_epsilon() -> None:
    test_set = sign_challenge([0.1, -0.1], [1, 0], "ab")
    weak, strong = made("one", {"a": -0.3}), made("one", {"a": -0.3, "b": 0.3}, epsilon=0.7)
    records = benchmark_attacks(test_set, [weak, made("two", {}), strong], [NoDefence()])
    worst = only(records, "worst_case")  # at 0.7 there is one attack only, whose record says it all
    assert (worst.epsilon, worst.robust_uar) == (0.5, 0.5)


def test_utterances_outside_a_subset_count_as_when_clean() -> None:
    ids = [f"u{index}" for index in range(6)]
    test_set = sign_challenge([0.1] * 3 + [-0.1] * 3, [1] * 3 + [0] * 3, ids)
    seen: list[str] = []
    everything = {key: -0.3 if index < 3 else 0.3 for index, key in enumerate(ids)}
    attacks = [made("slow", everything, seen=seen), made("idle", {})]
    records = benchmark_attacks(test_set, attacks, [NoDefence()], subsets={"slow": 2})
    assert len(seen) == 2
    assert (only(records, "slow").num_examples, only(records, "slow").robust_uar) == (2, 0.0)
    worst = only(records, "worst_case")
    assert (worst.num_examples, worst.robust_uar) == (6, pytest.approx(2 / 3))  # one of three broken in each class
    assert worst.library == "ser_fl (slow on 2 of 6 utterances)"
    records = benchmark_attacks(test_set, attacks, [NoDefence()], subsets={"slow": 6, "absent": 2})
    assert only(records, "worst_case").library == "ser_fl"


def test_worst_case_names_what_its_attackers_knew() -> None:
    test_set = sign_challenge([0.1, -0.1], [1, 0], "ab")
    score = made("score", {}, knowledge="score")
    usual = made("usual", {})

    def knowledge(*attacks: Attack) -> list[str]:
        records = benchmark_attacks(test_set, attacks, [NoDefence()])
        return [record.knowledge for record in records if record.attack == "worst_case"]

    assert knowledge(usual, made("other", {})) == ["undefended"]
    assert knowledge(score, made("other", {}, knowledge="score")) == ["score"]
    assert knowledge(usual, score, made("decision", {}, knowledge="decision")) == ["decision+score+undefended"]
    # An attack of another epsilon takes no part.
    assert knowledge(usual, made("other", {}), made("weak", {}, epsilon=0.1, knowledge="score")) == ["undefended"]


def test_worst_case_is_at_most_each_attack(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    records = attacked(trained, speech, attacks=("fgsm", "bim", PGD), defences=("none", "randomisation"))
    for defence in ("none", "randomisation"):
        worst = only(records, "worst_case", defence).robust_uar
        assert worst <= min(record.robust_uar for record in records if record.defence == defence) + 1e-12


def test_subset_is_balanced_and_nested() -> None:
    labels = [0] * 10 + [1] * 4 + [2] * 2
    ids = [f"u{index:02d}" for index in range(16)]
    seven = balanced_rows(labels, ids, 7, seed=0)
    assert sorted(labels[row] for row in seven) == [0, 0, 0, 1, 1, 2, 2]
    assert set(balanced_rows(labels, ids, 4, seed=0)) < set(seven)
    assert len(set(seven)) == 7
    assert any(balanced_rows(labels, ids, 7, seed=seed) != seven for seed in range(1, 5))


def test_subset_does_not_depend_on_the_order_of_utterances() -> None:
    labels = [index % 3 for index in range(20)]
    ids = [f"u{index:02d}" for index in range(20)]
    order = np.random.default_rng(0).permutation(20).tolist()
    rows = balanced_rows([labels[i] for i in order], [ids[i] for i in order], 8, seed=3)
    assert {ids[order[row]] for row in rows} == {ids[row] for row in balanced_rows(labels, ids, 8, seed=3)}


def test_attacks_share_their_subset() -> None:
    ids = [f"u{index}" for index in range(12)]
    test_set = sign_challenge([0.1] * 6 + [-0.1] * 6, [1] * 6 + [0] * 6, ids)
    first: list[str] = []
    second: list[str] = []
    attacks = [made("one", {}, seen=first), made("two", {}, seen=second)]
    benchmark_attacks(replace(test_set, batch_size=3), attacks, [NoDefence()], subsets={"one": 5, "two": 5})
    assert first == second
    assert len(first) == 5


def test_record_says_what_ran(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    bim = AttackSettings(name="bim", epsilon=0.2, steps=3)
    records = attacked(trained, speech, attacks=("fgsm", bim, PGD), seed=9)
    assert all(set(asdict(record)) >= CONTRACT for record in records)
    assert [record.attack for record in records] == ["clean", "fgsm", "bim", "pgd", "worst_case"]
    assert {(record.knowledge, record.domain, record.seed) for record in records} == {("undefended", "logmel", 9)}
    assert {(record.num_examples, record.defence, record.snr_db) for record in records} == {(30, "none", None)}
    ran = {record.attack: (record.library, record.norm, record.epsilon) for record in records}
    assert ran["clean"][1:] == ("none", None)
    assert ran["fgsm"] == ("art.FastGradientMethod", "inf", 0.2)
    assert ran["bim"] == ("art.BasicIterativeMethod", "inf", 0.2)
    assert ran["pgd"] == ("art.ProjectedGradientDescentPyTorch", "inf", 0.2)
    effort = {record.attack: (record.steps, record.step_size, record.restarts) for record in records}
    assert effort["fgsm"] == (1, 0.2, 0)
    assert effort["bim"] == (3, 0.05, 0)
    assert effort["pgd"] == (5, 0.05, 2)
    assert effort["clean"] == effort["worst_case"] == (None, None, None)


def test_record_counts_gradients_and_perturbations(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    bim = AttackSettings(name="bim", epsilon=0.2, steps=6)
    records = attacked(trained, speech, attacks=("fgsm", bim))
    assert only(records, "fgsm").backward_passes == 30
    assert only(records, "bim").backward_passes == 6 * 30
    for attack in ("fgsm", "bim"):
        record = only(records, attack)
        assert record.forward_passes >= record.backward_passes
        assert 0.2 * (1 - 1e-5) <= record.max_linf <= 0.2 * (1 + 1e-5)
        assert 0 < record.mean_l2 <= 0.2 * math.sqrt(CELLS) * (1 + 1e-5)
        assert np.sum(record.confusion) == 30


def test_batch_size_does_not_matter(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    attacks = ("fgsm", PGD, "deepfool", AttackSettings(name="art:SquareAttack", epsilon=0.2, steps=3))
    settings: dict[str, Any] = {"attacks": attacks, "defences": ("none", "randomisation")}
    by_size = {size: attacked(trained, speech, batch_size=size, **settings) for size in (64, 7, 1)}
    for size in (7, 1):
        for record, reference in zip(by_size[size], by_size[64], strict=True):
            for name, value in asdict(record).items():
                expected = getattr(reference, name)
                if name == "confusion":
                    assert np.allclose(value, expected, atol=1e-5)
                elif name != "seconds":
                    assert value == (pytest.approx(expected, abs=1e-5) if isinstance(value, float) else expected), name


def test_one_seed_gives_one_result(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    settings: dict[str, Any] = {"attacks": (PGD,), "defences": ("none", "randomisation")}
    first = timeless(attacked(trained, speech, seed=1, **settings))
    torch.manual_seed(123)  # the global state is nobody's business
    assert timeless(attacked(trained, speech, seed=1, **settings)) == first
    assert timeless([replace(record, seed=1) for record in attacked(trained, speech, seed=2, **settings)]) != first


def test_order_of_utterances_does_not_matter(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    features_NFL, labels_N = speech[0][30:], speech[1][30:]
    ids = [f"u{index}" for index in range(30)]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"attacks": (PGD,), "defences": ("randomisation",), "box": BOX, "subsets": {"pgd": 12}}
    straight = ser_fl.benchmark(trained, features_NFL, labels_N, ids=ids, **settings)
    shuffled_ids = [ids[index] for index in order.tolist()]
    shuffled = ser_fl.benchmark(trained, features_NFL[order], labels_N[order], ids=shuffled_ids, **settings)
    for record, reference in zip(shuffled, straight, strict=True):
        assert record.confusion == reference.confusion
        assert record.mean_l2 == pytest.approx(reference.mean_l2, abs=1e-5)


def test_randomisation_is_the_mean_of_three_runs() -> None:
    features_NFL = flat([0.15, 0.2, 0.22, 0.26, 0.3, 0.1, 0.24, 0.18])
    labels_N = torch.tensor([0, 0, 0, 1, 1, 0, 1, 1])
    ids = tuple("abcdefgh")
    votes_RN = Randomisation().predict(LeftEdge(), features_NFL, ids, seed=4)
    assert votes_RN.shape == (3, 8)
    assert len({tuple(run) for run in votes_RN.tolist()}) > 1  # a defence that draws the same thrice would hide much
    expected = np.mean([confusion_matrix(labels_N, run, labels=[0, 1]) for run in votes_RN], axis=0)
    uar = float(np.mean(np.diagonal(expected) / expected.sum(axis=1)))
    test_set = replace(sign_challenge([0.0], [0], "a"), model=LeftEdge(), seed=4, ids=ids)
    test_set = replace(test_set, features_NFL=features_NFL, labels_N=labels_N)
    records = benchmark_attacks(test_set, [made("idle", {})], [NoDefence(), Randomisation()])
    defended = only(records, "idle", "randomisation")
    assert np.allclose(defended.confusion, expected, atol=1e-12)
    assert defended.clean_uar == defended.robust_uar == pytest.approx(uar, abs=1e-12)
    assert only(records, "clean", "randomisation").robust_uar == pytest.approx(uar, abs=1e-12)
    assert only(records, "idle").clean_uar == 0.75  # without it, 4 of 4 and 2 of 4


class Loaded:
    """A defence of two runs that count unequally: the bare model, and class 0 whatever it is shown."""

    name = "loaded"
    num_draws = 1
    run_weights = (0.75, 0.25)

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        return features_BFL

    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        bare_B = model(features_BFL).argmax(dim=1)
        return torch.stack([bare_B, torch.zeros_like(bare_B)])


def test_runs_count_by_their_weight() -> None:
    """The first run is right of all three when clean and loses "a"; the second is right of "c" only, and loses none."""
    test_set = sign_challenge([0.1, 0.1, -0.1], [1, 1, 0], "abc")
    record = only(benchmark_attacks(test_set, [made("one", {"a": -0.3})], [Loaded()]), "one", "loaded")
    assert np.allclose(record.confusion, [[1.0, 0.0], [0.75 * 1 + 0.25 * 2, 0.75 * 1]], atol=1e-12)
    assert record.robust_uar == pytest.approx((1 + 0.75 / 2) / 2)
    assert record.clean_uar == pytest.approx((1 + 1.5 / 2) / 2)
    assert record.attack_success_rate == pytest.approx(0.75 * 1 / (0.75 * 3 + 0.25 * 1))


class Thresholds:
    """A defence of two runs that count unequally: class 1 above 0, and class 1 above 0.2."""

    name = "thresholds"
    num_draws = 1
    run_weights = (0.75, 0.25)

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        return features_BFL

    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        mean_B = features_BFL.mean(dim=(1, 2))
        return torch.stack([mean_B > 0, mean_B > 0.2]).long()


def test_mean_norm_is_over_the_successes_that_are_counted() -> None:
    """The first run loses "a", moved by 0.3; the second, a third as likely, has lost it anyway and loses "b" by 0.2."""
    test_set = sign_challenge([0.1, 0.3], [1, 1], "ab")
    attack = made("one", {"a": -0.3, "b": -0.2})
    record = only(benchmark_attacks(test_set, [attack], [Thresholds()]), "one", "thresholds")
    assert record.attack_success_rate == pytest.approx((0.75 * 1 + 0.25 * 1) / (0.75 * 2 + 0.25 * 1))
    assert record.mean_l2 == pytest.approx((0.75 * 0.3 + 0.25 * 0.2) * math.sqrt(CELLS), rel=1e-5)


def test_a_missing_box_is_told_before_anything_runs() -> None:
    test_set = sign_challenge([0.1, -0.1], [1, 0], "ab")
    seen: list[str] = []
    attacks = [made("slow", {}, seen=seen), build(AttackSettings(name="art:CarliniL2Method", epsilon=0.2))]
    with pytest.raises(UserError, match="art:CarliniL2Method needs a box"):
        benchmark_attacks(test_set, attacks, [NoDefence()])
    assert seen == []


def test_records_of_done_attacks_are_handed_out_on_the_way() -> None:
    test_set = sign_challenge([0.1, -0.1], [1, 0], "ab")
    handed: list[list[AttackRecord]] = []
    attacks = [made("one", {}), made("two", {}), broken("three")]
    with pytest.raises(UserError, match="three does not work"):
        benchmark_attacks(test_set, attacks, [NoDefence()], on_records=handed.append)
    assert [[record.attack for record in records] for records in handed] == [["clean", "one"], ["clean", "one", "two"]]


def run_folder(path: Path, attacks: Sequence[Attack], monkeypatch: pytest.MonkeyPatch) -> BenchmarkConfig:
    """A benchmark of a run folder that needs no training, no corpus and no model on disk."""
    test_set = sign_challenge([0.1, 0.2, -0.1, -0.2], [1, 1, 0, 0], "abcd")
    side = torch.full((F, 1), 2.0)
    standardisation = SimpleNamespace(lower_F1=-side, upper_F1=side)
    bundle = SimpleNamespace(network=Sign(), classes=("neutral", "angry"), standardisation=standardisation)
    trained = SimpleNamespace(
        folder=RunFolder(path),
        config=SimpleNamespace(
            executor=SimpleNamespace(threads=1, accelerator="cpu"), stock_objective=SimpleNamespace(epsilon=0.5)
        ),
        model=bundle,
        classes=bundle.classes,
        defences=lambda names: [
            build_defence(name) for name in (("none", "randomisation") if names == "auto" else names)
        ],
        test_set=lambda seed, batch_size, **named: replace(test_set, seed=seed, batch_size=batch_size),
    )
    for name, result in {"load_run": trained, "spectrogram_pair": {}}.items():
        monkeypatch.setattr(benchmark_module, name, lambda *given, result=result, **named: result)
    by_name = {attack.settings.name: attack for attack in attacks}
    for name, attack in by_name.items():
        monkeypatch.setitem(ATTACKS, name, attack.entry)  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "build", lambda settings: by_name[settings.name])
    attacks_named = f"attacks=[{','.join(by_name)}]"
    return compose_benchmark(
        [f"run={path}", attacks_named, "defences=[none]", "curve_attacks=[]", "subsets={}", "batch_size=2"]
    )


def test_a_late_error_keeps_the_attacks_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = [made("one", {"a": -0.3}), made("two", {"b": -0.3}), broken("three")]
    with pytest.raises(UserError, match="three does not work"):
        benchmark_run(run_folder(tmp_path, attacks, monkeypatch))
    assert [record.attack for record in RunFolder(tmp_path).read_attacks()] == ["clean", "one", "two"]


def test_the_file_of_a_whole_benchmark_is_what_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = [made("one", {"a": -0.3}), made("two", {"b": -0.3})]
    records = benchmark_run(run_folder(tmp_path, attacks, monkeypatch))
    assert [record.attack for record in records] == ["clean", "one", "two", "worst_case"]
    assert RunFolder(tmp_path).read_attacks() == records


def test_other_types_of_number_are_cast(trained: nn.Module, speech: tuple[Tensor, Tensor]) -> None:
    features_NFL, labels_N = speech[0][30:], speech[1][30:]
    settings: dict[str, Any] = {"attacks": ("fgsm", PGD, "deepfool"), "epsilons": (0.2,)}
    double = Box(torch.full((F, 1), -2.0, dtype=torch.float64), torch.full((F, 1), 2.0, dtype=torch.float64))
    usual = ser_fl.benchmark(trained, features_NFL, labels_N, box=BOX, **settings)
    cast = ser_fl.benchmark(trained, features_NFL.double(), labels_N.int(), box=double, **settings)
    assert timeless(cast) == timeless(usual)


@pytest.mark.parametrize(
    ("ids", "words"),
    [(["a", "b", "a"], "ids must differ, got 'a' more than once"), (["a", "b"], "one an utterance, got 2 for 3")],
)
def test_ids_are_one_an_utterance(ids: Sequence[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ser_fl.benchmark(Sign(), flat([0.1, 0.2, -0.1]), torch.tensor([1, 1, 0]), attacks=(), ids=ids)


def test_clean_features_are_clipped_to_the_box_first() -> None:
    box = Box(torch.full((F, 1), -1.0), torch.full((F, 1), -0.05))
    labels_N = torch.tensor([1, 0])
    assert only(ser_fl.benchmark(Sign(), flat([0.4, -0.4]), labels_N, attacks=()), "clean").robust_uar == 1.0
    assert only(ser_fl.benchmark(Sign(), flat([0.4, -0.4]), labels_N, attacks=(), box=box), "clean").robust_uar == 0.5


def test_plain_module_keeps_its_modes_gradients_and_weights(speech: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(CELLS), nn.Dropout(0.5), nn.Linear(CELLS, 3))
    model.train()
    model[1].eval()  # a frozen batch norm inside a model that trains
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    records = attacked(model, speech)
    assert [record.attack for record in records] == ["clean", "fgsm", "pgd", "worst_case"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attacks": ("pdg",)}, ["attack 'pdg'", "pgd", "fgsm", "deepfool"]),
        ({"attacks": ("art:NoSuchAttack",)}, ["NoSuchAttack"]),
        ({"defences": ("randomization",)}, ["defence 'randomization'", "randomisation", "none"]),
        ({"epsilons": (-0.1,)}, ["epsilon", "-0.1", ">= 0"]),
        ({"epsilons": (math.nan,)}, ["epsilon", "nan"]),
        ({"attacks": ("art:CarliniL2Method",), "box": None}, ["art:CarliniL2Method", "box"]),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], words: list[str], speech: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError) as caught:
        attacked(nn.Sequential(nn.Flatten(), nn.Linear(CELLS, 3)), speech, **changes)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
