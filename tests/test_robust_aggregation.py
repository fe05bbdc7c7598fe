"""Aggregations that withstand hostile clients: worked numbers, Flower's strategies, identities, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ser_fl.config.compose import compose
from ser_fl.config.values import ObjectConfig
from ser_fl.errors import UserError
from ser_fl.federation.aggregation import RULES, Aggregation, WeightedMean, make_aggregation
from ser_fl.federation.aggregation.coordinate_median import CoordinateMedian
from ser_fl.federation.aggregation.krum import Krum, MultiKrum
from ser_fl.federation.aggregation.trimmed_mean import TrimmedMean
from ser_fl.runs.records import ClientUpdate, State


def update(client_id: str, state: State, num_examples: int = 1) -> ClientUpdate:
    return ClientUpdate(
        client_id=client_id, state=state, num_examples=num_examples, train_loss=1.0, seconds=0.0, update_norm=0.0
    )


def rule(name: str, **settings: Any) -> Aggregation:
    """As the command line makes it."""
    named = [f"federation.aggregation.{key}={value}" for key, value in settings.items()]
    found = compose(["experiment=debug", f"federation.aggregation={name}", *named]).federation.aggregation
    assert found is not None and not isinstance(found, ObjectConfig)
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
}
"""Class of each rule, and the clients that it needs, of whom a fifth, rounded up, may be hostile."""


def test_every_rule_has_its_name_and_its_least_cohort() -> None:
    assert {name: kind for name, (kind, _) in NAMED.items()} == RULES
    for name, (kind, least) in NAMED.items():
        made = rule(name)
        assert type(made) is kind
        assert [made.refusal("abcdefg"[:count]) is None for count in (least - 1, least)] == [least == 1, True], name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["=medain"], "unknown federation.aggregation 'medain', did you mean 'median'"),
        (["=krum", ".kept=3"], "unknown setting of federation.aggregation=krum 'kept'. Known: hostile_share, name"),
        (["=krum", ".hostile_share=0.5"], r"^federation.aggregation.hostile_share must be less than 0.5, got 0.5"),
        ([".hostile_share=0.1"], r"setting federation\.aggregation\.name is missing"),
        (["=median,krum"], "has several values"),
    ],
)
def test_settings_that_are_none(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["experiment=debug", *(f"federation.aggregation{each}" for each in settings)])


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
