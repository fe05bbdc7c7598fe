"""The benchmark's units of work: adaptive attackers, sweeps over epsilon, what is kept, and what is left out.

Legend: N utterances, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import benchmark_attacks
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks.attack import Attack, AttackSettings, Entry, Problem
from ser_fl.attacks.domains import Domain
from ser_fl.attacks.registry import build
from ser_fl.attacks.threat_model import Box
from ser_fl.cli.terminal import Bars, TimeLeft
from ser_fl.defences import Defence, Deterministic, NoDefence, Randomisation
from ser_fl.errors import UserError
from ser_fl.robustness.curves import epsilons_of_curve
from ser_fl.robustness.plan import plan
from ser_fl.robustness.result_cache import ResultCache, adversarials, merged
from ser_fl.robustness.runner import BenchmarkProgress
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

F, L = 4, 6
NAMES = "abcdefgh"


class Sign(nn.Module):
    """Class 1 where the mean m of all cells is above 0: the boundary is at an L-infinity distance of |m|."""

    def forward(self, features_NFL: Tensor) -> Tensor:
        mean_N = features_NFL.mean(dim=(1, 2))
        return torch.stack([-mean_N, mean_N], dim=1)


class Slope(nn.Module):
    """`Sign` with a weight, to have one."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, features_NFL: Tensor) -> Tensor:
        mean_N = self.slope * features_NFL.mean(dim=(1, 2))
        return torch.stack([-mean_N, mean_N], dim=1)


class Lowered(Deterministic):
    """A defence that lowers every cell by a constant, in one of two runs by another."""

    def __init__(self, *constants: float, name: str = "lowered") -> None:
        self.constants = constants
        self.name = name

    def __repr__(self) -> str:
        return f"Lowered{self.constants}"

    @property
    def run_weights(self) -> tuple[float, ...]:
        return (1 / len(self.constants),) * len(self.constants)

    @property
    def outcome_weights(self) -> tuple[float, ...]:
        return self.run_weights

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        return features_BFL - self.constants[draw]

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        lowered = [features_BFL - torch.tensor([self.constants[n] for n in row])[:, None, None] for row in numbers_KB]
        return torch.cat(lowered)

    def predict(self, model: Any, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        shown = [self.transform(features_BFL, keys_B, seed=seed, draw=run) for run in range(len(self.constants))]
        return torch.stack([model(features_BFL).argmax(dim=1) for features_BFL in shown])


def make_test_set(means: Sequence[float], labels: Sequence[int], **changes: Any) -> TestSet:
    """Utterances with one value in every cell."""
    settings: dict[str, Any] = {
        "model": Sign(),
        "features_NFL": torch.tensor(means)[:, None, None].expand(-1, F, L).clone(),
        "labels_N": torch.tensor(labels),
        "ids": tuple(NAMES[: len(labels)]),
        "num_classes": 2,
        "box": Box.unbounded(),
        "seed": 0,
    }
    return TestSet(**(settings | changes))


def moving(
    name: str,
    move: Callable[[Problem, str], float],
    *,
    epsilon: float = 0.5,
    seen: list[tuple[str, ...]] | None = None,
    **traits: Any,
) -> Attack:
    """An attack that adds a value to every cell of each utterance, and says which it was given."""

    def craft(problem: Problem) -> Tensor:
        if seen is not None:
            seen.append(tuple(problem.keys_B))
        problem.passes.backward += len(problem.keys_B)
        return problem.clean + torch.tensor([move(problem, key) for key in problem.keys_B])[:, None, None]

    entry = Entry(craft=craft, library="t", norm="inf", paper="", **traits)
    return Attack(settings=AttackSettings(name=name, epsilon=epsilon), entry=entry)


def by(moves: dict[str, float]) -> Callable[[Problem, str], float]:
    return lambda problem, key: moves.get(key, 0.0)


def bim(*epsilons: float) -> list[Attack]:
    return [build(AttackSettings(name="bim", epsilon=epsilon, steps=4)) for epsilon in epsilons]


def only(records: Sequence[AttackRecord], attack: str, defence: str = "none", **wanted: Any) -> AttackRecord:
    """The one record of an attack under a defence."""
    (found,) = [
        record
        for record in records
        if (record.attack, record.defence) == (attack, defence)
        and all(getattr(record, name) == value for name, value in wanted.items())
    ]
    return found


def timeless(records: Sequence[AttackRecord]) -> list[AttackRecord]:
    return [replace(record, seconds=0.0) for record in records]


# Adaptive attackers


def test_an_adaptive_attack_is_made_against_its_defence_and_shown_to_it_alone() -> None:
    knew: list[Any] = []

    def move(problem: Problem, key: str) -> float:
        knew.append(None if problem.expectation is None else list(problem.expectation.weights))
        return -0.3

    attack = moving("one", move, adaptive=True)
    test_set = make_test_set([0.1, -0.1], [1, 0])
    defences: list[Defence] = [NoDefence(), Lowered(0.0, 0.05), Lowered(0.0, name="other")]
    records = benchmark_attacks(test_set, [attack], defences, adaptive=[attack], eot_samples=None)
    assert knew == [None, None, [0.5, 0.5], [0.5, 0.5], [1.0], [1.0]]
    told = {(record.defence, record.knowledge, record.eot_samples) for record in records if record.attack == "one"}
    assert told == {
        *(("none", "undefended", 0), ("lowered", "undefended", 0), ("other", "undefended", 0)),
        *(("lowered", "adaptive", 2), ("other", "adaptive", 1)),
    }
    worst = {record.defence: record.knowledge for record in records if record.attack == "worst_case"}
    assert worst == {"lowered": "adaptive+undefended", "other": "adaptive+undefended"}


def test_the_number_of_samples_is_the_attackers() -> None:
    attack = moving("one", by({}), adaptive=True)
    records = benchmark_attacks(
        make_test_set([0.1, -0.1], [1, 0]), [], [Randomisation()], adaptive=[attack], eot_samples=5
    )
    assert only(records, "one", "randomisation").eot_samples == 5
    exact = benchmark_attacks(
        make_test_set([0.1, -0.1], [1, 0]), [], [Randomisation()], adaptive=[attack], eot_samples=None
    )
    assert only(exact, "one", "randomisation").eot_samples == 84


def test_worst_case_of_a_randomised_defence_is_taken_per_utterance_and_run() -> None:
    """Runs lower by 0 and by 0.2; "a" at 0.3 is lost in the second run by -0.2, in both by -0.4.

    The undefended attack breaks "a" in run 2 only, the adaptive one "b" in run 2 only; both leave the rest.
    """
    test_set = make_test_set([0.3, 0.3, -0.3], [1, 1, 0])
    undefended, adaptive = moving("one", by({"a": -0.2})), moving("two", by({"b": -0.2}), adaptive=True)
    defence = Lowered(0.0, 0.2)
    records = benchmark_attacks(test_set, [undefended], [defence], adaptive=[adaptive], eot_samples=None)
    assert only(records, "one", "lowered").robust_uar == pytest.approx((0.75 + 1) / 2)
    assert only(records, "two", "lowered").robust_uar == pytest.approx((0.75 + 1) / 2)
    worst = only(records, "worst_case", "lowered")
    assert worst.robust_uar == pytest.approx((0.5 + 1) / 2)
    assert worst.attack_success_rate == pytest.approx(2 / 6)


def test_outcomes_of_the_other_domain_are_left_aside() -> None:
    """They may lie in the same folder, and count for no record, no worst case and no gap here."""
    test_set, cache = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4), ResultCache()
    one, two = moving("one", by({"a": -0.2})), moving("two", by({"b": -0.2}))
    expected = benchmark_attacks(test_set, [one, two], [NoDefence()], cache=cache)
    (first, *_) = cache.outcomes.values()
    everybody = ((0,) * 8,)
    cache.keep_outcome("audio", replace(first, domain="waveform", attack="three", votes={"none": everybody}))
    again = benchmark_attacks(test_set, [one, two], [NoDefence()], cache=cache)
    assert timeless(again) == timeless(expected)
    recorded = replace(test_set, domain=Domain(name="waveform"))
    others = benchmark_attacks(recorded, [], [NoDefence()], cache=cache)
    assert [record.attack for record in others] == ["clean", "three"]


def test_an_attack_made_twice_is_no_worst_case() -> None:
    """As where a sweep and an attack by itself have left an outcome each."""
    test_set, cache = make_test_set([0.1] * 2, [1, 1]), ResultCache()
    attack = moving("one", by({"a": -0.2}))
    for ids in ({"one": 2}, {"one": 1}):
        records = benchmark_attacks(test_set, [attack], [NoDefence()], subsets=ids, cache=cache)
    assert len(cache.outcomes) == 2
    assert {record.attack for record in records} == {"clean", "one"}


def test_where_few_were_attacked_by_one_who_knows_there_is_a_worst_case_of_those() -> None:
    """The adaptive attack breaks whatever it sees, a utterance of each class; the other one breaks nothing."""
    test_set = make_test_set([0.1] * 3 + [-0.1] * 3, [1] * 3 + [0] * 3)

    def move(problem: Problem, key: str) -> float:
        return 0.0 if problem.expectation is None else -0.3 if key in "abc" else 0.3

    attack = moving("one", move, adaptive=True)
    records = benchmark_attacks(
        test_set, [attack], [NoDefence(), Lowered(0.0)], adaptive=[attack], subsets={"adaptive": 2}
    )
    everybody, aware = (
        only(records, "worst_case", "lowered", num_examples=size).robust_uar for size in (len(test_set), 2)
    )
    assert everybody == pytest.approx(2 / 3) and aware == 0.0
    assert only(records, "worst_case", "lowered", num_examples=2).library == "ser_fl"
    assert not [record for record in records if record.attack == "worst_case" and record.defence == "none"]


def test_the_gap_between_attackers_is_measured_on_the_utterances_of_both() -> None:
    """The adaptive attack breaks "a" and "b" of four utterances in class 1, the other one none."""
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)

    def move(problem: Problem, key: str) -> float:
        return -0.3 if problem.expectation is not None and key in "ab" else 0.0

    attack = moving("one", move, adaptive=True)
    records = benchmark_attacks(test_set, [attack], [Lowered(0.0)], adaptive=[attack])
    gap = only(records, "one", "lowered", knowledge="adaptive").undefended_gap
    assert gap is not None
    assert gap[0] == pytest.approx(0.25)
    assert 0 <= gap[1] < gap[0] < gap[2] <= 0.5 + 1e-6
    assert only(records, "one", "lowered", knowledge="undefended").undefended_gap is None


def test_subsets_of_adaptive_attacks() -> None:
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    one, two = (moving(name, by({}), adaptive=True) for name in ("one", "two"))
    subsets = {"adaptive": 4, "one": 2}
    units = plan(test_set, [one, two], [Lowered(0.0)], adaptive=[one, two], subsets=subsets)
    assert [(unit.attack.name, unit.adaptive_to, len(unit.part)) for unit in units] == [
        *(("one", None, 2), ("one", "lowered", 2), ("two", None, 8), ("two", "lowered", 4)),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"adaptive": ["pgd"], "defences": ["none"]}, ["adaptive pgd", "none", "randomisation"]),
        (
            {
                "adaptive": ["hopskipjump"],
                "defences": ["randomisation"],
                "box": Box(torch.tensor(-9.0), torch.tensor(9.0)),
            },
            ["hopskipjump", "no gradient"],
        ),
        ({"adaptive": ["pdg"]}, ["attack 'pdg'", "pgd"]),
        ({"speakers": ["ann"]}, ["speakers", "1 for 2"]),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], words: Sequence[str]) -> None:
    features_NFL = make_test_set([0.1, -0.1], [1, 0]).features_NFL
    with pytest.raises(UserError) as caught:
        ser_fl.benchmark(Sign(), features_NFL, torch.tensor([1, 0]), **arguments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_an_attacker_who_knows_of_the_randomisation_gets_further() -> None:
    """Class 1 where frames 3 and 4 are louder than a threshold; the defence shifts and stretches others there.

    The attack on the bare model moves these two frames alone, since nothing else has a gradient.
    """

    class TwoFrames(nn.Module):
        def forward(self, features_NFL: Tensor) -> Tensor:
            loud_N = features_NFL[:, :, 3:5].mean(dim=(1, 2)) - 0.25
            return torch.stack([-loud_N, loud_N], dim=1)

    means = [0.3, 0.35, 0.4, 0.45, -0.2, -0.3, -0.4, -0.5]
    features_NFL = torch.tensor(means)[:, None, None].expand(-1, F, L).clone()
    labels_N = torch.tensor([1] * 4 + [0] * 4)
    settings = AttackSettings(name="pgd", epsilon=0.3, steps=8, restarts=1)
    records = ser_fl.benchmark(
        TwoFrames(),
        features_NFL,
        labels_N,
        attacks=[settings],
        adaptive=[settings],
        eot_samples="exact",
        defences=["randomisation_expected"],
    )
    grey, white = (
        only(records, "pgd", "randomisation_expected", knowledge=knowledge) for knowledge in ("undefended", "adaptive")
    )
    assert white.robust_uar < grey.robust_uar - 0.05
    assert white.undefended_gap is not None
    assert white.undefended_gap[0] == pytest.approx(grey.robust_uar - white.robust_uar, abs=1e-9)
    assert white.backward_passes == 84 * grey.backward_passes


# Sweeps


def test_a_sweep_on_a_linear_model_is_known_in_full() -> None:
    """Distances 0.1, 0.2, 0.4, 0.8 in each class: half are broken at 0.25, three quarters at 0.5.

    What a smaller epsilon broke costs nothing at a larger one.
    """
    means = [0.1, 0.2, 0.4, 0.8, -0.1, -0.2, -0.4, -0.8]
    test_set = make_test_set(means, [1] * 4 + [0] * 4)
    epsilons = (0.15, 0.25, 0.5, 1.0)
    records = benchmark_attacks(test_set, bim(*epsilons), [NoDefence()])
    swept = [only(records, "bim", epsilon=epsilon) for epsilon in epsilons]
    assert [record.robust_uar for record in swept] == [0.75, 0.5, 0.25, 0.0]
    assert [record.backward_passes for record in swept] == [4 * left for left in (8, 6, 4, 2)]
    assert [record.num_examples for record in swept] == [8] * 4
    assert [record.median_epsilon for record in swept] == [None, 0.25, 0.25, 0.25]
    alone = [only(benchmark_attacks(test_set, bim(e), [NoDefence()]), "bim").backward_passes for e in epsilons]
    assert sum(record.backward_passes for record in swept) < sum(alone)
    by_itself = benchmark_attacks(test_set, bim(*epsilons), [NoDefence()], sweep=False)
    assert [only(by_itself, "bim", epsilon=epsilon).backward_passes for epsilon in epsilons] == alone
    assert [only(by_itself, "bim", epsilon=epsilon).robust_uar for epsilon in epsilons] == [0.75, 0.5, 0.25, 0.0]


def test_robust_uar_never_rises_with_epsilon() -> None:
    """An attack that breaks other utterances at each epsilon, and by itself fewer at the larger."""
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    small = moving("one", by({"a": -0.2, "b": -0.2}), epsilon=0.3, warm=True)
    large = moving("one", by({"c": -0.2}), epsilon=0.6, warm=True)
    defences: list[Defence] = [NoDefence(), Lowered(0.0, 0.05)]
    swept = benchmark_attacks(test_set, [large, small], defences)
    for defence in ("none", "lowered"):
        assert only(swept, "one", defence, epsilon=0.3).robust_uar == 0.75
        assert only(swept, "one", defence, epsilon=0.6).robust_uar == 0.625
    cold = benchmark_attacks(test_set, [large, small], defences, sweep=False)
    assert only(cold, "one", epsilon=0.6).robust_uar == 0.875
    assert [record.swept for record in swept if record.attack == "one"] == [False, False, True, True]
    assert not any(record.swept for record in cold)


def test_a_single_step_is_no_part_of_a_sweep() -> None:
    """It always goes to the edge: what it broke at a smaller epsilon it need not break at a larger one."""
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    small, large = moving("one", by({"a": -0.2, "b": -0.2}), epsilon=0.3), moving("one", by({"c": -0.2}), epsilon=0.6)
    records = benchmark_attacks(test_set, [large, small], [NoDefence()])
    assert [only(records, "one", epsilon=epsilon).robust_uar for epsilon in (0.3, 0.6)] == [0.75, 0.875]


def test_a_leftover_is_no_subset_that_an_attacker_who_knows_has_seen() -> None:
    """With ``drop_broken`` the adaptive attack sees what the other one left: no gap is measured on that."""
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)

    def move(problem: Problem, key: str) -> float:
        return {"a": -0.3}.get(key, 0.0) if problem.expectation is None else -0.3 if key == "b" else 0.0

    attack = moving("one", move, adaptive=True)
    for drop_broken in (False, True):
        records = benchmark_attacks(test_set, [attack], [Lowered(0.0)], adaptive=[attack], drop_broken=drop_broken)
        adaptive = only(records, "one", "lowered", knowledge="adaptive")
        assert (adaptive.undefended_gap is None) is drop_broken
        assert adaptive.num_examples == 8 - drop_broken
        assert only(records, "worst_case", "lowered").num_examples == 8


def test_what_one_run_of_a_defence_still_recognises_is_attacked_again() -> None:
    """At the smaller epsilon "a" is lost in both runs and "b" in one: only "a" is carried on."""
    test_set = make_test_set([0.3, 0.3, -0.3], [1, 1, 0])
    seen: list[tuple[str, ...]] = []
    small = moving("one", by({"a": -0.35, "b": -0.2}), epsilon=0.4, seen=seen, warm=True)
    large = moving("one", by({"b": 0.0}), epsilon=0.8, seen=seen, warm=True)
    records = benchmark_attacks(test_set, [small, large], [Lowered(0.0, 0.2)])
    assert seen == [("a", "b", "c"), ("b", "c")]
    # "b" moved by nothing is recognised in both runs, but the smaller epsilon has broken it in one.
    assert only(records, "one", "lowered", epsilon=0.8).robust_uar == pytest.approx((0.25 + 1) / 2)
    assert only(records, "one", "lowered", epsilon=0.8).max_linf == pytest.approx(0.35)


def test_a_warm_attack_begins_where_the_smaller_epsilon_ended() -> None:
    began: list[Tensor | None] = []

    def move(problem: Problem, key: str) -> float:
        began.append(problem.start_BFL)
        return {0.1: -0.05, 0.2: -0.15}[problem.settings.epsilon]

    attacks = [moving("one", move, epsilon=epsilon, warm=True) for epsilon in (0.1, 0.2)]
    test_set = make_test_set([1.0, 0.1, 0.9], [1, 1, 1], batch_size=8)
    benchmark_attacks(test_set, attacks, [NoDefence()])
    assert began[:3] == [None] * 3
    start_BFL = began[3]
    assert start_BFL is not None
    assert torch.allclose(start_BFL.mean(dim=(1, 2)), torch.tensor([0.95, 0.05, 0.85]))


def test_an_attack_on_the_whole_set_carries_nothing_on() -> None:
    seen: list[tuple[str, ...]] = []
    attacks = [moving("one", by({"a": -0.2}), epsilon=e, seen=seen, whole_set=True, warm=True) for e in (0.3, 0.6)]
    benchmark_attacks(make_test_set([0.1, 0.1, -0.1], [1, 1, 0], batch_size=2), attacks, [NoDefence()])
    assert seen == [("a", "b", "c")] * 2


def test_the_smallest_epsilon_of_a_minimal_attack_is_its_norm() -> None:
    test_set = make_test_set([0.1, 0.2, 0.3, -0.1, -0.2], [1, 1, 1, 0, 1])  # the last one is wrong anyway
    attack = moving("near", by({"a": -0.11, "b": -0.21, "d": 0.13}), minimal=True)
    record = only(benchmark_attacks(test_set, [attack], [NoDefence()]), "near")
    assert record.median_epsilon == pytest.approx(0.13)  # 0, 0.11, 0.13, 0.21, infinite


def test_the_curve_goes_from_near_clean_to_chance() -> None:
    """Twenty distances a class from 0.1 to 2: UAR falls by 2.5 points at 0.1, and to a half at 1.0."""
    distances = [0.1 * rank for rank in range(1, 21)]
    test_set = make_test_set(
        [*distances, *(-d for d in distances)], [1] * 20 + [0] * 20, ids=tuple(map(str, range(40)))
    )
    epsilons = epsilons_of_curve(test_set, around=0.08)
    assert len(epsilons) == 10
    assert list(epsilons) == sorted(epsilons)
    assert epsilons[0] == 0.08  # the largest of 0.08 * 2^k below 0.1
    assert epsilons[-1] == 1.28  # the smallest of them from 1.0 up
    ratios = [larger / smaller for smaller, larger in pairwise(epsilons)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.03)
    for around in (5.0, 0.001):
        ends = epsilons_of_curve(test_set, around=around)
        assert 0.05 <= ends[0] < 0.1
        assert 1.0 <= ends[-1] < 2.0 + 1e-9
    boxed = replace(test_set, box=Box(torch.full((F, 1), 0.1), torch.full((F, 1), 0.3)))
    assert epsilons_of_curve(boxed, around=0.08)[-1] <= 0.32  # nothing is gained beyond the box


# What is kept


class Killed(Exception):
    """What ends a benchmark in these tests."""


def killed_after(calls: int) -> Callable[..., None]:
    """Ends the benchmark at a report of progress."""
    told: list[str] = []

    def on_attack(name: str, done: int, total: int, seconds_left: float | None = None) -> None:
        told.append(name)
        if len(told) > calls:
            raise Killed

    return on_attack


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(F * L, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def rough_challenge(model: nn.Module, **changes: Any) -> TestSet:
    """Noise that a network has its own opinion of."""
    features_NFL = torch.randn(8, F, L, generator=torch.Generator().manual_seed(3))
    labels_N = model(features_NFL).argmax(1)
    return make_test_set([0.0] * 8, [0] * 8, model=model, features_NFL=features_NFL, labels_N=labels_N,
                        num_classes=3, batch_size=3, **changes)  # fmt: skip


def open_folder(path: Path, test_set: TestSet, *, keep: bool = False) -> ResultCache:
    return ResultCache.of(RunFolder(path), test_set, keeps_adversarials=keep)


def suite() -> dict[str, Any]:
    """A sweep with random starts, and another attack."""
    pgd = [build(AttackSettings(name="pgd", epsilon=e, steps=2, restarts=2)) for e in (0.05, 0.1, 0.3)]
    return {"attacks": [*pgd, *bim(0.1)], "defences": [NoDefence()]}


@pytest.mark.parametrize("calls", [1, 2, 4, 7, 11, 14])
def test_a_killed_benchmark_goes_on_with_the_same_bits(calls: int, tmp_path: Path) -> None:
    test_set = rough_challenge(network())
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = benchmark_attacks(test_set, **suite(), cache=open_folder(whole, test_set, keep=True))
    with pytest.raises(Killed):
        benchmark_attacks(
            test_set,
            **suite(),
            cache=open_folder(parts, test_set, keep=True),
            on_attack=killed_after(calls),
        )
    gone_on = benchmark_attacks(test_set, **suite(), cache=open_folder(parts, test_set, keep=True))
    assert timeless(gone_on) == timeless(expected)
    made = [file.relative_to(whole) for file in whole.rglob("*.safetensors")]
    assert made and len(made) == len(list(parts.rglob("*.safetensors")))
    for folder in {file.parent for file in made}:
        for utterance_id, features_FL in adversarials(whole / folder).items():
            assert torch.equal(adversarials(parts / folder)[utterance_id], features_FL)


def test_no_batch_is_made_twice(tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4, batch_size=3)
    attacks = [moving(name, by({}), seen=seen) for name in ("one", "two")]

    def run(**changes: Any) -> list[AttackRecord]:
        return benchmark_attacks(test_set, attacks, [NoDefence()], cache=open_folder(tmp_path, test_set), **changes)

    with pytest.raises(Killed):
        run(on_attack=killed_after(2))  # at the start, after the first batch, after the second
    assert seen == [("a", "b", "c"), ("d", "e", "f")]
    run()
    assert seen == 2 * [("a", "b", "c"), ("d", "e", "f"), ("g", "h")]
    run()
    assert len(seen) == 6
    assert list(tmp_path.rglob("*.safetensors")) == []  # nobody asked for them


def test_adversarials_go_when_no_larger_epsilon_waits_for_them(tmp_path: Path) -> None:
    """And a second benchmark that goes further makes what it needs of the smaller one again, not more."""
    seen: list[tuple[str, ...]] = []
    test_set = make_test_set([0.1, 0.3, -0.3], [1, 1, 0])

    def run(*epsilons: float) -> list[AttackRecord]:
        attacks = [
            moving("one", lambda problem, key: -0.9 * problem.settings.epsilon, epsilon=e, seen=seen, warm=True)
            for e in epsilons
        ]
        return benchmark_attacks(test_set, attacks, [NoDefence()], cache=open_folder(tmp_path, test_set))

    run(0.2)
    assert list(tmp_path.rglob("*.safetensors")) == []
    further = run(0.2, 0.4)
    assert seen == [("a", "b", "c"), ("a", "b", "c"), ("b", "c")]
    assert [only(further, "one", epsilon=epsilon).robust_uar for epsilon in (0.2, 0.4)] == [0.75, 0.5]
    assert only(further, "one", epsilon=0.2).backward_passes == 3


def test_another_benchmark_adds_to_the_worst_case(tmp_path: Path) -> None:
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    one, two = moving("one", by({"a": -0.2})), moving("two", by({"b": -0.2}))
    together = benchmark_attacks(test_set, [one, two], [NoDefence()])

    def run(attack: Attack) -> list[AttackRecord]:
        return benchmark_attacks(test_set, [attack], [NoDefence()], cache=open_folder(tmp_path, test_set))

    assert [record.attack for record in run(one)] == ["clean", "one"]
    assert timeless(run(two)) == timeless(together)
    assert only(together, "worst_case").robust_uar == 0.75


def test_another_defence_is_shown_what_is_made_again(tmp_path: Path) -> None:
    test_set = make_test_set([0.1, -0.1], [1, 0])
    attack = moving("one", by({"a": -0.2}))
    for defences in ([NoDefence()], [NoDefence(), Lowered(0.0)]):
        records = benchmark_attacks(test_set, [attack], defences, cache=open_folder(tmp_path, test_set))
    assert {record.defence for record in records if record.attack == "one"} == {"none", "lowered"}


@pytest.mark.parametrize("change", ["weights", "seed", "utterances", "box", "settings"])
def test_what_depends_on_something_else_is_made_anew(change: str, tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []
    test_set = make_test_set([0.1, 0.3, -0.1], [1, 1, 0], model=Slope())
    attack = moving("one", by({}), seen=seen)

    def run() -> None:
        benchmark_attacks(test_set, [attack], [NoDefence()], cache=open_folder(tmp_path, test_set))

    run()
    run()
    assert len(seen) == 1
    if change == "weights":
        test_set = replace(test_set, model=Slope(0.5))
    elif change == "seed":
        test_set = replace(test_set, seed=1)
    elif change == "utterances":
        test_set = replace(test_set, features_NFL=test_set.features_NFL + 1e-3)
    elif change == "box":
        test_set = replace(test_set, box=Box(torch.full((F, 1), -9.0), torch.full((F, 1), 9.0)))
    else:
        attack = replace(attack, settings=replace(attack.settings, steps=3))
    run()
    assert len(seen) == 2


def test_files_that_are_not_whole_are_no_outcomes(tmp_path: Path) -> None:
    test_set = make_test_set([0.1, -0.1], [1, 0])
    folder = open_folder(tmp_path, test_set)
    benchmark_attacks(test_set, [moving("one", by({}))], [NoDefence()], cache=folder)
    ((key, outcome),) = folder.outcomes.items()
    assert open_folder(tmp_path, test_set).outcomes == {key: outcome}
    assert folder.root is not None
    file = folder.root / f"{key}.json"
    content = json.loads(file.read_text())
    for text in ("{", "[]", json.dumps({**content, "schema": 99}), json.dumps({"schema": 1})):
        file.write_text(text)
        assert open_folder(tmp_path, test_set).outcomes == {}
    (folder.root / key).mkdir()
    assert folder.batch(key, ["a"]) is None
    for text in ("{", "[]", '{"weights": 7}'):
        (folder.root / "test_set.json").write_text(text)
        assert open_folder(tmp_path, test_set).root == folder.root


def test_records_of_two_benchmarks_are_told_apart() -> None:
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    first = benchmark_attacks(test_set, [moving("one", by({"a": -0.2})), moving("two", by({}))], [NoDefence()])
    again = benchmark_attacks(test_set, [moving("one", by({"b": -0.2})), moving("three", by({}))], [NoDefence()])
    both = merged(first, again)
    assert [record.attack for record in both] == ["clean", "one", "two", "three", "worst_case"]
    assert only(both, "one") == only(again, "one")
    other = [replace(record, domain="waveform", epsilon=None, snr_db=30.0) for record in first]
    assert len(merged(first, other)) == 2 * len(first)


# What is left out


def test_attacks_are_spared_what_earlier_ones_broke() -> None:
    """ "one" breaks a and b, "two" would break b and c: it is given what "one" left, and the worst case is the same."""
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    seen: list[tuple[str, ...]] = []
    attacks = [moving("one", by({"a": -0.2, "b": -0.2})), moving("two", by({"b": -0.2, "c": -0.2}), seen=seen)]
    spared = benchmark_attacks(test_set, attacks, [NoDefence()], drop_broken=True)
    assert seen == [tuple("cdefgh")]
    assert (only(spared, "two").num_examples, only(spared, "two").robust_uar) == (6, 0.75)
    whole = benchmark_attacks(test_set, attacks, [NoDefence()])
    assert only(spared, "worst_case") == only(whole, "worst_case")
    assert only(spared, "worst_case").library == "ser_fl"


def test_where_nothing_is_left_nothing_is_attacked() -> None:
    everything = {key: (-0.2 if key in "abcd" else 0.2) for key in NAMES}
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    seen: list[tuple[str, ...]] = []
    attacks = [moving("one", by(everything)), moving("two", by({}), seen=seen)]
    records = benchmark_attacks(test_set, attacks, [NoDefence()], drop_broken=True)
    assert seen == []
    assert [record.attack for record in records] == ["clean", "one", "worst_case"]
    assert only(records, "worst_case").robust_uar == 0.0


def test_sparing_and_sweeping_together_keep_the_worst_case() -> None:
    test_set = rough_challenge(network())
    pgd = [build(AttackSettings(name="pgd", epsilon=e, steps=2, restarts=1)) for e in (0.1, 0.3, 0.6)]
    arguments: dict[str, Any] = {"attacks": [*bim(0.1, 0.3, 0.6), *pgd], "defences": [NoDefence()]}
    whole = benchmark_attacks(test_set, **arguments)
    spared = benchmark_attacks(test_set, **arguments, drop_broken=True)
    for epsilon in (0.1, 0.3, 0.6):
        worst = [only(records, "worst_case", epsilon=epsilon).robust_uar for records in (whole, spared)]
        assert worst[0] == pytest.approx(worst[1])
    passes = [sum(record.backward_passes for record in records) for records in (whole, spared)]
    assert passes[1] < passes[0]


# Figures by group


def test_records_say_who_was_recognised() -> None:
    test_set = make_test_set(
        [0.1, 0.1, 0.1, -0.1],
        [1, 1, 1, 0],
        speakers=("ann", "ann", "ben", "ben"),
        sexes=("female", "female", "male", "male"),
        emotions=("calm", "anger"),
    )
    records = benchmark_attacks(test_set, [moving("one", by({"a": -0.2}))], [NoDefence()])
    record = only(records, "one")
    assert record.speaker_uar == {"ann": 0.5, "ben": 1.0}
    assert record.sex_uar == {"female": 0.5, "male": 1.0}
    assert record.emotion_recall == {"calm": 1.0, "anger": pytest.approx(2 / 3)}
    assert record.uar_interval is not None
    assert record.uar_interval[0] <= record.robust_uar <= record.uar_interval[1]
    assert only(records, "clean").speaker_uar == {"ann": 1.0, "ben": 1.0}
    part = only(benchmark_attacks(test_set, [moving("one", by({}))], [NoDefence()], subsets={"one": 2}), "one")
    assert sum(map(len, (part.speaker_uar, part.emotion_recall))) >= 2


# Progress


def test_progress_counts_the_whole_benchmark_and_the_seconds_left() -> None:
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4, batch_size=4)
    told: list[tuple[str, int, int, float | None]] = []
    benchmark_attacks(
        test_set,
        bim(0.05, 0.06),
        [NoDefence()],
        on_attack=lambda name, done, total, seconds_left=None: told.append((name, done, total, seconds_left)),
    )
    assert [(name, done) for name, done, _, _ in told] == [
        *(("bim at 0.05", 0), ("bim at 0.05", 4), ("bim at 0.05", 8), ("bim at 0.05", 8)),
        *(("bim at 0.06", 8), ("bim at 0.06", 12), ("bim at 0.06", 16), ("bim at 0.06", 16)),
    ]
    assert {total for _, _, total, _ in told} == {16}
    assert told[0][3] is None
    assert told[-1][3] == 0.0
    assert all(left is not None and left >= 0 for *_, left in told[1:])


def test_time_left_follows_what_an_attack_has_cost() -> None:
    """bim costs 2 s an utterance; pgd has not run, and has 5 steps and 2 starts to bim's 4 steps and one."""
    test_set = make_test_set([0.1] * 4 + [-0.1] * 4, [1] * 4 + [0] * 4)
    pgd = build(AttackSettings(name="pgd", epsilon=0.1, steps=5, restarts=2))
    first, second = units = plan(test_set, [*bim(0.1), pgd], [NoDefence()])
    told: list[float | None] = []
    pace = BenchmarkProgress(units, lambda name, done, total, seconds_left=None: told.append(seconds_left))
    pace.count(first, 0)
    assert told.pop() is None
    pace.count(first, 6, 12.0)
    assert told.pop() == pytest.approx(2 * 2.0 + 8 * 2.0 * (5 * 2) / 4)
    pace.count(second, 4, 4.0)
    pace.count(first, 8)
    assert told.pop() == pytest.approx(4 * 1.0)


def test_the_bar_shows_the_time_that_the_benchmark_tells() -> None:
    shown = Bars(progress := Progress(TimeLeft(), console=Console(quiet=True), disable=True))
    shown.attacks("pgd at 0.05", 3, 10, 90.4)
    shown.attacks("pgd at 0.1", 4, 10, 3723.0)
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("pgd at 0.1", 4, 10)
    assert str(TimeLeft().render(task)) == "1:02:03"
    shown.attacks("pgd at 0.1", 4, 10, None)
    assert str(TimeLeft().render(task)) != "1:02:03"  # nothing is said: as fast as it has gone so far


@dataclass
class Counted(ResultCache):
    """Counts what lies in it at a time."""

    most: int = 0

    def keep_batch(self, key: str, ids: Sequence[str], made: Any) -> None:
        super().keep_batch(key, ids, made)
        self.most = max(self.most, sum(map(len, self._batches.values())))


def test_memory_holds_two_epsilons_of_a_sweep_at_most() -> None:
    cache = Counted()
    test_set = make_test_set([9.0] * 4 + [-9.0] * 4, [1] * 4 + [0] * 4, batch_size=4)
    benchmark_attacks(test_set, bim(0.1, 0.2, 0.3, 0.4, 0.5), [NoDefence()], cache=cache)
    assert cache.most == 4  # two batches an epsilon
    assert math.isclose(len(cache.outcomes), 5)
