"""Fine-tuning: a run that begins from another's model trains on with its weights, and has heard what that one heard."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from flower_grid import InProcessGrid, as_they_are

import ser_fl
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data.frontend import Standardisation
from ser_fl.data.heard import CLIENTS, FIRST_RUN, Heard
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.errors import UserError
from ser_fl.federation.fine_tuning import FirstRun
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.models.networks import build_network
from ser_fl.runs.folder import RunFolder

SMALL = ("experiment=debug", "data.utterances_per_emotion=4", "optimiser.learning_rate=0.01")
OTHERS = SyntheticCorpus(4, 3, seed=5)
"""Other speakers."""
RENAMED = {"sad": "calm"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fine_tuning")


@pytest.fixture(scope="module")
def first(home: Path) -> ser_fl.Run:
    return ser_fl.train(settings(home, "first run #1"))


@pytest.fixture(scope="module")
def others(home: Path) -> tuple[str, ...]:
    """Other speakers, with one emotion that the first run does not know and without one that it knows."""
    lines = ["path,emotion,speaker"]
    for number, utterance in enumerate(OTHERS.utterances):
        waveform_T, hz = OTHERS.read(utterance)
        soundfile.write(home / f"{number}.wav", waveform_T.numpy(), hz)
        emotion = RENAMED.get(utterance.emotion, utterance.emotion)
        lines.append(f"{number}.wav,{emotion},{utterance.speaker}")
    (home / "manifest.csv").write_text("\n".join(lines))
    return ("data=manifest", f"data.root={home}")


def settings(home: Path, run: str, *changes: str) -> Config:
    return compose([*SMALL, f"data.cache_dir={home / 'cache'}", f"run_dir={home / run}", *changes])


def untimed(file: Path) -> list[dict[str, object]]:
    return [{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert untimed(one.rounds) == untimed(other.rounds) and untimed(one.clients) == untimed(other.clients)


def model_of(classes: tuple[str, ...], seed: int) -> FirstRun:
    config = compose(list(SMALL))
    network = build_network(config.model, len(classes), seed=seed)
    standardisation = Standardisation(*(torch.ones(64) for _ in range(4)))
    model = EmotionModel(network, standardisation, classes=classes, model=config.model, frontend=config.frontend)
    return FirstRun(said="init_from=RUN", model=model, heard=None)


def test_rows_of_emotions_that_both_know_are_copied_and_the_others_start_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, run = compose([*SMALL, "seed=2"]), model_of(("angry", "happy", "neutral", "sad"), seed=1)
    found = run.initial_weights(config, ("calm", "happy", "sad"), None)
    theirs, fresh = run.model.network.state_dict(), build_network(config.model, 3, seed=2).state_dict()
    assert found.keys() == fresh.keys()
    final = {name for name in fresh if fresh[name].shape != theirs[name].shape}
    assert {fresh[name].shape[0] for name in final} == {3} and len(final) == 2, "a weight and a bias"
    for name, tensor in found.items():
        if name in final:
            assert torch.equal(tensor[0], fresh[name][0]), "calm"
            assert torch.equal(tensor[1], theirs[name][1]) and torch.equal(tensor[2], theirs[name][3]), "happy, sad"
        else:
            assert torch.equal(tensor, theirs[name])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "init_from=RUN: the final layer knows happy, sad; starts anew for calm; has no use for angry, neutral"
    )


def test_the_same_emotions_take_every_weight(caplog: pytest.LogCaptureFixture) -> None:
    run = model_of(("angry", "sad"), seed=1)
    found = run.initial_weights(compose([*SMALL, "seed=2"]), ("angry", "sad"), None)
    assert all(torch.equal(tensor, found[name]) for name, tensor in run.model.network.state_dict().items())
    assert not caplog.records


def test_a_module_whose_emotions_are_fixed_is_refused_with_others() -> None:
    network = build_network(compose(list(SMALL)).model, 2, seed=1)
    with pytest.raises(UserError, match=r"^init_from=RUN knows the emotions angry, sad, this corpus has happy, sad"):
        model_of(("angry", "sad"), seed=1).initial_weights(compose(list(SMALL)), ("happy", "sad"), network)


@pytest.mark.parametrize("changes", [(), ("executor=processes", "executor.workers=2")], ids=["serial", "processes"])
def test_training_begins_with_the_weights_of_the_first_model(
    home: Path, first: ser_fl.Run, changes: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """As if its network were given from Python, whose weights are then the initial ones."""
    name = request.node.callspec.id
    given = ser_fl.train(settings(home, f"{name} given", "seed=2"), network=first.load().network.train())
    begun = ser_fl.train(settings(home, name, "seed=2", f"init_from={first.root}", *changes))
    assert begun.weights.read_bytes() == given.weights.read_bytes()
    assert untimed(begun.rounds) == untimed(given.rounds)
    assert "place:" in begun.config.read_text() and str(first.root) not in begun.config.read_text()
    again = compose([f"run_dir={home / name} again"], config_file=begun.config)
    assert again.init_from == str(first.root)


def test_nodes_of_a_federation_need_nothing_of_the_first_run(home: Path, first: ser_fl.Run) -> None:
    from ser_fl.federation.flower.client_app import app
    from ser_fl.federation.flower.nodes import told_settings
    from ser_fl.federation.flower.server_app import serve
    from ser_fl.federation.hooks import Hooks

    local = ser_fl.train(settings(home, "one place", f"init_from={first.root}"))
    nodes = {number: {"speakers": who, "cache-dir": str(home / "cache")} for number, who in ((7, "f01"), (8, "m01"))}
    config = settings(home, "far", f"init_from={first.root}", "executor=flower", "executor.num_nodes=2")
    far = serve(config, InProcessGrid(app, nodes, as_they_are), Hooks())
    assert_same_run(local, far)
    assert told_settings(config)["init_from"] is None
    heard, of_first = (Heard.read(run.heard, run.heard_sounds) for run in (far, first))
    assert heard is not None and of_first is not None
    assert heard.ids == of_first.ids and heard.missing == (CLIENTS,)
    with pytest.raises(UserError, match="does not say all that it heard"):
        ser_fl.evaluate(far, part="train")


def test_a_resumed_run_does_not_ask_for_the_first_one_again(
    home: Path, first: ser_fl.Run, others: tuple[str, ...]
) -> None:
    class Stop(BaseException):
        pass

    def stop(record: object) -> None:
        raise Stop

    copy = home / "elsewhere" / "base"
    shutil.copytree(first.root, copy)
    whole = ser_fl.train(settings(home, "whole", *others, f"init_from={copy}"))
    config = settings(home, "stopped", *others, f"init_from={copy}")
    with pytest.raises(Stop):
        ser_fl.train(config, on_round=stop)
    shutil.rmtree(copy)
    resumed = ser_fl.train(replace(config, resume=True))
    assert_same_run(whole, resumed)
    assert resumed.heard.read_bytes() == whole.heard.read_bytes()
    assert resumed.heard_sounds.read_bytes() == whole.heard_sounds.read_bytes()
    with pytest.raises(UserError, match="another init_from: resume with the same"):
        ser_fl.train(replace(config, resume=True, init_from=None))


def test_what_the_first_run_heard_is_no_test_of_the_new_one(
    home: Path, first: ser_fl.Run, others: tuple[str, ...]
) -> None:
    run = ser_fl.train(settings(home, "tuned", *others, f"init_from={first.root}"))
    heard, before = (Heard.read(each.heard, each.heard_sounds) for each in (run, first))
    assert heard is not None and before is not None and heard.missing == ()
    assert len(heard.ids) == len(before.ids) + sum(
        run.read_json(run.summary)["split_sizes"][part] for part in ("train", "validation")
    )
    assert ser_fl.evaluate(run).shared.recordings == 0  # type: ignore[union-attr]
    with pytest.raises(UserError, match="were heard in training"):
        ser_fl.evaluate(run, part="train")
    with pytest.raises(UserError, match="were heard in training"):
        ser_fl.evaluate(run, ["data=builtin", "data.num_speakers=2", "data.utterances_per_emotion=4"])


def test_recordings_of_both_are_there_once(first: ser_fl.Run) -> None:
    heard = Heard.read(first.heard, first.heard_sounds)
    assert heard is not None
    twice = heard.after(heard)
    assert twice.ids == heard.ids and torch.equal(twice.fingerprints_NP, heard.fingerprints_NP)
    half = replace(heard, ids=heard.ids[::2], fingerprints_NP=heard.fingerprints_NP[::2])
    assert sorted(half.after(heard).ids) == sorted(heard.ids)


def test_a_first_run_without_a_record_is_told_and_remembered(
    home: Path, first: ser_fl.Run, others: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    old = RunFolder(home / "old")
    shutil.copytree(first.root, old.root)
    old.heard.unlink()
    run = ser_fl.train(settings(home, "of old", *others, f"init_from={old.root}"))
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"what init_from={old.root} heard in training is not on record") for line in lines)
    heard = Heard.read(run.heard, run.heard_sounds)
    assert heard is not None and heard.missing == (FIRST_RUN,)
    assert f"what {FIRST_RUN} heard is not on record" in run.read_json(run.summary)["shared"]["words"]
    assert "what the run that it began from heard is not on record" in ser_fl.evaluate(run).words()[1]


def test_test_utterances_that_the_first_run_heard_are_told(
    home: Path, first: ser_fl.Run, caplog: pytest.LogCaptureFixture
) -> None:
    ser_fl.train(settings(home, "same split", f"init_from={first.root}", "federation.num_rounds=1"))
    assert not [record for record in caplog.records if "test utterances" in record.getMessage()]
    ser_fl.train(settings(home, "other split", f"init_from={first.root}", "split.seed=9", "federation.num_rounds=1"))
    (line,) = [record.getMessage() for record in caplog.records if "test utterances" in record.getMessage()]
    assert f"init_from={first.root} heard" in line and "test figures are of speech that the model knows" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("model.hidden=4",), "has model.hidden=8, this run 4"),
        (("model=vgg15",), "has model.name='crnn', this run 'vgg15'"),
        (("frontend.duration_s=1.5",), "has frontend.duration_s=1.0, this run 1.5"),
        (("init_from=no such run",), "no such run has no model.json: is it the folder of a finished run?"),
    ],
)
def test_what_cannot_be_begun_from_is_told_in_a_line_before_anything_is_written(
    home: Path, first: ser_fl.Run, changes: tuple[str, ...], message: str
) -> None:
    config = settings(home, "refused", f"init_from={first.root}", *changes)
    with pytest.raises(UserError) as caught:
        ser_fl.train(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (home / "refused" / "config.yaml").exists()


def test_dropout_has_no_weights_and_may_differ(home: Path, first: ser_fl.Run) -> None:
    FirstRun.of(compose([*SMALL, "model.dropout=0.35", f"init_from={first.root}"]), None)


def test_a_run_of_local_models_has_none_to_begin_from(home: Path) -> None:
    local = ser_fl.train(settings(home, "local", "federation=local_only", "federation.num_rounds=1"))
    with pytest.raises(UserError, match="a model for each client"):
        FirstRun.of(compose([*SMALL, f"init_from={local.root}"]), None)
