"""Corpus check and describe: faults that were planted are found, and nothing else is."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fl.data import inspection
from ser_fl.data.corpora import CORPORA, open_corpus
from ser_fl.errors import UserError

NEMO = Path(os.environ.get("SERFL_NEMO", Path(__file__).parents[2] / "shared" / "data" / "nemo"))
SAVEE_NUMBERS = {"a": 15, "d": 15, "f": 15, "h": 15, "n": 30, "sa": 15, "su": 15}


def write_savee(root: Path) -> None:
    """All 480 files of SAVEE, each of its own length (0.1 s and up at 8 kHz) and sound."""
    generator = np.random.default_rng(0)
    names = [
        (s, f"{c}{i:02d}") for s in ("DC", "JE", "JK", "KL") for c, n in SAVEE_NUMBERS.items() for i in range(1, n + 1)
    ]
    for index, (speaker, stem) in enumerate(names):
        (root / speaker).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / speaker / f"{stem}.wav", 0.1 * generator.standard_normal(800 + index), 8000)


def findings(root: Path, name: str = "savee") -> dict[str, list[inspection.Finding]]:
    found: dict[str, list[inspection.Finding]] = {}
    for finding in inspection.check(open_corpus(name, root, on_unreadable="skip"), CORPORA[name]):
        assert "\n" not in finding.text
        found.setdefault(finding.kind, []).append(finding)
    return found


def test_whole_and_sound_corpus_has_no_findings(tmp_path: Path) -> None:
    write_savee(tmp_path)
    assert findings(tmp_path) == {}


def test_different_rates_channels_and_long_files_are_told(tmp_path: Path) -> None:
    write_savee(tmp_path)
    noise = 0.1 * np.random.default_rng(1).standard_normal((9000, 2))
    soundfile.write(tmp_path / "DC" / "a01.wav", noise, 8000)
    soundfile.write(tmp_path / "DC" / "a02.wav", noise[:, 0], 16000)
    soundfile.write(tmp_path / "JE" / "n03.wav", np.tile(noise[:, 1], 30), 8000)
    found = findings(tmp_path)
    assert sorted(found) == ["length", "mixed"]
    assert [finding.text for finding in found["mixed"]] == [
        "the files have different sampling rates: 8000 Hz (479 files), 16000 Hz (1 files)",
        "the files have different numbers of channels: 1 (479 files), 2 (1 files)",
    ]
    assert [finding.utterance_ids for finding in found["length"]] == [("JE/n03.wav",)]
    assert found["length"][0].text == (
        "1 files last longer than 30 s, up to 34 s: of each the front end takes the first seconds alone "
        "(frontend.duration_s), unless data.segment_s=S makes utterances of S seconds of it: JE/n03.wav"
    )


def test_files_too_short_for_a_word_and_headers_that_err_are_told(tmp_path: Path) -> None:
    write_savee(tmp_path)
    noise = 0.1 * np.random.default_rng(1).standard_normal(9000)
    soundfile.write(tmp_path / "DC" / "a01.wav", noise[:399], 8000)
    soundfile.write(tmp_path / "DC" / "a02.wav", noise[:401], 8000)
    soundfile.write(tmp_path / "DC" / "a03.wav", noise, 8000, subtype="PCM_16")
    content = bytearray((tmp_path / "DC" / "a03.wav").read_bytes())
    content[40:44] = (2000).to_bytes(4, "little")
    (tmp_path / "DC" / "a03.wav").write_bytes(content)
    for name, format in (("a04", "OGG"), ("a05", "MP3"), ("a06", "AIFF"), ("a07", "RF64")):
        soundfile.write(tmp_path / "whole", np.tile(noise, 3)[: -int(name[1:])], 8000, format=format)
        whole = (tmp_path / "whole").read_bytes()
        (tmp_path / "DC" / f"{name}.wav").write_bytes(whole[: len(whole) * 2 // 3])
    found = findings(tmp_path)
    assert {kind: found[kind][0].utterance_ids for kind in ("length", "surplus", "cut_off")} == {
        "length": ("DC/a01.wav",),
        "surplus": ("DC/a03.wav",),
        "cut_off": ("DC/a04.wav", "DC/a05.wav", "DC/a06.wav", "DC/a07.wav"),
    }


def test_files_left_in_the_cloud_are_told(tmp_path: Path) -> None:
    write_savee(tmp_path)
    (tmp_path / "KL" / ".a01.wav.icloud").write_bytes(b"bplist00")
    (tmp_path / "KL" / "a01.wav").unlink()
    texts = [finding.text for finding in findings(tmp_path)["missing"]]
    assert texts == ["1 files are in iCloud and not on this machine; download them: .a01.wav.icloud"]


def test_speakers_that_differ_by_case_only_are_told(tmp_path: Path) -> None:
    rows = ["path,emotion,speaker"]
    for number, (emotion, speaker) in enumerate(itertools.product(("joy", "fear"), ("Ann", "ann", "bob"))):
        soundfile.write(
            tmp_path / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 4000 + number), 16000
        )
        rows.append(f"{number}.wav,{emotion},{speaker}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    assert [finding.text for finding in findings(tmp_path, "manifest")["spelling"]] == [
        "speakers whose names differ by case only are different: 'Ann' and 'ann'"
    ]


def test_an_emotion_that_was_recorded_elsewhere_is_told(tmp_path: Path) -> None:
    write_savee(tmp_path)
    for path in tmp_path.glob("*/h*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, np.stack([samples, samples], axis=1), 2 * rate)
    shortcuts = [finding.text for finding in findings(tmp_path)["shortcut"]]
    assert sorted(text.split(" alone ")[0] for text in shortcuts) == ["the channels", "the sample rate"]
    assert all("tells the emotion with UAR 2" in text and "(chance 14.3)" in text for text in shortcuts)


def test_each_planted_fault_is_found(tmp_path: Path) -> None:
    write_savee(tmp_path)
    (tmp_path / "DC" / "a01.wav").unlink()
    tone = np.sin(np.arange(1000) / 20)
    soundfile.write(tmp_path / "DC" / "a02.wav", np.full(900, 1e-4), 8000)
    soundfile.write(tmp_path / "DC" / "a03.wav", np.clip(2 * tone, -1, 1), 8000)
    (tmp_path / "DC" / "a04.wav").write_bytes(b"no audio")
    samples, _ = soundfile.read(tmp_path / "DC" / "a05.wav", dtype="int16")
    soundfile.write(tmp_path / "JE" / "su15.wav", samples, 8000)
    found = findings(tmp_path)
    assert sorted(found) == ["clipped", "counts", "duplicate", "silent", "unreadable"]
    assert [finding.utterance_ids for finding in found["silent"]] == [("DC/a02.wav",)]
    assert [finding.utterance_ids for finding in found["clipped"]] == [("DC/a03.wav",)]
    assert [finding.utterance_ids for finding in found["unreadable"]] == [("DC/a04.wav",)]
    assert [finding.utterance_ids for finding in found["duplicate"]] == [("DC/a05.wav", "JE/su15.wav")]
    assert [finding.text for finding in found["counts"]] == [
        "utterances (found of published): 478 of 480",
        "utterances by emotion (found of published): anger 58 of 60",
        "utterances by speaker (found of published): DC 118 of 120",
        "utterances by speaker and emotion (found of published): DC anger 13 of 15",
    ]


def test_normalised_peaks_are_not_clipping(tmp_path: Path) -> None:
    """A speech-like tone that touches full scale for an instant is fine; one that is flat there is not."""
    write_savee(tmp_path)
    tone = np.sin(2 * np.pi * 200 * np.arange(4000) / 8000)
    soundfile.write(tmp_path / "DC" / "a01.wav", tone, 8000)
    assert findings(tmp_path) == {}
    soundfile.write(tmp_path / "DC" / "a01.wav", -np.abs(np.clip(1.5 * tone, -1, 1)), 8000)
    assert [finding.utterance_ids for finding in findings(tmp_path)["clipped"]] == [("DC/a01.wav",)]


@pytest.mark.parametrize(("num_cut", "is_found"), [(9, False), (10, True)])
def test_many_files_of_the_greatest_length_were_cut(tmp_path: Path, num_cut: int, is_found: bool) -> None:
    """Two in a hundred of 480 are ten."""
    write_savee(tmp_path)
    generator = np.random.default_rng(1)
    for number in range(1, num_cut + 1):
        soundfile.write(tmp_path / "JE" / f"a{number:02d}.wav", 0.1 * generator.standard_normal(8000), 8000)
    found = findings(tmp_path)
    assert ("equal_length" in found) == is_found
    if is_found:
        assert len(found["equal_length"][0].utterance_ids) == num_cut
        assert "1.000 s" in found["equal_length"][0].text


def test_many_files_of_one_length_were_cut_though_others_are_longer(tmp_path: Path) -> None:
    """66 of 480 files end at exactly 0.11 s, in the middle of the others' lengths, and 20 at another place."""
    write_savee(tmp_path)
    generator = np.random.default_rng(1)
    paths = sorted(tmp_path.rglob("*.wav"))
    for path in paths[:66]:
        soundfile.write(path, 0.1 * generator.standard_normal(880), 8000)
    for path in paths[66:86]:
        soundfile.write(path, 0.1 * generator.standard_normal(1200), 8000)
    found = findings(tmp_path)["equal_length"]
    assert [len(finding.utterance_ids) for finding in found] == [66, 21], "one has that length by itself"
    assert "0.110 s" in found[0].text


def test_one_length_for_all_is_found_and_two_as_well(tmp_path: Path) -> None:
    write_savee(tmp_path)
    generator = np.random.default_rng(1)
    for number, path in enumerate(sorted(tmp_path.rglob("*.wav"))):
        soundfile.write(path, 0.1 * generator.standard_normal(800 if number % 2 else 1200), 8000)
    assert [len(finding.utterance_ids) for finding in findings(tmp_path)["equal_length"]] == [240, 240]


def test_lengths_of_whole_video_frames_are_no_fault(tmp_path: Path) -> None:
    """CREMA-D and RAVDESS were cut from films: every length recurs, the middle ones in more than 2 % of the files."""
    write_savee(tmp_path)
    generator = np.random.default_rng(1)
    for path in tmp_path.rglob("*.wav"):
        frames = max(round(generator.normal(60, 8)), 1)
        soundfile.write(path, 0.1 * generator.standard_normal(16 * frames), 8000)
    assert findings(tmp_path) == {}


def test_file_shorter_than_its_header_says_was_cut_off(tmp_path: Path) -> None:
    write_savee(tmp_path)
    path = tmp_path / "DC" / "a07.wav"
    path.write_bytes(path.read_bytes()[:1000])
    found = findings(tmp_path)
    assert sorted(found) == ["cut_off"]
    assert found["cut_off"][0].utterance_ids == ("DC/a07.wav",)


def test_files_that_cannot_be_used_for_one_reason_are_one_finding(tmp_path: Path) -> None:
    write_savee(tmp_path)
    for number in range(1, 11):
        samples = np.full(900 + number, 100.0 * number)
        soundfile.write(tmp_path / "DC" / f"a{number:02d}.wav", samples, 8000, subtype="FLOAT")
    found = findings(tmp_path)["unreadable"]
    assert [len(finding.utterance_ids) for finding in found] == [10]
    assert found[0].text.startswith("10 files: samples far beyond [-1, 1]; rescale the file: DC/a01.wav, ")
    described = inspection.describe(open_corpus("savee", tmp_path, on_unreadable="skip"))
    assert len(described.unreadable) == 10
    stopped = inspection.check(open_corpus("savee", tmp_path), CORPORA["savee"])
    assert [finding.text for finding in stopped if finding.kind == "unreadable"] == [found[0].text]


def test_what_was_not_published_is_said() -> None:
    assert inspection.not_published(CORPORA["savee"]) == ()
    assert inspection.not_published(CORPORA["nemo"]) == ("by speaker", "by speaker and emotion")
    assert inspection.not_published(CORPORA["emodb"]) == ("by speaker and emotion",)
    assert inspection.not_published(CORPORA["manifest"])[0] == "of all utterances"


def test_equal_sound_is_found_across_file_formats_but_not_for_silence(tmp_path: Path) -> None:
    samples = (np.random.default_rng(0).standard_normal(900) * 3000).astype(np.int16)
    for name, content in [("a.wav", samples), ("b.flac", samples), ("c.wav", samples * 0), ("d.wav", samples * 0)]:
        soundfile.write(tmp_path / name, content, 16000)
    (tmp_path / "manifest.csv").write_text(
        "path,emotion,speaker\n" + "".join(f"{n},fear,s1\n" for n in ("a.wav", "b.flac", "c.wav", "d.wav"))
    )
    found = findings(tmp_path, "manifest")
    assert sorted(found) == ["duplicate", "silent"]
    assert [finding.utterance_ids for finding in found["duplicate"]] == [("a.wav", "b.flac")]
    assert found["silent"][0].utterance_ids == ("c.wav", "d.wav")


def test_file_cut_off_behind_its_header_is_unreadable(tmp_path: Path) -> None:
    write_savee(tmp_path)
    noise = np.random.default_rng(1).standard_normal(50_000) * 0.1
    (tmp_path / "DC" / "a01.wav").unlink()
    soundfile.write(tmp_path / "DC" / "a01.flac", noise, 8000)
    content = (tmp_path / "DC" / "a01.flac").read_bytes()
    (tmp_path / "DC" / "a01.flac").write_bytes(content[:20_000])
    corpus = open_corpus("savee", tmp_path)
    with pytest.raises(UserError, match=r"DC/a01\.flac"):
        corpus.read(corpus.utterances[0])
    assert findings(tmp_path)["unreadable"][0].utterance_ids == ("DC/a01.flac",)
    assert inspection.describe(corpus).unreadable == ("DC/a01.flac",)


def test_counts_are_not_compared_under_other_labels(tmp_path: Path) -> None:
    write_savee(tmp_path)
    corpus = open_corpus("savee", tmp_path, labels={"a": "anger", "h": "happiness"})
    kinds = [finding.kind for finding in inspection.check(corpus, CORPORA["savee"])]
    assert kinds == ["counts", "shortcut"], "of these two emotions, one has the shorter files throughout"


def test_description(tmp_path: Path) -> None:
    rows = [
        ("a.wav", "fear", "s2", 16000, 16000),
        ("b.wav", "fear", "s1", 4000, 8000),
        ("c.wav", "anger", "s1", 32000, 16000),
    ]
    for name, _, _, num_samples, rate in rows:
        soundfile.write(tmp_path / name, np.full(num_samples, 0.1), rate)
    lines = [f"{name},{emotion},{speaker}" for name, emotion, speaker, _, _ in rows]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,emotion,speaker", *lines]))
    description = inspection.describe(open_corpus("manifest", tmp_path))
    assert description.emotions == ("anger", "fear")
    assert list(description.counts.items()) == [("s1", {"anger": 1, "fear": 1}), ("s2", {"anger": 0, "fear": 1})]
    assert description.sample_rates_hz == {8000: 1, 16000: 2}
    assert description.unreadable == ()
    anger, fear, total = description.durations
    assert (anger.emotion, anger.num_utterances, anger.total_s, anger.median_s) == ("anger", 1, 2.0, 2.0)
    assert (fear.num_utterances, fear.total_s, fear.shortest_s, fear.longest_s) == (2, 1.5, 0.5, 1.0)
    assert (total.emotion, total.num_utterances, total.total_s) == ("all", 3, 3.5)
    assert (total.p05_s, total.median_s, total.p95_s) == pytest.approx((0.55, 1.0, 1.9))


@pytest.mark.skipif(not NEMO.exists(), reason="the nEMO subset is not here")
def test_forty_sentence_nemo_is_told_from_the_whole() -> None:
    found = findings(NEMO, "nemo")
    assert sorted(found) == ["counts", "missing"]
    assert found["counts"][0].text == "utterances (found of published): 2006 of 4481"
    assert found["missing"][0].text == "1 of 9 speakers lack an emotion: MK0 (surprise)"
