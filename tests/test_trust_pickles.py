"""Nothing that is read is ever unpickled: a pickle in each place would make a marker file, and there never is one."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from test_cli import write_manifest

import ser_fl
from ser_fl.cli.main import main

FEW = ("curve_attacks=[]", "epsilons=[0.05]", "attacks=[fgsm]", "defences=[none]", "checks=false")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.marker,)


def zipped(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": payload}, buffer)
    return buffer.getvalue()


def array(payload: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    return buffer.getvalue()


FORMS = {
    "text": lambda payload: pickle.dumps(payload, protocol=0),
    "binary": lambda payload: pickle.dumps(payload, protocol=4),
    "torch": zipped,
    "numpy": array,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_payloads_go_off_where_they_are_unpickled(form: str, tmp_path: Path) -> None:
    """Else the tests below could not fail."""
    content = FORMS[form](Payload(tmp_path / "marker"))
    if form == "torch":
        torch.load(io.BytesIO(content), weights_only=False)
    elif form == "numpy":
        np.load(io.BytesIO(content), allow_pickle=True)
    else:
        pickle.loads(content)
    assert (tmp_path / "marker").exists()


@dataclass(frozen=True)
class Home:
    """A corpus, its features, and a run with everything that can be in one."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    def train(self, run: Path, corpus: Path) -> list[str]:
        data = ["data=manifest", f"data.root={corpus}", f"data.cache_dir={self.root / 'cache'}"]
        return ["train", "experiment=debug", "tracking=none", *data, f"run_dir={run}", "federation.num_rounds=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("pickles")
    home = Home(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(root / "state"))
        write_manifest(root / "corpus")
        assert main(home.train(home.run, root / "corpus")) == 0
        shutil.copytree(home.run, root / "other")
        assert main(["benchmark", f"run={home.run}", *FEW, "keep_adversarials=true"]) == 0
        assert main(["benchmark", f"run={home.run}", *AUDIO.split()[2:]]) == 0
        assert main(["transfer", str(home.run), str(root / "other"), "attack=fgsm", "defences=[none]"]) == 0
        (home.run / "clients").mkdir()
        shutil.copy(home.run / "model.safetensors", home.run / "clients" / "ann.safetensors")
        yield home


REPORT = "report RUN"
BENCHMARK = f"benchmark run=RUN {' '.join(FEW)}"
AUDIO = (
    "benchmark run=RUN domain=waveform attacks=[pgd] steps=1 restarts=0 snr_dbs=[20] write_audio=1 defences=[none]"
    " checks=false"
)
PREDICT = "predict CORPUS/audio/ann-anger-0.wav --run RUN"
TRANSFER = "transfer RUN OTHER attack=fgsm defences=[none]"
RESUME = "RESUME"
REFUSED, ASIDE = 2, 0
PLACES: dict[str, tuple[str, dict[str, int]]] = {
    "configuration": (
        "run/config.yaml",
        {"train --config RUN/config.yaml run_dir=NEW": REFUSED, BENCHMARK: REFUSED, TRANSFER: REFUSED, REPORT: REFUSED},
    ),
    "environment": ("run/environment.json", {REPORT: REFUSED}),
    "rounds": ("run/rounds.jsonl", {REPORT: REFUSED}),
    "clients": ("run/clients.jsonl", {REPORT: ASIDE}),
    "summary": ("run/summary.json", {REPORT: REFUSED}),
    "weights": ("run/model.safetensors", {PREDICT: REFUSED, BENCHMARK: REFUSED, TRANSFER: REFUSED}),
    "a client's weights": ("run/clients/ann.safetensors", {TRANSFER.replace("RUN", "RUN:ann"): REFUSED}),
    "model": ("run/model.json", {PREDICT: REFUSED, BENCHMARK: REFUSED, TRANSFER: REFUSED}),
    "attacks": ("run/attacks.json", {REPORT: REFUSED, BENCHMARK: REFUSED}),
    "transfer": ("run/transfer.json", {REPORT: REFUSED, TRANSFER: ASIDE}),
    "test_set": ("run/attacks/*/test_set.json", {BENCHMARK: ASIDE}),
    "outcome": ("run/attacks/*/*[0-9a-f].json", {BENCHMARK: ASIDE, AUDIO: ASIDE}),
    "batch": ("run/attacks/*/*/*.safetensors", {BENCHMARK: ASIDE}),
    "example": ("run/adversarial/example.json", {REPORT: REFUSED}),
    "list of recordings": ("run/adversarial/waveforms.json", {f"{AUDIO} fresh=true": ASIDE}),
    "recording": ("run/adversarial/*.wav", {f"{AUDIO} fresh=true": ASIDE}),
    "latest checkpoint": ("run/checkpoint/latest.json", {RESUME: REFUSED, BENCHMARK: ASIDE}),
    "checkpoint": ("run/checkpoint/round-*.safetensors", {RESUME: REFUSED}),
    "best of the checkpoint": ("run/checkpoint/best-*.safetensors", {RESUME: REFUSED}),
    "features": ("cache/features/*.npy", {RESUME: ASIDE}),
    "manifest": ("corpus/manifest.csv", {"corpus check manifest CORPUS": REFUSED, RESUME: REFUSED}),
    "audio": ("corpus/audio/ann-anger-0.wav", {PREDICT: REFUSED, RESUME: REFUSED}),
    "remembered folder": ("state/ser_fl/places/*", {BENCHMARK: REFUSED}),
}
QUICK = {"checkpoint", "features", "weights", "batch"}


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PLACES]
)
def test_a_pickle_is_never_unpickled(
    place: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that reads the place ends in one line, or leaves the file aside and computes anew."""
    pattern, commands = PLACES[place]
    marker = tmp_path / "marker"
    corpus = tmp_path / "corpus"
    for number, (form, dump) in enumerate(FORMS.items()):
        for command, expected in commands.items():
            copy = tmp_path / f"copy{number}"
            shutil.copytree(home.root, copy)
            monkeypatch.setenv("XDG_STATE_HOME", str(copy / "state"))
            victims = list(copy.glob(pattern))
            assert victims, pattern
            for target in victims:
                target.write_bytes(dump(Payload(marker)))
            if place == "batch":  # is looked for where the outcome is not there
                for file in copy.glob("run/attacks/*/*[0-9a-f].json"):
                    file.unlink()
            corpus = copy / "corpus" if pattern.startswith("corpus") else home.root / "corpus"
            words = command.split()
            if command == RESUME:
                words = [*Home(copy).train(copy / "run", corpus), "resume=true"]
            names = {"RUN": copy / "run", "OTHER": copy / "other", "CORPUS": corpus, "NEW": copy / "new"}
            for name, path in names.items():
                words = [word.replace(name, str(path)) for word in words]
            capsys.readouterr()
            code, told = main(words), capsys.readouterr().err
            assert code == expected, (form, command, told)
            assert not marker.exists(), (form, command)
            if code == REFUSED:
                assert told.startswith("ser-fl: ") and told.count("\n") == 1, told
            shutil.rmtree(copy)


def model_of(home: Home, tmp_path: Path) -> Path:
    shutil.copytree(home.run, tmp_path / "run")
    return tmp_path / "run"


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 2
    text = capsys.readouterr().err
    assert text.startswith("ser-fl: ") and text.count("\n") == 1, text
    return text


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("frontend", "num_mels", 10**9, "num_mels"),
        ("frontend", "num_mels", 100, "64 values for 100 bins"),
        ("frontend", "duration_s", 1e12, "duration_s"),
        (None, "classes", ["a", "b", "c"], "model.json describes"),
        (None, "classes", "ab", "tuple"),
        (None, "classes", [str(number) for number in range(10**6)], "model.json describes"),
        ("model", "norm", "group", "model.json describes"),
    ],
)
def test_a_description_that_does_not_fit_the_weights_is_one_line(
    section: str | None,
    key: str,
    value: object,
    named: str,
    home: Home,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And no memory is taken for what it describes."""
    run = model_of(home, tmp_path)
    card = json.loads((run / "model.json").read_text())
    (card[section] if section else card)[key] = value
    (run / "model.json").write_text(json.dumps(card))
    line = told(capsys, "predict", str(home.root / "corpus/audio/ann-anger-0.wav"), "--run", str(run))
    assert "cannot be loaded" in line and named in line


@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "more"])
@pytest.mark.parametrize("file", ["model.safetensors", "checkpoint/round-00001.safetensors", "checkpoint/best-*"])
def test_tensors_that_do_not_fit_are_one_line(
    file: str, change: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = model_of(home, tmp_path)
    (path,) = run.glob(file)
    tensors = load_tensors(path.read_bytes())
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and "velocity" not in name)
    tensor = tensors[name]
    if change == "missing":
        del tensors[name]
    else:
        changed = {"shape": tensor[:-1].clone(), "dtype": tensor.double(), "more": tensor}[change]
        tensors[f"{name}s" if change == "more" else name] = changed.clone()
    path.write_bytes(save_tensors(tensors))
    if file.startswith("checkpoint"):
        line = told(capsys, *home.train(run, home.root / "corpus"), "resume=true")
    else:
        line = told(capsys, "predict", str(home.root / "corpus/audio/ann-anger-0.wav"), "--run", str(run))
    assert name.split("/")[-1] in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", "one"),
        ("round", -1),
        ("lengths", {"rounds.jsonl": "x"}),
        ("lengths", {"rounds.jsonl": -4}),
        ("data_digest", 7),
        ("tracking", []),
        ("best_score", {}),
        ("config", None),
    ],
)
def test_a_checkpoint_of_another_form_is_one_line(
    key: str, value: object, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = model_of(home, tmp_path)
    latest = run / "checkpoint" / "latest.json"
    latest.write_text(json.dumps({**json.loads(latest.read_text()), key: value}))
    assert "checkpoint in" in told(capsys, *home.train(run, home.root / "corpus"), "resume=true")


def test_only_the_payload_between_our_own_processes_is_a_pickle() -> None:
    """All loaders of the package: no new one may open the door again."""
    package = Path(ser_fl.__file__).parent
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found: list[str] = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [f"{where}: {name.name}" for name in node.names if name.name.split(".")[0] in unsafe]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in unsafe:
                found.append(f"{where}: {node.module}")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call, safe = ast.unparse(node.func), [ast.unparse(keyword) for keyword in node.keywords]
                if (
                    call in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
                    or (call == "torch.load" and "weights_only=True" not in safe)
                    or (call in ("np.load", "numpy.load") and "allow_pickle=False" not in safe)
                ):
                    found.append(f"{where}: {call}")
    assert found == ["federation/processes.py: pickle"]
