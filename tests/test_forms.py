"""JSON of anybody's making against annotations: what fits comes as annotated, what does not is told in a line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ser_fl.runs.validation import conform, conform_known, parse_json, record_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int
    flag: bool = False
    pair: tuple[float, float] | None = None
    rows: tuple[tuple[int, ...], ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    inner: tuple[Inner, ...] = ()
    kind: Literal["a", "b"] = "a"


def test_what_fits_comes_as_annotated() -> None:
    content = {"name": "x", "count": 3, "pair": [1, 0.5], "rows": [[1], []], "shares": {"f": 0.5}, "kind": "b"}
    made = record_of(Outer, content | {"inner": [{"share": 1.0, "later": 1}], "later": None})
    assert made == Outer(
        name="x", count=3, pair=(1, 0.5), rows=((1,), ()), shares={"f": 0.5}, kind="b", inner=(Inner(share=1.0),)
    )
    assert record_of(Outer, {"name": "x", "count": 3, "pair": None}).pair is None
    assert math.isnan(record_of(Inner, {"share": None}).share), "as NaN is written"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 7}, "must hold text as name, got 7"),
        ({"count": 3.0}, "must hold a whole number as count, got 3.0"),
        ({"count": True}, "must hold a whole number as count, got True"),
        ({"count": 1 << 63}, "must hold a whole number as count"),
        ({"flag": 1}, "must hold true or false as flag, got 1"),
        ({"pair": [1.0]}, "must hold 2 entries as pair, got 1"),
        ({"pair": "ab"}, "must hold a list as pair, got 'ab'"),
        ({"rows": [[1], 2]}, "must hold a list as rows.1, got 2"),
        ({"rows": [[1], [None]]}, "must hold a whole number as rows.1.0, got None"),
        ({"shares": [1]}, r"must hold a mapping as shares, got \[1\]"),
        ({"shares": {"f": "x" * 9999}}, r"must hold a number as shares.f, got 'x.{,250}$"),
        ({"shares": {"f": math.inf}}, "must hold a number as shares.f, got inf"),
        ({"shares": {"f": 10**400}}, "must hold a number as shares.f, got 1000"),
        ({"inner": [{}]}, r"inner.0: missing 1 required keyword-only argument: 'share'"),
        ({"inner": [3]}, "inner.0: must hold a mapping, got 3"),
        ({"kind": "c"}, "must hold one of a, b as kind, got 'c'"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_of(Outer, {"name": "x", "count": 3} | change)


def test_known_entries_are_checked_and_others_stay() -> None:
    assert conform_known({"a": [1], "b": [2]}, {"a": tuple[int, ...], "c": int}) == {"a": (1,), "b": [2]}
    with pytest.raises(ValueError, match=r"must hold text as test\.a, got 1"):
        conform_known({"a": 1}, {"a": str}, "test.")
    assert conform(Any, {1: [2]}, "whatever") == {1: [2]}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '"\\ud800"', "{", "\0", ""])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('["\\ud83d\\ude00"]') == ["😀"], "both halves are a character"
