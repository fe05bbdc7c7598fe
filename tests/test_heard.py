"""What a model has heard: recordings are known again by their sound, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fl.config.compose import compose
from ser_fl.data.corpora import open_corpus
from ser_fl.data.features import FeatureStore, compute_features
from ser_fl.data.heard import BANDS, MOMENTS, Heard, Shared, fingerprints
from ser_fl.data.splits import Split
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.errors import UserError

FRONTEND = compose([]).frontend
CORPUS = SyntheticCorpus(4, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return compute_features(CORPUS, FRONTEND, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def heard(store: FeatureStore) -> Heard:
    return Heard.of(store, half(store), FRONTEND)


def half(store: FeatureStore) -> Split:
    rows = range(len(store.utterances))
    return Split(tuple(rows[0::4]), tuple(rows[2::4]), tuple(rows[1::2]))


def written(folder: Path, rate: int, suffix: str = ".wav", gain: float = 1.0) -> FeatureStore:
    """The same recordings as files of another rate, format and volume, under other names."""
    lines = ["path,emotion,speaker"]
    for number, utterance in enumerate(CORPUS.utterances):
        from ser_fl.data.frontend import resample

        waveform_T, hz = CORPUS.read(utterance)
        soundfile.write(folder / f"{number}{suffix}", gain * resample(waveform_T, hz, rate).numpy(), rate)
        lines.append(f"{number}{suffix},{utterance.emotion},somebody{number % 3}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    corpus = open_corpus("manifest", folder, channel="first", on_unreadable="stop", labels=None, to_hz=16_000)
    return compute_features(corpus, FRONTEND, cache_dir=folder / "cache")


def test_what_was_heard_is_known_and_nothing_else(store: FeatureStore, heard: Heard) -> None:
    split = half(store)
    everything = tuple(range(len(store.utterances)))
    assert heard.recordings(store, everything, FRONTEND) == sorted((*split.train, *split.validation))
    assert heard.recordings(store, split.test, FRONTEND) == []
    assert heard.recordings(store, (), FRONTEND) == []


@pytest.mark.parametrize(
    ("rate", "suffix", "gain"),
    [(48_000, ".wav", 1.0), (22_050, ".flac", 1.0), (8_000, ".wav", 1.0), (16_000, ".ogg", 1.0), (44_100, ".wav", 0.5)],
)
def test_copies_of_another_rate_format_or_volume_are_known(
    rate: int, suffix: str, gain: float, heard: Heard, tmp_path: Path
) -> None:
    copies = written(tmp_path, rate, suffix, gain)
    number = [int(Path(utterance.utterance_id).stem) for utterance in copies.utterances]
    found = heard.recordings(copies, tuple(range(len(number))), FRONTEND)
    assert sorted(number[row] for row in found) == list(range(0, len(number), 2))


def test_parts_of_a_corpus_are_heard_as_the_whole(
    store: FeatureStore, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = heard.recordings(store, tuple(range(len(store.utterances))), FRONTEND)
    monkeypatch.setattr("ser_fl.data.heard._AT_ONCE", 7)
    in_parts = Heard.of(store, half(store), FRONTEND)
    assert torch.equal(in_parts.fingerprints_NP, heard.fingerprints_NP)
    assert in_parts.recordings(store, tuple(range(len(store.utterances))), FRONTEND) == whole


def test_noise_is_known_by_its_own_sound_alone(store: FeatureStore) -> None:
    """Steady noises have fingerprints that are nearly alike: two of them are no more one recording for that."""
    frames = torch.randn(8, *store.features_NFL.shape[1:], generator=torch.Generator().manual_seed(1))
    noise = replace(store, features_NFL=frames * 0.5 - 4)
    known = Heard.of(noise, Split((0, 1), (2,), ()), FRONTEND)
    assert known.recordings(noise, tuple(range(8)), FRONTEND) == [0, 1, 2]


def test_silence_is_nobodys_recording(store: FeatureStore, heard: Heard) -> None:
    silent = replace(store, features_NFL=torch.full_like(store.features_NFL, -18.4))
    assert heard.recordings(silent, (0, 1, 2), FRONTEND) == []
    pause_NFL = torch.full_like(store.features_NFL, float(np.log(np.float32(1e-8))))
    for clicks in (0.0, 6.0):  # as in cut recordings, of which some begin before anybody speaks
        pause_NFL[:, :, 10:13] += clicks
        pauses = replace(store, features_NFL=pause_NFL)
        assert Heard.of(pauses, Split((0, 1), (2,), ()), FRONTEND).recordings(pauses, (3, 4), FRONTEND) == []
    of_silence = replace(heard, fingerprints_NP=torch.zeros_like(heard.fingerprints_NP))
    assert of_silence.recordings(silent, (0,), FRONTEND) == of_silence.recordings(store, (0,), FRONTEND) == []


def test_what_is_read_is_what_was_written(heard: Heard, store: FeatureStore, tmp_path: Path) -> None:
    table, sounds = tmp_path / "heard.json", tmp_path / "heard.safetensors"
    assert Heard.read(table, sounds) is None
    heard.write(table, sounds)
    again = Heard.read(table, sounds)
    assert again is not None
    assert (again.ids, again.speakers, again.texts) == (heard.ids, heard.speakers, heard.texts)
    assert torch.equal(again.fingerprints_NP, heard.fingerprints_NP)
    sounds.write_bytes(sounds.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"heard\.safetensors is damaged"):
        Heard.read(table, sounds)


def test_fingerprints_leave_out_the_volume_and_what_a_telephone_does() -> None:
    stream = torch.Generator().manual_seed(1)
    features_NFL = torch.randn(3, FRONTEND.num_mels, 186, generator=stream)
    changed = features_NFL + 1.5
    changed[:, -8:] = 7.0  # far above 3400 Hz
    assert fingerprints(features_NFL, FRONTEND).shape == (3, BANDS * MOMENTS)
    assert torch.allclose(
        fingerprints(changed, FRONTEND).float(), fingerprints(features_NFL, FRONTEND).float(), atol=2e-3
    )


def test_sharing_in_words(store: FeatureStore, heard: Heard) -> None:
    rows = tuple(range(6))
    texts = frozenset(text.upper() for u in store.utterances[:6] if (text := u.text))
    unheard = replace(heard, speakers=frozenset(), texts=texts, fingerprints_NP=heard.fingerprints_NP[:0])
    shared = unheard.shared(store, rows, FRONTEND)
    assert str(shared) == (f"shared with training: none of 1 speakers, all of {len(texts)} texts, none of 6 recordings")
    known = replace(heard, speakers=frozenset({store.utterances[0].speaker}), texts=frozenset())
    with pytest.raises(UserError, match="3 of 6 utterances were heard in training"):
        known.shared(store, rows, FRONTEND)
    shared = known.shared(store, rows, FRONTEND, allow_seen=True)
    assert "all of 1 speakers" in str(shared) and "3 of 6 recordings" in str(shared)
    nameless = replace(store, utterances=tuple(replace(utterance, text=None) for utterance in store.utterances))
    assert "unknown texts" in str(unheard.shared(nameless, rows, FRONTEND))
    told = "shared with training: 1 of 2 speakers, texts and recordings are known to the clients' machines alone"
    assert str(Shared(num_utterances=4, speakers=1, num_speakers=2)) == told


def test_lowest_rates_have_fingerprints_too() -> None:
    low = replace(FRONTEND, sample_rate_hz=8000, fmax_hz=3000.0, window_samples=256, hop_samples=128, num_mels=16)
    assert np.isfinite(fingerprints(torch.randn(2, 16, 40), low).numpy()).all()
