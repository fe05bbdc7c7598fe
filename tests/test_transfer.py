"""Transfer attacks: figures against linear models in known units, a model against itself, and real pairs of runs.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor, nn

from ser_fl.api import train
from ser_fl.attacks.attack import AttackSettings
from ser_fl.attacks.registry import build
from ser_fl.cli.main import main
from ser_fl.config.compose import compose, compose_benchmark, compose_transfer
from ser_fl.data.frontend import Standardisation
from ser_fl.data.prepared import prepare
from ser_fl.defences import NoDefence, Randomisation
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import load_model, save_local_models
from ser_fl.report.figures import heat_table
from ser_fl.report.page import write_report
from ser_fl.report.tables import pair_table, transfer_tables
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.robustness.transfer import transfer_runs
from ser_fl.robustness.transfer_matrix import TransferModel, carried_over, in_common, transfer_matrix
from ser_fl.runs.folder import RunFolder, read_transfer, write_transfer
from ser_fl.runs.records import TransferMatrix, TransferRecord

F, L = 4, 6
ANYTHING = (-math.inf, math.inf)
TOLD_BY_PAIR = {"source", "target", "knowledge"}


class Sign(nn.Module):
    """Class 1 where the mean of all cells is above 0."""

    def forward(self, features_NFL: Tensor) -> Tensor:
        mean_N = features_NFL.mean(dim=(1, 2))
        return torch.stack([-mean_N, mean_N], dim=1)


def units(mean: float, deviation: float, box: tuple[float, float] = ANYTHING) -> Standardisation:
    return Standardisation(*(torch.full((F,), value) for value in (mean, deviation, *box)))


def linear(
    name: str,
    standardisation: Standardisation,
    raw: Sequence[float],
    labels: Sequence[int],
    ids: Sequence[str] | None = None,
) -> TransferModel:
    """A model whose test utterances have one value of raw log-mel throughout."""
    return TransferModel(
        name=name,
        network=Sign(),
        standardisation=standardisation,
        logmel_NFL=torch.tensor(raw)[:, None, None].expand(-1, F, L).clone(),
        labels_N=torch.tensor(labels),
        ids=tuple(ids or (f"u{place}" for place in range(len(raw)))),
        num_classes=2,
    )


def matrix_of(
    *models: TransferModel, epsilon: float, attack: str = "fgsm", steps: int | None = None, **changes: Any
) -> list[TransferRecord]:
    settings = AttackSettings(name=attack, epsilon=epsilon, steps=steps, restarts=None if steps is None else 1)
    return transfer_matrix(models, build(settings), [NoDefence()], **changes)


def cell(records: Sequence[TransferRecord], source: str, target: str, defence: str = "none") -> TransferRecord:
    (found,) = [r for r in records if (r.source, r.target, r.defence) == (source, target, defence)]
    return found


def without(record: TransferRecord, *left_out: str) -> dict[str, Any]:
    return {key: value for key, value in asdict(record).items() if key not in {"seconds", *left_out}}


def test_features_are_carried_over_by_hand() -> None:
    """0.5 * 2 + 1 = 2 = 2 * 1 + 0 in the first bin; 2 / 2 - 2 = -1 = -0.5 * 4 + 1, below the box, in the second."""
    infinite = torch.tensor([math.inf, math.inf])
    source = Standardisation(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]), -infinite, infinite)
    target = Standardisation(
        torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0]), torch.tensor([-9.0, -0.25]), torch.tensor([9.0, 9.0])
    )
    carried_BFL = carried_over(torch.tensor([[[0.5, -0.5], [2.0, 6.0]]]), source, target)
    assert carried_BFL.tolist() == [[[2.0, 0.0], [-0.25, 0.0]]]
    assert carried_BFL.dtype == torch.float32


def test_between_equal_units_nothing_changes_to_the_last_bit() -> None:
    """Where a bin hardly ever changes too: undoing its standardisation in float32 would lose most of it."""
    stream = torch.Generator().manual_seed(0)
    deviation_F = torch.tensor([1e-5, 0.03, 1.7, 40.0])
    source = Standardisation(torch.full((F,), -18.4), deviation_F, *(torch.full((F,), side) for side in (-9.0, 9.0)))
    target = Standardisation(torch.full((F,), -18.4), deviation_F, *(torch.full((F,), side) for side in (-9.0, 9.0)))
    features_BFL = torch.randn((50, F, L), generator=stream)
    assert torch.equal(carried_over(features_BFL, source, target), features_BFL)


RAW, LABELS = (1.5, 1.7, 0.5, -0.4, 0.8), (1, 1, 1, 0, 0)


def test_linear_models_in_other_units() -> None:
    """Epsilon 0.3 of deviation 2 is 0.6 in raw log-mel and 1.2 of deviation 0.5; the other way round it is 0.075.

    Wide has its boundary at 0, and gets all but 0.8 right; narrow has it at 1, and gets all but 0.5 right. The
    utterances at 1.5 and 0.8 are nearer to narrow's boundary than 0.6, those at 0.5 and -0.4 to wide's, and none of
    those that wide gets right is within 0.15 of its boundary.
    """
    wide, narrow = linear("wide", units(0, 2), RAW, LABELS), linear("narrow", units(1, 0.5), RAW, LABELS)
    records = matrix_of(wide, narrow, epsilon=0.3)
    found = {
        (record.source, record.target): (record.knowledge, record.clean_uar, record.robust_uar, record.max_linf)
        for record in records
    }
    assert found == {
        ("wide", "wide"): ("undefended", 3 / 4, pytest.approx(1 / 3), pytest.approx(0.3)),
        ("wide", "narrow"): ("transfer", pytest.approx(5 / 6), pytest.approx(5 / 12), pytest.approx(1.2)),
        ("narrow", "wide"): ("transfer", 3 / 4, 3 / 4, pytest.approx(0.075)),
        ("narrow", "narrow"): ("undefended", pytest.approx(5 / 6), pytest.approx(5 / 6), pytest.approx(0.3)),
    }
    there = cell(records, "wide", "narrow")
    assert there.attack_success_rate == 2 / 4
    assert there.mean_l2 == pytest.approx(1.2 * math.sqrt(F * L))
    assert there.max_db == pytest.approx(20 * 0.6 / math.log(10))
    assert there.epsilon == 0.3
    assert cell(records, "narrow", "wide").max_db == pytest.approx(20 * 0.15 / math.log(10))
    assert {record.num_examples for record in records} == {5}
    assert {record.carried_uar == record.clean_uar for record in records} == {True}


def test_what_the_sources_box_cuts_off_is_told_from_the_attack() -> None:
    """The source clips 4 to 2; the target's boundary lies at 3, so that it hears another class without an attack."""
    source = linear("source", units(0, 1, (-9, 2)), [4.0, 1.0], [1, 0])
    target = linear("target", units(3, 1), [4.0, 1.0], [1, 0])
    record = cell(matrix_of(source, target, epsilon=0), "source", "target")
    assert (record.clean_uar, record.carried_uar, record.robust_uar) == (1, 0.5, 0.5)
    assert record.max_linf == 2


def test_the_targets_box_holds() -> None:
    """Crafting moves the source's 0.2 to -0.3, and the target can hear nothing below 0.1."""
    source = linear("source", units(0, 1), [0.2, -0.4], [1, 0])
    target = linear("target", units(0, 1, (0.1, 9)), [0.2, -0.4], [1, 0])
    records = matrix_of(source, target, epsilon=0.5)
    assert cell(records, "source", "source").robust_uar == 0
    assert cell(records, "source", "target").max_linf == pytest.approx(0.1)
    assert cell(records, "source", "target").confusion == ((0, 1), (0, 1))


def test_a_pair_is_measured_on_the_test_utterances_of_both() -> None:
    """a and b share u1 and u2, b and c share u2 and u3, a and c share u2."""
    ids = {"a": ("u2", "u0", "u1"), "b": ("u1", "u2", "u3"), "c": ("u3", "u4", "u2")}
    raw = {f"u{place}": float(place) - 1.5 for place in range(5)}
    models = [
        linear(name, units(0, 1), [raw[i] for i in held], [int(raw[i] > 0) for i in held], held)
        for name, held in ids.items()
    ]
    assert in_common(models[0], models[1]) == ("u1", "u2")
    assert in_common(models[2], models[1]) == ("u2", "u3")
    records = matrix_of(*models, epsilon=0.6)
    sizes = {(record.source, record.target): record.num_examples for record in records}
    assert sizes == {
        **{("a", "a"): 3, ("b", "b"): 3, ("c", "c"): 3},
        **{("a", "b"): 2, ("b", "a"): 2, ("b", "c"): 2, ("c", "b"): 2, ("a", "c"): 1, ("c", "a"): 1},
    }
    # u1 at -0.5 and u2 at 0.5 are within 0.6 of the boundary; u0, u3 and u4 are not.
    rates = {(record.source, record.target): record.attack_success_rate for record in records}
    assert rates["a", "b"] == rates["a", "c"] == 1
    assert rates["b", "b"] == pytest.approx(2 / 3)
    assert rates["b", "c"] == 1 / 2


def test_a_subset_is_balanced_and_the_same_in_both_directions() -> None:
    raw = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, 1.0, 2.0]
    labels = [int(value > 0) for value in raw]
    ours = linear("ours", units(0, 1), raw, labels)
    theirs = linear("theirs", units(1, 3), raw[::-1], labels[::-1], ours.ids[::-1])
    chosen = in_common(ours, theirs, 4, seed=3)
    assert chosen == in_common(theirs, ours, 4, seed=3)
    assert sorted(labels[ours.ids.index(i)] for i in chosen) == [0, 0, 1, 1]
    assert {record.num_examples for record in matrix_of(ours, theirs, epsilon=0.1, max_examples=4)} == {4}


def other_recording(model: TransferModel) -> TransferModel:
    """One cell of the last utterance is another."""
    logmel_NFL = model.logmel_NFL.clone()
    logmel_NFL[-1, 0, 0] += 0.01
    return replace(model, logmel_NFL=logmel_NFL)


def other_emotion(model: TransferModel) -> TransferModel:
    return replace(model, labels_N=1 - model.labels_N)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: replace(model, ids=("v", "w", "x", "y", "z")), "first and second have no test utterance in"),
        (other_recording, "different recordings or emotions as 'u4'"),
        (other_emotion, "different recordings or emotions as 'u0'"),
        (lambda model: replace(model, name="first"), "names of their own"),
    ],
)
def test_models_that_do_not_fit_are_told_before_anything_runs(
    change: Callable[[TransferModel], TransferModel], words: str
) -> None:
    first, second = linear("first", units(0, 1), RAW, LABELS), linear("second", units(0, 1), RAW, LABELS)
    seen: list[str] = []
    with pytest.raises(UserError, match=words):
        matrix_of(first, change(second), epsilon=0.1, on_attack=lambda name, done, total: seen.append(name))
    assert not seen


def test_an_attack_without_its_box_is_told() -> None:
    boxed, unbounded = linear("boxed", units(0, 1, (-9, 9)), RAW, LABELS), linear("open", units(0, 1), RAW, LABELS)
    with pytest.raises(UserError, match="art:CarliniL2Method needs a box"):
        matrix_of(boxed, unbounded, epsilon=0.1, attack="art:CarliniL2Method")


def test_neither_order_nor_batch_size_matters() -> None:
    models = [linear(name, units(mean, 1 + mean), RAW, LABELS) for name, mean in (("a", 0), ("b", 0.2), ("c", 0.5))]
    expected = matrix_of(*models, epsilon=0.25, attack="pgd", steps=4, seed=5)
    shuffled = [
        replace(model, logmel_NFL=model.logmel_NFL.flip(0), labels_N=model.labels_N.flip(0), ids=model.ids[::-1])
        for model in reversed(models)
    ]
    found = matrix_of(*shuffled, epsilon=0.25, attack="pgd", steps=4, seed=5, batch_size=2)
    assert len(expected) == 9
    for record in expected:
        again = cell(found, record.source, record.target)
        assert again.confusion == record.confusion
        assert again.max_linf == pytest.approx(record.max_linf, abs=1e-5)


# Runs


@dataclass(frozen=True)
class Runs:
    """Trained in a second each, on the built-in corpus."""

    root: Path
    first: Path
    other_split: Path
    """Of another seed and another split."""
    local: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("transfer")
    changes = {
        "first": ["seed=1", "optimiser.learning_rate=0.01", "federation.local_epochs=4", "federation.num_rounds=3"],
        "other_split": ["seed=2", "split.seed=7", "split.test_fraction=0.5"],
        "local": ["seed=1", "federation=local_only"],
    }
    for name, settings in changes.items():
        data = ["data.utterances_per_emotion=5", f"data.cache_dir={root / 'cache'}"]
        train(compose(["experiment=debug", *data, f"run_dir={root / name}", *settings]))
    return Runs(root=root, **{name: root / name for name in changes})


def copy(run: Path, to: Path, **changes: Callable[[Any], None]) -> Path:
    """A run under another name, with its ``config`` or its ``model`` changed in place."""
    shutil.copytree(run, to)
    for name, change in changes.items():
        file = to / {"config": "config.yaml", "model": "model.json"}[name]
        content = yaml.safe_load(file.read_text())  # JSON is YAML
        change(content)
        file.write_text(yaml.safe_dump(content) if name == "config" else json.dumps(content))
    return to


QUICK = ["epsilon=0.3", "steps=3", "restarts=1"]


def test_a_run_under_two_names_gives_the_white_box_figure_bit_for_bit(runs: Runs, tmp_path: Path) -> None:
    twin = copy(runs.first, tmp_path / "twin")
    _, matrix = transfer_runs(compose_transfer([str(runs.first), str(twin), *QUICK, f"out={tmp_path}"]))
    first, second = matrix.models
    for defence in ("none", "randomisation"):
        expected = without(cell(matrix.records, first, first, defence), *TOLD_BY_PAIR)
        assert defence != "none" or expected["attack_success_rate"] > 0  # nothing is compared with nothing
        for pair in ((first, second), (second, first), (second, second)):
            record = cell(matrix.records, *pair, defence)
            assert without(record, *TOLD_BY_PAIR) == expected
            assert record.knowledge == ("undefended" if pair[0] == pair[1] else "transfer")


def test_the_diagonal_is_the_benchmarks_figure(runs: Runs, tmp_path: Path) -> None:
    twin = copy(runs.first, tmp_path / "twin")
    _, matrix = transfer_runs(compose_transfer([str(twin), str(runs.local), *QUICK]))
    settings = [f"run={twin}", "attacks=[pgd]", "epsilons=[0.3]", "steps=3", "restarts=1", "curve_attacks=[]"]
    benchmarked = {r.defence: r for r in benchmark_run(compose_benchmark(settings)) if r.attack == "pgd"}
    name = next(iter(matrix.models))
    for defence, expected in benchmarked.items():
        record = cell(matrix.records, name, name, defence)
        for field in ("knowledge", "epsilon", "clean_uar", "robust_uar", "attack_success_rate", "confusion"):
            assert getattr(record, field) == getattr(expected, field)
        assert record.max_linf == pytest.approx(expected.max_linf, abs=1e-6)
        assert record.forward_passes == expected.forward_passes > 0
        assert record.backward_passes == expected.backward_passes > 0


def test_runs_of_two_splits_meet_on_the_utterances_that_both_test(runs: Runs, tmp_path: Path) -> None:
    """What is in common is found from the splits themselves, and the figures from the models themselves."""
    arguments = [str(runs.first), str(runs.other_split), *QUICK, "defences=[none]", f"out={tmp_path}"]
    file, matrix = transfer_runs(compose_transfer(arguments))
    assert file == tmp_path / "transfer.json"
    assert read_transfer(file) == matrix
    places = [("first", "first"), ("other_split", "other_split")]
    assert list(matrix.models.items()) == places, "the file may be published: no absolute folder"
    tested = {}
    for folder in (runs.first, runs.other_split):
        prepared = prepare(compose(config_file=folder / "config.yaml"))
        tested[folder.name] = {prepared.store.utterances[i].utterance_id: i for i in prepared.split.test}
    common = sorted(set(tested["first"]) & set(tested["other_split"]))
    assert 0 < len(common) < len(tested["first"])
    assert cell(matrix.records, "first", "first").num_examples == len(tested["first"])
    target = load_model(runs.other_split)
    rows = [tested["first"][utterance_id] for utterance_id in common]
    with torch.no_grad():
        heard_N = target(target.standardisation(prepared.store.features_NFL[rows])).argmax(1)
    for pair in (("first", "other_split"), ("other_split", "first")):
        record = cell(matrix.records, *pair)
        assert record.num_examples == len(common)
        assert record.max_linf != pytest.approx(0.3, abs=1e-4)  # the units differ, and what is recorded is the target's
    true_N = prepared.store.labels_N[rows]
    recalls = [float((heard_N[true_N == c] == c).double().mean()) for c in true_N.unique()]
    assert cell(matrix.records, "first", "other_split").clean_uar == pytest.approx(np.mean(recalls))


def test_local_models_are_kept_and_named_on_the_command_line(runs: Runs, tmp_path: Path) -> None:
    run = RunFolder(copy(runs.local, tmp_path / "local"))
    clients = sorted(record["client_id"] for record in run.read_jsonl(run.clients) if record["round"] == 1)
    assert run.local_clients == clients
    selected, first, second = (load_model(run, client_id=client) for client in (None, *clients))
    states = [{k: v.double() for k, v in model.network.state_dict().items()} for model in (selected, first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    named = [f"{run.root}:{client}" for client in clients]
    _, matrix = transfer_runs(compose_transfer([*named, str(copy(runs.first, tmp_path / "first")), *QUICK]))
    assert list(matrix.models) == [f"local:{clients[0]}", f"local:{clients[1]}", "first"]
    assert len(matrix.records) == 9 * 2
    assert run.transfer.is_file()


def test_federated_runs_keep_no_local_models(runs: Runs) -> None:
    assert not RunFolder(runs.first).local_models.exists()
    with pytest.raises(UserError, match="keeps no client's own model, got 'f01'"):
        load_model(runs.first, client_id="f01")
    with pytest.raises(UserError, match="unknown client 'zoe'"):
        load_model(runs.local, client_id="zoe")


@pytest.mark.parametrize("client_id", ["MK0", "a b", "../../up", "..", "a:b", "ünï", "a%2Fb", ".safetensors"])
def test_a_clients_file_stays_in_its_folder_and_tells_its_name(client_id: str, tmp_path: Path) -> None:
    save_local_models(tmp_path, {client_id: {"weight": torch.ones(1)}})
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == tmp_path / "clients"
    assert RunFolder(tmp_path).local_clients == [client_id]


def test_a_second_matrix_puts_the_first_aside(runs: Runs, tmp_path: Path) -> None:
    arguments = [str(runs.first), str(runs.local), "attack=fgsm", "max_examples=7", f"out={tmp_path}"]
    file, before = transfer_runs(compose_transfer(arguments))
    _, after = transfer_runs(compose_transfer([*arguments, "epsilon=0.5"]))
    assert read_transfer(tmp_path / "transfer.before.json") == before
    assert read_transfer(file) == after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["transfer.before.json", "transfer.json"]


def other_corpus(config: dict[str, Any]) -> None:
    config["data"] |= {"name": "emodb", "root": "/nowhere"}


def other_classes(card: dict[str, Any]) -> None:
    card["classes"] = card["classes"][::-1]


def other_frontend(card: dict[str, Any]) -> None:
    card["frontend"]["hop_samples"] = 400


def with_test_speaker(speaker: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["data"]["num_speakers"] = 4
        config["split"] |= {"name": "speaker_independent", "test_speakers": [speaker]}

    return change


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("ser-fl: ") and said.count("\n") == 1, said
    return said


def test_mistakes_get_one_line_and_leave_nothing(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = copy(runs.first, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    mistakes = {
        (str(runs.first),): "needs two runs at least, got 1",
        (str(runs.local), str(runs.first), f"{runs.first}/"): f"{runs.first}/ is given twice",
        (str(runs.first), str(tmp_path / "none")): f"no such run folder: {tmp_path / 'none'}",
        (str(runs.first), str(tmp_path)): "config.yaml",
        (str(runs.first), str(bare)): f"{bare} has no model.safetensors",
        (str(runs.first), str(copy(runs.first, tmp_path / "emo", config=other_corpus))): "corpus: emodb against built",
        (str(runs.first), str(copy(runs.first, tmp_path / "cls", model=other_classes))): "differ in their emotions",
        (str(runs.first), str(copy(runs.first, tmp_path / "hop", model=other_frontend))): "frontend.hop_samples: 400",
        (
            str(copy(runs.first, tmp_path / "f01", config=with_test_speaker("f01"))),
            str(copy(runs.first, tmp_path / "m01", config=with_test_speaker("m01"))),
            "allow_seen=true",
        ): "f01 and m01 have no test utterance in common",
        (str(runs.first), str(runs.local), "attack=pdg"): "unknown attack 'pdg'",
        (str(runs.first), str(runs.local), "defences=[randomise]"): "unknown defence 'randomise'",
        (str(runs.first), str(runs.local), "epsilons=0.1"): "unknown setting 'epsilons', did you mean 'epsilon'",
        (str(runs.first), str(runs.local), "epsilon=-1"): "epsilon must be greater than or equal to 0",
        (str(runs.first), str(runs.local), f"out={bare / 'model.json'}"): "out must be a folder",
    }
    for arguments, words in mistakes.items():
        out = [] if any(argument.startswith("out=") for argument in arguments) else [f"out={tmp_path / 'out'}"]
        assert words in told(capsys, "transfer", *arguments, *out)
    assert not (tmp_path / "out").exists()


def test_runs_and_settings_are_told_apart() -> None:
    config = compose_transfer(["runs/a", "./seed=1", "runs/seed=2", "seed=3", "root=/a b: c", "defences=[none]"])
    assert config.runs == ("runs/a", "./seed=1", "runs/seed=2")
    assert (config.seed, config.root, config.defences) == (3, "/a b: c", ("none",))
    assert (config.attack, config.epsilon) == ("pgd", 0.05)


def test_the_command_prints_its_table_and_the_report_draws_it(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = copy(runs.first, tmp_path / "a"), copy(runs.local, tmp_path / "b")
    assert main(["transfer", str(first), str(second), "attack=fgsm", "max_examples=7", "defences=[none]"]) == 0
    said = capsys.readouterr().out
    assert "FGSM ε 0.05 from one model to another" in said and "SYNTHETIC" in said
    page = write_report([first])
    assert (first / "figures" / "transfer_1.png").is_file()
    assert "From one model to another" in page.read_text()
    assert "From one model to another" not in write_report([second]).read_text()
    assert main(["report", str(second), str(first / "transfer.json")]) == 0
    assert "From one model to another" in (second / "report.html").read_text()
    (first / "transfer.json").write_text('{"schema": 99}')
    assert "schema 99, this version reads 1" in told(capsys, "report", str(first))


def drawn_matrix() -> TransferMatrix:
    """Worked out in `test_linear_models_in_other_units`."""
    wide, narrow = linear("wide", units(0, 2), RAW, LABELS), linear("narrow", units(1, 0.5), RAW, LABELS)
    records = transfer_matrix(
        [wide, narrow],
        build(AttackSettings(name="fgsm", epsilon=0.3)),
        [Randomisation(), NoDefence()],
    )
    models = {"wide": "runs/wide", "narrow": "runs/narrow"}
    return TransferMatrix(models=models, synthetic=False, seconds=1.0, records=tuple(records))


def test_tables_hold_the_matrix() -> None:
    matrix = drawn_matrix()
    defended, bare = transfer_tables(matrix)
    assert bare.title == "FGSM ε 0.3 from one model to another, no randomisation"
    assert bare.header == ("Made on", "shown to wide", "shown to narrow")
    assert bare.rows == (
        ("nothing (clean)", "75.0", "83.3"),
        ("wide", "33.3", "41.7"),
        ("narrow", "75.0", "83.3"),
    )
    assert "the largest change is 0.075 to 1.2" in bare.caption
    assert "SYNTHETIC" not in bare.caption
    assert defended.title.endswith(", randomisation")
    pairs = pair_table(matrix)
    assert len(pairs.rows) == 8
    knowledge = {row[:3]: row[3] for row in pairs.rows}
    assert knowledge["wide", "narrow", "randomisation"] == "transfer"
    assert knowledge["wide", "wide", "randomisation"] == "undefended †"


def test_heat_table_holds_the_shares() -> None:
    ax = Figure().subplots()
    heat_table(ax, [[0.25, 1.0], [0.5, 0.0]], ["a", "b"])
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts == {(0, 0): "25.0", (1, 0): "100.0", (0, 1): "50.0", (1, 1): "0.0"}
    assert [patch.get_xy() for patch in ax.patches] == [(-0.5, -0.5), (0.5, 0.5)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert not matplotlib.rcParams["axes.grid"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    matrix = drawn_matrix()
    write_transfer(tmp_path / "transfer.json", matrix)
    assert read_transfer(tmp_path / "transfer.json") == matrix
    content = json.loads((tmp_path / "transfer.json").read_text())
    del content["records"][0]["carried_uar"]
    (tmp_path / "transfer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"incomplete.*carried_uar"):
        read_transfer(tmp_path / "transfer.json")
    del content["records"][0]
    (tmp_path / "transfer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="some pairs of models"):
        read_transfer(tmp_path / "transfer.json")
