"""The live page in a browser: what it shows is what the model says, and it is usable."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile

import ser_fl
from ser_fl.data.synthetic import SyntheticCorpus

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")
pytest.importorskip("fastapi", reason="fastapi is not installed (extra serve)")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra dev)")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TINY = ["experiment=debug", "data.num_speakers=4", "data.utterances_per_emotion=4", "federation.num_rounds=3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    folder = tmp_path_factory.mktemp("run") / "debug"
    return ser_fl.train(ser_fl.compose([*TINY, "tracking=none", f"run_dir={folder}"]))


@pytest.fixture(scope="module")
def address(model: ser_fl.Run) -> Iterator[str]:
    from ser_fl.serving.app import build_app

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(build_app(model.load(), "debug", {here}), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://{here}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    corpus = SyntheticCorpus(num_speakers=2, utterances_per_emotion=1)
    waveform, rate = corpus.read(corpus.utterances[0])
    soundfile.write(tmp_path / "clip.wav", waveform.numpy(), rate)
    return tmp_path / "clip.wav"


@pytest.fixture(params=[400, 1280])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The page, which must stay within its width and raise no error."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [error for error in errors if "status of 422" not in error] == []  # what the user is told of a clip
    page.close()


def probabilities(page: Page, place: str) -> dict[str, float]:
    rows = page.locator(f"#{place} tbody tr").all()
    return {
        row.locator("th").inner_text(): float(str(row.locator("td.figure").get_attribute("data-value"))) for row in rows
    }


def test_clip_is_heard_attacked_and_heard_again(page: Page, model: ser_fl.Run, clip: Path) -> None:
    page.set_input_files("#file", clip)
    page.wait_for_selector("#clean:not([hidden])")
    (said,) = ser_fl.predict(clip, model)
    found = probabilities(page, "clean")
    assert found == said.probabilities and sum(found.values()) == pytest.approx(1)
    assert page.locator("#clean .verdict").inner_text() == said.emotion
    page.evaluate("snr.value = 10; snr.dispatchEvent(new Event('input'))")
    assert page.locator("#snr_shown").inner_text() == "10"
    page.click("#attack")
    page.wait_for_selector("#attacked:not([hidden])")
    after = probabilities(page, "attacked")
    assert max(after, key=after.__getitem__) != said.emotion
    assert page.locator("#attacked .verdict").inner_text().startswith(f"{said.emotion} → ")
    audio = "[...document.querySelectorAll('audio')]"
    for _ in range(200):
        if ready := page.evaluate(f"{audio}.every(a => a.readyState >= 2 && a.duration > 0.1)"):
            break
        page.wait_for_timeout(50)
    assert ready
    assert page.evaluate(f"{audio}.map(a => a.error)") == [None, None]
    drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert all(canvas.evaluate(drawn) > 30 for canvas in page.locator("canvas").all())
    reached = re.search(r"SNR ([\d.]+) dB", page.locator("#attacked .soft").inner_text())
    assert reached is not None and float(reached[1]) >= 9.9
    serious = [
        each["id"] for each in axe.Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_what_is_no_audio_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not a sound")
    seen: list[int] = []
    page.on("response", lambda response: seen.append(response.status))
    page.set_input_files("#file", tmp_path / "notes.wav")
    page.locator("#status", has_text="Not done").wait_for()
    assert "no audio" in page.locator("#status").inner_text() and seen == [422]
    assert page.locator("#clean").is_hidden() and page.locator("#attack").is_disabled()
