"""Settings and files of settings of anybody's making: a checked configuration, or one line that says what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import cases_of, digest, result_or_line
from hypothesis import strategies as st

from ser_fl.config.compose import compose, compose_benchmark, compose_transfer
from ser_fl.config.groups import groups
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.config.schema import dump, parse

REAL = dump(compose(["experiment=debug", "objective=pgd"]))


def names_in(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """``["seed", "data", "data.name", ...]``."""
    found = []
    for name, value in settings.items():
        found.append(prefix + name)
        found += names_in(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return found


SETTINGS = names_in(REAL)
GROUPS = groups()
BENCHMARK = list(BenchmarkConfig.__dataclass_fields__)
TRANSFER = ["attack", "epsilon", "defences", "steps", "restarts", "max_examples", "batch_size", "seed", "root", "out"]
VALUES = [
    *("0", "-1", "1", "2", "1.5", "1e999", "-1e999", "nan", ".nan", "inf", "-.inf", "1e-400", "0x7f", "1_000", "2**80"),
    *("9" * 25, "9" * 5000, "0x" + "f" * 5000, "1e5000", "true", "null", "none", "~", "''", '""', "[]", "{}", "[[]]"),
    *("[1,2", "1,2", "{a:1}", "{a:{b:{c:[1,{d:2}]}}}", "[" * 50 + "]" * 50, "[" * 3000, "{a:" * 400 + "1" + "}" * 400),
    *("${seed}", "${", "${}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${now:%Y}", "${data}", "$"),
    *("${${seed}}", "${oc.create:{a:1}}", "${hydra:runtime.cwd}", "???", "choice(1,2)", "range(1,9)", "glob(*)"),
    *("int(3)", "str(", "sort(3,1)", "extend_list(1)", "!!python/object/apply:os.getcwd []", "&a [*a]", "*a", "a: b"),
    *(
        "a b",
        " ",
        "a=b",
        "==",
        "a'b",
        'a"b',
        "\\",
        "a\\",
        "'\\'",
        "é",
        "\u202e",
        "\x00",
        "\x1b[31m",
        "two\nlines",
        "\t",
    ),
    *("x" * 3000, "auto", "pgd", "crnn", "@pkg", "a@b", "/etc/passwd", "../..", "..", "file:///", "%s%s", "{0}", "🙂"),
]
values = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(VALUES),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.one_of(st.integers(), st.floats(), st.text("ab,[]'{}", max_size=4)), max_size=4).map(str),
)


def keys(known: list[str]) -> st.SearchStrategy[str]:
    """A known name, mostly, or one near it."""

    @st.composite
    def changed(draw: st.DrawFn) -> str:
        key = draw(st.sampled_from(known))
        place = draw(st.integers(0, len(key)))
        letters = draw(st.sampled_from(["", "x", ".", "..", "=", "/", "@", "+", "~", "++", " ", ":", "é", "[0]", "$"]))
        return draw(
            st.sampled_from(
                [
                    key[:place] + letters + key[place:],
                    key[:place],
                    f"{draw(st.sampled_from(['+', '++', '~', '~~', '-', '--', '/']))}{key}",
                    f"{key}.{draw(st.sampled_from(['name', 'x', '', '0', '__class__', '_target_']))}",
                    f"{key}@{draw(st.sampled_from(['', 'a', '_global_', 'data', ':']))}",
                    key.upper(),
                ]
            )
        )

    odd = st.sampled_from(["hydra", "hydra.run.dir", "hydra/launcher", "defaults", "_target_", "_self_", "", "schema"])
    return st.one_of(st.sampled_from(known), st.sampled_from(known), changed(), odd, st.text(max_size=8))


@st.composite
def overrides(draw: st.DrawFn, known: list[str]) -> list[str]:
    """Overrides, some of them honest; some without a value."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(keys(known))
        honest = GROUPS.get(key)
        value = draw(st.one_of(values, st.sampled_from(honest)) if honest else values)
        found.append(draw(st.sampled_from([f"{key}={value}"] * 6 + [key, f"~{key}", f"{key}:{value}", value])))
    return found


@cases_of("overrides", quick=25)
def test_overrides_of_training(explore: Callable[..., None], num_cases: int, tmp_path: Path) -> None:
    def compose_one(given: list[str]) -> None:
        config = result_or_line(compose, given)
        if config is not None:
            assert parse(yaml.safe_load(yaml.safe_dump(dump(config), allow_unicode=True))) == config

    explore(overrides([*SETTINGS, *GROUPS]), compose_one)


@cases_of("settings of benchmarks", quick=40)
def test_settings_of_benchmarks_and_transfers(explore: Callable[..., None], num_cases: int) -> None:
    def compose_both(given: tuple[list[str], list[str]]) -> None:
        result_or_line(compose_benchmark, ["run=here", *given[0]])
        result_or_line(compose_transfer, ["one", "two", *given[1]])

    explore(st.tuples(overrides(BENCHMARK), overrides(TRANSFER)), compose_both)


ODD: list[Any] = [
    *(None, True, 0, -1, 3, 0.5, 2**80, -(2**80), 1e308, float("nan"), float("inf"), "", " ", "auto", "x" * 5000),
    *([], {}, [[]], [None], {"name": "x"}, {"name": None}, {"name": ["crnn"]}, {1: 2}, {None: None}, {"": ""}),
    *(
        [1, "a", {}],
        "${seed}",
        "${data.root}",
        "${",
        "two\nlines",
        "\x1b[2J",
        b"bytes",
        "crnn",
        "???",
        {"_target_": "os"},
    ),
]
SNIPPETS = [
    "!!python/object/apply:os.system ['false']",
    "!!python/name:os.system",
    "!!binary aGVsbG8=",
    "!!timestamp 2020-13-45",
    "2020-99-99",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!own tag",
    "&a [*a]",
    "&a {b: *a}",
    "*nothing",
    "? [a, b]\n  : 1",
    "{a: 1, a: 2}",
    "'unclosed",
    "[1, 2",
    "|\n    text",
    "0o17",
    "1:30:00",
    "9" * 5000,
    "0x" + "f" * 5000,
    "1e999",
    ".nan",
    "[" * 2000 + "]" * 2000,
    "[" * 200000,
    "{a: " * 2000 + "1" + "}" * 2000,
    "<<: *a",
    "%YAML 9.9",
    "--- a\n--- b",
    "\t- tab",
    "@at",
    "\x00",
    "\ufeff",
    "${oc.env:HOME}",
    "${seed}",
    "${.name}",
    "${..seed}",
    "${" * 500,
]
LAUGHS = "".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 12))
LAUGHS = "l0: &l0 [ha, ha, ha]\n" + LAUGHS


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A run's config.yaml with some of it changed, as data or as text."""
    settings = copy.deepcopy(REAL)
    for _ in range(draw(st.integers(0, 2))):
        *parents, name = draw(st.sampled_from(SETTINGS)).split(".")
        node: Any = settings
        for parent in parents:
            node = node[parent] if isinstance(node, dict) and parent in node else {}
        if isinstance(node, dict):
            match draw(st.sampled_from(["odd", "odd", "drop", "add", "swap"])):
                case "odd":
                    node[name] = draw(st.sampled_from(ODD))
                case "drop":
                    node.pop(name, None)
                case "add":
                    node[draw(st.sampled_from(["x", "", 1, None, "name", "schema", "a.b", "\x1b"]))] = 1
                case "swap":
                    node[name] = (
                        settings[draw(st.sampled_from(sorted(map(str, settings)))) or "seed"] if settings else 1
                    )
    try:
        text = yaml.safe_dump(
            {"schema": draw(st.sampled_from([1, 1, 1, 1, 2, "1", None])), **settings}, sort_keys=False
        )
    except TypeError:  # keys of several types
        text = yaml.safe_dump(REAL)
    lines = text.split("\n")
    place = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["none", "none", "value", "value", "line", "laughs", "cut", "whole"])):
        case "value":
            lines[place] = lines[place].partition(":")[0] + ": " + draw(st.sampled_from(SNIPPETS))
        case "line":
            lines.insert(place, draw(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=20))))
        case "laughs":
            lines.append(LAUGHS)
        case "cut":
            lines = lines[:place]
        case "whole":
            lines = [draw(st.sampled_from([*SNIPPETS, LAUGHS, "", "seed", "[]", "- 1", "null", "3"]))]
    content = bytearray("\n".join(lines).encode("utf-8", "replace"))
    if draw(st.booleans()) and content and draw(st.booleans()):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


some_overrides = st.one_of(st.just([]), st.just(["seed=3"]), overrides(SETTINGS))


@cases_of("files of settings", quick=40)
def test_files_of_settings(explore: Callable[..., None], num_cases: int, tmp_path: Path) -> None:
    def compose_one(case: tuple[bytes, list[str]]) -> None:
        content, given = case
        file = tmp_path / "config.yaml"
        file.write_bytes(content)
        before = digest(tmp_path)
        config = result_or_line(compose, given, config_file=file)
        assert config is None or parse(yaml.safe_load(yaml.safe_dump(dump(config)))) == config
        assert digest(tmp_path) == before

    explore(st.tuples(files(), some_overrides), compose_one)


def test_the_honest_file_composes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"schema": 1, **REAL}))
    assert compose(config_file=tmp_path / "config.yaml") == parse(REAL)


@pytest.mark.parametrize("content", [LAUGHS, f"a: {SNIPPETS[8]}"])
def test_aliases_of_aliases_are_refused_at_once(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert result_or_line(compose, config_file=tmp_path / "config.yaml") is None
