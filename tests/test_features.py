"""The feature cache: what is kept, when it is read, and what a failure leaves behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from ser_fl.config.frontend import FrontendConfig
from ser_fl.data.corpora import open_corpus
from ser_fl.data.features import FeatureStore, compute_features
from ser_fl.data.frontend import LogMel
from ser_fl.data.utterance import Utterance
from ser_fl.devices import threads_limited_to
from ser_fl.errors import UserError

SMALL = FrontendConfig(
    name="small",
    sample_rate_hz=4000,
    window_samples=128,
    hop_samples=64,
    num_mels=8,
    fmin_hz=20.0,
    fmax_hz=2000.0,
    duration_s=0.25,
    log_offset=1e-8,
    clip="training",
)


class NoiseCorpus:
    """Noise of unlike lengths and rates in memory, each utterance's from its id and the corpus's version."""

    name = "noise"
    synthetic = True

    def __init__(self, ids: tuple[str, ...], version: int = 0, emotions: tuple[str, ...] = ("anger", "fear")) -> None:
        self.version = version
        self.num_read = 0
        self.utterances = tuple(
            Utterance(utterance_id=name, emotion=emotions[int(name) % len(emotions)], speaker="s") for name in ids
        )

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        self.num_read += 1
        number = int(utterance.utterance_id)
        stream = torch.Generator().manual_seed(1000 * self.version + number)
        return 0.1 * torch.randn(500 + 10 * number, generator=stream), (4000, 8000)[number % 2]

    def content_digest(self, utterance: Utterance) -> bytes:
        return blake2b(f"{self.version} {utterance.utterance_id}".encode(), digest_size=16).digest()


class BrokenCorpus(NoiseCorpus):
    """As `NoiseCorpus`, except that a later utterance cannot be read."""

    def __init__(self, ids: tuple[str, ...], fail: Callable[[], None]) -> None:
        super().__init__(ids)
        self.fail = fail

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        if utterance.utterance_id == self.utterances[-3].utterance_id:
            self.fail()
        return super().read(utterance)


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"{number:03d}" for number in range(count))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refuse() -> None:
    raise UserError("cannot read that one")


def interrupt() -> None:
    raise KeyboardInterrupt


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_features_are_the_front_ends_and_labels_the_alphabets(tmp_path: Path) -> None:
    """70 utterances are three batches."""
    corpus = NoiseCorpus(ids(70), emotions=("sadness", "anger", "fear"))
    store = compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert store.classes == ("anger", "fear", "sadness")
    assert store.labels_N.tolist() == [(2, 0, 1)[number % 3] for number in range(70)]
    assert store.features_NFL.dtype == torch.float32
    assert store.features_NFL.shape == (70, SMALL.num_mels, SMALL.num_frames)
    frontend = LogMel(SMALL)
    for utterance, features_FL in zip(corpus.utterances, store.features_NFL, strict=True):
        alone = frontend(frontend.clip(*corpus.read(utterance))[None])[0]
        torch.testing.assert_close(features_FL, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("duration_s", "num_mels"), [(0.05, 64), (3.0, 37)])
@pytest.mark.parametrize(("cores", "threads"), [(1, 4), (3, 1)])
def test_a_clips_features_are_the_same_bits_whatever_surrounds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duration_s: float, num_mels: int, cores: int, threads: int
) -> None:
    """Other places in other batches, other neighbours, other numbers of cores and of torch's threads.

    Matrix products of these sizes do give other bits: the first in batches, the second with four threads.
    """
    config = replace(SMALL, sample_rate_hz=16000, window_samples=512, hop_samples=256, fmax_hz=8000.0)
    config = replace(config, duration_s=duration_s, num_mels=num_mels)
    expected = compute_features(NoiseCorpus(ids(40)), config, cache_dir=tmp_path)
    by_id = dict(zip((u.utterance_id for u in expected.utterances), expected.features_NFL, strict=True))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with threads_limited_to(threads):
        some = compute_features(NoiseCorpus(ids(40)[::-3]), config, cache_dir=tmp_path)
        assert torch.get_num_threads() == threads, "the caller keeps its threads"
    for utterance, row in zip(some.utterances, some.features_NFL, strict=True):
        assert torch.equal(row, by_id[utterance.utterance_id])


def test_second_call_reads_the_cache_and_no_audio(tmp_path: Path) -> None:
    corpus = NoiseCorpus(ids(5))
    first = compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert corpus.num_read == 5
    again = NoiseCorpus(ids(5))
    second = compute_features(again, SMALL, cache_dir=tmp_path)
    assert again.num_read == 0
    assert torch.equal(first.features_NFL, second.features_NFL)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate_hz": 4400},
        {"window_samples": 256},
        {"hop_samples": 32},
        {"num_mels": 9},
        {"fmin_hz": 30.0},
        {"fmax_hz": 1900.0},
        {"duration_s": 0.3},
        {"log_offset": 1e-6},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_computed_anew(tmp_path: Path, change: dict[str, float]) -> None:
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    corpus = NoiseCorpus(ids(3))
    compute_features(corpus, replace(SMALL, **change), cache_dir=tmp_path)
    assert corpus.num_read == 3
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("change", [{"name": "other"}, {"clip": "none"}], ids=lambda change: next(iter(change)))
def test_what_does_not_change_the_values_does_not_change_the_key(tmp_path: Path, change: dict[str, str]) -> None:
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    corpus = NoiseCorpus(ids(3))
    compute_features(corpus, replace(SMALL, **change), cache_dir=tmp_path)
    assert corpus.num_read == 0


@pytest.mark.parametrize(
    "corpus", [NoiseCorpus(ids(3), version=1), NoiseCorpus(ids(4)), NoiseCorpus(("001", "000", "002"))]
)
def test_other_audio_is_computed_anew(tmp_path: Path, corpus: NoiseCorpus) -> None:
    """Other content under the same names, one file more, another order."""
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    store = compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert corpus.num_read >= len(corpus.utterances)
    fresh = compute_features(corpus, SMALL, cache_dir=tmp_path / "fresh")
    assert torch.equal(store.features_NFL, fresh.features_NFL)


def test_other_labels_for_the_same_audio_share_the_features(tmp_path: Path) -> None:
    compute_features(NoiseCorpus(ids(4)), SMALL, cache_dir=tmp_path)
    relabelled = NoiseCorpus(ids(4), emotions=("sadness", "neutral"))
    store = compute_features(relabelled, SMALL, cache_dir=tmp_path)
    assert relabelled.num_read == 0
    assert store.classes == ("neutral", "sadness")
    assert store.labels_N.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("fail", "error"), [(refuse, UserError), (interrupt, KeyboardInterrupt)])
def test_failed_computation_leaves_no_file(
    tmp_path: Path, fail: Callable[[], None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        compute_features(BrokenCorpus(ids(70), fail), SMALL, cache_dir=tmp_path)
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_computation_leaves_nothing_that_is_taken_for_features(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    killed = context.Process(
        target=compute_features,
        args=(BrokenCorpus(ids(3), kill_self), SMALL),
        kwargs={"cache_dir": tmp_path},
    )
    killed.start()
    killed.join(timeout=60)
    assert killed.exitcode == -signal.SIGKILL
    assert [path for path in files(tmp_path) if path.suffix == ".npy"] == []
    corpus = NoiseCorpus(ids(3))
    store = compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert corpus.num_read == 3
    assert store.features_NFL.abs().sum() > 0


class WaitingCorpus(NoiseCorpus):
    """As `NoiseCorpus`, except that something happens before some of its utterances are read."""

    def __init__(self, ids: tuple[str, ...], before: dict[int, Callable[[], None]]) -> None:
        super().__init__(ids)
        self.before = {self.utterances[number].utterance_id: happen for number, happen in before.items()}

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        self.before.get(utterance.utterance_id, lambda: None)()
        return super().read(utterance)


def test_computations_of_equal_process_ids_do_not_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two hosts with one cache folder: the second has begun when the first ends, and ends later."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # the first batches are written before the last one is read
    begun, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert may_end.wait(60)

    with ThreadPoolExecutor(1) as pool:

        def begin() -> None:
            later.append(pool.submit(compute_features, WaitingCorpus(ids(70), {0: hold}), SMALL, cache_dir=tmp_path))
            assert begun.wait(60)

        later: list[Future[FeatureStore]] = []
        alone = compute_features(NoiseCorpus(ids(70)), SMALL, cache_dir=tmp_path / "alone")
        try:
            first = compute_features(WaitingCorpus(ids(70), {69: begin}), SMALL, cache_dir=tmp_path)
        finally:
            may_end.set()
        assert torch.equal(first.features_NFL, alone.features_NFL)
        assert torch.equal(later[0].result().features_NFL, alone.features_NFL)
    (file,) = files(tmp_path / "features")
    assert file.stat().st_mode & 0o777 == 0o644, "others who share the folder may read it"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[:100],
        lambda content: content[: len(content) // 2],
        lambda content: b"PK\x03\x04" + content,
        lambda content: content.replace(b"'<f4'", b"'<i4'"),
        lambda content: content.replace(b"(5, ", b"(4, "),
    ],
    ids=[
        "empty",
        "cut in the magic",
        "cut in the header",
        "cut in the rows",
        "an archive",
        "of whole numbers",
        "short",
    ],
)
def test_damaged_cache_is_computed_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = compute_features(NoiseCorpus(ids(5)), SMALL, cache_dir=tmp_path)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    file.unlink()  # the first store keeps its pages
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    corpus = NoiseCorpus(ids(5))
    store = compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert corpus.num_read == 5
    assert torch.equal(store.features_NFL, whole.features_NFL)
    assert file.read_bytes() == content


def test_what_killed_computations_left_behind_is_swept_up(tmp_path: Path) -> None:
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    (file,) = files(tmp_path)
    file.unlink()
    left = {file.with_name(f".{file.name}.{name}"): age_h for name, age_h in (("old", 2), ("young", 0.5))}
    left[file.with_name(".other.npy.old")] = 2
    for path, age_h in left.items():
        path.write_bytes(b"rows")
        os.utime(path, (time.time() - 3600 * age_h,) * 2)
    compute_features(NoiseCorpus(ids(3)), SMALL, cache_dir=tmp_path)
    assert {path.name.rpartition(".")[2] for path in files(tmp_path)} == {"npy", "young", "old"}
    assert not file.with_name(f".{file.name}.old").exists(), "of the same features"
    assert file.with_name(".other.npy.old").exists(), "of others, whose computation sweeps for itself"


def test_computation_touches_its_file_with_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a long one is not taken for a killed one: writing to mapped memory does not, on every file system."""
    touched: list[Path] = []
    monkeypatch.setattr(os, "utime", lambda path, *arguments, **named: touched.append(Path(path)))
    compute_features(NoiseCorpus(ids(70)), SMALL, cache_dir=tmp_path)
    assert len(touched) == 3
    assert {path.parent for path in touched} == {tmp_path / "features"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of memory maps")
def test_features_are_memory_mapped_and_writing_to_them_does_not_change_the_cache(tmp_path: Path) -> None:
    store = compute_features(NoiseCorpus(ids(5)), SMALL, cache_dir=tmp_path)
    [file] = files(tmp_path)
    assert str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")
    before = np.load(file)
    store.features_NFL[0] = 7.0
    assert np.array_equal(np.load(file), before)


def test_a_pickled_store_maps_the_same_file_and_holds_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = compute_features(NoiseCorpus(ids(400)), SMALL, cache_dir=Path("relative"))
    parcel = pickle.dumps(store)
    assert len(parcel) < store.features_NFL.nbytes / 2
    monkeypatch.chdir("/")
    again = pickle.loads(parcel)
    assert torch.equal(again.features_NFL, store.features_NFL) and torch.equal(again.labels_N, store.labels_N)
    assert (again.utterances, again.classes) == (store.utterances, store.classes)
    assert store.file.is_file() and again.file == store.file


def test_progress_counts_every_utterance_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    compute_features(NoiseCorpus(ids(70)), SMALL, cache_dir=tmp_path, progress=lambda *counts: told.append(counts))
    assert told == [(32, 70), (64, 70), (70, 70)]


def test_corpus_with_one_emotion_is_refused_before_any_work(tmp_path: Path) -> None:
    corpus = NoiseCorpus(ids(3), emotions=("anger",))
    with pytest.raises(UserError, match=r"corpus 'noise' has one emotion only \(anger\): a classifier needs two"):
        compute_features(corpus, SMALL, cache_dir=tmp_path)
    assert corpus.num_read == 0
    assert files(tmp_path) == []


@pytest.fixture
def cut_off_manifest(tmp_path: Path) -> Path:
    """A manifest of four files, one of them a FLAC file whose header is whole and whose rest is missing."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    samples = np.random.default_rng(0).normal(0, 0.1, 20_000)
    for name in ("a", "b", "c", "cut"):
        soundfile.write(folder / f"{name}.flac", samples, 4000)
    content = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    rows = ["path,emotion,speaker", "a.flac,anger,x", "b.flac,fear,x", "c.flac,fear,y", "cut.flac,anger,y"]
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_file_that_cannot_be_decoded_is_named(tmp_path: Path, cut_off_manifest: Path) -> None:
    corpus = open_corpus("manifest", cut_off_manifest)
    with pytest.raises(UserError, match=r"cannot read .*cut\.flac"):
        compute_features(corpus, SMALL, cache_dir=tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_file_that_cannot_be_decoded_is_skipped_where_that_is_asked_for(tmp_path: Path, cut_off_manifest: Path) -> None:
    corpus = open_corpus("manifest", cut_off_manifest, on_unreadable="skip")
    store = compute_features(corpus, SMALL, cache_dir=tmp_path / "cache")
    assert [utterance.utterance_id for utterance in store.utterances] == ["a.flac", "b.flac", "c.flac"]
