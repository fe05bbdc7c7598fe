"""`evaluate`: clean figures on any speech, and none of them on what was heard in training without saying so."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

import ser_fl
from ser_fl.cli.main import main
from ser_fl.data.frontend import resample
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.errors import UserError
from ser_fl.evaluation import Evaluation
from ser_fl.metrics import Bootstrap, recording_products
from ser_fl.report.page import write_report

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


def resampled(found: Evaluation, *, by_recording: bool) -> Any:
    """The interval of cut recordings, and what `recording_products` says of them."""
    emotions = list(found.recall)
    labels = [emotions.index(one.emotion) for one in found.utterances]
    right_N = np.array([float(one.emotion == one.predicted) for one in found.utterances])
    ids = [one.utterance_id for one in found.utterances]
    units = [name.partition("#")[0] for name in ids] if by_recording else ids
    return Bootstrap.of(labels, units, 0).interval(right_N), recording_products(right_N, labels, units, len(emotions))


def test_intervals_are_over_recordings_where_they_are_cut(run: ser_fl.Run, tmp_path: Path) -> None:
    """Of evaluate and of benchmark."""
    run = copied(run, tmp_path / "run")
    speech = [*written(tmp_path, ANOTHER), "data.segment_s=0.4"]
    found = ser_fl.evaluate(run, speech)
    interval, products = resampled(found, by_recording=True)
    assert found.uar_interval == interval != resampled(found, by_recording=False)[0]
    plain: dict[str, Any] = {"defences": ["none"], "curve_attacks": [], "checks": False}
    records = ser_fl.benchmark(run, speech=speech, attacks=["fgsm"], epsilons=[0.05], **plain)
    clean = next(record for record in records if record.attack == "clean")
    assert clean.uar_interval == found.uar_interval
    assert np.array_equal(clean.recording_products, products)


def test_a_run_on_cut_recordings_says_how_they_hang_together(tmp_path: Path) -> None:
    """So that folds have an interval over recordings."""
    settings = [*written(tmp_path, ANOTHER), "data.segment_s=0.4", f"run_dir={tmp_path / 'run'}"]
    run = ser_fl.train(ser_fl.compose(["experiment=debug", "federation.num_rounds=1", *settings]))
    _, products = resampled(ser_fl.evaluate(run), by_recording=True)
    said = run.read_json(run.summary)["test"]["recording_products"]
    assert np.array_equal(said, products)
    assert products.max() > 1


Told = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The one line of a command that refuses."""

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


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
    "command",
    ["benchmark run=RUN attacks=[fgsm] curve_attacks=[] epsilons=[0.05] checks=false", "transfer RUN RUN2 attack=fgsm"],
)
def test_nothing_heard_is_attacked_unsaid(
    command: str, run: ser_fl.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's corpus has grown since, so that its test part holds utterances that were trained on."""
    for name in ("one", "two"):
        shutil.copytree(run.root, tmp_path / name)
        config = tmp_path / name / "config.yaml"
        config.write_text(config.read_text().replace("utterances_per_emotion: 5", "utterances_per_emotion: 9"))
    words = command.replace("RUN2", f"{tmp_path}/two").replace("RUN", f"{tmp_path}/one").split()
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "were heard in training" in said and "allow_seen=true" in said
    assert main([*words, "allow_seen=true"]) == 0


def test_a_run_that_does_not_say_what_it_heard(run: ser_fl.Run, tmp_path: Path) -> None:
    heard = [run.heard.read_bytes(), run.heard_sounds.read_bytes()]
    try:
        run.heard.unlink()
        found = ser_fl.evaluate(run, written(tmp_path, ANOTHER))
        assert found.shared is None and "not on record" in found.words()[0]
        assert ser_fl.evaluate(run).shared is None
        for speech, part in (([], "train"), (["split.seed=3"], "test")):
            with pytest.raises(UserError, match=r"does not say all that it heard .*part=test .*allow_seen=true"):
                ser_fl.evaluate(run, speech, part=part)
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
    assert "shared with training: all of 2 speakers, all of 5 texts, all of 50 recordings" in done.stdout
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == content["num_utterances"] == 50
    right = sum(row["emotion"] == row["predicted"] for row in rows)
    assert content["accuracy"] == pytest.approx(right / 50)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "say which run: ser-fl evaluate run=RUN"),
        (("run=nowhere",), "nowhere"),
        (("run=RUN", "part=tests"), "unknown part 'tests', did you mean 'test'?"),
        (("run=RUN", "allow_seen=maybe"), "allow_seen must be true or false, got maybe"),
        (("run=RUN", "epsilon=3"), "unknown setting 'epsilon'"),
        (("run=RUN", "frontend.duration_s=1"), "unknown setting 'frontend.duration_s'. Known: allow_seen, data,"),
    ],
)
def test_mistakes_are_told_in_one_line(words: tuple[str, ...], line: str, run: ser_fl.Run, told: Told) -> None:
    assert line in told("evaluate", *(word.replace("RUN", str(run.root)) for word in words))


QUICK = ["attacks=[fgsm]", "curve_attacks=[]", "epsilons=[0.05]", "defences=[none]", "checks=false"]
"""A benchmark of a second."""


def copied(run: ser_fl.Run, to: Path) -> ser_fl.Run:
    """The run under another name, whose folder may be written."""
    shutil.copytree(run.root, to)
    return ser_fl.Run(to)


def attacked(run: ser_fl.Run, speech: list[str], **settings: Any) -> Any:
    """Records of a quick benchmark on some speech, from Python."""
    quick = {"attacks": ["fgsm"], "curve_attacks": [], "epsilons": [0.05], "defences": ["none"], "checks": False}
    return ser_fl.benchmark(run, speech=speech, **{**quick, **settings})


def test_what_is_attacked_is_what_is_scored(run: ser_fl.Run, tmp_path: Path) -> None:
    """On the same speech the clean record has the figures of `evaluate`, and both say what either side lacks."""
    speech = written(tmp_path, ANOTHER, rename={"guilt": "boredom"})
    scored, own = ser_fl.evaluate(run, speech), copied(run, tmp_path / "run")
    records = attacked(own, speech)
    clean, fgsm = records
    assert (clean.attack, fgsm.attack, clean.num_examples) == ("clean", "fgsm", 36)
    assert (clean.robust_uar, clean.robust_accuracy) == (pytest.approx(scored.uar), pytest.approx(scored.accuracy))
    assert clean.confusion == tuple(map(tuple, scored.confusion)) and clean.speaker_uar == scored.speaker_uar
    assert fgsm.robust_uar < clean.robust_uar
    assert records.speech is not None and list(records.speech.words) == scored.words()
    assert "boredom (6)" in records.speech.words[1] and "no utterance of guilt" in records.speech.words[2]
    there = json.loads((own.root / "evaluations" / "manifest-all" / "attacks.json").read_text())
    assert there["speech"]["words"] == scored.words()
    assert (there["speech"]["corpus"], there["speech"]["part"]) == ("manifest", "all")
    assert not own.attacks.exists() and not own.outcomes.exists(), "the run's own figures are of its own test part"


def test_a_part_is_attacked_as_it_is_scored(run: ser_fl.Run, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run")
    with pytest.raises(UserError, match="50 of 50 utterances were heard in training"):
        attacked(own, [], part="train")
    (clean, _) = attacked(own, [], part="train", allow_seen=True)
    assert clean.robust_uar == pytest.approx(ser_fl.evaluate(own, part="train", allow_seen=True).uar)
    (test, _) = attacked(own, [])
    assert own.attacks.exists() and test.num_examples == 14
    (other, _) = attacked(own, ["split.seed=3"], allow_seen=True)
    assert own.read_attacks()[0] == test, "another split has another test part"
    assert other.robust_uar == pytest.approx(ser_fl.evaluate(own, ["split.seed=3"], allow_seen=True).uar)


def test_nothing_of_other_utterances_is_taken_for_these(run: ser_fl.Run, tmp_path: Path) -> None:
    """Two manifests of the same names, labels and numbers, and other sounds."""
    own, fresh, timeless = copied(run, tmp_path / "a"), copied(run, tmp_path / "b"), {"seconds": 0.0}
    corpora = [SyntheticCorpus(3, 2, seed=seed) for seed in (5, 6)]
    speech = []
    for name, corpus in zip("ab", corpora, strict=True):
        (tmp_path / f"speech {name}").mkdir()
        speech.append(written(tmp_path / f"speech {name}", corpus))
    before, after, expected = attacked(own, speech[0]), attacked(own, speech[1]), attacked(fresh, speech[1])
    folder = own.on("manifest", "all")
    assert [replace(record, **timeless) for record in after] == [replace(record, **timeless) for record in expected]
    assert [one.robust_uar for one in after] != [one.robust_uar for one in before]
    again = attacked(own, speech[0])
    assert again == before, "what was done once is not done again, nor is it lost"
    assert json.loads((folder.root / "attacks.before.json").read_text())["speech"] == asdict(after.speech) | {
        "words": list(after.speech.words)
    }


@pytest.mark.parametrize("command", [f"benchmark run=RUN {' '.join(QUICK)}", "transfer RUN RUN2 attack=fgsm"])
def test_copies_of_what_was_heard_are_not_attacked(command: str, run: ser_fl.Run, tmp_path: Path, told: Told) -> None:
    speech = written(tmp_path, SyntheticCorpus(2, 5), 8_000)
    twin = copied(run, tmp_path / "twin")
    words = command.replace("RUN2", str(twin.root)).replace("RUN", str(run.root)).split()
    assert "56 of 70 utterances were heard in training" in told(*words, *speech)


def test_runs_of_two_corpora_are_shown_what_is_made_on_a_third(
    run: ser_fl.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each clean figure is that of `evaluate`; the file, the terminal and the report say whose speech it is."""
    own, twin, speech = copied(run, tmp_path / "own"), copied(run, tmp_path / "twin"), written(tmp_path, ANOTHER)
    config = twin.config.read_text()
    twin.config.write_text(config.replace("name: builtin", "name: manifest").replace("root: null", "root: /nowhere"))
    words = ["transfer", str(own.root), str(twin.root), "attack=fgsm", "defences=[none]", *speech]
    assert main(words) == 0
    assert "own: shared with training: 2 of 3 speakers" in capsys.readouterr().out
    matrix = json.loads(own.transfer.read_text())
    expected = ser_fl.evaluate(own, speech)
    assert [record["clean_uar"] for record in matrix["records"]] == [pytest.approx(expected.uar)] * 4
    assert matrix["speech"]["num_utterances"] == len(ANOTHER.utterances)
    assert "twin: shared with training" in matrix["speech"]["words"][1]
    page = write_report([own.root]).read_text()
    assert "Utterances: manifest, part all. Own: shared with training: 2 of 3 speakers" in page


def test_the_report_keeps_other_speech_apart_and_says_what_it_lacks(run: ser_fl.Run, tmp_path: Path) -> None:
    own, speech = copied(run, tmp_path / "run"), written(tmp_path, ANOTHER, rename={"guilt": "boredom"})
    before = write_report([own.root], tmp_path / "before.html").read_text()
    assert "On other speech" not in before
    (clean, fgsm) = attacked(own, speech)
    page = write_report([own.root], tmp_path / "after.html").read_text().replace("\xa0", " ")
    own_part, _, other = page.partition("<h3>On other speech: manifest, part all</h3>")
    assert "No attack was recorded" in page, "there is none on the run's own test part"
    assert "boredom (6)" in other and "boredom" not in own_part
    assert f"{100 * fgsm.robust_uar:.1f} / " in other.partition("Where this comes from")[0]
    assert f"{100 * clean.robust_uar:.1f} / " in other.partition("Where this comes from")[0]


def test_the_runs_own_corpus_has_the_models_emotions(run: ser_fl.Run, tmp_path: Path, told: Told) -> None:
    """Elsewhere than it was, without data=: another corpus there is a mistake."""
    own = copied(run, tmp_path / "run")
    written(tmp_path, ANOTHER, rename={"guilt": "boredom"})
    config = own.config.read_text()
    own.config.write_text(config.replace("name: builtin", "name: manifest").replace("root: null", "root: /nowhere"))
    for root in (f"root={tmp_path}", f"data.root={tmp_path}"):
        said = told("benchmark", f"run={own.root}", root)
        assert "has the emotions anger, boredom," in said and "data=NAME data.root=DIR" in said
    assert "boredom" in told("evaluate", f"run={own.root}", f"data.root={tmp_path}")
    assert ser_fl.evaluate(own, ["data=manifest", f"data.root={tmp_path}"]).num_utterances == 36


def test_another_split_of_the_runs_own_corpus_is_named(run: ser_fl.Run) -> None:
    speech = ["split=speaker_independent", "split.test_speakers=[f01]", "data.num_speakers=4"]
    found = ser_fl.evaluate(run, speech, allow_seen=True)
    assert list(found.speaker_uar) == ["f01"] and found.num_utterances == 35


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("root=/a", "data=nemo", "data.root=/b"), "root is the folder of the run's own corpus, got /a beside data="),
        (("part=tests",), "unknown part 'tests', did you mean 'test'?"),
        (("data=nemmo",), "unknown data 'nemmo', did you mean 'nemo'?"),
        (("data=nemo",), "data=nemo needs data.root=DIR"),
        (("split=speaker_independent", "split.foldd=1"), "unknown setting 'split.foldd', did you mean 'split.fold'?"),
        (("dta=nemo",), "unknown setting 'dta'"),
    ],
)
def test_mistakes_about_what_is_attacked_are_told_in_one_line(
    words: tuple[str, ...], line: str, run: ser_fl.Run, told: Told
) -> None:
    assert line in told("benchmark", f"run={run.root}", *words)
    assert line in told("transfer", str(run.root), f"{run.root}/..", *words)
