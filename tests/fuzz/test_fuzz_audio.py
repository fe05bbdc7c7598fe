"""Audio files with bytes changed, sizes that lie, ends cut off: a sound waveform, or one line that names the file."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from harness import cases_of, check_line
from hypothesis import strategies as st

FORMATS = {
    "pcm16": ("WAV", "PCM_16", 1),
    "pcm24": ("WAV", "PCM_24", 2),
    "u8": ("WAV", "PCM_U8", 1),
    "float": ("WAV", "FLOAT", 1),
    "double": ("WAV", "DOUBLE", 2),
    "ulaw": ("WAV", "ULAW", 1),
    "ima": ("WAV", "IMA_ADPCM", 1),
    "ms": ("WAV", "MS_ADPCM", 1),
    "gsm": ("WAV", "GSM610", 1),
    "wavex": ("WAVEX", "PCM_16", 2),
    "rf64": ("RF64", "PCM_16", 1),
    "w64": ("W64", "PCM_16", 1),
    "aiff": ("AIFF", "PCM_16", 1),
    "flac16": ("FLAC", "PCM_16", 1),
    "flac24": ("FLAC", "PCM_24", 2),
    "vorbis": ("OGG", "VORBIS", 1),
    "opus": ("OGG", "OPUS", 1),
    "mp3": ("MP3", "MPEG_LAYER_III", 1),
}
HEADER = 96
"""Most of the bytes that matter are among the first ones."""
WORDS = (0, 1, 2, 3, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 44101, 192001, 999_999_937)


@dataclass(frozen=True)
class Case:
    """A file: how it is called, what is in it, and which channel is asked for."""

    suffix: str
    channel: str
    content: bytes = field(repr=False)


def whole_file(name: str) -> bytes:
    kind, subtype, channels = FORMATS[name]
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1500, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=kind, subtype=subtype)
    return buffer.getvalue()


WHOLE = {name: whole_file(name) for name in FORMATS}


def places(draw: st.DrawFn, size: int) -> int:
    return draw(st.one_of(st.integers(0, min(HEADER, size) - 1), st.integers(0, size - 1))) if size else 0


@st.composite
def files(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(sorted(WHOLE)))
    content = bytearray(WHOLE[name])
    for _ in range(draw(st.integers(1, 4))):
        place = places(draw, len(content))
        match draw(st.sampled_from(["cut", "bit", "word", "byte", "drop", "insert", "double", "other", "field"])):
            case "cut":
                del content[place:]
            case "bit" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "byte" if content:
                content[place] = draw(st.integers(0, 255))
            case "word":
                order = draw(st.sampled_from(["little", "big"]))
                width = draw(st.sampled_from([2, 4, 8]))
                word = draw(st.sampled_from(WORDS)) % (1 << 8 * width)
                content[place : place + width] = word.to_bytes(width, order)
            case "field":  # of a plain WAV header: size, format, channels, rate, bytes a second, frame, bits, data
                field, width = draw(st.sampled_from([(4, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (40, 4)]))
                word = draw(st.one_of(st.sampled_from(WORDS), st.integers(0, 400_000)))
                content[field : field + width] = (word % (1 << 8 * width)).to_bytes(width, "little")
            case "drop":
                del content[place : place + draw(st.integers(1, 64))]
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=32))
            case "double":
                content[place:place] = content[place : place + draw(st.integers(1, 200))]
            case "other":
                other = WHOLE[draw(st.sampled_from(sorted(WHOLE)))]
                content[place:] = other[place:]
    suffix = draw(st.sampled_from([".wav", ".flac", ".ogg", ".mp3", ".aiff", "", ".txt", ".raw", ".WAV"]))
    return Case(suffix, draw(st.sampled_from(["first", "first", "second", "mean"])), bytes(content))


class Reader:
    """A process of its own, with little memory."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("audio_reader.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
        )
        assert self._answer() == {"ready": True}

    def read(self, path: Path, channel: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"path": str(path), "channel": channel}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the reader died ({self._process.wait()}): {self._errors.read_text()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    opened = Reader(tmp_path / "errors.txt")
    yield opened
    opened.close()


@cases_of("audio", quick=40)
def test_audio(explore: Callable[..., None], num_cases: int, reader: Reader, tmp_path: Path) -> None:
    def read(case: Case) -> None:
        path = tmp_path / f"made up{case.suffix}"
        path.write_bytes(case.content)
        outcome = reader.read(path, case.channel)
        assert path.read_bytes() == case.content
        path.unlink()
        assert "traceback" not in outcome, outcome["traceback"]
        assert outcome["digest"] == 16 and outcome["missing"] >= 0
        for reason in (outcome["header"], outcome["audio"]):
            if reason is not None:
                check_line(reason)
        if "refused" in outcome:
            check_line(outcome["refused"])
            assert str(path) in outcome["refused"]
            assert outcome["audio"] is not None
        else:
            assert outcome["audio"] is None and outcome["header"] is None
            assert len(outcome["shape"]) == 1 and outcome["shape"][0] > 0 and outcome["sound"]
            if "odd rate" in outcome:
                check_line(outcome["odd rate"])
            else:
                assert outcome["clip"] == [16000]

    explore(files(), read)


def test_whole_files_are_read(reader: Reader, tmp_path: Path) -> None:
    for name, content in WHOLE.items():
        path = tmp_path / name
        path.write_bytes(content)
        outcome = reader.read(path, "first")
        assert outcome.get("sound"), (name, outcome)
