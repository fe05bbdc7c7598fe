"""Features of a whole corpus: computed once, in parallel, kept on disk, memory-mapped afterwards.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_fl.config import FrontendConfig
from ser_fl.data.frontend import LogMel
from ser_fl.data.utterance import Corpus, Utterance, classes_of
from ser_fl.errors import UserError

CACHE_VERSION = 1
"""Raised whenever the same audio and settings would give other features."""
_BATCH = 32

OnFeatures = Callable[[int, int], None]
"""Told how many utterances are done, of how many."""


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Raw log-mel features of all utterances, and their labels.

    A pickled store names its file and holds no features: whoever unpickles it, in another process, maps the same pages.
    """

    file: Path
    """Absolute; what the features are mapped from."""
    features_NFL: Tensor
    """Memory-mapped, float32, not standardised."""
    labels_N: Tensor
    """Index into `classes`, int64."""
    utterances: tuple[Utterance, ...]
    classes: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.file, self.labels_N, self.utterances, self.classes)


def open_store(
    file: Path, labels_N: Tensor, utterances: tuple[Utterance, ...], classes: tuple[str, ...]
) -> FeatureStore:
    """Map features from their file.

    Copy-on-write, since torch has no read-only tensors: pages are shared until somebody writes, and nobody does.
    """
    return FeatureStore(file, torch.from_numpy(np.load(file, mmap_mode="c")), labels_N, utterances, classes)


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/ser_fl, or ~/.cache/ser_fl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ser_fl"


def compute_features(
    corpus: Corpus, config: FrontendConfig, *, cache_dir: Path | None = None, progress: OnFeatures | None = None
) -> FeatureStore:
    """Features of every utterance of a corpus, from the cache where audio and settings are the same.

    Raises:
        UserError: a file cannot be decoded (it is named), or the corpus has fewer than two emotions.
    """
    classes = classes_of(corpus.utterances)
    if len(classes) < 2:
        raise UserError(f"corpus {corpus.name!r} has one emotion only ({', '.join(classes)}): a classifier needs two")
    file = (cache_dir or default_cache_dir()) / "features" / f"{_key(corpus, config)}.npy"
    if not file.is_file():
        _fill(file, corpus, config, progress)
    labels = torch.tensor([classes.index(utterance.emotion) for utterance in corpus.utterances])
    return open_store(file.absolute(), labels, corpus.utterances, classes)


def _key(corpus: Corpus, config: FrontendConfig) -> str:
    digest = blake2b(repr((CACHE_VERSION, torch.__version__, _settings(config))).encode(), digest_size=16)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for content in pool.map(corpus.content_digest, corpus.utterances):
            digest.update(content)
    return digest.hexdigest()


def _settings(config: FrontendConfig) -> tuple[object, ...]:
    """What the values depend on: not the name of the settings, and not the box, which is applied later."""
    return (
        config.sample_rate_hz,
        config.window_samples,
        config.hop_samples,
        config.num_mels,
        config.fmin_hz,
        config.fmax_hz,
        config.num_samples,
        config.log_offset,
    )


def _fill(file: Path, corpus: Corpus, config: FrontendConfig, progress: OnFeatures | None) -> None:
    """Decode, resample and transform in parallel batches into a temporary file, then rename it into place."""
    frontend = LogMel(config)
    total = len(corpus.utterances)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    rows = np.lib.format.open_memmap(
        temporary, mode="w+", dtype=np.float32, shape=(total, config.num_mels, config.num_frames)
    )

    def fill_batch(start: int) -> int:
        batch = corpus.utterances[start : start + _BATCH]
        clips_BT = torch.stack([frontend.clip(*corpus.read(utterance)) for utterance in batch])
        with torch.inference_mode():
            rows[start : start + len(batch)] = frontend(clips_BT).numpy()
        return len(batch)

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = 0
            for count in pool.map(fill_batch, range(0, total, _BATCH)):
                done += count
                if progress is not None:
                    progress(done, total)
        rows.flush()
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
