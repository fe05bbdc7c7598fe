"""Clean and adversarial recordings to hear: the WAV pairs of a run folder, as much of them as a page may carry."""

import io
import wave
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser_fl.errors import UserError
from ser_fl.files import Figure, record_of
from ser_fl.report import wording
from ser_fl.report.reader import RunRecords
from ser_fl.runs.folder import RunFolder

PAGE_BYTES = 2_000_000
"""Of WAV files that one page carries, before base64 makes them a third larger."""
_A_RUN = 3
"""Pairs of one run that are shown, of different attacks and budgets first."""
_WINDOW = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A pair in ``adversarial/waveforms.json``."""

    utterance_id: str
    clean: str
    """Names of files beside the list."""
    adversarial: str
    attack: str = ""
    snr_db: Figure | None = None
    emotion: str | None = None
    predicted_clean: str | None = None
    """By the model without a defence, of the WAV file; None in lists of earlier versions."""
    predicted_adversarial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What a page plays and shows."""

    title: str
    clean_words: str
    adversarial_words: str
    clean: str
    """WAV as base64."""
    adversarial: str
    spectrogram: str
    """PNG as base64."""


def audio_pairs(runs: Sequence[RunRecords]) -> tuple[list[list[Pair]], list[str]]:
    """Of each run the pairs to hear, and a line on what was kept and left out."""
    left, shown, notes = PAGE_BYTES, list[list[Pair]](), list[str]()
    for label, run in wording.labelled(runs):
        listed = _listed(run)
        first: dict[tuple[str, str], Listed] = {}
        for pair in listed:
            first.setdefault((pair.attack, pair.adversarial.partition(".")[2]), pair)
        chosen = sorted(listed, key=lambda pair: pair not in first.values())[:_A_RUN]
        pairs = list[Pair]()
        for pair in chosen:
            files = [(RunFolder(run.root).adversarial / name).read_bytes() for name in (pair.clean, pair.adversarial)]
            if (size := sum(map(len, files))) <= left:
                left -= size
                pairs.append(_pair(pair, *files))
        shown.append(pairs)
        if more := len(listed) - len(pairs):
            one = label.replace("\n", ", ")
            notes.append(f"{one}: {more} more of {len(listed)} pairs in adversarial/ would make this page too large")
    return shown, notes


def _listed(run: RunRecords) -> list[Listed]:
    folder = RunFolder(run.root)
    path = folder.adversarial / "waveforms.json"
    if not path.exists():
        return []
    content: Any = folder.read_json(path)
    try:
        pairs = [record_of(Listed, each) for each in content["pairs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} {error}: was it changed by hand?") from None
    for name in (name for pair in pairs for name in (pair.clean, pair.adversarial)):
        if Path(name).name != name:
            raise UserError(f"{path} names {name!r}, which is no file beside it: was it changed by hand?")
    there = {file.name for file in folder.adversarial.iterdir()}
    return [pair for pair in pairs if {pair.clean, pair.adversarial} <= there]


def _pair(pair: Listed, clean: bytes, adversarial: bytes) -> Pair:
    heard = "" if pair.predicted_clean is None else f", heard as {pair.predicted_clean} (true: {pair.emotion})"
    then = "" if pair.predicted_adversarial is None else f", heard as {pair.predicted_adversarial}"
    snr = wording.number(pair.snr_db, ".1f")
    return Pair(
        title=pair.utterance_id,
        clean_words=f"clean{heard}",
        adversarial_words=f"adversarial ({wording.attack_name(pair.attack)}, SNR {snr} dB){then}",
        clean=b64encode(clean).decode(),
        adversarial=b64encode(adversarial).decode(),
        spectrogram=b64encode(_spectrograms(clean, adversarial)).decode(),
    )


def _spectrograms(clean: bytes, adversarial: bytes) -> bytes:
    """Both and what was added, in common colours: 80 dB below the loudest."""
    from matplotlib.figure import Figure

    (first_T, rate_hz), (second_T, _) = _samples(clean), _samples(adversarial)
    figure = Figure(figsize=(7.2, 1.9), layout="constrained")
    peak = decibels(first_T).max()
    for ax, samples_T, title in zip(
        figure.subplots(1, 3, sharey=True),
        (first_T, second_T, second_T - first_T),
        ("clean", "adversarial", "added"),
        strict=True,
    ):
        extent = (0.0, len(samples_T) / rate_hz, 0.0, rate_hz / 2000)
        ax.imshow(decibels(samples_T), origin="lower", aspect="auto", extent=extent, vmin=peak - 80, vmax=peak)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=7)
        ax.set_xlabel("time (s)", fontsize=8)
    figure.axes[0].set_ylabel("kHz", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _samples(content: bytes) -> tuple[Any, int]:
    """Of a 16-bit mono WAV file, in [-1, 1), and its rate in Hz."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            if (file.getsampwidth(), file.getnchannels()) != (2, 1) or file.getnframes() == 0:
                raise wave.Error("it must hold one channel of 16 bits")
            return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768.0, file.getframerate()
    except (wave.Error, EOFError) as error:
        raise UserError(f"a WAV file of adversarial/ cannot be read ({error}): run `ser-fl benchmark` again") from None


def decibels(samples_T: Any) -> Any:
    """Power of a Hann window of 512 samples every 128, shape (257, frames)."""
    padded_T = np.pad(samples_T, (0, max(0, _WINDOW - len(samples_T))))
    frames = np.lib.stride_tricks.sliding_window_view(padded_T, _WINDOW)[:: _WINDOW // 4]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), axis=1)) ** 2
    return 10 * np.log10(power.T + 1e-10)
