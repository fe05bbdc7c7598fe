"""Features of a whole corpus: computed once, in parallel, and kept in a file that every later run maps into memory.

Legend: N utterances, F mel bins, L frames.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ser_fl.config.frontend import AnyFrontend
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.frontend import FrontEnd, Standardisation
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.functionals import FunctionalsConfig
from ser_fl.data.normalisation import SpeakerScales
from ser_fl.data.utterance import Corpus, Utterance
from ser_fl.devices import CPU, float32_by_default, send, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.files import NO_ROOM, naming, temporary_folder, user_folder
from ser_fl.runs.lock import hold

CACHE_VERSION = 2
"""Raised whenever the same audio and settings would give other features."""
_BATCH = 32
_LEFT_BEHIND_S = 3600.0
"""A temporary file of this age is nobody's any more: its writer touches it with every batch."""
_LOG = logging.getLogger(__name__)

OnFeatures = Callable[[int, int], None]
"""Told how many utterances are done, of how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Changed copies of some utterances of a store (`ser_fl.data.copies`)."""

    store: "FeatureStore"
    """Their features; it lists no utterances."""
    first_N: Tensor
    """Row of each utterance's first copy, behind which the others are; -1 of one without any."""
    number: int
    """Of each utterance."""

    def draw(self, features_NFL: Tensor, rows_N: Tensor, stream: Generator) -> None:
        """Keep each utterance, or put one of its copies in its place, all equally often."""
        version_N = torch.randint(self.number + 1, (len(rows_N),), generator=stream)
        taken_N = version_N > 0
        first_N = self.first_N[rows_N[taken_N]]
        assert bool((first_N >= 0).all()), "an utterance without copies"
        features_NFL[taken_N] = self.store.features_NFL[first_N + version_N[taken_N] - 1]


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Raw features of all utterances, and their labels. Pickled it holds the name of its file and no features:
    another process that unpickles it maps the same pages.
    """

    file: Path
    """Absolute; what the features are mapped from."""
    features_NFL: Tensor
    """Memory-mapped, float32, not standardised."""
    labels_N: Tensor
    """Index into `classes`, int64."""
    utterances: tuple[Utterance, ...]
    classes: tuple[str, ...]
    """Names of the emotions, in the order of the classifier's outputs."""
    scales: SpeakerScales | None = None
    """By which each speaker's features are scaled when they are loaded; None: as they are."""
    copies: Copies | None = None
    """Of training utterances, where there are any."""
    own_classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of several corpora that differ in their emotions, the classes of each; empty where an utterance may be of any."""

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.file, self.labels_N, self.utterances, self.classes, self.scales, self.copies, self.own_classes
        return open_store, given

    def absent(self, rows: Sequence[int]) -> Tensor | None:
        """Classes that the corpora of some utterances do not have, bool of shape (N, C); None where all have all."""
        if not self.own_classes:
            return None
        absent_NC = torch.ones(len(rows), len(self.classes), dtype=torch.bool)
        for absent_C, row in zip(absent_NC, rows, strict=True):
            absent_C[list(self.own_classes[self.utterances[row].corpus])] = False
        return absent_NC


@dataclass(frozen=True, slots=True)
class Examples:
    """Standardised features and labels of some utterances, in memory: what is trained on and what is tested."""

    features_NFL: Tensor
    labels_N: Tensor
    speakers_N: Tensor | None = None
    """Who said it, by number, where an objective asks."""

    def __len__(self) -> int:
        return len(self.labels_N)


def load_examples(
    store: FeatureStore,
    indices: tuple[int, ...],
    standardisation: Standardisation,
    device: torch.device = CPU,
    *,
    stream: Generator | None = None,
) -> Examples:
    """Read utterances from the store, standardise them, and send them to a device; nothing of it is kept. With a stream
    each may be one of its copies, where there are any.
    """
    rows = torch.tensor(indices, dtype=torch.int64)
    with torch.no_grad():
        features_NFL = store.features_NFL[rows]
        if stream is not None and store.copies is not None:
            store.copies.draw(features_NFL, rows, stream)
        if store.scales is not None:
            features_NFL = store.scales.of(rows)(features_NFL)
        return Examples(send(standardisation(features_NFL), device), send(store.labels_N[rows], device))


def compute_features(
    corpus: Corpus,
    config: AnyFrontend | FunctionalsConfig,
    *,
    cache_dir: Path | str | None = None,
    progress: OnFeatures | None = None,
    classes: tuple[str, ...] | None = None,
) -> FeatureStore:
    """Features of every utterance of a corpus, from the cache where audio and settings are the same.

    Args:
        corpus: utterances and their audio.
        config: the front end, or functionals.
        cache_dir: where features are kept; None is $XDG_CACHE_HOME/ser_fl, or ~/.cache/ser_fl.
        progress: told how far it is.
        classes: of an experiment of which this corpus is a part; None: the emotions that occur, by name.

    Raises:
        UserError: a file cannot be decoded (it is named), the corpus has fewer than two emotions, or the front end has
            mel bins without a frequency.
    """
    utterances = corpus.utterances
    classes = classes or tuple(sorted({utterance.emotion for utterance in utterances}))
    if len(classes) < 2:
        raise UserError(f"corpus {corpus.name!r} has one emotion only ({', '.join(classes)}): a classifier needs two")
    labels_N = torch.tensor([classes.index(utterance.emotion) for utterance in utterances])
    key = blake2b(repr((CACHE_VERSION, torch.__version__, config.key)).encode(), digest_size=16)

    def digests(start: int) -> bytes:
        return b"".join(map(corpus.content_digest, utterances[start : start + _BATCH]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for contents in pool.map(digests, range(0, len(utterances), _BATCH)):
            key.update(contents)
    folder = expand_home(cache_dir) if cache_dir else user_folder("XDG_CACHE_HOME", ".cache")
    name = f"{key.hexdigest()}.npy"
    if not cache_dir and not (folder / "features" / name).exists() and not _is_writable(folder / "features"):
        elsewhere = temporary_folder()
        _LOG.warning("features are kept in %s, since %s cannot be written; data.cache_dir=DIR", elsewhere, folder)
        folder = elsewhere
    file = folder / "features" / name
    shape = (len(utterances), config.num_features, config.num_frames)

    for is_filled in (False, True):
        # of another form, or none: a full disk or a crash may have cut it off
        with contextlib.suppress(FileNotFoundError, ValueError, EOFError, OverflowError, TypeError):
            store = open_store(file.absolute(), labels_N, utterances, classes)
            if store.features_NFL.dtype == torch.float32 and store.features_NFL.shape == shape:
                return store
        if not is_filled:
            _fill(file, corpus, build_frontend(config), shape, progress)
    raise UserError(f"{file} was just written and cannot be read: is the disk of data.cache_dir sound?")


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def open_store(
    file: Path,
    labels_N: Tensor,
    utterances: tuple[Utterance, ...],
    classes: tuple[str, ...],
    scales: SpeakerScales | None = None,
    copies: Copies | None = None,
    own_classes: Mapping[str, tuple[int, ...]] | None = None,
) -> FeatureStore:
    """Map features from their file. Copy-on-write, since torch has no read-only tensors: pages are shared until
    somebody writes, and nobody does. `open_memmap` reads plain numbers only, and refuses a file of objects, to be
    unpickled.
    """
    rows = np.lib.format.open_memmap(file, mode="c")
    return FeatureStore(file, torch.from_numpy(rows), labels_N, utterances, classes, scales, copies, own_classes or {})


def _fill(
    file: Path, corpus: Corpus, frontend: FrontEnd, shape: tuple[int, int, int], progress: OnFeatures | None
) -> None:
    """Decode, resample and transform in parallel batches into a temporary file, then rename it into place. Clips are
    transformed by one thread, alone or in batches of one size: the same bits whatever the corpus holds and however many
    cores there are.
    """
    total = len(corpus.utterances)
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file):
        # A name of its own: hosts that share the folder may run processes with the same number.
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    temporary = Path(name)

    def fill_batch(rows: NDArray[np.float32], start: int) -> int:
        batch, size = corpus.utterances[start : start + _BATCH], frontend.at_once
        with torch.inference_mode():
            for first in range(0, len(batch), size):
                clips_BT = torch.zeros(size, frontend.num_samples)
                for clip_T, utterance in zip(clips_BT, batch[first : first + size]):  # noqa: B905, the last is short
                    recording_T, rate_hz = corpus.read(utterance)
                    try:
                        clip_T[:] = frontend.clip(recording_T, rate_hz)
                    except UserError as error:
                        raise UserError(f"cannot use {utterance.utterance_id}: {error}") from None
                count = min(size, len(batch) - first)
                rows[start + first : start + first + count] = frontend(clips_BT)[:count].numpy()
        return len(batch)

    try:
        with naming(file):
            hold(handle, wait=True)  # nobody sweeps it up while it is open
            _sweep({*file.parent.glob(f".{file.name}.*")} - {temporary}, os.fstat(handle).st_mtime)
            rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            try:  # take the room: a disk that fills up while mapped memory is written would kill the process
                os.posix_fallocate(handle, 0, os.fstat(handle).st_size)
            except (AttributeError, OSError) as error:  # some systems and file systems cannot
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
        with float32_by_default(), threads_limited_to(1), ThreadPoolExecutor(os.cpu_count()) as pool:
            done = 0
            for count in pool.map(partial(fill_batch, rows), range(0, total, _BATCH)):
                done += count
                os.utime(temporary)
                if progress is not None:
                    progress(done, total)
        with naming(file):
            rows.flush()
            temporary.chmod(0o644)
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _sweep(left: Iterable[Path], now: float) -> None:
    """Remove temporary files that killed computations of the same features left behind. Locks do not reach between all
    hosts, so that a file must have been left alone for long: its time is far from now, by the file system's clock, in
    either direction, since clocks are set.
    """
    for temporary in left:
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # somebody else sweeps too, or writes it
            handle = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                hold(handle)
                if abs(now - os.fstat(handle).st_mtime) > _LEFT_BEHIND_S:
                    temporary.unlink()
            finally:
                os.close(handle)
