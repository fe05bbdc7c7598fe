"""Files that a run folder or a manifest names stay inside it, and where things lie on this machine stays outside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_cli import write_manifest
from test_trust_pickles import FEW, Home, told

from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.data.corpora import open_corpus
from ser_fl.errors import UserError
from ser_fl.federation.algorithm import LocalOnly
from ser_fl.federation.server import ClientResults, Server
from ser_fl.runs.environment import describe_environment
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.redaction import is_place, public_text, recall, remember

PRIVATE = "tell tale-Institut"
SECRET = "telltale0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A run and its corpus below a folder whose name nobody is to learn."""
    home = Home(tmp_path_factory.mktemp("paths") / PRIVATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home.root / "state"))
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("WANDB_MODE", "offline")
        write_manifest(home.root / "corpus")
        words = [
            word.replace("tracking=none", "tracking.backend=wandb") for word in home.train(home.run, _corpus(home))
        ]
        patch.setattr(sys, "argv", ["ser-fl", *words])
        assert main(words) == 0
        shutil.copytree(home.run, home.root / "other")
        assert main(["benchmark", f"run={home.run}", *FEW]) == 0
        assert main(["transfer", str(home.run), str(home.root / "other"), "attack=fgsm", "defences=[none]"]) == 0
        assert main(["report", str(home.run), str(home.root / "other")]) == 0
        yield home


def _corpus(home: Home) -> Path:
    return home.root / "corpus"


@pytest.fixture
def copied(home: Home, tmp_path: Path) -> Path:
    shutil.copytree(home.run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_no_byte_of_a_run_folder_tells_where_data_lie_or_a_secret(home: Home) -> None:
    """Records, checkpoint, page, and the offline run of W&B, which is sent as it is."""
    files = [file for file in home.run.rglob("*") if file.is_file()]
    names = {file.relative_to(home.run).parts[0] for file in files}
    assert names >= {"config.yaml", "environment.json", "rounds.jsonl", "wandb", "report.html", "checkpoint", "attacks"}
    assert any(file.suffix == ".wandb" for file in files)
    for file in files:
        content = file.read_bytes()
        for telltale in (PRIVATE, SECRET, str(home.root.parent)):
            assert telltale.encode() not in content, (file, telltale)


def test_the_run_repeats_and_is_attacked_here_as_it_is(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(home.root / "state"))
    file = home.run / "config.yaml"
    written = yaml.safe_load(file.read_text())
    assert re.fullmatch(r"place:corpus-[0-9a-f]{8}", written["data"]["root"])
    assert written["run_dir"] is None
    config = compose(config_file=file)
    assert config.data.root == str(_corpus(home))
    assert config.data.cache_dir == str(home.root / "cache")
    words = ["train", "--config", str(file), f"run_dir={tmp_path / 'again'}", "tracking.backend=none"]
    assert main(words) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (home.run / "model.safetensors").read_bytes()


def test_elsewhere_it_asks_for_the_corpus_in_one_line(
    copied: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.root / "cache of another machine"))
    corpus = _corpus(home)
    again = ["train", "--config", str(copied / "config.yaml"), f"run_dir={tmp_path / 'new'}", "tracking.backend=none"]
    benchmark = ["benchmark", f"run={copied}", *FEW, "fresh=true"]
    for words, way_out in ((again, f"data.root={corpus}"), (benchmark, f"root={corpus}")):
        line = told(capsys, *words)
        assert "place:corpus-" in line and way_out.replace(str(corpus), "DIR") in line
        assert main([*words, way_out]) == 0
    assert main(["predict", str(corpus / "audio/ann-anger-0.wav"), "--run", str(copied)]) == 0


def test_a_relative_corpus_is_recorded_as_it_is(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.root)
    words = ["train", "experiment=debug", "tracking=none", "data=manifest", "data.root=corpus", "data.cache_dir=cache"]
    assert main([*words, "federation.num_rounds=1", "run_dir=relative"]) == 0
    data = yaml.safe_load(Path("relative/config.yaml").read_text())
    assert (data["run_dir"], data["data"]["root"], data["data"]["cache_dir"]) == ("relative", "corpus", "cache")


def test_places_are_remembered_once_and_tell_their_last_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    written = remember("/data/my corpora/nemo (1)")
    assert is_place(written) and remember("/data/my corpora/nemo (1)") == written
    assert "corpora" not in written and recall(written) == "/data/my corpora/nemo (1)"
    assert remember("/other/nemo (1)") != written
    assert remember("corpora/nemo") == "corpora/nemo"
    for stranger in ("place:unknown-00000000", "place:../places/x", "place:", "place:..", f"place:{tmp_path}"):
        assert recall(stranger) is None


def test_a_place_that_cannot_be_remembered_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    written = remember("/data/nemo")
    assert is_place(written) and recall(written) is None
    assert "name them again to repeat it" in caplog.text and str(tmp_path) not in caplog.text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ('  File "/home/ann b/ser_fl/client.py", line 7, in update', '  File "client.py", line 7, in update'),
        ("cannot read /data/nemo/a.wav: no such file", "cannot read a.wav: no such file"),
        ("[Errno 13] Permission denied: '/scratch/ann/x y/a.wav'", "[Errno 13] Permission denied: 'a.wav'"),
        (r"C:\Users\ann\a.wav is empty", "a.wav is empty"),
        ("~/corpora/nemo/a.wav", "a.wav"),
        ("a loss of 1/2/3 and https://example.org/a/b", "a loss of 1/2/3 and https://example.org/a/b"),
        ("audio/ann/a.wav", "audio/ann/a.wav"),
        (f"key {SECRET} is wrong", "key *** is wrong"),
        ("/my corpora/of all/audio/a.wav is silent", "of all/audio/a.wav is silent"),
    ],
)
def test_texts_are_cut_to_what_may_be_told(text: str, public: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert public_text(text, ["/my corpora/of all"]) == public


def test_what_a_failed_client_says_is_public(tmp_path: Path) -> None:
    server = Server(LocalOnly())
    results = ClientResults(round=1, reference={}, server=server, folders=(str(tmp_path / PRIVATE / "corpus"),))
    results.take("ann", f"cannot read {tmp_path / PRIVATE / 'corpus' / 'audio' / 'a b.wav'}: no such file")
    assert results.failures[0].error == "cannot read corpus/audio/a b.wav: no such file"


def test_what_a_client_of_a_run_says_is_public(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its traceback, in the round's record."""
    private = _corpus(home)

    def fail(self: object, task: object) -> None:
        raise RuntimeError(f"cannot read {private}/a.wav with {SECRET}")

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("ser_fl.federation.client.Clients.update", fail)
    assert main(home.train(tmp_path / "run", _corpus(home))) == 1
    said = capsys.readouterr().err
    assert "cannot read" in said and PRIVATE not in said and SECRET not in said
    assert re.search(r'File "[\w.]+", line', said)


@pytest.mark.parametrize(
    ("argument", "recorded"),
    [
        ("data.root=/a/v=1/wav", "data.root=wav"),
        ("--config=/a/b/config.yaml", "--config=config.yaml"),
        ("/a/b/run", "run"),
        ("files=[/a/b/c.wav,/a/b/d.wav]", "'files=[c.wav,d.wav]'"),
        ("tracking.api_key=abc", "'tracking.api_key=***'"),
        ("data.root='/a b/c d'", "'data.root='\"'\"'c d'\"'\"''"),
        ("seed=1", "seed=1"),
    ],
)
def test_the_recorded_command_has_no_folders(argument: str, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ser-fl", "train", argument])
    assert describe_environment(seed=1, threads=1)["command"] == f"ser-fl train {recorded}"


def test_a_configuration_takes_nothing_from_the_environment(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text is what it says, through Hydra too; anything else is refused."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    content = yaml.safe_load((copied / "config.yaml").read_text())
    content["tracking"]["group"] = "${oc.env:WANDB_API_KEY}"
    (copied / "config.yaml").write_text(yaml.safe_dump(content))
    assert compose(config_file=copied / "config.yaml").tracking.group == "${oc.env:WANDB_API_KEY}"
    assert main(["train", "--config", str(copied / "config.yaml"), "--cfg", "job", "--resolve"]) == 0
    assert "group: ${oc.env:WANDB_API_KEY}" in capsys.readouterr().out
    content["seed"] = "${oc.env:WANDB_API_KEY}"
    (copied / "config.yaml").write_text(yaml.safe_dump(content))
    line = told(capsys, "train", "--config", str(copied / "config.yaml"), f"run_dir={tmp_path / 'new'}")
    assert "write the value itself" in line and SECRET not in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("written", ["/etc/passwd", "../outside.wav", "round-00001.safetensors/../../x", ""])
@pytest.mark.parametrize("which", ["current", "best"])
def test_a_checkpoint_names_its_own_files_alone(
    which: str, written: str, copied: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    latest = copied / "checkpoint" / "latest.json"
    content = json.loads(latest.read_text())
    content["files"][which] = written
    latest.write_text(json.dumps(content))
    words = [*home.train(copied, _corpus(home)), "resume=true"]
    assert "names files that are not its own" in told(capsys, *words)


LINKS = {
    "model.safetensors": "predict FILE --run RUN",
    "config.yaml": "benchmark run=RUN",
    "rounds.jsonl": "RESUME",
    "checkpoint": "RESUME",
    "attacks": "benchmark run=RUN",
    "adversarial/example.json": "report RUN",
    "summary.json": "report RUN",
    "model.json": "transfer RUN OTHER",
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_a_run_folder_is_refused(
    name: str, copied: Path, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the command: what the link leads to is neither read nor written."""
    outside = tmp_path / "outside"
    (copied / name).rename(outside)
    (copied / name).symlink_to(outside)
    before = _content(outside)
    places = {"RUN": copied, "OTHER": home.root / "other", "FILE": _corpus(home) / "audio/ann-anger-0.wav"}
    words = LINKS[name].split()
    if words == ["RESUME"]:
        words = [*home.train(copied, _corpus(home)), "resume=true"]
    line = told(capsys, *[str(places.get(word, word.replace("RUN", str(copied)))) for word in words])
    assert f"{copied / name} is a link out of the run folder" in line
    assert _content(outside) == before


def _content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


def test_a_pipe_in_a_run_folder_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading it would never end."""
    (copied / "rounds.jsonl").unlink()
    os.mkfifo(copied / "rounds.jsonl")
    assert "neither a file nor a folder" in told(capsys, "report", str(copied))


def test_links_inside_and_to_a_run_folder_are_fine(copied: Path, tmp_path: Path) -> None:
    """W&B makes some inside; a run folder may lie on another disk."""
    (copied / "rounds.jsonl").rename(copied / "rounds")
    (copied / "rounds.jsonl").symlink_to("rounds")
    (tmp_path / "link").symlink_to(copied)
    RunFolder(tmp_path / "link").refuse_links_out()
    assert main(["report", str(tmp_path / "link")]) == 0


def manifest(folder: Path, *paths: str) -> Path:
    rows = "".join(f'"{path}",anger,ann\n' for path in paths)
    write_manifest(folder)
    with (folder / "manifest.csv").open("a", encoding="utf-8", newline="") as file:
        file.write(rows)
    return folder


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("../outside.wav", "outside the manifest's folder"),
        ("audio/../../outside.wav", "outside the manifest's folder"),
        ("OUTSIDE/outside.wav", "outside the manifest's folder"),
        ("..\\\\outside.wav", "outside the manifest's folder"),
        ("a\\0b.wav", "NUL characters"),
        ("a\tb.wav", "without control characters"),
        ("audio", "it is a folder"),
        ("pipe.wav", "a device or a pipe"),
        ("zero.wav", "a device or a pipe"),
    ],
)
def test_a_manifest_names_no_file_outside_its_folder(written: str, named: str, tmp_path: Path) -> None:
    written = written.replace("OUTSIDE", str(tmp_path)).replace("\\0", "\0").replace("\\\\", "\\")
    (tmp_path / "outside.wav").write_bytes(b"RIFF")
    corpus = manifest(tmp_path / "corpus", written)
    os.mkfifo(corpus / "pipe.wav")
    (corpus / "zero.wav").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=named):
        open_corpus("manifest", corpus)


def test_a_manifest_may_name_its_files_absolutely_and_its_folder_may_be_of_links(tmp_path: Path) -> None:
    """On clusters a corpus is often a folder of links into a store."""
    store, corpus = tmp_path / "store", tmp_path / "corpus"
    write_manifest(store)
    corpus.mkdir()
    (corpus / "audio").symlink_to(store / "audio")
    table = (store / "manifest.csv").read_text().splitlines()
    rows = [table[0], *(f"{corpus}/{row}" if number % 2 else row for number, row in enumerate(table[1:]))]
    (corpus / "manifest.csv").write_text("\n".join(rows))
    found = open_corpus("manifest", corpus).utterances
    assert {utterance.utterance_id for utterance in found} == {row.split(",")[0] for row in table[1:]}


def test_a_manifest_of_pickled_or_absent_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes(b"path,emotion,speaker\n\x80\x04,anger,ann\n")
    with pytest.raises(UserError, match="is no UTF-8"):
        open_corpus("manifest", tmp_path)
