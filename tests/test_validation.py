"""JSON of anybody's making against annotations: what fits comes as annotated, what does not is told in a line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ser_fl.files import Figure, parse_json, record_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    share: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    records: tuple[Inner, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int
    flag: bool = False
    pair: tuple[Figure, Figure] | None = None
    rows: tuple[tuple[int, ...], ...] = ()
    shares: dict[str, Figure] = field(default_factory=dict)
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
        ({"flag": 1}, "must hold true or false as flag, got 1"),
        ({"pair": [1.0]}, "lacks pair.1"),
        ({"pair": [1.0, 2.0, 3.0]}, r"must hold at most 2 items .* as pair, got \[1.0, 2.0, 3.0\]"),
        ({"pair": "ab"}, "must hold a list as pair, got 'ab'"),
        ({"rows": [[1], 2]}, "must hold a list as rows.1, got 2"),
        ({"rows": [[1], [None]]}, "must hold a whole number as rows.1.0, got None"),
        ({"shares": [1]}, r"must hold a mapping as shares, got \[1\]"),
        ({"shares": {"f": "x" * 9999}}, r"must hold a number as shares.f, got 'x.{,250}$"),
        ({"shares": {"f": True}}, "must hold a number as shares.f, got True"),
        ({"inner": [{}]}, "lacks inner.0.share"),
        ({"inner": [3]}, "must hold a mapping as inner.0, got 3"),
        ({"kind": "c"}, "must hold 'a' or 'b' as kind, got 'c'"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_of(Outer, {"name": "x", "count": 3} | change)


def test_a_document_and_a_list_of_records_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"^must hold a mapping, got \[1\]$"):
        record_of(Outer, [1])
    assert record_of(Records, {"records": [{"share": 1}]}).records == (Inner(share=1.0),)
    with pytest.raises(ValueError, match=r"^must hold a number as records\.1\.share, got 'x'$"):
        record_of(Records, {"records": [{"share": 1}, {"share": "x"}]})
    with pytest.raises(ValueError, match=r"^must hold a list as records, got None$"):
        record_of(Records, {"records": None})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1e19", str(1 << 63), "-1" + "0" * 400])
def test_numbers_beyond_64_bits_are_refused(number: str) -> None:
    with pytest.raises(ValueError, match="finite and of 64 bits at most, got '"):
        parse_json(f'{{"a": [{number}]}}')


def test_numbers_are_read_as_python_reads_them() -> None:
    text = f"[{(1 << 63) - 1}, 0.1, -0.0, 1e-320, 5]"
    assert repr(parse_json(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '"\\ud800"', "{", "\0", ""])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('["\\ud83d\\ude00"]') == ["😀"], "both halves are a character"
