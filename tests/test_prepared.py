"""Preparing an experiment's data: standardised by what is trained on, and open about what was left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data import prepared
from ser_fl.data.features import FeatureStore, compute_features
from ser_fl.data.frontend import LogMel
from ser_fl.data.heard import Heard
from ser_fl.data.prepared import Host, Prepared, open_node_corpus, prepare
from ser_fl.data.splits import SpeakerFacts, settle_split
from ser_fl.errors import UserError


def debug(tmp_path: Path, *settings: str) -> Config:
    return compose(["experiment=debug", f"data.cache_dir={tmp_path / 'cache'}", *settings])


def mean(made: Prepared) -> list[float]:
    return made.standardisation.mean_F1.flatten().tolist()


@pytest.mark.parametrize(
    "settings", [[], ["federation=centralised"], ["clients=iid"], ["split=speaker_independent", "data.num_speakers=4"]]
)
def test_standardisation_comes_from_the_clients_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    """Scaled validation and test rows change nothing, not even the box; scaled training rows do."""
    config = debug(tmp_path, *settings, "split.num_test_speakers=1", "split.num_validation_speakers=1")
    plain = prepare(config)
    trained = sorted(index for indices in plain.clients.values() for index in indices)
    assert trained == sorted(plain.split.train)
    rows_NFL = plain.store.features_NFL[trained].double()
    assert mean(plain) == pytest.approx(rows_NFL.mean((0, 2)).tolist(), abs=1e-4)

    def scale(indices: tuple[int, ...]) -> Prepared:
        def scaled(*arguments: object, **named: object) -> FeatureStore:
            store = compute_features(*arguments, **named)  # type: ignore[arg-type]
            features_NFL = store.features_NFL.clone()
            features_NFL[list(indices)] *= 0.1
            return FeatureStore(store.file, features_NFL, store.labels_N, store.utterances, store.classes)

        monkeypatch.setattr(prepared, "compute_features", scaled)
        return prepare(config)

    held = scale(plain.split.validation + plain.split.test)
    for name, tensor in plain.standardisation.state_dict().items():
        assert torch.equal(held.standardisation.state_dict()[name], tensor), name
    assert mean(scale(plain.split.train)) == pytest.approx([0.1 * value for value in mean(plain)], rel=1e-4)


def test_capped_clients_standardise_by_what_they_hold(tmp_path: Path) -> None:
    """With one client of two speakers, the other's training utterances are nobody's."""
    made = prepare(debug(tmp_path, "clients.num_clients=1"))
    (held,) = made.clients.values()
    assert len(held) < len(made.split.train)
    assert mean(made) == pytest.approx(made.store.features_NFL[list(held)].double().mean((0, 2)).tolist(), abs=1e-4)


def write_corpus(folder: Path) -> None:
    """Two speakers, two emotions, five clips each, and one file whose samples are no numbers."""
    folder.mkdir()
    rows = ["path,emotion,speaker"]
    generator = np.random.default_rng(0)
    for number in range(20):
        soundfile.write(folder / f"{number:02d}.wav", generator.uniform(-0.5, 0.5, 4000), 16000)
        rows.append(f"{number:02d}.wav,{('anger', 'fear')[number % 2]},{('ann', 'bob')[number // 10]}")
    soundfile.write(folder / "nan.wav", np.full(4000, np.nan, np.float32), 16000, subtype="FLOAT")
    (folder / "manifest.csv").write_text("\n".join([*rows, "nan.wav,anger,ann"]), encoding="utf-8")


def test_skipped_files_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the corpus and the cache are found below the home folder."""
    write_corpus(tmp_path / "speech")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = ["data=manifest", "data.root=~/speech", "data.cache_dir=~/kept"]
    with pytest.raises(UserError, match=r"cannot use .*nan\.wav: some samples are no numbers"):
        prepare(debug(tmp_path, *settings))
    made = prepare(debug(tmp_path, *settings, "data.on_unreadable=skip"))
    assert [(file.utterance_id, "no numbers" in file.reason) for file in made.skipped] == [("nan.wav", True)]
    assert "nan.wav" not in {utterance.utterance_id for utterance in made.store.utterances}
    assert list((tmp_path / "kept" / "features").iterdir())
    assert prepare(debug(tmp_path)).skipped == ()


def test_speakers_are_named_in_any_form(tmp_path: Path) -> None:
    """Their names typed as macOS writes them, or with what cannot be seen, are those of the table."""
    write_corpus(tmp_path / "speech")
    table = tmp_path / "speech" / "manifest.csv"
    table.write_text(table.read_text().rpartition("\n")[0].replace("ann", "Jos\u00e9 1"), encoding="utf-8")
    typed = "Jose\u0301\u00a01\u200b"
    config = debug(tmp_path, "data=manifest", f"data.root={tmp_path / 'speech'}", "split=speaker_independent")
    config = replace(config, split=replace(config.split, test_speakers=(typed,), validation_speakers=("bob",)))
    assert config.split.test_speakers == (typed,), "what was typed stays"
    known = [
        SpeakerFacts(speaker=name, sex=None, emotions={"joy": 4}, texts={}) for name in ("Jos\u00e9 1", "bob", "eve")
    ]
    assert settle_split(known, config.split).test_speakers == ("Jos\u00e9 1",)
    host = Host(str(tmp_path / "speech"), str(tmp_path / "cache"), (typed,))
    assert {utterance.speaker for utterance in open_node_corpus(config, host).utterances} == {"Jos\u00e9 1"}


def test_segments_of_long_files_are_what_is_trained_on(tmp_path: Path) -> None:
    """Each with features of its own, from its own second; the digest of the data tells of them."""
    folder = tmp_path / "speech"
    write_corpus(folder)
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 16000 * 10).astype(np.float32)
    soundfile.write(folder / "long.wav", noise, 16000, subtype="FLOAT")
    table = folder / "manifest.csv"
    table.write_text(table.read_text().replace("nan.wav,anger,ann", "long.wav,anger,ann"))
    settings = ["data=manifest", f"data.root={folder}", "frontend.duration_s=1.0"]
    whole, cut = (prepare(debug(tmp_path, *settings, *more)) for more in ([], ["data.segment_s=2.5"]))
    assert (len(whole.store.utterances), len(cut.store.utterances)) == (21, 24)
    frontend = LogMel(debug(tmp_path, *settings).frontend)
    for k, row in enumerate(range(20, 24)):
        assert cut.store.utterances[row].utterance_id == f"long.wav#{k}"
        clip_T = torch.from_numpy(noise[k * 40_000 :][:16000])
        torch.testing.assert_close(cut.store.features_NFL[row], frontend(clip_T[None])[0], rtol=0, atol=1e-4)
    assert cut.client_manifest().digest != whole.client_manifest().digest
    heard = Heard.of(cut.store, cut.split, debug(tmp_path, *settings).frontend)
    segments_heard = [name for name in heard.ids if name.startswith("long.wav#")]
    assert len(segments_heard) == sum(row >= 20 for row in (*cut.split.train, *cut.split.validation))
    assert len(heard.fingerprints_NP) == len(heard.ids)
    with pytest.raises(UserError, match=r"data\.segment_s goes with files, got 3 with data=builtin"):
        debug(tmp_path, "data.segment_s=3")
    with pytest.raises(UserError, match=r"data\.segment_s must be .*0\.1.*got 0"):
        debug(tmp_path, *settings, "data.segment_s=0")


def test_emotions_that_are_scored_and_never_trained_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_corpus(tmp_path / "speech")
    table = tmp_path / "speech" / "manifest.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:-1]]
    parts = ("train", "validation", "test", "train", "train")
    emotions = ("anger", "fear", "joy", "anger", "anger")
    lines = [f"{path},{emotions[n % 5]},{who},{parts[n % 5]}" for n, (path, _, who) in enumerate(rows)]
    settings = ["data=manifest", f"data.root={tmp_path / 'speech'}", "split=published"]
    table.write_text("\n".join(["path,emotion,speaker,split", *lines]))
    prepare(debug(tmp_path, *settings))
    assert [record.getMessage() for record in caplog.records] == [
        "the training part lacks these emotions of the validation part: fear (4)",
        "the validation part lacks these emotions of the training part: anger (12)",
        "the training part lacks these emotions of the test part: joy (4)",
        "the test part lacks these emotions of the training part: anger (12)",
        "2 of 2 clients hold one emotion only, the first is ann",
    ]
    caplog.clear()
    lines = [f"{path},{('anger', 'fear')[n % 2]},{who},{parts[n // 2 % 5]}" for n, (path, _, who) in enumerate(rows)]
    table.write_text("\n".join(["path,emotion,speaker,split", *lines]))
    prepare(debug(tmp_path, *settings))
    assert caplog.records == []
