"""What a Python user calls: `train`, `benchmark`, a run's figures and test utterances, and their types."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

import ser_fl
from ser_fl.config.compose import compose_transfer
from ser_fl.errors import UserError
from ser_fl.robustness.sanity_checks.report import read_sanity_report
from ser_fl.robustness.transfer import transfer_runs
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

ROOT = Path(__file__).parents[1]
TINY = ["experiment=debug", "federation.num_rounds=1", "tracking=none"]
PGD: dict[str, Any] = {"attacks": ["pgd"], "epsilons": [0.1], "steps": 2, "restarts": 1, "max_examples": 8}
QUICK: dict[str, Any] = {**PGD, "curve_epsilons": [], "curve_attacks": [], "defences": ["none"], "checks_subset": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    return ser_fl.train(ser_fl.compose([*TINY, f"run_dir={tmp_path_factory.mktemp('run') / 'debug'}"]))


@pytest.fixture
def float64_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def timeless(records: list[AttackRecord]) -> list[AttackRecord]:
    return [replace(record, seconds=0.0) for record in records]


def test_figures_of_a_run_are_those_of_its_model_on_its_test_set(run: ser_fl.Run) -> None:
    test, metrics = run.test_set(), run.metrics()
    with torch.no_grad():
        said = run.load()(test.features_NFL).argmax(1)
    truth = test.labels_N
    classes = range(len(test.emotions))
    assert metrics.uar == pytest.approx(balanced_accuracy_score(truth, said))
    assert metrics.accuracy == pytest.approx(accuracy_score(truth, said))
    assert metrics.macro_f1 == pytest.approx(f1_score(truth, said, average="macro", labels=classes))
    recalls = recall_score(truth, said, average=None, labels=classes)
    assert metrics.recall == pytest.approx(dict(zip(test.emotions, recalls, strict=True)))
    for speaker, uar in metrics.speaker_uar.items():
        rows = [row for row, name in enumerate(test.speakers) if name == speaker]
        assert uar == pytest.approx(balanced_accuracy_score(truth[rows], said[rows]))
    assert set(metrics.speaker_uar) == set(test.speakers)
    assert np.array(metrics.confusion).sum() == len(test.ids) == len(set(test.ids)) == len(test.features_NFL)


def test_run_is_its_folder(run: ser_fl.Run) -> None:
    assert isinstance(run, RunFolder) and run.summary == run.root / "summary.json"
    assert ser_fl.Run(run.root) == run
    (first, second) = (model.network.state_dict() for model in (run.load(), ser_fl.load(run)))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_run_that_is_not_finished_says_so(run: ser_fl.Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finished run"):
        ser_fl.Run(tmp_path).metrics()
    (tmp_path / "summary.json").write_text(json.dumps({"test": {"uar": "high"}}))
    with pytest.raises(UserError, match="changed by hand"):
        ser_fl.Run(tmp_path).metrics()


def test_test_set_goes_into_any_model_and_any_attack_of_art(run: ser_fl.Run) -> None:
    from art.attacks.evasion import FastGradientMethod
    from art.estimators.classification import PyTorchClassifier

    test = run.test_set()
    images = test.features_NFL.numpy()[:, None]
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].size, len(test.emotions)))
    classifier = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), images.shape[1:], len(test.emotions))
    moved = FastGradientMethod(classifier, eps=0.1).generate(images, test.labels_N.numpy())
    assert np.abs(moved - images).max() == pytest.approx(0.1, rel=1e-4)
    records = ser_fl.benchmark(network, test.features_NFL, test.labels_N, attacks="fgsm", ids=test.ids, checks=False)
    assert records[1].num_examples == len(test.ids)


def test_on_round_is_told_beside_hooks(tmp_path: Path) -> None:
    from ser_fl.federation.hooks import Hooks

    told: list[int] = []
    features: list[int] = []
    settings = ["experiment=debug", "federation.num_rounds=2", "tracking=none", f"run_dir={tmp_path}/run"]
    ser_fl.train(
        ser_fl.compose([*settings, f"data.cache_dir={tmp_path}/cache"]),
        on_round=lambda record: told.append(record.round),
        hooks=Hooks(on_features=lambda done, total: features.append(done)),
    )
    assert told == [1, 2] and features


def test_benchmark_of_a_run_is_that_of_the_command_line(run: ser_fl.Run, tmp_path: Path) -> None:
    records = ser_fl.benchmark(run, **QUICK)
    assert records.checks == read_sanity_report(run)
    assert records.checks is not None and len(records.checks.passed) > 5
    assert records == run.read_attacks()
    told: list[str] = []
    again = ser_fl.benchmark(
        str(run.root), **QUICK, fresh=True, checks=False, on_attack=lambda name, *_: told.append(name)
    )
    assert timeless(again) == timeless(records) and again.checks is None
    assert told
    words = ["attacks=[pgd]", "epsilons=[0.1]", "steps=2", "restarts=1", "max_examples=8", "curve_epsilons=[]"]
    words += ["curve_attacks=[]", "defences=[none]", "checks_subset=4", "fresh=true", f"run={run.root}"]
    subprocess.run([sys.executable, "-m", "ser_fl", "benchmark", *words], check=True, capture_output=True)
    assert timeless(run.read_attacks()) == timeless(records)
    assert read_sanity_report(run) == records.checks


def test_benchmark_of_a_model_makes_the_checks_of_a_run(run: ser_fl.Run) -> None:
    """The same model on the same utterances: the same figures and the same doubts."""
    settings: dict[str, Any] = {"name": "pgd", "epsilon": 0.1, "steps": 2, "restarts": 1}
    from ser_fl.attacks.attack import AttackSettings

    of_run = ser_fl.benchmark(run, **{**QUICK, "max_examples": None, "checks_subset": 64}, fresh=True)
    test = run.test_set()
    given: dict[str, Any] = {"ids": test.ids, "speakers": test.speakers, "sexes": test.sexes}
    own = ser_fl.benchmark(run.load(), test.features_NFL, test.labels_N, attacks=[AttackSettings(**settings)], **given)
    assert timeless(own) == timeless(of_run)
    assert own.checks == of_run.checks


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((), {"attack": ["pgd"]}, "attack"),
        ((), {"epsilons": [-1]}, "-1"),
        ((), {"attacks": ["pgdd"]}, "pgdd.*pgd"),
        (([[0.0]], [0]), {}, "own test utterances"),
    ],
)
def test_benchmark_of_a_run_refuses(
    run: ser_fl.Run, arguments: tuple[Any, ...], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        ser_fl.benchmark(run, *arguments, **settings)
    with pytest.raises(UserError, match="features and labels"):
        ser_fl.benchmark(torch.nn.Identity())  # type: ignore[call-overload]


@pytest.mark.usefixtures("float64_default")
def test_float64_as_torchs_default_changes_no_bit(
    run: ser_fl.Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Notebooks set it: training, loading, benchmarks, transfer and prediction are as ever."""
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.random.default_rng(0).uniform(-0.5, 0.5, 4000), 22050)  # resampled
    overrides = [*TINY, f"data.cache_dir={tmp_path / 'cache'}"]  # features are computed anew
    other = ser_fl.train(ser_fl.compose([*overrides, f"run_dir={tmp_path / 'other'}"]))
    rounds = [json.loads(folder.rounds.read_text()) | {"seconds": 0} for folder in (run, other)]
    assert rounds[0] == rounds[1]
    state, expected = load_file(other.weights), load_file(run.weights)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in run.load().state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }

    def few_steps(name: str) -> dict[str, Any]:
        return {"name": name, "steps": 4}

    def figures() -> list[Any]:
        test, model = run.test_set(), run.load()
        arguments: dict[str, Any] = {
            "attacks": [*map(few_steps, ("square", "fmn", "apgd_ce", "mim")), "fgsm", "noise_gaussian"]
        }
        own = ser_fl.benchmark(
            model, test.features_NFL[:4], test.labels_N[:4], **arguments, defences=("randomisation",)
        )
        waves = {
            "domain": "waveform",
            "snr_dbs": [20],
            "attacks": ["pgd", "psychoacoustic"],
            "epsilons": [],
            "checks": False,
        }
        heard = ser_fl.benchmark(run, **{**QUICK, "max_examples": 4} | waves, fresh=True)
        matrix = transfer_runs(
            compose_transfer([str(run.root), str(other.root), "attack=fgsm", "max_examples=4", "epsilon=0.1"])
        )[1]
        moved = [replace(record, seconds=0.0) for record in matrix.records]
        return [test.features_NFL, timeless(own), own.checks, timeless(heard), moved, ser_fl.predict(clip, run)]

    def with_default(dtype: torch.dtype) -> list[Any]:
        torch.set_default_dtype(dtype)
        found = figures()
        assert torch.get_default_dtype() == dtype
        return found

    usual, double = with_default(torch.float32), with_default(torch.float64)
    assert torch.equal(usual[0], double[0])
    for part, other_part in zip(usual[1:], double[1:], strict=True):
        assert part == other_part


USER_PROGRAM = """
import ser_fl
import torch

config = ser_fl.compose(["experiment=debug"])
run = ser_fl.train(config, on_round=lambda record: print(record.uar))
uar: float = run.metrics().uar
recall: float | None = run.metrics().recall["anger"]
test = run.test_set()
labels: torch.Tensor = test.labels_N
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))
records = ser_fl.benchmark(model, test.features_NFL.numpy(), labels.tolist(), attacks=["pgd"], epsilons=[0.05])
worst: float = min(record.robust_uar for record in records)
failed: tuple[str, ...] = records.checks.failed if records.checks else ()
again = ser_fl.benchmark(run, attacks=["fgsm"], checks=False)
emotions: list[str] = [prediction.emotion for prediction in ser_fl.predict(["a.wav"], run)]
"""


@pytest.mark.slow
def test_mypy_accepts_a_users_program_and_finds_its_mistakes(tmp_path: Path) -> None:
    def mypy(program: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", str(file)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    assert mypy(USER_PROGRAM).startswith("Success")
    mistakes = mypy(
        USER_PROGRAM + "word: str = run.metrics().uar\nser_fl.benchmark(model, labels, labels, atacks=[])\n"
    )
    assert "Found 2 errors" in mistakes and "[assignment]" in mistakes and "[call-overload]" in mistakes, mistakes


def test_package_says_that_it_is_typed() -> None:
    assert (ROOT / "ser_fl" / "py.typed").is_file()
