"""Predicting: what may be given and what is said of it, from Python and on the command line."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.special import softmax

import ser_fl
from ser_fl import prediction
from ser_fl.cli.main import main
from ser_fl.config.compose import compose
from ser_fl.data.frontend import Standardisation
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel, load_model, save_model
from ser_fl.models.networks import build_network
from ser_fl.prediction import SILENCE, SYNTHETIC_NOTE, Failed, Prediction, level_dbfs, predict, predict_each
from ser_fl.runs.folder import RunFolder


def write_run(root: Path, *, synthetic: bool = False) -> Path:
    """A run folder with an untrained model."""
    config = compose(["experiment=debug"])
    bins = config.frontend.num_mels
    sides = (torch.zeros(bins), torch.ones(bins), torch.full((bins,), -9.0), torch.full((bins,), 9.0))
    bundle = EmotionModel(
        build_network(config.model, 2, seed=0),
        Standardisation(*sides),
        classes=("anger", "fear"),
        model=config.model,
        frontend=config.frontend,
        synthetic=synthetic,
    )
    root.mkdir(parents=True)
    save_model(root, bundle.eval())
    return root


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "ser_fl.prediction"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 4000), 16000)
    return path


def test_one_file_or_several_and_any_name_of_the_run(tmp_path: Path, clip: Path) -> None:
    run = write_run(tmp_path / "run")
    (expected,) = predict([clip], run)
    assert expected.path == clip
    assert sum(expected.probabilities.values()) == pytest.approx(1)
    assert expected.probabilities[expected.emotion] == max(expected.probabilities.values())
    for files in (clip, str(clip), [str(clip)], (clip,)):
        for folder in (run, str(run), RunFolder(run)):
            assert predict(files, folder) == [expected]
    assert predict([clip, clip], run) == [expected, expected]


def test_model_is_loaded_by_any_name_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    weights = [load_model(folder).network.state_dict() for folder in (run, str(run), RunFolder(run))]
    assert all(torch.equal(weights[0][name], state[name]) for state in weights[1:] for name in weights[0])


@pytest.mark.parametrize("synthetic", [True, False])
def test_model_of_synthetic_speech_says_so(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture, synthetic: bool
) -> None:
    run = write_run(tmp_path / "run", synthetic=synthetic)
    assert json.loads(RunFolder(run).model.read_text(encoding="utf-8"))["synthetic"] is synthetic
    with caplog.at_level(logging.WARNING):
        (prediction,) = predict(clip, run)
    assert prediction.synthetic is load_model(run).synthetic is synthetic
    assert notes(caplog) == [SYNTHETIC_NOTE] * synthetic
    assert "SYNTHETIC" in SYNTHETIC_NOTE


RATE_HZ = 16_000
CLIP_S = 1.0
"""Of `write_run`."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run")


def voice(seconds: float, seed: int = 0, dbfs: float = -10.0) -> NDArray[np.float64]:
    """Noise whose colour changes with the seed, of an RMS level."""
    white = np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ))
    coloured = np.convolve(white, np.ones(1 + 3 * seed), mode="same")
    return coloured / np.sqrt(np.mean(coloured**2)) * 10 ** (dbfs / 20)


def write(path: Path, samples: NDArray[np.float64], rate: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def paths(found: list[Prediction]) -> list[Path]:
    return [one.path for one in found]


def test_what_is_said_does_not_hang_on_the_company(run: Path, tmp_path: Path) -> None:
    """Bit for bit: alone, among others, in another order, and in the company of long, silent and broken ones."""
    files = [write(tmp_path / f"{seed}.wav", voice(0.3 + 0.37 * seed, seed)) for seed in range(11)]
    silent, broken = write(tmp_path / "silent.wav", np.zeros(8000)), tmp_path / "broken.wav"
    broken.write_text("no audio")
    alone = {file: predict(file, run)[0] for file in files}
    assert len({one.probabilities["fear"] for one in alone.values()}) == len(files), "they differ"
    mixed = [*files[7:], silent, *files[:3], broken, files[5], *files[:7]]
    for one in predict_each(mixed, load_model(run)):
        assert isinstance(one, Failed) or one == alone.get(one.path, one)
    assert predict(files[::-1], run) == [alone[file] for file in files[::-1]]


def test_files_are_read_as_they_are_asked_for(run: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a few are in memory."""
    read = []
    monkeypatch.setattr(prediction, "read_audio", lambda *given: read.append(given) or ser_read(*given))
    stream = predict_each([clip] * 10_000, run)
    for asked in (1, 9, 17):
        while asked > len(read):
            next(stream)
        assert len(read) <= asked + 8


ser_read = prediction.read_audio


def test_folders_patterns_and_tables_name_recordings_in_their_order(run: Path, tmp_path: Path) -> None:
    speech = tmp_path / "speech"
    a, b, c = (write(speech / name, voice(0.5)) for name in ("b.wav", "a/deep/x.flac", "a/y.ogg"))
    odd = speech / "z.dat"
    odd.write_bytes(a.read_bytes())  # audio by its content
    (speech / "notes.txt").write_text("no audio")
    (speech / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (speech / "._b.wav").write_bytes(b"\0\5\x16\7")
    (speech / ".hidden").mkdir()
    write(speech / ".hidden/h.wav", voice(0.5))
    table = speech / "listed.csv"
    table.write_text("speaker;path\nann;a/y.ogg\nbob;b.wav\nann;a/y.ogg\n")
    assert paths(predict(speech, run)) == [a, odd, c, b]
    assert paths(predict(f"{speech}/*.wav", run)) == [a]
    assert paths(predict(f"{speech}/**", run)) == [a, odd, c, b] or {*paths(predict(f"{speech}/**", run))} == {
        a,
        odd,
        c,
        b,
    }
    assert len(predict(f"{speech}/**", run)) == 4, "a folder that a pattern names is not heard twice"
    assert paths(predict(f"{speech}/**/*.[fo]*", run)) == [b, c]
    assert paths(predict(table, run)) == [c, a, c]
    assert paths(predict([table, a, a, speech / "a"], run)) == [c, a, c, a, a, c, b]
    literal = write(tmp_path / "take[1].wav", voice(0.5))
    assert paths(predict(literal, run)) == [literal], "a name that is there is no pattern"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("empty", "no audio in ROOT/empty"),
        ("empty/*.wav", "no audio in ROOT/empty/*.wav"),
        ("none.wav", "cannot read ROOT/none.wav: no such file"),
        ("columns.csv", "ROOT/columns.csv lacks the column 'path': it has file"),
        ("rows.csv", "no audio in ROOT/rows.csv"),
        ("gone.csv", "cannot read ROOT/away.wav: no such file"),
        ("bad", "cannot read ROOT/bad/pointer.wav: it is a Git LFS pointer"),
        ("n" * 300, "no such file"),
    ],
)
def test_what_names_no_recording_is_told_in_one_line(
    given: str, told: str, run: Path, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, text in (("columns", "file\na.wav\n"), ("rows", "path\n"), ("gone", "path\naway.wav\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    line = told.replace("ROOT", str(tmp_path))
    with pytest.raises(UserError) as caught:
        predict(tmp_path / given, run)
    assert line in str(caught.value)
    assert main(["predict", str(tmp_path / given), "--run", str(run)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert main(["predict", str(tmp_path / given), str(clip), "--run", str(run), "--format", "jsonl"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["path"] == str(clip), "it goes on"
    assert [line in told for told in err.splitlines()] == [True, False] and "1 of 2" in err.splitlines()[1]


def test_a_long_recording_is_heard_to_its_end(run: Path, tmp_path: Path) -> None:
    """In segments as if each were a file: three seconds and a half, of which the last one begins at 2.5 s."""
    whole = np.concatenate([voice(CLIP_S, seed) for seed in range(3)] + [voice(0.5, 3)])
    (found,) = predict(write(tmp_path / "long.wav", whole), run)
    cuts = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (2.5, 3.5)]
    pieces = [whole[round(start * RATE_HZ) : round(end * RATE_HZ)] for start, end in cuts]
    expected = predict([write(tmp_path / f"{k}.wav", piece) for k, piece in enumerate(pieces)], run)
    assert [(part.start_s, part.end_s) for part in found.segments] == cuts
    assert [part.probabilities for part in found.segments] == [one.probabilities for one in expected]
    for emotion in ("anger", "fear"):
        assert found.probabilities[emotion] == pytest.approx(np.mean([one.probabilities[emotion] for one in expected]))
    assert found.probabilities != expected[0].probabilities, "it is not cut"


@pytest.mark.parametrize("temperature", [0.25, 2.5])
def test_probabilities_are_calibrated_and_no_emotion_changes(run: Path, tmp_path: Path, temperature: float) -> None:
    """A segment's are softmax(logits / T); a recording's are the mean's to the power of 1 / T, in proportion."""
    files = [write(tmp_path / f"{seed}.wav", voice(CLIP_S, seed)) for seed in range(3)]
    files.append(write(tmp_path / "long.wav", np.concatenate([voice(CLIP_S, seed) for seed in range(3)])))
    model = load_model(run)
    plain, clips = predict(files, model), [prediction.read_audio(file, "first")[0] for file in files[:3]]
    with torch.no_grad():
        logits_NC = np.concatenate([model.from_waveform(clip_T[None]).double().numpy() for clip_T in clips])
    model.temperature = temperature
    found = predict(files, model)
    expected_NC = softmax(logits_NC / temperature, axis=1)
    assert [list(one.probabilities.values()) for one in found[:3]] == [
        pytest.approx(expected_C, abs=1e-5) for expected_C in expected_NC
    ]
    assert [list(part.probabilities.values()) for part in found[3].segments] == [
        pytest.approx(expected_C, abs=1e-5) for expected_C in expected_NC
    ]
    powers = np.mean(softmax(logits_NC, axis=1), axis=0) ** (1 / temperature)
    assert list(found[3].probabilities.values()) == pytest.approx(powers / powers.sum(), abs=1e-5)
    assert [one.emotion for one in found] == [one.emotion for one in plain]
    assert found[0].probabilities != plain[0].probabilities


def test_segments_may_be_shorter_and_are_repeated_as_short_files_are(run: Path, tmp_path: Path) -> None:
    whole = voice(0.9)
    (found,) = predict(write(tmp_path / "a.wav", whole), run, segment_s=0.4)
    assert [(part.start_s, part.end_s) for part in found.segments] == [(0.0, 0.4), (0.4, 0.8), (0.5, 0.9)]
    (last,) = predict(write(tmp_path / "b.wav", whole[8000:]), run)
    assert found.segments[-1].probabilities == last.probabilities
    (resampled,) = predict(write(tmp_path / "c.wav", whole, 8000), run, segment_s=0.4)  # lasts 1.8 s then
    assert [part.start_s for part in resampled.segments] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.4])
    (short,) = predict(write(tmp_path / "d.wav", voice(0.01)), run, segment_s=0.4)
    assert len(short.segments) == 1 and short.segments[0].end_s == pytest.approx(0.01)


def test_level_of_the_loudest_tenth_of_a_second() -> None:
    """A sine of amplitude 0.1 is at -20 - 3 dBFS; a tenth of a second of it counts, and an offset does not."""
    sine_T = 0.1 * torch.sin(2 * torch.pi * 100 * torch.arange(RATE_HZ) / RATE_HZ)
    assert level_dbfs(sine_T, RATE_HZ) == pytest.approx(-23.01, abs=0.01)
    quiet_T = torch.cat([sine_T[:1600], torch.zeros(RATE_HZ)])
    assert level_dbfs(quiet_T + 0.5, RATE_HZ) == pytest.approx(-23.01, abs=0.01)
    assert level_dbfs(torch.full((RATE_HZ,), 0.5), RATE_HZ) == -np.inf
    assert level_dbfs(sine_T[:160], RATE_HZ) == pytest.approx(-23.01, abs=0.01)


def test_silence_is_no_emotion(run: Path, tmp_path: Path) -> None:
    loud, quiet = voice(CLIP_S, dbfs=-58), voice(CLIP_S, dbfs=-62)
    silent = {"zero": np.zeros(RATE_HZ), "offset": np.full(RATE_HZ, 0.3), "one": np.array([0.5]), "quiet": quiet}
    for name, samples in silent.items():
        (found,) = predict(write(tmp_path / f"{name}.wav", samples), run)
        assert (found.emotion, found.probabilities, len(found.segments)) == (SILENCE, {}, 1)
    assert predict(write(tmp_path / "loud.wav", loud), run)[0].emotion in ("anger", "fear")
    assert predict(tmp_path / "quiet.wav", run, silence_dbfs=-64)[0].emotion in ("anger", "fear")
    assert predict(tmp_path / "loud.wav", run, silence_dbfs=-56)[0].emotion == SILENCE
    assert predict(tmp_path / "zero.wav", run, silence_dbfs=-np.inf)[0].emotion == SILENCE
    (found,) = predict(write(tmp_path / "pause.wav", np.concatenate([quiet, loud, quiet])), run)
    (spoken,) = predict(tmp_path / "loud.wav", run)
    assert [part.emotion for part in found.segments] == [SILENCE, spoken.emotion, SILENCE]
    assert found.probabilities == spoken.probabilities, "pauses do not count"


def test_outputs_that_are_not_finite_are_no_emotion(
    run: Path, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of that recording alone."""
    model = load_model(run)
    odd = write(tmp_path / "odd.wav", voice(CLIP_S, 2))
    (shares,) = predict(odd, model)

    class Odd(torch.nn.Module):
        def forward(self, features_BFL: torch.Tensor) -> torch.Tensor:
            logits_BC: torch.Tensor = network(features_BFL)
            is_odd_B = (logits_BC.softmax(1)[:, 0] - shares.probabilities["anger"]).abs() < 1e-6
            return torch.where(is_odd_B[:, None], torch.nan, logits_BC)

    network, model.network = model.network, Odd()
    first, second, third = predict_each([clip, odd, clip], model)
    assert isinstance(second, Failed) and "gives no finite output for" in second.reason and str(odd) in second.reason
    assert isinstance(first, Prediction) and first == third


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"segment_s": 0.05}, "from 0.1 s to the model's 1 s, got 0.05"),
        ({"segment_s": 1.5}, "from 0.1 s to the model's 1 s, got 1.5"),
        ({"segment_s": float("nan")}, "got nan"),
        ({"silence_dbfs": 3.0}, "at most 0 dBFS, got 3"),
        ({"silence_dbfs": float("nan")}, "at most 0 dBFS, got nan"),
        ({"channel": "left"}, "unknown data.channel 'left'"),
    ],
)
def test_settings_are_checked_before_anything_is_read(settings: dict[str, float], told: str, run: Path) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        predict_each(["nowhere.wav"], run, **settings)  # type: ignore[arg-type]


def test_a_run_of_a_network_of_ones_own(tmp_path: Path, clip: Path) -> None:
    class Pooled(torch.nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.head = torch.nn.Linear(64, num_classes)

        def forward(self, features_BFL: torch.Tensor) -> torch.Tensor:
            pooled_BC: torch.Tensor = self.head(features_BFL.mean(dim=2))
            return pooled_BC

    settings = ["experiment=debug", "federation.num_rounds=1", "tracking=none", f"run_dir={tmp_path}/run"]
    own = ser_fl.train(compose([*settings, "frontend=seconds3"]), network=Pooled)
    assert ser_fl.predict(clip, own) == list(ser_fl.predict_each(clip, own.load()))


ODD = (b"a\nb.wav", b"caf\xe9.wav", b'a,"b".wav', "ä ü.wav".encode(), b"\t.wav")
"""Two lines, no UTF-8, a comma and quotation marks, no ASCII, a tab."""


@pytest.fixture
def odd_names(tmp_path: Path, clip: Path) -> list[Path]:
    """Names that break lines, columns or encodings."""
    (tmp_path / "odd").mkdir()
    found = [tmp_path / "odd" / os.fsdecode(name) for name in ODD]
    for file in found:
        file.write_bytes(clip.read_bytes())
    return found


Printed = Callable[..., bytes]


@pytest.fixture(params=["ascii", "utf-8"])
def printed(request: pytest.FixtureRequest, run: Path, monkeypatch: pytest.MonkeyPatch) -> Printed:
    """What the command prints of the odd names, on an output of some encoding."""

    def of(names: list[Path], form: str) -> bytes:
        raw = io.BytesIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(raw, request.param, "replace"))
            assert main(["predict", *map(str, names), "--run", str(run), "--format", form]) == 0
            return raw.getvalue()

    return of


def test_every_name_comes_back_from_json_lines(run: Path, odd_names: list[Path], printed: Printed) -> None:
    lines = [json.loads(line) for line in printed(odd_names, "jsonl").decode("ascii").splitlines()]
    assert [os.fsencode(line["path"]) for line in lines] == [os.fsencode(path) for path in odd_names]
    (expected,) = predict(odd_names[0], run)
    assert {line["emotion"] for line in lines} == {expected.emotion}
    assert all(line["probabilities"] == expected.probabilities for line in lines)
    assert lines[0]["of"] == "recording" and (lines[0]["start_s"], lines[0]["end_s"]) == (0.0, 0.25)


def test_every_name_comes_back_from_csv(run: Path, odd_names: list[Path], printed: Printed) -> None:
    text = printed(odd_names, "csv").decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [os.fsencode(row["path"]) for row in rows] == [os.fsencode(path) for path in odd_names]
    (expected,) = predict(odd_names[0], run)
    assert all({name: float(row[name]) for name in ("anger", "fear")} == expected.probabilities for row in rows)


def test_a_terminal_gets_a_line_a_recording_whatever_its_name(odd_names: list[Path], printed: Printed) -> None:
    lines = printed(odd_names, "table").decode().splitlines()
    assert len(lines) == len(odd_names) and all("anger 0." in line for line in lines)
    assert "a\\nb.wav  " in lines[0] and "caf\\udce9.wav  " in lines[1]


def test_formats_say_the_same_of_segments_silence_and_the_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.wav", np.concatenate([voice(0.5), np.zeros(8000)]))
    said = {}
    for form in ("table", "csv", "jsonl"):
        assert main(["predict", str(file), "--run", str(run), "--segment", "0.5", "--format", form]) == 0
        said[form] = capsys.readouterr().out.splitlines()
    (found,) = predict(file, run, segment_s=0.5)
    first, silent, whole = map(json.loads, said["jsonl"])
    assert [part["of"] for part in (first, silent, whole)] == ["segment", "segment", "recording"]
    assert first["probabilities"] == whole["probabilities"] == found.probabilities
    assert (silent["emotion"], silent["probabilities"], silent["start_s"], silent["end_s"]) == (SILENCE, {}, 0.5, 1.0)
    rows = list(csv.DictReader(said["csv"]))
    assert list(rows[0]) == ["path", "of", "start_s", "end_s", "emotion", "anger", "fear"]
    assert [row["emotion"] for row in rows] == [part["emotion"] for part in (first, silent, whole)]
    assert (rows[1]["anger"], rows[1]["fear"]) == ("", "") and float(rows[2]["end_s"]) == 1.0
    assert said["table"][1] == f"{file}  0.50-1.00 s  silence"
    assert said["table"][2].startswith(f"{file}  {found.emotion} 0.")


def test_bad_recordings_are_told_where_they_stand_and_counted(run: Path, tmp_path: Path, clip: Path) -> None:
    """Standard output holds nothing but results."""
    bad = tmp_path / "bad.wav"
    bad.write_bytes(clip.read_bytes()[:20])
    words = map(str, (clip, bad, clip, tmp_path / "none.wav", "--format", "jsonl", "--run", run))
    done = subprocess.run([sys.executable, "-m", "ser_fl", "predict", *words], capture_output=True)
    assert done.returncode == 2
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [str(clip)] * 2
    first, second, last = done.stderr.decode().splitlines()
    assert str(bad) in first and "none.wav: no such file" in second and "2 of 4 could not be classified" in last


_CLOSED = """
import sys
from ser_fl import prediction
from ser_fl.cli.main import program
read = []
ours = prediction.read_audio
prediction.read_audio = lambda *given: read.append(1) or ours(*given)
code = program()
print(len(read), file=sys.stderr)
sys.exit(code)
"""


def test_nobody_is_classified_for_a_reader_who_went_away(run: Path, clip: Path) -> None:
    words = [sys.executable, "-c", _CLOSED, "predict", *[str(clip)] * 500, "--run", str(run)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) < 50
