"""Emotions of recordings, by a trained run.

Legend: B batch, T samples, C classes.
"""

from __future__ import annotations

import glob
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ser_fl.data.audio import check_channel, probe_header, read_audio
from ser_fl.data.corpora.folder import expand_home, list_files, read_table
from ser_fl.data.frontend import repeat_to_length, resample
from ser_fl.devices import exact_arithmetic, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.runs.folder import RunFolder

SYNTHETIC_NOTE = (
    "note: this model was trained on SYNTHETIC speech (the built-in corpus); it knows nothing of real speech"
)
SILENCE = "silence"
"""In the place of an emotion, where nobody speaks."""
SILENCE_DBFS = -60.0
"""Level of the loudest tenth of a second below which nobody speaks. Acted speech stays above -51 (nEMO, RAVDESS)."""
SHORTEST_S = 0.1
"""Of segments, and of what a level is measured on."""
CLAIMS_AUDIO = (
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
    ".m4a", ".aac", ".wma", ".amr", ".webm",
)  # fmt: skip
"""What claims to be audio: in a folder it is read, or told of where it cannot be. Else the content decides."""
_AT_ONCE = 8
"""Segments of a batch. Each batch has so many, some of them empty: what a model says does not hang on its company."""
_LOG = logging.getLogger(__name__)

Recordings = Path | str | Sequence[Path | str]
"""Files, folders, patterns such as ``speech/**/*.wav``, and tables (.csv, .tsv) with a column ``path``."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What a model says of a part of a recording, calibrated by the run's temperature."""

    start_s: float
    end_s: float
    emotion: str
    """`SILENCE` where nobody speaks."""
    probabilities: dict[str, float]
    """By emotion; empty for silence."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one recording: the mean over its segments with speech, then calibrated by the run's
    temperature. In this order, which suits means best (Rahaman and Thiery, arXiv 2007.08792), no emotion changes by it.
    """

    path: Path
    emotion: str
    """`SILENCE` where nobody speaks."""
    probabilities: dict[str, float]
    """By emotion; empty for silence."""
    synthetic: bool = False
    """Whether the model was trained on the built-in corpus, and so knows nothing of real speech."""
    segments: tuple[Segment, ...] = ()
    """In their order: one, unless the recording is longer than what the model hears at once."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Something that nothing can be said of."""

    path: Path
    """A recording, or what should have held some."""
    reason: str
    """In one line, with the name."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A recording at the front end's rate, in segments."""

    path: Path
    rate_hz: int
    starts: list[int]
    segments: list[Tensor]
    """Views of one waveform, of shape (T,)."""
    speaks: list[bool]
    """Whether somebody does, in each."""


def predict(
    files: Recordings,
    run: Path | str | RunFolder | EmotionModel,
    *,
    channel: str = "first",
    segment_s: float | None = None,
    silence_dbfs: float = SILENCE_DBFS,
    enrol: Recordings = (),
) -> list[Prediction]:
    """Classify recordings: `predict_each`, all at once.

    Raises:
        UserError: a recording cannot be used, there is none in a folder or for a pattern, the model gives no finite
            output for one, or what `predict_each` raises.
    """
    found = []
    settings: Any = {"channel": channel, "segment_s": segment_s, "silence_dbfs": silence_dbfs, "enrol": enrol}
    for one in predict_each(files, run, **settings):
        if isinstance(one, Failed):
            raise UserError(one.reason)
        found.append(one)
    return found


def predict_each(
    files: Recordings,
    run: Path | str | RunFolder | EmotionModel,
    *,
    channel: str = "first",
    segment_s: float | None = None,
    silence_dbfs: float = SILENCE_DBFS,
    enrol: Recordings = (),
) -> Iterator[Prediction | Failed]:
    """Classify recordings with the selected model of a run, one after the other, in their order: whatever their number,
    a few are in memory at a time. A model of the built-in corpus says so, in a warning of this module's logger.

    A recording that is longer than a segment is heard in segments, the last of which ends with it and may overlap the
    one before; shorter ones are repeated, as in training.

    Args:
        files: see `Recordings`; of folders and patterns all audio, without hidden files.
        run: the run folder, what `ser_fl.train` or what `ser_fl.load` gave.
        channel: "first", "second" or "mean", see `ser_fl.data.audio.CHANNELS`.
        segment_s: seconds of a segment, up to what the model hears at once; None is that.
        silence_dbfs: segments whose loudest tenth of a second is below this level in dBFS (RMS, full scale 0) are
            `SILENCE`; -inf only where nothing sounds at all.
        enrol: recordings of the one speaker whom all files are of, for a model that scales each speaker by own clips
            (`normalisation=speaker`); they may be the files themselves. Their emotions are nobody's concern; their
            silence is left out.

    Returns:
        A prediction for each recording, or why there is none.

    Raises:
        UserError: the run holds no model, a setting is out of range, or nobody is enrolled where the model asks for it:
            all before the first recording.
    """
    model = run if isinstance(run, EmotionModel) else load_model(run, network=getattr(run, "network", None))
    check_channel(channel)
    longest_s = model.frontend.num_samples / model.frontend.sample_rate_hz
    if segment_s is not None and not SHORTEST_S <= segment_s <= longest_s:
        raise UserError(f"a segment must be from {SHORTEST_S:g} s to the model's {longest_s:g} s, got {segment_s:g}")
    if not silence_dbfs <= 0:
        raise UserError(f"the level of silence must be at most 0 dBFS, got {silence_dbfs:g}")
    if model.synthetic:
        _LOG.warning(SYNTHETIC_NOTE)

    heard = partial(_heard_each, model=model, channel=channel, silence_dbfs=silence_dbfs)
    speaker = model
    if enrol:
        speaker = _enrolled_by(heard(enrol, segment_s=segment_s or longest_s), model)
    elif model.by_speaker and model.scale is None:
        way_out = "say which, with enrol=FILES (--enrol FILE) of the speaker; they may be those to be classified"
        if model.fallback is None:
            raise UserError(f"the model scales each speaker by own clips: {way_out}")
        _LOG.warning("nobody is enrolled: all are scaled by the mean of training speakers; better, %s", way_out)
    return _in_batches(heard(files, segment_s=segment_s or longest_s), speaker)


def predict_waveform(waveform_T: Tensor, sample_rate_hz: int, model: EmotionModel) -> Prediction:
    """`predict` of a recording in memory, of shape (T,) in [-1, 1]."""
    longest_s = model.frontend.num_samples / model.frontend.sample_rate_hz
    heard = _in_segments(Path("recording"), waveform_T, sample_rate_hz, model, longest_s, SILENCE_DBFS)
    (found,) = _said([heard], model)
    if isinstance(found, Failed):
        raise UserError(found.reason)
    return found


def enrol_speaker(model: EmotionModel, enrol: Recordings) -> EmotionModel:
    """The model for the speaker of some recordings, as `predict` enrols; a `UserError` where one cannot be used."""
    segment_s = model.frontend.num_samples / model.frontend.sample_rate_hz
    return _enrolled_by(_heard_each(enrol, model, "first", silence_dbfs=SILENCE_DBFS, segment_s=segment_s), model)


def _heard_each(
    files: Recordings, model: EmotionModel, channel: str, silence_dbfs: float, segment_s: float
) -> Iterator[_Heard | Failed]:
    for path in recordings([files] if isinstance(files, (str, Path)) else files):
        if isinstance(path, Failed):
            yield path
            continue
        try:
            yield _in_segments(path, *read_audio(path, channel), model, segment_s, silence_dbfs)
        except UserError as error:
            yield Failed(path, str(error))


def _enrolled_by(heard: Iterable[_Heard | Failed], model: EmotionModel) -> EmotionModel:
    clips = []
    for one in heard:
        if isinstance(one, Failed):
            raise UserError(one.reason)
        spoken = zip(one.segments, one.speaks, strict=True)
        clips += [repeat_to_length(each, model.frontend.num_samples) for each, speaks in spoken if speaks]
    if not clips:
        raise UserError("nobody speaks in the recordings that enrol the speaker: give others")
    with exact_arithmetic(), threads_limited_to(1):
        return model.enrolled(torch.stack(clips))


def recordings(given: Iterable[Path | str]) -> Iterator[Path | Failed]:
    """The recordings that files, folders, patterns and tables name, in their order; what names none is told."""
    for one in given:
        path = Path(one) if os.path.lexists(one) else expand_home(one)
        among: Iterable[Path] = [path]
        if os.path.isdir(path):  # noqa: PTH112, takes names that are too long
            among = filter(_is_audio, list_files(path))
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207, of a whole path
            files = [file for match in matches for file in (list_files(match) if match.is_dir() else [match])]
            among = filter(_is_audio, dict.fromkeys(files))  # ** names a folder, and what is in it
        elif path.suffix.lower() in (".csv", ".tsv"):
            among = (path.parent / row["path"] for _, row in read_table(path, required=("path",)))
        is_none = True
        try:
            for recording in among:
                is_none = False
                yield recording
        except UserError as error:
            yield Failed(path, str(error))
        else:
            if is_none:
                yield Failed(path, str(UserError(f"no audio in {path}")))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in CLAIMS_AUDIO or probe_header(path) is None


def _in_segments(
    path: Path, recording_T: Tensor, from_hz: int, model: EmotionModel, segment_s: float, silence_dbfs: float
) -> _Heard:
    rate_hz = model.frontend.sample_rate_hz
    try:
        waveform_T = resample(recording_T, from_hz, rate_hz)
    except UserError as error:
        raise UserError(f"cannot use {path}: {error}") from None
    size, total = round(segment_s * rate_hz), len(waveform_T)
    starts = [*range(0, total - size, size), max(0, total - size)]
    segments = [waveform_T[start : start + size] for start in starts]
    speaks = [level_dbfs(segment_T, rate_hz) >= max(silence_dbfs, -1000) for segment_T in segments]
    return _Heard(path, rate_hz, starts, segments, speaks)


def level_dbfs(waveform_T: Tensor, rate_hz: int) -> float:
    """RMS of the loudest tenth of a second, without its offset, in dB of full scale; -inf for a constant.

    >>> round(level_dbfs(0.1 * torch.tensor([1.0, -1.0] * 800), 16000))
    -20
    """
    length = min(len(waveform_T), max(1, round(SHORTEST_S * rate_hz)))
    pieces_NT = waveform_T[: len(waveform_T) // length * length].double().reshape(-1, length)
    power = float(pieces_NT.var(dim=1, correction=0).max())
    return 10 * math.log10(power) if power else -math.inf


def _in_batches(heard: Iterable[_Heard | Failed], model: EmotionModel) -> Iterator[Prediction | Failed]:
    waiting: list[_Heard | Failed] = []
    for one in heard:
        waiting.append(one)
        if sum(1 if isinstance(each, Failed) else len(each.segments) for each in waiting) >= _AT_ONCE:
            yield from _said(waiting, model)
            waiting = []
    yield from _said(waiting, model)


def _said(heard: Sequence[_Heard | Failed], model: EmotionModel) -> Iterator[Prediction | Failed]:
    spoken = [
        segment_T
        for one in heard
        if isinstance(one, _Heard)
        for segment_T, speaks in zip(one.segments, one.speaks, strict=True)
        if speaks
    ]
    logits = iter(_logits(spoken, model))
    for one in heard:
        if isinstance(one, Failed):
            yield one
            continue
        segments, speech = list[Segment](), list[Tensor]()
        for start, segment_T, speaks in zip(one.starts, one.segments, one.speaks, strict=True):
            heard_now = [next(logits)] if speaks else []
            times = start / one.rate_hz, (start + len(segment_T)) / one.rate_hz
            segments.append(Segment(*times, *_told(heard_now, model)))
            speech += heard_now
        emotion, mean = _told(speech, model)
        if all(map(math.isfinite, mean.values())):
            yield Prediction(one.path, emotion, mean, model.synthetic, tuple(segments))
        else:
            yield Failed(one.path, str(UserError(f"the model gives no finite output for {one.path}")))


def _told(speech: Sequence[Tensor], model: EmotionModel) -> tuple[str, dict[str, float]]:
    """The emotion and calibrated probabilities of some segments' mean, from the logits of each, of shape (C,)."""
    if not speech:
        return SILENCE, {}
    pooled_C = speech[0]
    if len(speech) > 1:  # the logarithm of the mean, but for a constant
        pooled_C = torch.stack([*speech]).double().log_softmax(dim=1).logsumexp(dim=0)
    shares = model.probabilities(pooled_C[None])[0].tolist()
    return model.classes[int(pooled_C.argmax())], dict(zip(model.classes, shares, strict=True))


def _logits(segments: Sequence[Tensor], model: EmotionModel) -> list[Tensor]:
    """Logits of each segment, of shape (C,). Features are computed one by one, as those that the model was trained on,
    and batches are filled up, since rounding may differ with their size; so with the number of threads.
    """
    found: list[Tensor] = []
    with torch.no_grad(), exact_arithmetic(), threads_limited_to(1):
        for begin in range(0, len(segments), _AT_ONCE):
            clips = [repeat_to_length(each, model.frontend.num_samples) for each in segments[begin : begin + _AT_ONCE]]
            features_BFL = model.standardised(torch.cat([model.frontend(clip_T[None]) for clip_T in clips]))
            filled_BFL = functional.pad(features_BFL, (0, 0, 0, 0, 0, _AT_ONCE - len(clips)))
            found += model(filled_BFL)[: len(clips)].float()
    return found
