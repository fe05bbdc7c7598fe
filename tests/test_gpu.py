"""A GPU against the CPU: the same draws, and the same results within the rounding of float32.

The tolerances are for sums that a GPU takes in another order: 1e-3 of a weight's largest value after some steps of
Adam, which divides a small gradient by its own size, and 1e-4 for logits and losses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ser_fl import load, train
from ser_fl.attacks.pgd import pgd, random_start
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.config.schema import Config, dump
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.devices import exact_arithmetic
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.models.networks import build_network
from ser_fl.robustness.benchmark import benchmark, benchmark_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import ClientUpdate, State

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SMALL = (
    *("experiment=debug", "tracking=none", "data.utterances_per_emotion=4", "federation.batch_size=4"),
    *("clients.by=iid", "clients.num_clients=6", "model.dropout=0", "selection.robust_every=1", "augmentation=masks"),
)
PROCESSES = ("executor.name=processes", "executor.workers=auto")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    config = compose([*SMALL, f"data.cache_dir={folder / 'cache'}"])
    (folder / "base.yaml").write_text(yaml.safe_dump(dump(config)))
    return folder


def settings(home: Path, accelerator: str, *changed: str) -> Config:
    return compose([f"executor.accelerator={accelerator}", *changed], config_file=home / "base.yaml")


def initial(config: Config, prepared: Prepared) -> State:
    return dict(build_network(config.model, len(prepared.store.classes), seed=config.seed).state_dict())


def update(config: Config) -> ClientUpdate:
    prepared = prepare(config)
    task = ClientTask(round=2, client_id="client0", state=initial(config, prepared), learning_rate=1e-3)
    with exact_arithmetic():
        return Clients(config, prepared).update(task)


def assert_close(actual: State, expected: State, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.device.type == "cpu" and tensor.dtype == expected[name].dtype
        scale = max(1e-2, float(expected[name].abs().max()))
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize(
    "changed",
    [
        ("objective.name=clean",),
        ("objective.name=pgd", "objective.recipe=per_round"),
        ("objective.name=fgsm", "objective.recipe=per_step"),
        ("objective.name=clean", "federation.keep_optimiser=true"),
    ],
)
def test_a_client_sends_what_it_would_from_a_cpu(home: Path, changed: tuple[str, ...]) -> None:
    on_cpu, on_gpu = (update(settings(home, accelerator, *changed)) for accelerator in ("cpu", "cuda"))
    assert on_gpu.num_examples == on_cpu.num_examples
    assert on_gpu.train_loss == pytest.approx(on_cpu.train_loss, rel=1e-3)
    assert_close(on_gpu.state, on_cpu.state, 1e-3)
    assert on_gpu.optimiser_state.keys() == on_cpu.optimiser_state.keys()


def test_an_update_leaves_the_streams_of_cpu_and_gpu_alone(home: Path) -> None:
    torch.cuda.manual_seed(5)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = update(settings(home, "cuda", "model.dropout=0.3"))
    after = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, after, strict=True))
    again = update(settings(home, "cuda", "model.dropout=0.3"))
    assert_close(again.state, first.state, 1e-5)


def test_scores_are_those_of_the_cpu(home: Path) -> None:
    confusions = []
    for accelerator in ("cpu", "cuda"):
        config = settings(home, accelerator)
        prepared = prepare(config)
        scorer, models = (
            Clients(config, prepared),
            {GLOBAL: initial(config, prepared)},
        )
        with exact_arithmetic():
            confusions.append([scorer.score(models, "test", attacked=attacked).total for attacked in (False, True)])
    (clean, robust), (clean_too, robust_too) = confusions
    assert (clean == clean_too).all()
    assert abs(robust - robust_too).sum() <= 2, "one utterance may be on the edge"


def on_gpu(tensor: Tensor) -> Tensor:
    return tensor.to("cuda")


def test_pgd_keeps_to_ball_and_box_and_does_what_it_does_on_the_cpu(home: Path) -> None:
    """Recurrent layers in evaluation mode, whose backward pass cuDNN refuses, and convolutions that keep it."""
    config = settings(home, "cuda")
    prepared = prepare(config)
    network = build_network(config.model, len(prepared.store.classes), seed=1).eval()
    examples = load_examples(prepared.store, prepared.split.test, prepared.standardisation)
    start = random_start(examples.features_NFL, 0.1, torch.Generator().manual_seed(1))
    kept = {"epsilon": 0.1, "step_size": 0.025, "steps": 4}
    box = Box.of(prepared.standardisation.lower_F1, prepared.standardisation.upper_F1)
    expected = pgd(network, examples.features_NFL, examples.labels_N, box=box, start_BFL=start, **kept)
    with exact_arithmetic():
        network = network.to("cuda")
        features, labels = on_gpu(examples.features_NFL), on_gpu(examples.labels_N)
        moved = pgd(network, features, labels, box=box, start_BFL=on_gpu(start), **kept)
        assert torch.backends.cudnn.enabled
        difference = features.double() - moved.double()
        assert float(difference.abs().max()) <= 0.1 * (1 + 1e-5)
        assert torch.equal(box.to(moved.device).clip(moved), moved)
        same = (moved.cpu() - expected).abs() < 1e-5
        assert float(same.float().mean()) > 0.98, "signs of gradients near 0 may differ"
        with torch.inference_mode():
            logits, expected_logits = network(moved).cpu(), network.cpu()(expected)
        assert float((logits - expected_logits).abs().max()) < 0.05


def test_attacks_of_art_run_where_the_model_is() -> None:
    network = build_network(compose(["experiment=debug"]).model, 4, seed=1).eval()
    features = torch.randn(4, 64, 60, generator=torch.Generator().manual_seed(1))
    labels = network(features).argmax(dim=1)
    box = Box(torch.full((64, 1), -4.0), torch.full((64, 1), 4.0))
    given = {
        "attacks": ("fgsm", "bim", "pgd", "deepfool", "art:MomentumIterativeMethod"),
        "epsilons": (0.05,),
        "box": box,
    }
    expected = benchmark(network, features, labels, **given)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    actual = benchmark(network.to(last), features, labels, **given)
    assert {record.device for record in actual} == {"cuda"} and {record.device for record in expected} == {"cpu"}
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine.attack, mine.clean_uar) == (theirs.attack, theirs.clean_uar)
        assert mine.max_linf == pytest.approx(theirs.max_linf, abs=0.01)
        assert abs(mine.robust_uar - theirs.robust_uar) <= 0.5


def test_a_run_over_all_gpus_is_the_serial_run_on_one(home: Path) -> None:
    """On GPUs of one kind: cuDNN's algorithms are fixed; what pooling adds up atomically may differ in last bits."""
    runs = [
        train(settings(home, "cuda", f"run_dir={home / name}", *executor))
        for name, executor in (("serial", ("executor.name=serial",)), ("processes", PROCESSES))
    ]
    states = [load_file(run.weights) for run in runs]
    assert_close(states[1], states[0], 1e-3)
    rounds = [run.read_jsonl(run.rounds) for run in runs]
    assert [record["cohort"] for record in rounds[0]] == [record["cohort"] for record in rounds[1]]
    assert all(record["failures"] == [] for record in rounds[1])


def test_the_model_of_a_gpu_run_is_used_and_attacked_without_one(home: Path) -> None:
    folder = RunFolder(home / "moved")
    train(settings(home, "cuda", f"run_dir={folder.root}", "federation.num_rounds=1"))
    model = load(folder.root)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    asked = compose_benchmark([f"run={folder.root}", "attacks=[fgsm,deepfool]", "max_examples=4"])
    assert {record.device for record in benchmark_run(asked)} == {"cuda"}
    assert {record.device for record in benchmark_run(replace(asked, accelerator="cpu"))} == {"cpu"}
