"""Settings that are text are what was typed, whatever it looks like, by every way in; which ones are text is told by
the schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ser_fl.config.compose import compose, compose_benchmark, compose_transfer
from ser_fl.config.groups import configs_dir
from ser_fl.config.robustness import BenchmarkConfig, TransferConfig
from ser_fl.config.schema import Config, dump
from ser_fl.config.text import kind_of, type_at

ODD = [
    *("exp #2", "2024", "007", "010", "1e3", "1_000", "0x1f", "1.", ".5", "a: b", "a:b", "12:30", "2020-01-01", "true"),
    *("no", "Off", "~", "NULL", "[x]", "[x", "{a: 1}", "a,b", "a=b", "'q'", '"q', "it's", "x'", "\\", "a\\", "a\\'b"),
    *("${seed}", "\\${seed}", "${", "$", "???", "*", "&a", "!x", "@a", "%", "|", ">", "- a", "# all", "a b ", " a", ""),
    *("wütend", "日本", "e\u0301", "nan", ".inf", "+1", "int(3)", "choice(a)", "???", "ser fl/[1], 2"),
]


def texts(config: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings of a configuration that hold text, by the schema's types."""
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_dataclass(value):
            yield from texts(value, f"{name}.")
        elif kind_of(type_at(Config, tuple(name.split(".")))).is_text:
            yield name


REAL = compose(["experiment=debug"])
SINGLE = sorted(texts(REAL))
SUPERLINK = "executor.superlink"
"""Which has a form of its own, and goes with executor=flower."""
FREE = [name for name in SINGLE if not name.startswith(("executor.", "adversaries."))]
"""Those that go with any others: hostile clients have theirs by their kind."""


def value_of(config: Any, name: str) -> Any:
    """A setting of a configuration or of its plain mapping."""
    for part in name.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def test_what_is_text_comes_from_the_types() -> None:
    assert {"run_dir", "experiment", "data.root", "data.cache_dir", "tracking.project", "tracking.group"} <= {*SINGLE}
    assert {"frontend.name", "data.name", SUPERLINK} <= {*SINGLE}
    assert not {"seed", "precision", "split.name", "model.norm", "executor.workers", "profile"} & {*SINGLE}
    assert kind_of(kind_of(type_at(Config, ("split", "test_speakers"))).item).is_text
    assert kind_of(type_at(Config, ("data", "labels", "anything"))).is_text
    assert type_at(Config, ("model", "no such")) is None


def rotated(shift: int) -> dict[str, str]:
    """A value for every text setting: over a round of shifts each has had many, and each is had."""
    values = {name: ODD[(shift + place) % len(ODD)] for place, name in enumerate(FREE)}
    return {name: text for name, text in values.items() if text != "null"}


def assert_holds(config: Config, values: dict[str, str]) -> None:
    assert {name: value_of(config, name) for name in values} == values


def test_every_text_beside_a_file_and_in_one(tmp_path: Path) -> None:
    file, written = tmp_path / "config.yaml", tmp_path / "written.yaml"
    file.write_text(yaml.safe_dump(dump(REAL)), encoding="utf-8")
    for shift in range(0, len(ODD), 3):
        values, content = rotated(shift), dump(REAL)
        assert_holds(compose([f"{name}={text}" for name, text in values.items()], config_file=file), values)
        for name, text in values.items():
            *parents, last = name.split(".")
            (value_of(content, ".".join(parents)) if parents else content)[last] = text
        written.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        assert_holds(compose(config_file=written), values)


@pytest.mark.parametrize("shift", range(0, len(ODD), len(FREE)))
def test_every_text_through_hydra(shift: int) -> None:
    values = {name: text for name, text in rotated(shift).items() if name != "experiment"}  # a group's, there
    assert_holds(compose(["experiment=debug", *(f"{name}={text}" for name, text in values.items())]), values)


PLAIN = [
    "exp#2",
    "2024",
    "007",
    "010",
    "1e3",
    "1_000",
    "0x1f",
    "12:30",
    "2020-01-01",
    "true",
    "no",
    "Off",
    "~",
    ".5",
    "NaN",
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_yaml_is_text_where_text_is_meant(text: str, tmp_path: Path) -> None:
    """As people write it, without quotes: in a run's file, and in a group of one's own."""
    content = yaml.safe_dump(dump(REAL)).replace("project: ser_fl", f"project: {text}")
    content = content.replace("labels: {}", f"labels: {{{text}: {text}, x: {text}}}")
    content = content.replace("test_speakers: []", f"test_speakers: [{text}]", 1).replace(
        "within_speaker", "speaker_independent"
    )
    (tmp_path / "config.yaml").write_text(content)
    own = tmp_path / "own" / "data"
    own.mkdir(parents=True)
    defaults = (configs_dir() / "data" / "builtin.yaml").read_text().replace("labels: {}", "")
    (own / "mine.yaml").write_text(f"{defaults}\nlabels:\n  {text}: {text}\n")
    (tmp_path / "own" / "experiment").mkdir()
    (tmp_path / "own" / "experiment" / "odd.yaml").write_text(
        "# @package _global_\ndefaults: [debug, {override /data: mine}, {override /split: speaker_independent}]\n"
        f"experiment: {text}\nsplit:\n  test_speakers: [{text}, a]\n"
    )
    config = compose(config_file=tmp_path / "config.yaml")
    null = None if text == "~" else text
    assert (config.tracking.project, config.data.labels) == (text, {text: text, "x": text})
    assert text in (*config.split.test_speakers, *config.split.validation_speakers)
    config = compose(["experiment=odd"], config_dir=tmp_path / "own")
    assert (config.experiment, config.data.labels) == (text, {text: text})
    assert config.split.test_speakers == (text, "a") and null in (text, None)


SPEAKERS = ["010", "1e3", "no", "12:30", "null", "~", "true", "a b", "wütend", "it's", "x#1", "${x}", "a[1]", "=b"]


def test_lists_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dump(compose(["experiment=debug", "split=speaker_independent"]))))
    asked = f"split.test_speakers=[{', '.join(SPEAKERS)}, 'with, comma', \" blank\"]"
    expected = (*SPEAKERS, "with, comma", " blank")
    assert compose(["experiment=debug", "split=speaker_independent", asked]).split.test_speakers == expected
    assert compose([asked], config_file=file).split.test_speakers == expected


CODES = ["02", "1", "1.5", "wütend", "no", "null", "a.b", "a b", "[x]", "x#1", "${x}", "'", "a:b", "日本"]


def test_label_codes_and_their_words(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dump(REAL)))
    labels = dict(zip(CODES, ODD, strict=False))
    asked = [f"data.labels.{code}={word}" for code, word in labels.items()]
    assert compose(["experiment=debug", *asked]).data.labels == labels
    assert compose(asked, config_file=file).data.labels == labels
    mapping = "data.labels={02: happiness, no: 1e3, wütend: true, 'a, b': \"c: d\"}"
    expected = {"02": "happiness", "no": "1e3", "wütend": "true", "a, b": "c: d"}
    assert compose(["experiment=debug", mapping]).data.labels == expected
    assert compose([mapping], config_file=file).data.labels == expected


@pytest.mark.parametrize("text", ODD)
def test_benchmarks_and_transfers_take_folders_as_they_are(text: str) -> None:
    config = compose_benchmark([f"run={text}", f"root={text}"])
    assert (config.run, config.root) == (text, text)
    assert compose_transfer(["a", "b", f"out={text}"]).out == text
    assert kind_of(type_at(BenchmarkConfig, ("run",))).is_text and kind_of(type_at(TransferConfig, ("out",))).is_text


@example("a\\${b}'\\")
@example("\\\\${${x}}")
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20))
@settings(max_examples=5, deadline=None)
def test_any_text_at_all(text: str) -> None:
    if text != "null":
        assert compose(["experiment=debug", f"run_dir={text}", f"tracking.group={text}"]).run_dir == text


def test_names_of_attacks_stand_for_mappings_with_a_name() -> None:
    asked = compose_benchmark(
        ["run=r", "attacks=[{name: 010, steps: 3}, 1e3, 'art:Fast', {name: true}]", "adaptive=no"]
    )
    assert [(choice.name, choice.steps) for choice in asked.attacks] == [
        ("010", 3),
        ("1e3", None),
        ("art:Fast", None),
        ("true", None),
    ]
    assert [choice.name for choice in asked.adaptive] == ["no"]
