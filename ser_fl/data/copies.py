"""Copies of training utterances, each changed as a waveform: another voice, room, microphone, line.

Features are computed once and kept, and so are those of copies: a copy is an utterance of a corpus of its own. It is
drawn by the split's seed, the utterance and its number among the copies, and by nothing else.

Legend: T samples, Q frequencies, N utterances.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from hashlib import blake2b
from io import BytesIO

import soundfile
import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from ser_fl.config.data import Codec, WaveformConfig
from ser_fl.config.schema import Config
from ser_fl.data.features import Copies, FeatureStore, OnFeatures, compute_features
from ser_fl.data.frontend import resample
from ser_fl.data.splits import Indices
from ser_fl.data.utterance import Corpus, Utterance
from ser_fl.errors import UserError
from ser_fl.randomness import generator

VERSION = 1
"""Raised whenever the same utterance and settings would give another copy."""
CODECS: dict[Codec, tuple[str, str | None, int]] = {
    "mp3": ("MP3", None, 16000),
    "vorbis": ("OGG", "VORBIS", 16000),
    "g711": ("WAV", "ULAW", 8000),
    "gsm": ("WAV", "GSM610", 8000),
}
"""libsndfile's format and subtype, and the rate in Hz that it is used at: two of music and messages, two of phones."""


def with_copies(
    store: FeatureStore, corpus: Corpus, rows: Indices, config: Config, progress: OnFeatures | None = None
) -> FeatureStore:
    """The store with the copies of some utterances of its corpus, as many of each as `augmentation.copies` says."""
    if not (number := config.augmentation.copies):
        return store
    copied = CopiedCorpus(corpus, rows, config)
    cache_dir = config.data.cache_dir
    copies = compute_features(copied, config.frontend, cache_dir=cache_dir, progress=progress, classes=store.classes)
    first_N = torch.full((len(store.utterances),), -1)
    first_N[list(rows)] = number * torch.arange(len(rows))
    return replace(store, copies=Copies(replace(copies, utterances=()), first_N, number))


class CopiedCorpus(Corpus):
    """The copies of some utterances of a corpus, those of one next to each other, at the front end's rate."""

    skipped = ()

    def __init__(self, corpus: Corpus, rows: Indices, config: Config) -> None:
        self.name, self.synthetic, self._corpus = corpus.name, corpus.synthetic, corpus
        self._config, self._seed = config.augmentation.waveform, config.split.seed
        self._rate_hz = config.frontend.sample_rate_hz
        longest = config.frontend.num_samples * (1 + self._config.max_speed)
        self._most = math.ceil(longest) + self._rate_hz // 10
        """Samples that can be heard, however fast."""
        self._of = {
            f"{corpus.utterances[row].utterance_id}, copy {number}": (corpus.utterances[row], number)
            for row in rows
            for number in range(1, config.augmentation.copies + 1)
        }
        self.utterances = tuple(replace(utterance, utterance_id=name) for name, (utterance, _) in self._of.items())

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        original, number = self._of[utterance.utterance_id]
        recording_T, rate_hz = self._corpus.read(original)
        waveform_T = resample(recording_T, rate_hz, self._rate_hz)[: self._most]
        stream_of = partial(generator, "copy", self._seed, original.utterance_id, number)
        return changed(waveform_T, self._rate_hz, self._config, stream_of), self._rate_hz

    def content_digest(self, utterance: Utterance) -> bytes:
        original, number = self._of[utterance.utterance_id]
        drawn_by = VERSION, self._seed, original.utterance_id, number, self._rate_hz, self._most
        made_by = repr((drawn_by, asdict(self._config), soundfile.__libsndfile_version__))
        return blake2b(made_by.encode() + self._corpus.content_digest(original), digest_size=16).digest()


def changed(waveform_T: Tensor, rate_hz: int, config: WaveformConfig, stream_of: Callable[[str], Generator]) -> Tensor:
    """A waveform after every change that is on, from the mouth to the listener: speed, pitch, room, noise, gain, codec.
    Each draws from a stream of its own, so that with one of them off the others draw what they did.
    """

    def within(name: str, lower: float, upper: float) -> float:
        return lower + (upper - lower) * float(torch.rand((), generator=stream_of(name), dtype=torch.float64))

    if config.max_speed:
        waveform_T = change_speed(waveform_T, 1 + within("speed", -config.max_speed, config.max_speed))
    if config.max_pitch:
        waveform_T = change_pitch(waveform_T, 1 + within("pitch", -config.max_pitch, config.max_pitch), rate_hz)
    if within("in a room", 0, 1) < config.rooms:
        response_T = impulse_response(within("rt60", *config.rt60_s), rate_hz, stream_of("room"))
        waveform_T = in_room(waveform_T, response_T)
    if within("noisy", 0, 1) < config.noise:
        noise_T = draw_noise(len(waveform_T), stream_of("noise"), is_pink=within("colour", 0, 1) < 0.5)
        waveform_T = add_noise(waveform_T, noise_T, within("snr", *config.snr_db))
    if config.max_gain_db:
        waveform_T = waveform_T * 10 ** (within("gain", -config.max_gain_db, config.max_gain_db) / 20)
    if config.codecs and within("transmitted", 0, 1) < config.transmitted:
        codec = config.codecs[int(within("codec", 0, len(config.codecs)))]
        waveform_T = transmit(waveform_T, rate_hz, codec)
    return waveform_T


def change_speed(waveform_T: Tensor, factor: float) -> Tensor:
    """Spoken ``factor`` times as fast, to the nearest hundredth: tempo and pitch go together (speed perturbation: Ko et
    al. 2015).
    """
    return resample(waveform_T, round(100 * factor), 100)


def change_pitch(waveform_T: Tensor, factor: float, rate_hz: int) -> Tensor:
    """Pitch and formants ``factor`` times as high, to the nearest hundredth, at the same tempo: a shorter vocal tract.
    The phase vocoder slows it down, and faster speech is higher. Windows of about 32 ms, a quarter apart.
    """
    from torchaudio.functional import phase_vocoder

    factor = round(100 * factor) / 100
    size = 2 ** round(math.log2(0.032 * rate_hz))
    hop, window = size // 4, torch.hann_window(size, dtype=waveform_T.dtype)
    padded_T = pad(waveform_T, (0, size))
    spectrum_QL = torch.stft(padded_T, size, hop, window=window, pad_mode="constant", return_complex=True)
    advance_Q1 = torch.linspace(0, math.pi * hop, size // 2 + 1, dtype=waveform_T.dtype)[:, None]
    slowed_QL = phase_vocoder(spectrum_QL, 1 / factor, advance_Q1)
    slowed_T = torch.istft(slowed_QL, size, hop, window=window, length=round(len(padded_T) * factor))
    return change_speed(slowed_T, factor)[: len(waveform_T)]


def impulse_response(rt60_s: float, rate_hz: int, stream: Generator) -> Tensor:
    """Of a made-up room: the direct sound, and white noise whose level falls by 60 dB in ``rt60_s`` seconds. The noise
    has as much energy as the direct sound, or down to a tenth of it, in even decibels.
    """
    time_T = torch.arange(round(rt60_s * rate_hz)) / rate_hz
    tail_T = torch.randn(len(time_T), generator=stream) * 10 ** (-3 * time_T / rt60_s)
    tail_T[0] = 0
    share = 10 ** -float(torch.rand((), generator=stream))
    tail_T = tail_T * (share / tail_T.square().sum().clamp(min=1e-12)).sqrt()
    tail_T[0] = 1
    return tail_T


def in_room(waveform_T: Tensor, response_T: Tensor) -> Tensor:
    """The waveform convolved with a room's response; as long and as loud as before."""
    size = len(waveform_T) + len(response_T) - 1
    heard_T: Tensor = torch.fft.irfft(torch.fft.rfft(waveform_T, size) * torch.fft.rfft(response_T, size), size)
    heard_T = heard_T[: len(waveform_T)]
    return heard_T * (waveform_T.square().sum() / heard_T.square().sum().clamp(min=1e-12)).sqrt()


def draw_noise(num_samples: int, stream: Generator, *, is_pink: bool) -> Tensor:
    """Gaussian noise: white, or pink, whose power falls by 3 dB an octave."""
    noise_T = torch.randn(num_samples, generator=stream)
    if not is_pink:
        return noise_T
    root_Q = torch.arange(num_samples // 2 + 1).clamp(min=1).sqrt()
    pink_T: Tensor = torch.fft.irfft(torch.fft.rfft(noise_T) / root_Q, num_samples)
    return pink_T


def add_noise(waveform_T: Tensor, noise_T: Tensor, snr_db: float) -> Tensor:
    """The sum, in which the waveform's power is ``snr_db`` above the noise's. Silence stays silence."""
    powers = waveform_T.square().sum(), noise_T.square().sum().clamp(min=1e-12)
    return waveform_T + noise_T * (powers[0] / powers[1] * 10 ** (-snr_db / 10)).sqrt()


def transmit(waveform_T: Tensor, rate_hz: int, codec: Codec) -> Tensor:
    """Encoded and decoded, at the codec's own rate and libsndfile's default quality. What is above full scale is turned
    down first.
    """
    kind, subtype, codec_hz = CODECS[codec]
    sent_T = resample(waveform_T, rate_hz, codec_hz)
    loudest = sent_T.abs().max().clamp(min=1)
    file = BytesIO()
    try:
        soundfile.write(file, (sent_T / loudest).numpy(), codec_hz, format=kind, subtype=subtype)
        file.seek(0)
        decoded, _ = soundfile.read(file, dtype="float32")
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise UserError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot write {codec} ({error}): leave it out of "
            "augmentation.waveform.codecs"
        ) from None
    heard_T = resample(torch.from_numpy(decoded), codec_hz, rate_hz) * loudest
    return pad(heard_T, (0, max(0, len(waveform_T) - len(heard_T))))[: len(waveform_T)]
