"""Reading and writing audio files: soundfile only, one channel out, failures that name the file.

T samples. torchaudio 2.11 hands `load` to torchcodec and so to FFmpeg, which is often missing; soundfile brings its own
library and reads WAV, FLAC, OGG and MP3.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from ser_fl.errors import UserError, unknown_name
from ser_fl.records import write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CHANNELS = ("first", "second", "mean")
"""What is taken of a file with several channels.

"first" is the default: where two spaced microphones were recorded (EMOVO), the mean adds two delayed copies of the
voice, which comb-filters it. "mean" suits channels that are copies or a true stereo mix.
"""
OVERSHOOT = 2.0
"""Floating-point files may overshoot full scale and are cut at it; beyond this factor they are on another scale."""


def check_channel(channel: str) -> None:
    """Raise `UserError` for a channel choice that is not in `CHANNELS`."""
    if channel not in CHANNELS:
        raise unknown_name("data.channel", channel, CHANNELS)


def probe_audio(path: Path, *, decode: bool = False) -> str | None:
    """Why a file cannot be read, or None.

    From its header alone, which is cheap, a FLAC file that was cut off behind an intact header passes, and fails in
    `read_audio`; with ``decode`` it is found here. A WAV file is read as far as it goes.
    """
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        return _reason(path, error)
    if header.frames <= 0:
        return "holds no samples"
    if decode:
        try:
            soundfile.read(str(path), dtype="int16")
        except (soundfile.SoundFileError, OSError) as error:
            return _reason(path, error)
    return None


def read_audio(path: Path, channel: str = "first") -> tuple[Tensor, int]:
    """Read one channel of a file.

    Args:
        path: A file soundfile can read.
        channel: "first", "second" or "mean", see `CHANNELS`.

    Returns:
        Waveform of shape (T,), float32 in [-1, 1], and its sampling rate in Hz. Integer samples k of b bits become
        k / 2^(b-1); floating-point samples are cut at full scale.

    Raises:
        UserError: the file is missing, not audio, empty, a cut-off FLAC, not finite, on another scale, or lacks the
            channel.
    """
    import torch

    check_channel(channel)
    try:
        with soundfile.SoundFile(str(path)) as file:
            samples, sample_rate_hz = file.read(dtype="float32", always_2d=True), int(file.samplerate)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"cannot read {path}: {_reason(path, error)}") from None
    if len(samples) == 0:
        raise UserError(f"cannot read {path}: it holds no samples")
    samples_T = _one_channel(samples, channel, path)
    peak = float(np.abs(samples_T).max())
    if not peak <= OVERSHOOT:
        raise UserError(f"cannot use {path}: samples reach {peak:g}, expected [-1, 1]; rescale the file")
    return torch.from_numpy(samples_T.clip(-1, 1)), sample_rate_hz


def _one_channel(samples: NDArray[np.float32], channel: str, path: Path) -> NDArray[np.float32]:
    """Samples of shape (T, channels) to (T,)."""
    if channel == "mean":
        mean_T: NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32)
        return mean_T
    index = CHANNELS.index(channel)
    if index >= samples.shape[1]:
        raise UserError(f"{path} has one channel: the second does not exist, use data.channel=first")
    return np.ascontiguousarray(samples[:, index])


def write_wav(path: Path, waveform_T: Tensor, sample_rate_hz: int) -> None:
    """Write a mono 16-bit WAV file, whole.

    Samples are rounded to multiples of 2^-15 and cut at full scale, so that what was read from a 16-bit file is written
    back bit for bit (libsndfile's own conversion scales by 2^15 - 1 and does not).

    Args:
        path: Where to; missing folders are made.
        waveform_T: Shape (T,), in [-1, 1].
        sample_rate_hz: Sampling rate in Hz.

    Raises:
        ValueError: the waveform is not of shape (T,) or not finite.
    """
    samples_T = waveform_T.detach().cpu().double().numpy()
    if samples_T.ndim != 1 or not np.isfinite(samples_T).all():
        raise ValueError(f"waveform must be finite and of shape (T,), got shape {samples_T.shape}")
    pcm_T = np.rint(samples_T * 32768).clip(-32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_T, sample_rate_hz, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def content_digest(path: Path, channel: str) -> bytes:
    """BLAKE2b digest (16 bytes) of a file's bytes and the channel taken of it.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(path, error)}") from None
    return hashlib.blake2b(content, digest_size=16, person=channel.encode()).digest()


def _reason(path: Path, error: Exception) -> str:
    """One line on why a file could not be read."""
    if not path.exists():
        return "no such file"
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string).rstrip(".").lower()
    return str(error).splitlines()[0] if str(error) else type(error).__name__
