"""Aggregations that withstand hostile clients: worked numbers, Flower's strategies, identities, and what is refused."""

import gc
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import ser_fl
from ser_fl.config.aggregation import AggregationConfig
from ser_fl.config.compose import compose
from ser_fl.config.schema import dump, parse
from ser_fl.errors import UserError
from ser_fl.federation.aggregation import RULES, Aggregation, WeightedMean, make_aggregation
from ser_fl.federation.aggregation.bulyan import Bulyan
from ser_fl.federation.aggregation.centred_clipping import CentredClipping
from ser_fl.federation.aggregation.coordinate_median import CoordinateMedian
from ser_fl.federation.aggregation.divide_and_conquer import DivideAndConquer
from ser_fl.federation.aggregation.flame import FLAME
from ser_fl.federation.aggregation.fltrust import FLTrust
from ser_fl.federation.aggregation.geometric_median import GeometricMedian
from ser_fl.federation.aggregation.krum import Krum, MultiKrum
from ser_fl.federation.aggregation.norm_bounding import NormBounding
from ser_fl.federation.aggregation.robust import Gathered, Robust
from ser_fl.federation.aggregation.trimmed_mean import TrimmedMean
from ser_fl.files import adapter
from ser_fl.runs.records import ClientUpdate, State


def update(client_id: str, state: State, num_examples: int = 1) -> ClientUpdate:
    return ClientUpdate(
        client_id=client_id, state=state, num_examples=num_examples, train_loss=1.0, seconds=0.0, update_norm=0.0
    )


def rule(name: str, **settings: Any) -> Aggregation:
    """As a configuration names it; FLTrust's root is client a."""
    settings |= {"root": "a"} if name == "fltrust" else {}
    found = adapter(AggregationConfig).validate_python({"name": name, **settings})
    return make_aggregation(found, seed=1)


def aggregated(
    aggregation: Aggregation,
    states: Sequence[State],
    received: State | None = None,
    names: str = "abcdefghijklmnopqrst",
) -> State:
    """Of clients a, b, ... with these states; the received model is zero, unless given."""
    zero = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    aggregation.start(zero if received is None else received, 1)
    for client_id, state in zip(names, states, strict=False):
        aggregation.add(update(client_id, state))
    return aggregation.result()


def rows(*values: Sequence[float]) -> list[State]:
    return [{"weight": torch.tensor(each)} for each in values]


def drawn(count: int, hostile: int = 0) -> list[State]:
    """States of two weights and a counter; of the last ones the weights are a million times as large."""
    stream = torch.Generator().manual_seed(7)
    sizes = [1e6 if index >= count - hostile else 1.0 for index in range(count)]
    return [
        {
            "layer.weight": torch.randn(6, 5, generator=stream) * size,
            "layer.bias": torch.randn(5, generator=stream) * size,
            "count": torch.tensor(index),
        }
        for index, size in enumerate(sizes)
    ]


NAMED = {
    "weighted_mean": (WeightedMean, 1),
    "median": (CoordinateMedian, 3),
    "trimmed_mean": (TrimmedMean, 3),
    "krum": (Krum, 5),
    "multi_krum": (MultiKrum, 5),
    "bulyan": (Bulyan, 7),
    "geometric_median": (GeometricMedian, 3),
    "norm_bounding": (NormBounding, 1),
    "centred_clipping": (CentredClipping, 3),
    "dnc": (DivideAndConquer, 3),
    "fltrust": (FLTrust, 1),
    "flame": (FLAME, 3),
}
"""Class of each rule, and the clients that it needs where one may be hostile."""
ROBUST = [name for name in NAMED if name != "weighted_mean"]


def test_every_rule_has_its_name_and_its_least_cohort() -> None:
    assert {name: kind for name, (kind, _) in NAMED.items()} == RULES
    for name, (kind, least) in NAMED.items():
        made = rule(name)
        assert type(made) is kind
        assert made.refusal("abcdefghijkl"[:least]) is None, name
        assert least == 1 or made.refusal("abcdefghijkl"[: least - 1]) is not None, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["=medain"], "unknown federation.aggregation 'medain', did you mean 'median'"),
        (["=krum", ".kept=3"], "unknown setting of federation.aggregation=krum 'kept'. Known: hostile_share, name"),
        (["=krum", ".hostile_share=0.5"], r"^federation.aggregation.hostile_share must be less than 0.5, got 0.5"),
        ([".hostile_share=0.1"], r"setting federation\.aggregation\.name is missing"),
        (["=median,krum"], "has several values"),
        (["=bulyan", ".hostile_share=0.25"], "hostile_share must be less than 0.25"),
        (
            ["=fltrust"],
            r"fltrust needs federation.aggregation.root=CLIENT, a client whose utterances",
        ),
        (["=norm_bounding", ".radius=0"], r"federation.aggregation.radius must be greater than 0, got 0"),
    ],
)
def test_settings_that_are_none(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["experiment=debug", *(f"federation.aggregation{each}" for each in settings)])


def test_a_cohort_that_is_too_small_is_told_what_would_do() -> None:
    said = rule("bulyan", hostile_share=0.2).refusal("abcdefghijklmnop")
    assert said == (
        "federation.aggregation=bulyan needs n >= 4f + 3 clients a round, where f = 4 of n = 16 may be hostile "
        "(hostile_share=0.2): have 19 clients, or a smaller federation.aggregation.hostile_share"
    )
    assert "kept must be at most n - f = 4 of 5, got 5" in str(rule("multi_krum", kept=5).refusal("abcde"))
    assert "root client in every round: 'a' (federation.aggregation.root) is none of b, c" in str(
        rule("fltrust").refusal("bc")
    )
    with pytest.raises(ValueError, match=r"hostile_share must be at least 0 and below 0\.5, got 0\.5"):
        Krum(0.5)


class Poisoned(pl.Callback):
    """Of some clients, what they trained is a million times as large."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.datamodule.client_id in ("f01", "f04", "m03"):
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.mul_(1e6)


def test_who_was_refused_or_left_out_is_no_longer_reckoned_with(tmp_path: Path) -> None:
    """Three of nine clients are hostile, as many as the median was told; the six others need no majority of nine."""
    made = rule("median", hostile_share=0.3)
    assert made.refusal("abcdef") is None
    made.known_hostile = 3
    assert isinstance(made, Robust) and [made.hostile(count) for count in (6, 7, 8)] == [0, 0, 1]
    rounds = [
        "federation.aggregation=median",
        "federation.aggregation.hostile_share=0.4",
        "federation.strikes=2",
        "federation.num_rounds=4",
        "data.num_speakers=9",
        "data.utterances_per_emotion=2",
        "tracking=none",
        f"run_dir={tmp_path / 'run'}",
    ]
    ser_fl.train(ser_fl.compose(["experiment=debug", *rounds]), callbacks=[Poisoned()])
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [len(record["shares"]) for record in records] == [6] * 4
    assert [len(record["cohort"]) for record in records] == [9, 9, 6, 6]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["=krum"], {"name": "krum", "hostile_share": 0.2}),
        (["=multi_krum", ".hostile_share=0.3", ".kept=2"], {"name": "multi_krum", "hostile_share": 0.3, "kept": 2}),
        ([".radius=2", "=norm_bounding"], {"name": "norm_bounding", "radius": 2.0, "noise": 0.0}),
        (["={name: fltrust, root: 01}"], {"name": "fltrust", "root": "01"}),
        (["=fltrust", ".root=01"], {"name": "fltrust", "root": "01"}),
        (["=null"], None),
        (["=krum", "=null"], None),
    ],
)
def test_a_rule_as_it_is_typed(written: list[str], expected: dict[str, Any] | None) -> None:
    config = compose(["experiment=debug", *(f"federation.aggregation{each}" for each in written)])
    assert dump(config)["federation"]["aggregation"] == expected
    assert parse(dump(config)) == config


@pytest.mark.parametrize("federation", ["local_only", "centralised"])
def test_a_rule_needs_several_clients(federation: str) -> None:
    with pytest.raises(UserError, match=f"must be null with federation={federation}, .*got median"):
        compose([f"federation={federation}", "federation.aggregation=median"])


def test_medians_and_trimmed_means_of_worked_numbers() -> None:
    """Of 1, 2, 9, 4 and 100 the median is 4, the mean without the ends (2 + 4 + 9) / 3 = 5; of four, (2 + 4) / 2."""
    five = rows([1.0, -1.0], [2.0, 0.0], [9.0, 3.0], [4.0, 5.0], [100.0, 4.0])
    assert aggregated(rule("median"), five)["weight"].tolist() == [4.0, 3.0]
    assert aggregated(rule("median"), rows([1.0], [2.0], [9.0], [4.0]))["weight"].tolist() == [3.0]
    trimmed = rule("trimmed_mean")
    assert aggregated(trimmed, five)["weight"].tolist() == pytest.approx([5.0, 7 / 3])
    # a is an end in both cells, b is kept in one, c in both ...
    expected = {"a": 0.0, "b": 1 / 3, "c": 1 / 3, "d": 1 / 6, "e": 1 / 6}
    assert trimmed.shares() == pytest.approx(expected)


def test_krum_of_worked_numbers() -> None:
    """f = 1 of 5, so 2 neighbours. Points 0, 1, 3, 4, 100 have scores 1 + 9, 1 + 4, 1 + 4, 1 + 9, far."""
    points = rows([0.0], [1.0], [3.0], [4.0], [100.0])
    krum, two = rule("krum"), rule("multi_krum", kept=2)
    assert aggregated(krum, points)["weight"].tolist() == [1.0], "of equal scores the first"
    assert aggregated(two, points)["weight"].tolist() == [2.0]
    assert two.shares() == {"a": 0.0, "b": 0.5, "c": 0.5, "d": 0.0, "e": 0.0}
    four = rule("multi_krum")
    assert aggregated(four, points)["weight"].tolist() == [2.0], "n - f of them"
    assert krum.shares() == {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0, "e": 0.0}
    nearer = aggregated(rule("krum"), rows([0.0], [1.0], [2.0], [4.0], [5.0]))
    assert nearer["weight"].tolist() == [1.0], "scores 5, 2, 5, 5, 10; with a neighbour more it would be 2"


def test_bulyan_of_worked_numbers() -> None:
    """f = 1 of 7. Of 0, 1, 2, 3, 4, 9, 100, with 4, 3, 2, 1 and 1 neighbours, Krum takes 2, 3, 1, 4 and 0; of these the
    three nearest to the median 2 are averaged.
    """
    bulyan = rule("bulyan")
    points = rows([0.0], [1.0], [2.0], [3.0], [4.0], [9.0], [100.0])
    assert aggregated(bulyan, points)["weight"].tolist() == [2.0]
    assert bulyan.shares() == pytest.approx({**dict.fromkeys("aefg", 0.0), **dict.fromkeys("bcd", 1 / 3)})


def test_geometric_medians_of_worked_numbers() -> None:
    """One step from the mean 2 of 0, 1, 5: weights 1/2, 1, 1/3, so (1 + 5/3) / (11/6) = 16/11. Of a quadrilateral it is
    where its diagonals cross, y = x and y = 1 - x / 4.
    """
    line, corners = rows([0.0], [1.0], [5.0]), rows([0.0, 0.0], [4.0, 0.0], [5.0, 5.0], [0.0, 1.0])
    once = rule("geometric_median", steps=1)
    assert aggregated(once, line)["weight"].item() == pytest.approx(16 / 11)
    assert once.shares() == pytest.approx({"a": 3 / 11, "b": 6 / 11, "c": 2 / 11})
    assert aggregated(rule("geometric_median"), corners)["weight"].tolist() == pytest.approx([0.8, 0.8], abs=1e-3)


def test_clipping_of_worked_numbers() -> None:
    """Of (3, 4) and (6, 8), with a bound of 5 the second is halved; around (1, 1) the changes are those that count."""
    two, far = rows([3.0, 4.0], [6.0, 8.0]), rows([4.0, 5.0], [7.0, 9.0])
    bounded = rule("norm_bounding", radius=5)
    assert aggregated(bounded, two)["weight"].tolist() == [3.0, 4.0]
    assert bounded.shares() == {"a": 0.5, "b": 0.25}
    around = {"weight": torch.ones(2)}
    assert aggregated(rule("norm_bounding", radius=5), far, around)["weight"].tolist() == [4.0, 5.0]
    # Norms 5, 10 and 20 have the median 10.
    three = rows([3.0, 4.0], [6.0, 8.0], [12.0, 16.0])
    assert aggregated(rule("norm_bounding"), three)["weight"].tolist() == pytest.approx([5.0, 20 / 3])
    # v = (0.5 + 1 + 1) / 3 = 5/6, then 5/6 + (-1/3 + 1 + 1) / 3 = 25/18.
    twice = rule("centred_clipping", radius=1, iterations=2)
    assert aggregated(twice, rows([0.5], [2.0], [4.0]))["weight"].item() == pytest.approx(25 / 18)
    once = rule("centred_clipping", radius=1)
    assert aggregated(once, rows([0.5], [2.0], [4.0]))["weight"].item() == pytest.approx(5 / 6)
    assert once.shares() == pytest.approx({"a": 1 / 3, "b": 1 / 6, "c": 1 / 12})


def test_one_iteration_that_keeps_no_update_is_one_that_keeps_them() -> None:
    states = drawn(7, hostile=1)
    radius = float(torch.cat([states[0]["layer.weight"].flatten(), states[0]["layer.bias"]]).norm())

    class Keeping(CentredClipping):
        def add(self, update: ClientUpdate) -> None:
            Gathered.add(self, update)

    one, other = aggregated(Keeping(radius=radius), states), aggregated(CentredClipping(radius=radius), states)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_divide_and_conquer_drops_who_is_furthest_along_the_largest_direction() -> None:
    found = rule("dnc", draws=3)
    corners = rows([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [9.0, 9.0])
    assert aggregated(found, corners)["weight"].tolist() == [0.5, 0.5]
    assert found.shares() == {**dict.fromkeys("abcd", 0.25), "e": 0.0}


def test_a_draw_has_so_many_cells_of_all_entries() -> None:
    """As many as there are, they are the changes; fewer are some of them, and others in another round."""
    whole, some = DivideAndConquer(cells=10_000), DivideAndConquer(cells=12)
    states = drawn(3)
    received = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    for each in (whole, some):
        each.start(received, 1)
        for client_id, state in zip("abc", states, strict=True):
            each.add(update(client_id, state))
    expected = torch.stack([torch.cat([one["layer.weight"].flatten(), one["layer.bias"]]) for one in states]).double()
    assert torch.equal(whole.draw(torch.Generator()), expected)
    stream = torch.Generator().manual_seed(1)
    first, second = some.draw(stream), some.draw(stream)
    assert first.shape == (3, 12) and not torch.equal(first, second)
    assert {*first[0].tolist()} < {*expected[0].tolist()}


def test_fltrust_of_worked_numbers() -> None:
    """The root goes to (1, 0); (0, 2) and (-5, 0) do not, and (3, 3) does by cos 45, cut down to length 1."""
    trust = rule("fltrust")
    found = aggregated(trust, rows([1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-5.0, 0.0]))
    cosine = math.sqrt(0.5)
    assert found["weight"].tolist() == pytest.approx([1.5 / (1 + cosine), 0.5 / (1 + cosine)])
    assert trust.shares() == pytest.approx({"a": 1 / (1 + cosine), "b": 0, "c": cosine / (1 + cosine), "d": 0})


def test_flame_of_worked_numbers() -> None:
    """Four go the same way, one back; lengths 1, 1, 2, 4, 9 have the median 2, so the fourth of the kept is halved."""
    flame = rule("flame", noise=0)
    found = aggregated(flame, rows([1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [-9.0, 0.0]))
    assert found["weight"].tolist() == [1.5, 0.0]
    assert flame.shares() == {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.125, "e": 0.0}
    together = rule("flame", noise=0)
    aggregated(together, rows([1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [-4.0, 0.0], [-4.0, 0.0]))
    assert [name for name, share in together.shares().items() if not share] == ["d", "e"], "a minority is no cluster"


def test_noise_of_flame_goes_by_the_median_norm() -> None:
    states: list[State] = [{"weight": torch.full((40_000,), size)} for size in (0.01, 0.02, 0.03)]
    without, noisy = (aggregated(rule("flame", noise=noise), states)["weight"] for noise in (0.0, 0.5))
    assert float((noisy - without).std()) == pytest.approx(0.5 * 0.02 * 200, rel=0.02)


def test_noise_is_of_its_deviation_and_drawn_by_seed_and_round() -> None:
    large: list[State] = [{"weight": torch.zeros(40_000), "count": torch.tensor(3)}] * 3

    def noisy(seed: int, number: int) -> State:
        bounding = NormBounding(1.0, noise=0.5, seed=seed)
        bounding.start(large[0], number)
        for client_id in "abc":
            bounding.add(update(client_id, large[0]))
        return bounding.result()

    first = noisy(1, 1)
    assert float(first["weight"].std()) == pytest.approx(0.5, rel=0.02) and first["count"].item() == 3
    assert abs(float(first["weight"].mean())) < 0.01
    assert torch.equal(noisy(1, 1)["weight"], first["weight"])
    for seed, number in ((1, 2), (2, 1)):
        assert not torch.equal(noisy(seed, number)["weight"], first["weight"])


@pytest.mark.parametrize("name", NAMED)
def test_the_order_of_the_cohort_does_not_matter(name: str) -> None:
    """But between clients of equal scores, which Bulyan meets where f is 1 or 2, and Krum then has one neighbour."""
    states, settings = drawn(15, hostile=1), {"hostile_share": 0.2} if name == "bulyan" else {}
    one, other = rule(name, **settings), rule(name, **settings)
    result, names = aggregated(one, states), "abcdefghijklmno"
    turned = aggregated(other, [states[7], *states[8:], *states[:7]], names=names[7:] + names[:7])
    for entry, tensor in result.items():
        torch.testing.assert_close(turned[entry], tensor, rtol=1e-5, atol=1e-6)
    assert other.shares() == pytest.approx(dict(one.shares()), abs=1e-9)


@pytest.mark.parametrize("name", NAMED)
def test_a_rule_knows_neither_origin_nor_scale(name: str) -> None:
    """Of models moved and scaled, with the received one, the result is moved and scaled."""
    settings = {"flame": {"noise": 0}, "centred_clipping": {"iterations": 3}, "bulyan": {"hostile_share": 0.2}}.get(
        name, {}
    )
    states = drawn(15)
    received = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in drawn(1)[0].items()}

    def moved(state: State) -> State:
        return {key: 4 * tensor - 3 if tensor.is_floating_point() else tensor for key, tensor in state.items()}

    result = aggregated(rule(name, **settings), states, received)
    other = aggregated(rule(name, **settings), [moved(state) for state in states], moved(received))
    torch.testing.assert_close(other, moved(result), rtol=0, atol=2e-5)


REDUCED: list[tuple[Robust, str]] = [
    (TrimmedMean(0.0), "nothing trimmed"),
    (MultiKrum(0.0, kept=5), "all kept"),
    (Bulyan(0.0), "nobody hostile"),
    (GeometricMedian(steps=0), "no step"),
    (NormBounding(math.inf), "no bound"),
    (CentredClipping(radius=math.inf), "no bound"),
    (CentredClipping(radius=math.inf, iterations=3), "no bound, updates kept"),
    (DivideAndConquer(0.0), "nobody hostile"),
]


@pytest.mark.parametrize(("reduced", "how"), REDUCED, ids=[f"{one.name} {how}" for one, how in REDUCED])
def test_in_its_limit_a_rule_is_the_mean_bit_for_bit(reduced: Robust, how: str) -> None:
    states = drawn(5)
    mean, result = aggregated(WeightedMean(), states), aggregated(reduced, states, received=drawn(1)[0])
    for name, tensor in mean.items():
        assert torch.equal(result[name], tensor), name
    assert reduced.shares() == pytest.approx(dict.fromkeys("abcde", 0.2))


def test_rules_that_reduce_to_each_other() -> None:
    """Multi-Krum of one is Krum; with two of five trimmed from either end the trimmed mean is the median."""
    states = drawn(5)
    pairs: list[tuple[Aggregation, Aggregation]] = [
        (MultiKrum(kept=1), Krum()),
        (TrimmedMean(0.4), CoordinateMedian()),
        (CentredClipping(radius=2.0), NormBounding(2.0)),
    ]
    for one, other in pairs:
        first, second = aggregated(one, states), aggregated(other, states)
        assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
        assert one.shares() == other.shares()


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("size", [1e6, 1e30])
def test_a_hostile_update_is_bounded_and_hardly_counts(name: str, size: float) -> None:
    states = drawn(11)
    honest = max(float(state["layer.weight"].abs().max()) for state in states[:-1])
    states[-1] = {key: tensor * size if tensor.is_floating_point() else tensor for key, tensor in states[-1].items()}
    made = rule(name)
    result = aggregated(made, states)
    assert float(result["layer.weight"].abs().max()) < honest
    assert made.shares()["k"] < 1e-4 or name == "fltrust", "FLTrust bounds the length, whoever goes its way"
    plain = aggregated(rule("weighted_mean"), states)
    assert float(plain["layer.weight"].abs().max()) > 1e4


@pytest.mark.parametrize("name", ROBUST)
def test_nobody_is_asked_for_utterances(name: str) -> None:
    results = []
    for count in (1, 2**31):
        made, states = rule(name), drawn(7)
        made.start({key: torch.zeros_like(tensor) for key, tensor in states[0].items()}, 1)
        for client_id, state in zip("abcdefg", states, strict=True):
            made.add(update(client_id, state, num_examples=count if client_id == "g" else 1))
        results.append(made.result())
    assert all(torch.equal(results[0][key], tensor) for key, tensor in results[1].items())


@pytest.mark.parametrize("name", NAMED)
def test_shares_are_of_all_clients_and_counters_are_the_largest_of_those_that_count(name: str) -> None:
    made = rule(name)
    result, shares = aggregated(made, drawn(11)), made.shares()
    assert [*shares] == [*"abcdefghijk"] and all(0 <= share <= 1 for share in shares.values())
    assert 0.5 < sum(shares.values()) <= 1 + 1e-9
    assert result["count"].dtype == torch.int64
    counted = [index for index, share in enumerate(shares.values()) if share]
    assert result["count"].item() == max(counted)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("norm_bounding", {"radius": 1}),
        ("centred_clipping", {"radius": 1}),
        ("fltrust", {}),
    ],
)
def test_what_needs_no_other_update_keeps_none(name: str, settings: dict[str, Any]) -> None:
    """But the root's, which is the first one of every cohort."""
    made, states = rule(name, **settings), drawn(4)
    made.start({key: torch.zeros_like(tensor) for key, tensor in states[0].items()}, 1)
    made.add(update("a", states[0]))
    seen = [WeakSet(state.values()) for state in states[1:]]
    for client_id in "bcd":
        made.add(update(client_id, states.pop()))
    gc.collect()
    assert [len(state) for state in seen] == [0, 0, 0]


def normed(weight: float, mean: float, variance: float) -> State:
    return {
        "conv.weight": torch.full((2,), weight),
        "norm.running_mean": torch.full((3,), mean),
        "norm.running_var": torch.full((3,), variance),
        "norm.num_batches_tracked": torch.tensor(1),
    }


def test_running_statistics_count_in_the_units_of_the_layer() -> None:
    """With a received variance of 4, a mean that moves by 6 moves by 3 deviations, a variance that grows by 8 by 2."""
    bounding = NormBounding(1.0)
    bounding.start(normed(0.0, 0.0, 4.0), 1)
    assert bounding.norm(normed(1.0, 6.0, 12.0)) == pytest.approx(math.sqrt(2 * 1 + 3 * 9 + 3 * 4))
    dead = normed(0.0, 0.0, 0.0)
    bounding.start(dead, 1)
    assert bounding.norm(normed(0.0, 2.0, 0.0)) == pytest.approx(math.sqrt(3 * 4)), "of no variance they count as is"


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan", "dnc", "flame"])
def test_a_client_that_poisons_running_statistics_alone_is_dropped(name: str) -> None:
    stream = torch.Generator().manual_seed(1)
    states = []
    for _ in range(10):
        weight, mean, variance = (0.1 * torch.randn(3, generator=stream)).tolist()
        states.append(normed(1 + weight, 0.3 + mean, 1.5 + variance))
    made = rule(name)
    aggregated(made, [*states, normed(1.0, -50.0, 900.0)], normed(0.0, 0.0, 1.0))
    assert made.shares()["k"] == 0


def test_no_variance_falls_below_zero() -> None:
    """The root's variance halves; who goes on from there as far as the root did would end at 0 or below."""
    trust = rule("fltrust")
    states = [normed(0.0, 0.0, 0.01), normed(0.0, 0.0, 0.9)]
    assert aggregated(trust, states, normed(0.0, 0.0, 1.0))["norm.running_var"].min() >= 0
    noisy = aggregated(NormBounding(1.0, noise=5.0), [normed(0.0, 0.0, 1.0)] * 3, normed(0.0, 0.0, 1.0))
    assert noisy["norm.running_var"].min() == 0


@pytest.mark.parametrize("hostile", [1, 2])
def test_equals_flowers_rules(hostile: int) -> None:
    """Of eleven clients, one of whom is far away. Flower weighs what Multi-Krum takes by utterances, alike here."""
    flower = pytest.importorskip("flwr.server.strategy.aggregate", reason="needs Flower: pip install 'ser-fl[flower]'")
    states, share = drawn(11, hostile=1), hostile / 11
    arrays = [([state["layer.weight"].numpy(), state["layer.bias"].numpy()], 1) for state in states]
    expected = {
        "median": flower.aggregate_median(arrays),
        "trimmed_mean": flower.aggregate_trimmed_avg(arrays, share + 1e-9),
        "krum": flower.aggregate_krum(arrays, hostile, 0),
        "multi_krum": flower.aggregate_krum(arrays, hostile, 11 - hostile),
        "bulyan": flower.aggregate_bulyan(list(arrays), hostile, flower.aggregate_krum, to_keep=0),
    }
    for name, (weight, bias) in expected.items():
        result = aggregated(rule(name, hostile_share=share), states)
        np.testing.assert_allclose(result["layer.weight"].numpy(), weight, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(result["layer.bias"].numpy(), bias, rtol=0, atol=1e-6, err_msg=name)
