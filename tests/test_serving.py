"""`ser-fl serve` without a browser: what it answers, whom it refuses, and what it leaves behind."""

from __future__ import annotations

import base64
import io
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import ser_fl
from ser_fl.cli.main import main
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.models.emotion_model import EmotionModel

pytest.importorskip("fastapi", reason="fastapi is not installed (extra serve)")
testing = pytest.importorskip("fastapi.testclient", reason="httpx is not installed (extra dev)")

from ser_fl.serving import app as serving  # noqa: E402

HERE = "127.0.0.1:8765"
TINY = ["experiment=debug", "data.num_speakers=4", "data.utterances_per_emotion=4", "federation.num_rounds=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    folder = tmp_path_factory.mktemp("run") / "debug"
    settings = ["normalisation=speaker", "normalisation.share_mean=true"]
    return ser_fl.train(ser_fl.compose([*TINY, *settings, "tracking=none", f"run_dir={folder}"]))


@pytest.fixture(scope="module")
def model(run: ser_fl.Run) -> EmotionModel:
    return run.load()


@pytest.fixture
def client(model: EmotionModel) -> Any:
    return testing.TestClient(serving.build_app(model, "debug", {HERE}), base_url=f"http://{HERE}")


def recording(seconds: float) -> bytes:
    corpus = SyntheticCorpus(num_speakers=2, utterances_per_emotion=1, sample_rate_hz=22050)
    waveform, rate = corpus.read(corpus.utterances[0])
    samples = np.resize(waveform.numpy(), round(seconds * rate))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


def said_of(content: bytes, model: EmotionModel, folder: Path) -> Mapping[str, float]:
    (folder / "clip.wav").write_bytes(content)
    return ser_fl.predict(folder / "clip.wav", model)[0].probabilities


def samples_of(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(soundfile.read(io.BytesIO(content))[0])


@pytest.mark.parametrize("seconds", [0.7, 2.6])  # shorter and longer than the second that the model hears
def test_answers_are_what_predict_says_of_the_same_bytes(
    client: Any, model: EmotionModel, tmp_path: Path, seconds: float
) -> None:
    content = recording(seconds)
    told = client.post("/predict", content=content).json()
    before = told["probabilities"]
    assert before == said_of(content, model, tmp_path) and sum(before.values()) == pytest.approx(1)
    assert (samples_of(base64.b64decode(told["wav"])) == samples_of(content)).all()
    moved = client.post("/attack?snr_db=12", content=content).json()
    sound = base64.b64decode(moved["wav"])
    assert moved["probabilities"] == said_of(sound, model, tmp_path)
    clean, noise = samples_of(content), samples_of(sound) - samples_of(content)
    snr_db = 10 * np.log10(np.sum(clean**2) / np.sum(noise**2))
    assert moved["snr_db"] == pytest.approx(snr_db, abs=0.01) and snr_db >= 11.99
    assert moved["emotion"] != told["emotion"]
    picture = moved["spectrogram"]
    assert len(base64.b64decode(picture["grey"])) == picture["rows"] * picture["columns"]


def test_other_sites_and_other_names_are_refused(client: Any) -> None:
    content = recording(0.5)
    assert client.post("/predict", content=content, headers={"Origin": f"http://{HERE}"}).status_code == 200
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8765"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ):
        assert client.post("/predict", content=content, headers=headers).status_code == status, headers
        assert client.get("/", headers=headers).status_code == (200 if "Sec-Fetch-Site" in headers else status)
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.text


def test_clips_are_bounded(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "longer than 30 s" in client.post("/predict", content=recording(31)).json()["error"]
    monkeypatch.setattr(serving, "LARGEST_BYTES", 1000)
    assert client.post("/predict", content=recording(0.5)).status_code == 413


@pytest.mark.parametrize(
    ("content", "question", "told"),
    [
        (b"", "predict", "no audio"),
        (b"nothing", "predict", "no audio"),
        (recording(0.5), "attack?snr_db=90", "0 to 60 dB"),
        (recording(0.5), "attack?snr_db=nan", "0 to 60 dB"),
        (recording(0.5)[:44], "predict", "no samples"),
    ],
)
def test_what_cannot_be_heard_is_told(client: Any, content: bytes, question: str, told: str) -> None:
    answer = client.post(f"/{question}", content=content)
    assert answer.status_code == 422 and told in answer.json()["error"]


def test_silence_is_not_attacked(client: Any) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(8000), 16000, format="WAV")
    assert client.post("/predict", content=buffer.getvalue()).json()["emotion"] == "silence"
    assert "nobody speaks" in client.post("/attack?snr_db=20", content=buffer.getvalue()).json()["error"]


def test_nothing_is_written(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            opened.append(str(arguments[0]))

    client.get("/")
    sys.addaudithook(watch)
    client.post("/predict", content=recording(0.5))
    client.post("/attack?snr_db=20", content=recording(0.5))
    assert opened == []


def test_mistakes_are_told_in_a_line(
    run: ser_fl.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*settings: str) -> str:
        assert main(["serve", str(run.root), *settings]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "0.0.0.0" in told("host=0.0.0.0") and "exposed=true" in told("host=192.0.2.1")
    assert "port" in told("port=high") and "port" in told("port=70000")
    assert "did you mean 'port'" in told("prot=1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "port=0 takes a free one" in told(f"port={taken.getsockname()[1]}")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'ser-fl[serve]'" in told()
