"""The front end: features of a corpus of FLAC files from nothing, and a second start with a warm cache."""

from __future__ import annotations

import csv
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import encoder_features
from benchmarks.figures import Figure, alternately
from ser_fl.config.compose import compose
from ser_fl.config.frontend import AnyFrontend
from ser_fl.data.corpora import FileCorpus, open_corpus
from ser_fl.data.features import compute_features
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.devices import threads_limited_to

NUM_CLIPS = 2000
SHORTEST_S, LONGEST_S = 1.5, 5.0
SAMPLE_RATE_HZ = 16_000
REPEATS = 5
COLD_BAR = 3000.0
"""Times real time, of audio as recorded."""
WARM_BAR_S = 2.0
CONTENT = (
    f"{NUM_CLIPS} FLAC files, 16 kHz, 16 bits, mono, {SHORTEST_S:g} to {LONGEST_S:g} s: pieces of the built-in "
    "corpus's synthetic speech, its sentences one after the other; pages of the files warm, cache of features empty"
)


def figures() -> Iterator[Figure]:
    """Features against real time, seconds of a second start, and where the time goes."""
    frontend = compose(["frontend=seconds3"]).frontend
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_corpus(folder / "corpus")
        start = Start(folder / "corpus", folder / "cache", frontend)
        seconds = alternately({"cold": start.cold, "warm": start.warm}, REPEATS)
        yield against_real_time(seconds["cold"], written, start.processor_s())
        yield Figure(
            name=f"features, second start, {NUM_CLIPS} clips in the cache, s",
            value=statistics.median(seconds["warm"]),
            bar=WARM_BAR_S,
            detail=spread(seconds["warm"]) | {"content": "opening the corpus, digests of all files, mapping the cache"},
        )
        yield from shares(start.open(), frontend, statistics.median(seconds["cold"]))
    yield from encoder_features.figures()


@dataclass(frozen=True, slots=True)
class Start:
    """What `ser-fl train` does before its first round, up to the features."""

    root: Path
    cache: Path
    frontend: AnyFrontend

    def open(self) -> FileCorpus:
        """The corpus, through its reader: the manifest, and every file's header."""
        return open_corpus("manifest", self.root)

    def cold(self) -> float:
        """Seconds from nothing to features in memory; emptying the cache before does not count."""
        shutil.rmtree(self.cache, ignore_errors=True)
        started = time.perf_counter()
        self.warm()
        return time.perf_counter() - started

    def processor_s(self) -> float:
        """Of a cold start, of all threads: what it costs where others use the machine too."""
        before = time.process_time()
        self.cold()
        return time.process_time() - before

    def warm(self) -> None:
        """Features from whatever the cache holds."""
        compute_features(self.open(), self.frontend, cache_dir=self.cache)


@dataclass(frozen=True, slots=True)
class Written:
    """The size of a corpus."""

    audio_s: float
    megabytes: float


def write_corpus(root: Path) -> Written:
    """Pieces of synthetic speech as FLAC files, and their manifest; the same whenever it is called."""
    import soundfile

    speech_T = synthetic_speech()
    draw = np.random.default_rng(0)
    root.mkdir()
    num_samples = 0
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "emotion", "speaker"))
        for number in range(NUM_CLIPS):
            size = int(draw.uniform(SHORTEST_S, LONGEST_S) * SAMPLE_RATE_HZ)
            first = int(draw.integers(0, len(speech_T) - size))
            name = f"{number:04d}.flac"
            soundfile.write(root / name, speech_T[first : first + size], SAMPLE_RATE_HZ, subtype="PCM_16")
            table.writerow((name, ("anger", "sadness")[number % 2], f"speaker{number % 8}"))
            num_samples += size
    size_bytes = sum(path.stat().st_size for path in root.glob("*.flac"))
    return Written(audio_s=num_samples / SAMPLE_RATE_HZ, megabytes=size_bytes / 1e6)


def synthetic_speech() -> NDArray[np.float32]:
    """Every seventh utterance of four speakers, all emotions, end to end; shape (T,)."""
    corpus = SyntheticCorpus(num_speakers=4, utterances_per_emotion=15, sample_rate_hz=SAMPLE_RATE_HZ)
    return torch.cat([corpus.read(utterance)[0] for utterance in corpus.utterances[::7]]).numpy()


def against_real_time(seconds: list[float], written: Written, processor_s: float) -> Figure:
    """Seconds of audio, as recorded, in a second."""
    speeds = sorted(written.audio_s / taken for taken in seconds)
    return Figure(
        name="features, cold, 16 kHz FLAC, against real time",
        value=statistics.median(speeds),
        bar=COLD_BAR,
        reach="at least",
        detail={
            "lowest": speeds[0],
            "highest": speeds[-1],
            "median_s": statistics.median(seconds),
            "processor_s": processor_s,
            "repeats": len(seconds),
            "audio_s": written.audio_s,
            "megabytes": written.megabytes,
            "content": CONTENT,
        },
    )


def shares(corpus: FileCorpus, config: AnyFrontend, cold_s: float) -> Iterator[Figure]:
    """Each part alone, on one thread: its share of their sum. The transform takes a hundred clips twenty times."""
    frontend = build_frontend(config)
    waveforms = [corpus.read(utterance) for utterance in corpus.utterances[:100]] * (NUM_CLIPS // 100)

    def digest() -> None:
        for utterance in corpus.utterances:
            corpus.content_digest(utterance)

    def decode() -> None:
        for utterance in corpus.utterances:
            corpus.read(utterance)

    def transform() -> None:
        with torch.inference_mode():
            for waveform in waveforms:
                frontend(frontend.clip(*waveform)[None])

    parts: dict[str, Callable[[], object]] = {
        "open": lambda: open_corpus("manifest", corpus.root),
        "digest": digest,
        "decode": decode,
        "transform": transform,
    }
    with threads_limited_to(1):
        seconds = {name: statistics.median(taken) for name, taken in alternately(parts, 3).items()}
    total = sum(seconds.values())
    for name, taken in seconds.items():
        yield Figure(
            name=f"features, share of {name}",
            value=taken / total,
            detail={"one_thread_s": taken, "all_parts_s": total, "cold_s": cold_s},
        )


def spread(seconds: list[float]) -> dict[str, float]:
    """Lowest, highest, how many."""
    return {"lowest": min(seconds), "highest": max(seconds), "repeats": len(seconds)}
