"""Reading and writing audio files: soundfile only, one channel out, failures that name the file.

T samples. torchaudio 2.11 hands `load` to torchcodec and so to FFmpeg, which is often missing; soundfile brings its own
library and reads WAV, FLAC, OGG and MP3.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from ser_fl.data import headers
from ser_fl.errors import UserError, one_line, unknown_name
from ser_fl.files import write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CHANNELS = ("first", "second", "mean")
"""What is taken of a file with several channels. "first" is the default: where two spaced microphones were recorded
(EMOVO), the mean adds two delayed copies of the voice, which comb-filters it. "mean" suits channels that are copies or
a true stereo mix."""
OVERSHOOT = 2.0
"""Floating-point files may overshoot full scale and are cut at it; beyond this factor they are on another scale."""
RATES_HZ = (1_000, 768_000)
"""Sampling rates outside are no recordings of speech, but headers that are damaged."""
_BLOCK_SAMPLES = 1 << 25
_LARGEST_KERNEL = 1 << 25
"""Coefficients of a resampling filter: 256 MB in float64."""
_AGAIN = "copy or download it again"
_LARGE_HEADER = 4096
_HEADERLESS = ("RAW", "MPC2K")
"""What libsndfile takes a file for by its ending alone (.vox, .gsm, .au), or by two bytes that begin many others."""
_PREROLL_SAMPLES = 8192
"""Decoded before a segment and dropped: after a jump, MP3 decoders lack what earlier frames hold of the first one."""


class UnusableAudio(UserError):
    """A file that cannot be read, or whose samples cannot be used: a line that begins with ``cannot VERB PATH``.
    ``reason`` has no name or figures, so that files with one fault share it; ``detail`` is the reason with its figures.
    """

    def __init__(self, reason: str, path: Path | None = None, detail: str | None = None, verb: str = "read") -> None:
        super().__init__((f"cannot {verb} {path}: " if path else "") + (detail or reason))
        self.reason = reason


def check_channel(channel: str) -> None:
    """Raise `UserError` for a channel choice that is not in `CHANNELS`."""
    if channel not in CHANNELS:
        raise unknown_name("data.channel", channel, CHANNELS)


def probe_header(path: Path) -> str | None:
    """Why a file cannot be read, or None, from its header alone, which is cheap. A FLAC file cut off behind its header
    passes, and so do unusable samples: `probe_audio` finds them. A WAV file is read as far as it goes.
    """
    try:
        with _open(path) as file:
            return _why_empty(path) if file.frames <= 0 else None
    except UnusableAudio as error:
        return error.reason


def probe_audio(path: Path, channel: str, to_hz: int | None = None) -> str | None:
    """Why a file cannot be read, or cannot be resampled to a rate in Hz, or None; decodes the whole file."""
    try:
        _, sample_rate_hz = read_audio(path, channel)
        check_resampling(sample_rate_hz, to_hz or sample_rate_hz)
    except UnusableAudio as error:
        return error.reason
    return None


def check_resampling(from_hz: int, to_hz: int) -> None:
    """Refuse (`UnusableAudio`) rates of so small a common divisor that the filter would fill the memory."""
    if from_hz * to_hz // math.gcd(from_hz, to_hz) ** 2 > _LARGEST_KERNEL:
        reason = f"{from_hz} Hz cannot be resampled to {to_hz} Hz; convert the recording to a usual rate first"
        raise UnusableAudio(reason)


def header_of(path: Path) -> tuple[float, int]:
    """What the header tells: duration in seconds, and number of channels. The errors of `read_audio`."""
    with _open(path) as file:
        return max(file.frames, 0) / file.samplerate, file.channels


def duration_s(path: Path) -> float:
    """Seconds of sound that there are to read. Of MP3, whose header may tell of more, all is decoded."""
    with _open(path) as file:
        frames = max(file.frames, 0)
        if file.format == "MP3":
            frames = 0
            while step := len(file.read(1 << 20, dtype="float32")):
                frames += step
        return float(frames / file.samplerate)


def read_audio(path: Path, channel: str = "first", span_s: tuple[float, float] | None = None) -> tuple[Tensor, int]:
    """Read one channel of a file that soundfile can read: "first", "second" or "mean", see `CHANNELS`.

    Args:
        path: the file.
        channel: what is taken of several.
        span_s: from which second to which; None: all. Nothing before it is decoded, where the format allows it.

    Returns:
        Waveform of shape (T,), float32 in [-1, 1], and its sampling rate in Hz. Integer samples k of b bits become k /
            2^(b-1); floating-point samples are cut at full scale.

    Raises:
        UnusableAudio: the file is missing, not audio, empty, a cut-off FLAC, not finite, on another scale, or lacks the
            channel.
    """
    check_channel(channel)
    with _open(path) as file:
        index, is_mean = CHANNELS.index(channel), channel == "mean"
        if not is_mean and index >= file.channels:
            reason = "it has one channel, no second; take the first (data.channel=first, --channel first)"
            raise UnusableAudio(reason, path, verb="use")
        try:
            samples_T = _samples(file, None if is_mean else index, span_s)
        except (soundfile.SoundFileError, OSError) as error:
            raise UnusableAudio(_why_unreadable(path, error), path) from None
    if len(samples_T) == 0:
        raise UnusableAudio(_why_empty(path), path)
    return _usable(samples_T, path), int(file.samplerate)


def decode_audio(content: bytes, name: str, longest_s: float) -> tuple[Tensor, int]:
    """The first channel of a file in memory, as `read_audio` gives it; its name is for errors.

    Raises:
        UnusableAudio: it is no audio, empty, longer than ``longest_s``, not finite or on another scale.
    """
    path = Path(name)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            low, high = RATES_HZ
            if file.format in _HEADERLESS or not low <= file.samplerate <= high:
                raise UnusableAudio("it has no header that tells its format and a usual sampling rate", path)
            if file.frames > longest_s * file.samplerate:
                raise UnusableAudio(f"it is longer than {longest_s:g} s; cut it", path)
            samples_T = _samples(file, 0, None)
    except soundfile.SoundFileError as error:
        raise UnusableAudio(f"no audio that libsndfile knows ({_reason(error)}); make a WAV file of it", path) from None
    if len(samples_T) == 0:
        raise UnusableAudio("it holds no samples", path)
    return _usable(samples_T, path), int(file.samplerate)


def _samples(file: soundfile.SoundFile, index: int | None, span_s: tuple[float, float] | None) -> NDArray[np.float32]:
    """All samples there are, of a channel or, without one, of the mean of all: a header may announce any number. Under
    half an hour it is one block, since decoders of lossy formats may err where they go on.
    """
    blocks: list[NDArray[np.float32]] = []
    start, stop = (round(second * file.samplerate) for second in span_s or (0, 0))
    largest, end = _BLOCK_SAMPLES // file.channels, min(max(file.frames, 0), stop or sys.maxsize)
    place = begun = _wind(file, max(0, start - _PREROLL_SAMPLES))
    while not blocks or len(blocks[-1]) == largest:
        block = file.read(min(largest, end - place), dtype="float32", always_2d=True)
        place += len(block)
        blocks.append(block.mean(1, dtype=np.float32) if index is None else np.ascontiguousarray(block[:, index]))
    return np.concatenate(blocks)[start - begun :]


def _usable(samples_T: NDArray[np.float32], path: Path) -> Tensor:
    """Samples cut at full scale; an `UnusableAudio` of what is not finite, or on another scale."""
    import torch

    peak = float(np.maximum(samples_T.max(), -samples_T.min()))
    if not np.isfinite(peak):
        reason = "some samples are no numbers (NaN or infinite); make the file again from its source"
        raise UnusableAudio(reason, path, verb="use")
    if peak > OVERSHOOT:
        detail = f"samples reach {peak:g}, expected [-1, 1]; rescale the file"
        raise UnusableAudio("samples far beyond [-1, 1]; rescale the file", path, detail, verb="use")
    return torch.from_numpy(samples_T.clip(-1, 1, out=samples_T))


def _wind(file: soundfile.SoundFile, place: int) -> int:
    """Go to a sample; where the format cannot jump, stay at the first. Where it now is."""
    if place:
        with contextlib.suppress(soundfile.SoundFileError):
            return int(file.seek(place))
    return 0


def _open(path: Path) -> soundfile.SoundFile:
    """A file that has a header that can be read and is believed, and a rate in `RATES_HZ`."""
    _check_file(path)
    try:
        # A file without a name: soundfile wants to be told what .raw is, though it may have a header.
        is_raw = path.suffix.lower() == ".raw"
        file = soundfile.SoundFile(os.open(path, os.O_RDONLY) if is_raw else os.fsencode(path))
        if file.format in _HEADERLESS:
            file.close()
            raise soundfile.SoundFileRuntimeError("format not recognised")
        if file.frames == 0 and (mended := headers.with_length(path)):
            file.close()
            file = soundfile.SoundFile(io.BytesIO(mended))
    except (soundfile.SoundFileError, OSError) as error:
        raise UnusableAudio(_why_unreadable(path, error), path) from None
    low, high = RATES_HZ
    if not low <= file.samplerate <= high:
        file.close()
        reason = f"its header tells a sampling rate beyond {low} to {high} Hz; make it again from its source"
        raise UnusableAudio(reason, path, f"{reason}, got {file.samplerate}", verb="use")
    if file.frames == sys.maxsize:
        file.close()
        raise UnusableAudio("its header tells no length, as of a stream; write it anew (ffmpeg -i IN OUT)", path)
    return file


def _check_file(path: Path) -> None:
    """Raise `UnusableAudio` for what is no file, or may not be looked at."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116, takes names with a NUL, too
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise UnusableAudio(_reason(error), path) from None
        reason = "it is a link to a file that is not there" if os.path.islink(path) else "no such file"  # noqa: PTH114
        if os.path.lexists(path.with_name(f".{path.name}.icloud")):
            reason = "it is in iCloud and not on this machine; download it"
        raise UnusableAudio(reason, path) from None
    if stat.S_ISDIR(mode):
        raise UnusableAudio("it is a folder", path)
    if not stat.S_ISREG(mode):
        raise UnusableAudio("it is a device or a pipe, whose end nobody knows", path)


def _why_unreadable(path: Path, error: Exception) -> str:
    """What a file is, if not audio; else what libsndfile says of it, where that is true."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as refused:
        return _reason(refused)
    if kind := headers.kind_of(head):
        return f"it is {kind}"
    reason = _reason(error)
    if "not recognised" in reason:  # by its ending, libsndfile would take it for samples
        return "it has no header that tells its format and sampling rate; make a WAV file of it"
    if "regular file" in reason:  # said of whatever begins with the two bytes of MP3
        reason = "no MP3 follows its first bytes"
    if not isinstance(error, soundfile.SoundFileError):
        return reason
    kinds = "it is cut off, damaged or of a coding that libsndfile does not know"
    return f"{kinds} ({reason}); copy or download it again, or convert it to WAV (ffmpeg -i IN OUT.wav)"


def _why_empty(path: Path) -> str:
    """Why no sample was read: there is none, or the header hides them."""
    if headers.missing_bytes(path):
        return f"it was cut off before the first sample; {_AGAIN}"
    if path.stat().st_size > _LARGE_HEADER:
        return "its header tells a length of 0, but more follows; write the header anew (sox --ignore-length IN OUT)"
    return "it holds no samples"


def write_wav(path: Path, waveform_T: Tensor, sample_rate_hz: int) -> None:
    """Write what `to_wav` makes, whole, and missing folders."""
    write_bytes(path, to_wav(waveform_T, sample_rate_hz))


def to_wav(waveform_T: Tensor, sample_rate_hz: int) -> bytes:
    """A mono 16-bit WAV file, from samples of shape (T,) in [-1, 1].

    Samples are rounded to multiples of 2^-15 and cut at full scale, so that what was read from a 16-bit file is written
    back bit for bit (libsndfile's own conversion scales by 2^15 - 1 and does not).

    Raises:
        ValueError: the waveform is not of shape (T,) or not finite.
    """
    samples_T = waveform_T.detach().cpu().double().numpy()
    if samples_T.ndim != 1 or not np.isfinite(samples_T).all():
        raise ValueError(f"waveform must be finite and of shape (T,), got shape {samples_T.shape}")
    pcm_T = np.rint(samples_T * 32768).clip(-32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_T, sample_rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def content_digest(path: Path, channel: str) -> bytes:
    """BLAKE2b digest (16 bytes) of a file's bytes and the channel taken; a `UserError` where it cannot be read."""
    try:
        _check_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    return hashlib.blake2b(content, digest_size=16, person=channel.encode()).digest()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string).removeprefix("Error : ").rstrip(".").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line(str(error)) or type(error).__name__
