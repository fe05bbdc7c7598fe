"""Run folders with one file damaged: whatever reads them gives a result or one line, and leaves them as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import cases_of, digest, result_or_line
from hypothesis import strategies as st

from ser_fl import load, train
from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.config.schema import Config
from ser_fl.federation.checkpoint import Checkpoint, open_run, tracked_run
from ser_fl.report.page import render_page
from ser_fl.report.panels import draw_figures
from ser_fl.report.reader import read_run
from ser_fl.report.tables import summary_table
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.robustness.result_cache import ResultCache
from ser_fl.runs.folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run that was trained and attacked, and the settings that go on with it."""

    folder: Path
    config: Config
    files: tuple[str, ...]


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("real run")
    settings = ["experiment=debug", "data.utterances_per_emotion=2", "federation.batch_size=4", "resume=true"]
    config = compose([*settings, f"data.cache_dir={home / 'cache'}", f"run_dir={home / 'run'}"])
    train(config)
    benchmark_run(
        compose_benchmark(
            [
                f"run={home / 'run'}",
                "attacks=[fgsm]",
                "epsilons=[0.05]",
                "defences=[none]",
                "adaptive=[]",
                "checks=false",
            ]
        )
    )
    folder = home / "run"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Run(folder, config, tuple(name for name in files if not name.endswith((".html", ".png"))))


ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1,
        7,
        0.5,
        -0.5,
        1e308,
        2**80,
        10**400,
        "",
        "x",
        "two\nlines",
        "\x1b[2J",
        "x" * 5000,
        "<b>",
        "$x$",
    ),
    *([], {}, [[]], [None], [1], ["a"], [[1, 2]], {"a": 1}, {"": None}, "../../outside", "/etc/passwd", "model.json"),
    *(float("nan"), float("inf"), "\ud800", "NaN", "1e5"),
]
TEXTS = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"3",
    b'"x"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"\0" * 64,
]


def places_in(content: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document is."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [prefix, *(place for key, value in items for place in places_in(value, (*prefix, key)))]


def with_value(content: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """The document after a change of one of its values."""
    if not place:
        return ODD[7]
    node = content
    for key in place[:-1]:
        node = node[key]
    change(node, place[-1])
    return content


def changed_json(draw: st.DrawFn, text: str) -> str:
    """One value replaced, dropped or doubled; of JSON lines in one of them."""
    lines = text.splitlines() if text.count("\n") > 1 and text.startswith("{") and "}\n{" in text else [text]
    number = draw(st.integers(0, len(lines) - 1))
    content = json.loads(lines[number])
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places_in(content)))
        odd = draw(st.sampled_from(ODD))

        def replace(node: Any, key: Any, odd: Any = odd) -> None:
            node[key] = odd

        def drop(node: Any, key: Any) -> None:
            del node[key]

        def double(node: Any, key: Any) -> None:
            if isinstance(node, list):
                node.append(node[key])
            else:
                node["extra"] = node[key]

        content = with_value(content, place, draw(st.sampled_from([replace, replace, replace, drop, double])))
    lines[number] = json.dumps(content)
    return "\n".join(lines) + "\n"


def changed_header(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file whose header, a document of JSON, tells something else."""
    size = int.from_bytes(content[:8], "little")
    header = changed_json(draw, content[8 : 8 + size].decode()).encode()
    told = draw(st.sampled_from([len(header), len(header), len(header), 0, 1 << 62, (1 << 64) - 1, size]))
    return told.to_bytes(8, "little") + header + content[8 + size :]


@st.composite
def damages(draw: st.DrawFn, run: Run, names: list[str]) -> tuple[str, bytes | None]:
    """A file of the run and what shall be in it: None for nothing."""
    name = draw(st.sampled_from(names))
    content = (run.folder / name).read_bytes()
    structured = name.endswith((".json", ".jsonl", ".safetensors"))
    match draw(st.sampled_from(["value"] * 6 + ["cut", "flip", "drop", "swap", "text", "twice"])):
        case "value" if structured:
            if name.endswith(".safetensors"):
                return name, changed_header(draw, content)
            return name, changed_json(draw, content.decode()).encode()
        case "drop":
            return name, None
        case "swap":
            return name, (run.folder / draw(st.sampled_from(run.files))).read_bytes()
        case "text":
            return name, draw(st.sampled_from(TEXTS))
        case "twice":
            return name, content * 2
        case "cut":
            return name, content[: draw(st.integers(0, len(content)))]
    flipped = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        flipped[draw(st.integers(0, min(len(content), 4000) - 1))] = draw(st.integers(0, 255))
    return name, bytes(flipped)


class Damaged:
    """A copy of a run in which one file at a time is another."""

    def __init__(self, run: Run, copy: Path) -> None:
        self._run, self.folder = run, copy
        shutil.copytree(run.folder, copy)

    def with_file(self, name: str, content: bytes | None, read: Callable[[Path], None]) -> None:
        path = self.folder / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        before = digest(self.folder)
        read(self.folder)
        assert digest(self.folder) == before, "a reader changed what it read"
        shutil.copyfile(self._run.folder / name, path)


def report_on(folder: Path) -> str:
    """What `ser-fl report` shows, without the drawing of figures."""
    runs = [read_run(folder)]
    return str(summary_table(runs)) + render_page(runs, {})


@cases_of("run folders", quick=40)
def test_reports(explore: Callable[..., None], num_cases: int, real_run: Run, tmp_path: Path) -> None:
    damaged = Damaged(real_run, tmp_path / "run")
    names = ["config.yaml", "environment.json", "rounds.jsonl", "clients.jsonl", "summary.json", "attacks.json"]
    names.append("adversarial/example.json")

    def read_one(damage: tuple[str, bytes | None]) -> None:
        def read(folder: Path) -> None:
            run = RunFolder(folder)
            result_or_line(report_on, folder)
            result_or_line(run.read_jsonl, run.clients)
            if damage[0] == run.config.name:
                result_or_line(compose, config_file=run.config)

        damaged.with_file(*damage, read)

    explore(damages(real_run, [*names, "summary.json", "attacks.json"]), read_one)


@cases_of("figures", quick=3)
def test_figures(explore: Callable[..., None], num_cases: int, real_run: Run, tmp_path: Path) -> None:
    damaged = Damaged(real_run, tmp_path / "run")

    def draw(folder: Path) -> None:
        run = result_or_line(read_run, folder)
        if run is not None:
            result_or_line(draw_figures, [run], [])

    def draw_one(damage: tuple[str, bytes | None]) -> None:
        damaged.with_file(*damage, draw)

    explore(damages(real_run, ["rounds.jsonl", "summary.json", "attacks.json", "adversarial/example.json"]), draw_one)


def checkpoint_of(config: Config) -> Checkpoint | None:
    """What a run that is resumed goes on from."""
    with open_run(config) as (_, checkpoint):
        return checkpoint


@cases_of("models and checkpoints", quick=40)
def test_models_and_checkpoints(explore: Callable[..., None], num_cases: int, real_run: Run, tmp_path: Path) -> None:
    damaged = Damaged(real_run, tmp_path / "run")
    names = [name for name in real_run.files if name.startswith(("model", "checkpoint", "attacks/"))]
    settings = ["experiment=debug", "data.utterances_per_emotion=2", "federation.batch_size=4", "resume=true"]
    config = compose([*settings, f"data.cache_dir={real_run.config.data.cache_dir}", f"run_dir={tmp_path / 'run'}"])
    assert checkpoint_of(config) is not None

    def read(folder: Path) -> None:
        model = result_or_line(load, folder)
        if model is not None:
            with torch.inference_mode():
                logits_BC = model(torch.zeros(1, model.frontend_config.num_mels, model.frontend_config.num_frames))
            assert logits_BC.shape == (1, len(model.classes))
        checkpoint = result_or_line(checkpoint_of, config)
        if checkpoint is not None:
            committed = checkpoint.committed
            assert type(committed.round) is int and committed.round >= 0
            assert all(type(size) is int and size >= 0 for size in committed.lengths.values())
        result_or_line(tracked_run, RunFolder(folder).checkpoint)
        for test_set in RunFolder(folder).outcomes.glob("*"):
            result_or_line(ResultCache, test_set, torch.device("cpu"), (1, 1))

    def read_one(damage: tuple[str, bytes | None]) -> None:
        damaged.with_file(*damage, read)

    explore(damages(real_run, names), read_one)


def test_the_whole_run_is_read(real_run: Run) -> None:
    assert {"attacks.json", "checkpoint/latest.json", "adversarial/example.json"} <= set(real_run.files)
    assert len(report_on(real_run.folder)) > 1000
    assert load(real_run.folder).classes
    checkpoint = checkpoint_of(real_run.config)
    assert checkpoint is not None and checkpoint.committed.round == 2
