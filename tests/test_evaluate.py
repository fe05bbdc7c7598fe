"""`evaluate`: clean figures on any speech, and none of them on what was heard in training without saying so."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

import ser_fl
from ser_fl.data.frontend import resample
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.errors import UserError

ANOTHER = SyntheticCorpus(3, 2, seed=5)
"""Other speakers' utterances."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = ["experiment=debug", "federation.num_rounds=20", "tracking=none", f"run_dir={folder}"]
    return ser_fl.train(ser_fl.compose(settings))


def written(
    folder: Path, corpus: SyntheticCorpus, rate: int = 16_000, rename: dict[str, str] | None = None
) -> list[str]:
    """A corpus as a manifest and files of some rate, and the settings that name it."""
    lines = ["path,emotion,speaker,sex,text"]
    for number, utterance in enumerate(corpus.utterances):
        waveform_T, hz = corpus.read(utterance)
        soundfile.write(folder / f"{number}.wav", resample(waveform_T, hz, rate).numpy(), rate)
        emotion = (rename or {}).get(utterance.emotion, utterance.emotion)
        lines.append(f"{number}.wav,{emotion},{utterance.speaker},{utterance.sex},{utterance.text}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return ["data=manifest", f"data.root={folder}"]


def test_the_test_part_of_the_run_itself_gives_the_figures_of_its_summary(run: ser_fl.Run) -> None:
    found, known = ser_fl.evaluate(run), run.metrics()
    assert (found.uar, found.accuracy, found.macro_f1) == (known.uar, known.accuracy, known.macro_f1)
    assert found.recall == known.recall and found.speaker_uar == known.speaker_uar
    assert found.confusion == [list(row) for row in known.confusion]
    assert found.shared is not None and found.shared.recordings == 0


def test_figures_are_those_of_scikit_learn(run: ser_fl.Run, tmp_path: Path) -> None:
    found = ser_fl.evaluate(run, written(tmp_path, ANOTHER))
    true = [one.emotion for one in found.utterances]
    said = [one.predicted for one in found.utterances]
    assert len(set(said)) > 1, "a model that says one thing would hide mistakes"
    assert found.num_utterances == len(ANOTHER.utterances) == len(true)
    assert found.uar == pytest.approx(balanced_accuracy_score(true, said))
    assert found.macro_f1 == pytest.approx(f1_score(true, said, average="macro", zero_division=0))
    assert np.array_equal(found.confusion, confusion_matrix(true, said, labels=list(found.recall)))
    for one in found.utterances:
        assert one.predicted == max(one.probabilities, key=one.probabilities.__getitem__)
        assert sum(one.probabilities.values()) == pytest.approx(1)
    assert found.uar_interval is not None and found.uar_interval[0] - 1e-6 <= found.uar <= found.uar_interval[1] + 1e-6


def test_emotions_are_mapped_by_name_and_what_is_missing_is_said(run: ser_fl.Run, tmp_path: Path) -> None:
    settings = written(tmp_path, ANOTHER, rename={"guilt": "boredom"})
    found = ser_fl.evaluate(run, settings)
    assert found.left_out == {"boredom": 6} and found.recall["guilt"] is None
    assert found.num_utterances == 36
    assert "boredom (6)" in found.words()[1] and "no utterance of guilt" in found.words()[2]
    recalls = [recall for recall in found.recall.values() if recall is not None]
    assert found.uar == pytest.approx(np.mean(recalls)) and len(recalls) == 6
    with pytest.raises(UserError, match=r"the model knows anger, .* the utterances are bored, calm"):
        ser_fl.evaluate(run, written(tmp_path, ANOTHER, rename=dict.fromkeys(found.recall, "calm") | {"fear": "bored"}))


@pytest.mark.parametrize("part", ["train", "validation", "all"])
def test_what_was_heard_is_refused_or_counted(run: ser_fl.Run, part: Any) -> None:
    with pytest.raises(UserError, match=r"utterances were heard in training, the first is f01/.*allow_seen=true"):
        ser_fl.evaluate(run, part=part)
    found = ser_fl.evaluate(run, part=part, allow_seen=True)
    assert found.shared is not None
    assert found.shared.recordings == {"train": 50, "validation": 6, "all": 56}[part]


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
def test_copies_of_what_was_heard_are_refused_whatever_they_are_called(
    run: ser_fl.Run, rate: int, tmp_path: Path
) -> None:
    own = SyntheticCorpus(2, 5)  # as experiment=debug
    settings = written(tmp_path, own, rate)
    with pytest.raises(UserError, match=r"56 of 70 utterances were heard in training"):
        ser_fl.evaluate(run, settings)


def test_a_larger_copy_of_the_corpus_is_no_new_test_set(run: ser_fl.Run) -> None:
    """The split is drawn anew over more utterances: its test part holds some that were trained on."""
    with pytest.raises(UserError, match="were heard in training"):
        ser_fl.evaluate(run, ["data.utterances_per_emotion=9"])


@pytest.mark.parametrize(
    "command", ["benchmark run=RUN attacks=[fgsm] curve_attacks=[] epsilons=[0.05] checks=false", "transfer RUN RUN2"]
)
def test_nothing_heard_is_attacked_unsaid(command: str, run: ser_fl.Run, tmp_path: Path) -> None:
    """The run's corpus has grown since, so that its test part holds utterances that were trained on."""
    for name in ("one", "two"):
        shutil.copytree(run.root, tmp_path / name)
        config = tmp_path / name / "config.yaml"
        config.write_text(config.read_text().replace("utterances_per_emotion: 5", "utterances_per_emotion: 9"))
    words = command.replace("RUN2", f"{tmp_path}/two").replace("RUN", f"{tmp_path}/one").split()
    refused = subprocess.run([sys.executable, "-m", "ser_fl", *words], capture_output=True, text=True)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "were heard in training" in refused.stderr and "allow_seen=true" in refused.stderr
    allowed = subprocess.run(
        [sys.executable, "-m", "ser_fl", *words, "allow_seen=true"], capture_output=True, text=True
    )
    assert allowed.returncode == 0, allowed.stderr


def test_a_run_that_does_not_say_what_it_heard(run: ser_fl.Run, tmp_path: Path) -> None:
    heard = [run.heard.read_bytes(), run.heard_sounds.read_bytes()]
    try:
        run.heard.unlink()
        found = ser_fl.evaluate(run, written(tmp_path, ANOTHER))
        assert found.shared is None and "not on record" in found.words()[0]
        assert ser_fl.evaluate(run).shared is None
        with pytest.raises(UserError, match=r"does not say all that it heard .*part=test, or .*allow_seen=true"):
            ser_fl.evaluate(run, part="train")
        assert ser_fl.evaluate(run, part="train", allow_seen=True).num_utterances == 50
    finally:
        run.heard.write_bytes(heard[0])
        run.heard_sounds.write_bytes(heard[1])


def test_speech_of_one_emotion_is_scored(run: ser_fl.Run, tmp_path: Path) -> None:
    sad = SyntheticCorpus(3, 2, seed=5)
    sad.utterances = tuple(utterance for utterance in sad.utterances if utterance.emotion == "sadness")
    found = ser_fl.evaluate(run, written(tmp_path, sad))
    assert found.num_utterances == 6 and found.uar == found.accuracy == found.recall["sadness"]


def test_a_run_of_a_network_of_ones_own_is_evaluated_with_it(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Pooled(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.head = nn.Linear(64, num_classes)

        def forward(self, features_BFL: torch.Tensor) -> torch.Tensor:
            return self.head(features_BFL.mean(dim=2))

    settings = ["experiment=debug", "federation.num_rounds=1", "tracking=none", f"run_dir={tmp_path}/run"]
    run = ser_fl.train(ser_fl.compose([*settings, "frontend=seconds3"]), network=Pooled)
    assert ser_fl.evaluate(run).uar == run.metrics().uar


def test_outputs_that_are_not_finite_are_no_class(run: ser_fl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ser_fl.models.networks import CRNN

    forward = CRNN.forward

    def broken(self: CRNN, features_BFL: torch.Tensor) -> torch.Tensor:
        logits_BC = forward(self, features_BFL)
        logits_BC[3] = float("nan")
        return logits_BC

    monkeypatch.setattr(CRNN, "forward", broken)
    with pytest.raises(UserError, match=r"no finite output for f01/"):
        ser_fl.evaluate(run)


def test_the_command_writes_figures_and_every_prediction(run: ser_fl.Run, tmp_path: Path) -> None:
    words = [f"run={run.root}", "part=train", "allow_seen=true", f"out={tmp_path}/out"]
    done = subprocess.run([sys.executable, "-m", "ser_fl", "evaluate", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "shared with training: all of 2 speakers, all of 5 texts, 50 of 50 recordings" in done.stdout
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == content["num_utterances"] == 50
    right = sum(row["emotion"] == row["predicted"] for row in rows)
    assert content["accuracy"] == pytest.approx(right / 50)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "say which run: ser-fl evaluate run=RUN"),
        (("run=nowhere",), "nowhere"),
        (("run=RUN", "part=tests"), "unknown part 'tests', did you mean 'test'?"),
        (("run=RUN", "allow_seen=maybe"), "allow_seen must be true or false, got maybe"),
        (("run=RUN", "epsilon=3"), "unknown setting 'epsilon'"),
    ],
)
def test_mistakes_are_told_in_one_line(words: tuple[str, ...], told: str, run: ser_fl.Run) -> None:
    given = [word.replace("RUN", str(run.root)) for word in words]
    done = subprocess.run([sys.executable, "-m", "ser_fl", "evaluate", *given], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert told in done.stderr
