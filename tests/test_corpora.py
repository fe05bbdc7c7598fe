"""Corpus readers against tiny made-up trees in each corpus's published layout, and in the layouts copies come in."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ser_fl.data.corpora import CORPORA, CorpusInfo, named_files, open_corpus
from ser_fl.data.corpora.folder import list_files
from ser_fl.data.utterance import EMOTIONS, Utterance, has_unseen, plain
from ser_fl.errors import UserError

NEMO = Path(os.environ.get("SERFL_NEMO", Path(__file__).parents[2] / "shared" / "data" / "nemo"))


def write_audio(path: Path, *, seed: str | None = None, channels: int = 1) -> None:
    """A tiny real audio file; its samples follow from its name, or from the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32((seed or path.stem).encode()))
    soundfile.write(path, generator.integers(-9000, 9000, (64, channels)).astype(np.int16), 16000)


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


# What each corpus's naming scheme says about a name: path as published, emotion, speaker, sex, text, session.
Expected = tuple[str, str, str, str | None, str | None, str | None]
NAMED: dict[str, list[Expected]] = {
    "emodb": [
        ("wav/03a01Fa.wav", "happiness", "03", "male", "a01", None),
        ("wav/08b10Wa.wav", "anger", "08", "female", "b10", None),
        ("wav/09a02Ea.wav", "disgust", "09", "female", "a02", None),
        ("wav/10b02La.wav", "boredom", "10", "male", "b02", None),
        ("wav/11a01Ab.wav", "fear", "11", "male", "a01", None),
        ("wav/14b03Ta.wav", "sadness", "14", "female", "b03", None),
        ("wav/16a04Nc.wav", "neutral", "16", "female", "a04", None),
    ],
    "emovo": [
        ("f1/dis-f1-b1.wav", "disgust", "f1", "female", "b1", None),
        ("f2/gio-f2-l4.wav", "happiness", "f2", "female", "l4", None),
        ("f3/neu-f3-n5.wav", "neutral", "f3", "female", "n5", None),
        ("m1/pau-m1-d1.wav", "fear", "m1", "male", "d1", None),
        ("m2/rab-m2-b3.wav", "anger", "m2", "male", "b3", None),
        ("m3/sor-m3-n1.wav", "surprise", "m3", "male", "n1", None),
        ("m3/tri-m3-n1.wav", "sadness", "m3", "male", "n1", None),
    ],
    "ravdess": [
        (f"Actor_{actor}/03-01-{code}-01-{statement}-01-{actor}.wav", emotion, actor, sex, text, None)
        for actor, code, emotion, statement in [
            ("01", "01", "neutral", "01"),
            ("02", "02", "calm", "02"),
            ("03", "03", "happiness", "01"),
            ("04", "04", "sadness", "02"),
            ("23", "05", "anger", "01"),
            ("24", "06", "fear", "02"),
            ("07", "07", "disgust", "01"),
            ("08", "08", "surprise", "02"),
        ]
        for sex in ["male" if int(actor) % 2 else "female"]
        for text in [
            f"{'Kids' if statement == '01' else 'Dogs'} are {'talking' if statement == '01' else 'sitting'} by the door"
        ]
    ],
    "cremad": [
        ("AudioWAV/1001_DFA_ANG_XX.wav", "anger", "1001", "male", "DFA", None),
        ("AudioWAV/1002_IEO_DIS_LO.wav", "disgust", "1002", "female", "IEO", None),
        ("AudioWAV/1091_IEO_FEA_HI.wav", "fear", "1091", "female", "IEO", None),
        ("AudioWAV/1090_IEO_HAP_MD.wav", "happiness", "1090", "male", "IEO", None),
        ("AudioWAV/1076_MTI_NEU_XX.wav", "neutral", "1076", "female", "MTI", None),
        ("AudioWAV/1040_ITH_SAD_X.wav", "sadness", "1040", "male", "ITH", None),
    ],
    "savee": [
        ("AudioData/DC/a01.wav", "anger", "DC", "male", "a01", None),
        ("AudioData/JE/d15.wav", "disgust", "JE", "male", "d15", None),
        ("AudioData/JK/f03.wav", "fear", "JK", "male", "f03", None),
        ("AudioData/KL/h02.wav", "happiness", "KL", "male", "h02", None),
        ("AudioData/KL/n30.wav", "neutral", "KL", "male", "n30", None),
        ("AudioData/KL/sa01.wav", "sadness", "KL", "male", "sa01", None),
        ("AudioData/DC/su01.wav", "surprise", "DC", "male", "su01", None),
    ],
    "tess": [
        ("OAF_angry/OAF_back_angry.wav", "anger", "OAF", "female", "back", None),
        ("OAF_neutral/OA_bite_neutral.wav", "neutral", "OAF", "female", "bite", None),
        ("OAF_Pleasant_surprise/OAF_back_ps.wav", "surprise", "OAF", "female", "back", None),
        ("YAF_disgust/YAF_youth_disgust.wav", "disgust", "YAF", "female", "youth", None),
        ("YAF_fear/YAF_back_fear.wav", "fear", "YAF", "female", "back", None),
        ("YAF_happy/YAF_back_happy.wav", "happiness", "YAF", "female", "back", None),
        ("YAF_sad/YAF_back_sad.wav", "sadness", "YAF", "female", "back", None),
    ],
}


def facts(utterance: Utterance) -> tuple[str, str, str | None, str | None, str | None]:
    return utterance.emotion, utterance.speaker, utterance.sex, utterance.text, utterance.session


def published(row: Expected) -> str:
    return row[0]


def flat(row: Expected) -> str:
    """All files in one folder; SAVEE's then bear the speaker."""
    path = Path(row[0])
    return f"{row[2]}_{path.name}" if path.parts[0] == "AudioData" else path.name


def as_flac(row: Expected) -> str:
    return str(Path(row[0]).with_suffix(".flac"))


def by_emotion(row: Expected) -> str:
    """Below the published folder, so that SAVEE's speakers are still told."""
    path = Path(row[0])
    return (path.parent / row[1] / path.name).as_posix()


LAYOUTS: dict[str, Callable[[Expected], str]] = {
    "published": published,
    "flat": flat,
    "deeper": lambda row: f"unpacked/audio/{row[0]}",
    "flac": as_flac,
    "by emotion": by_emotion,
    "upper case": lambda row: (Path(row[0]).parent / Path(row[0]).name.upper()).as_posix(),
    "lower case": lambda row: row[0].lower(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMED)
def test_named_corpora_in_every_layout(tmp_path: Path, name: str, layout: str) -> None:
    rows = {LAYOUTS[layout](row): row[1:] for row in NAMED[name]}
    for path in rows:
        write_audio(tmp_path / path)
        write_text(tmp_path / Path(path).parent / f"._{Path(path).name}", "macOS")
    write_text(tmp_path / "README.txt", "about")
    write_text(tmp_path / "__MACOSX" / next(iter(rows)), "macOS")
    write_audio(tmp_path / "dialogue.wav")
    for path in rows:
        for stray in (f"{Path(path).stem}_noisy.wav", f"copy of {Path(path).stem}.wav", f"{Path(path).stem}.txt.wav"):
            write_text(tmp_path / stray, "of somebody else")
    corpus = open_corpus(name, tmp_path)
    assert {utterance.utterance_id: facts(utterance) for utterance in corpus.utterances} == rows
    assert [utterance.utterance_id for utterance in corpus.utterances] == sorted(rows)
    assert corpus.name == name
    assert not corpus.synthetic
    assert corpus.labels == CORPORA[name].label_map


def test_ravdess_leaves_out_song_video_and_audio_video(tmp_path: Path) -> None:
    write_audio(tmp_path / "Actor_12" / "03-01-06-01-02-01-12.wav")
    for other in ("03-02-06-01-02-01-12", "01-01-06-01-02-01-12", "02-01-06-01-02-01-12", "03-01-06-01-02-01-25"):
        write_audio(tmp_path / "Actor_12" / f"{other}.wav")
    corpus = open_corpus("ravdess", tmp_path)
    assert [utterance.utterance_id for utterance in corpus.utterances] == ["Actor_12/03-01-06-01-02-01-12.wav"]


def test_savee_speaker_is_not_told_by_folders_above_the_corpus(tmp_path: Path) -> None:
    write_audio(tmp_path / "dc" / "corpus" / "a01.wav")
    with pytest.raises(UserError, match="no utterance of SAVEE"):
        open_corpus("savee", tmp_path / "dc" / "corpus")
    assert open_corpus("savee", tmp_path / "dc").utterances[0].speaker == "DC"


@pytest.mark.parametrize("name", ["tess", "ravdess"])
def test_copies_are_taken_once(tmp_path: Path, name: str) -> None:
    for row in NAMED[name]:
        write_audio(tmp_path / "corpus" / row[0])
        write_audio(tmp_path / "corpus" / "corpus" / row[0])
    corpus = open_corpus(name, tmp_path)
    assert {utterance.utterance_id for utterance in corpus.utterances} == {f"corpus/{row[0]}" for row in NAMED[name]}


def test_two_different_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a" / "OAF_back_angry.wav")
    write_audio(tmp_path / "b" / "OAF_back_angry.wav", seed="other")
    with pytest.raises(UserError, match=r"a/OAF_back_angry\.wav and .*b/OAF_back_angry\.wav .*differ: remove one"):
        open_corpus("tess", tmp_path)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write_audio(tmp_path / "disk" / "03a01Fa.wav")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "wav").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "corpus", target_is_directory=True)
    corpus = open_corpus("emodb", tmp_path / "corpus")
    assert [utterance.utterance_id for utterance in corpus.utterances] == ["wav/03a01Fa.wav"]
    assert list_files(tmp_path / "corpus") == [tmp_path / "corpus" / "wav" / "03a01Fa.wav"]


def test_files_are_listed_shallow_ones_first_without_hidden_ones(tmp_path: Path) -> None:
    shown = ["b.wav", "a/c.wav", "b/a.wav", "a/b/a.wav"]
    for path in [*shown, ".git/a.wav", "a/._c.wav", "__MACOSX/a.wav"]:
        write_text(tmp_path / path, "")
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == shown


# Corpora that tell their labels in tables.

EMOZIONALMENTE = [
    ("1612872848291.wav", "actor_1", "joy", "happiness", "female", "train"),
    ("1612872848292.wav", "actor_1", "neutrality", "neutral", "female", "train"),
    ("1612872848293.wav", "actor_2", "anger", "anger", "male", "validation"),
    ("1612872848294.wav", "actor_3", "disgust", "disgust", None, "test"),
    ("1612872848295.wav", "actor_3", "fear", "fear", None, "test"),
    ("1612872848296.wav", "actor_3", "sadness", "sadness", None, "test"),
    ("1612872848297.wav", "actor_3", "surprise", "surprise", None, "test"),
]


def write_emozionalmente(root: Path, *, split: bool = True, suffix: str = ".wav") -> None:
    header = "file_name,actor,emotion_expressed,sentence\n"
    lines = {
        row[0]: f'{row[0]},{row[1]},{row[2]},"Gli operai si alzano presto, di mattina"\n' for row in EMOZIONALMENTE
    }
    write_text(root / "metadata" / "samples.csv", header + "".join(lines.values()))
    write_text(root / "metadata" / "evaluations.csv", "file_name,evaluator,emotion_recognized\n")
    write_text(
        root / "metadata" / "users.csv",
        "username,age,gender,mother_tongue\nactor_1,30,Female,it\nactor_2,40,m,it\nactor_3,50,other,it\n",
    )
    for row in EMOZIONALMENTE:
        write_audio((root / "audio" / row[0]).with_suffix(suffix))
    for table, part in [("train", "train"), ("dev", "validation"), ("test", "test")]:
        if split:
            chosen = [lines[row[0]] for row in EMOZIONALMENTE if row[5] == part]
            write_text(root / "metadata" / "split" / f"{table}.csv", header + "".join(chosen))


@pytest.mark.parametrize("split", [True, False], ids=["version 1.1", "version 1.0"])
@pytest.mark.parametrize("below", ["", "emozionalmente_dataset"])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_emozionalmente(tmp_path: Path, split: bool, below: str, suffix: str) -> None:
    write_emozionalmente(tmp_path / below, split=split, suffix=suffix)
    corpus = open_corpus("emozionalmente", tmp_path)
    found = {Path(u.utterance_id).stem: (u.speaker, u.emotion, u.sex, u.split, u.text) for u in corpus.utterances}
    assert found == {
        Path(name).stem: (actor, word, sex, part if split else None, "Gli operai si alzano presto, di mattina")
        for name, actor, _, word, sex, part in EMOZIONALMENTE
    }


def test_emozionalmente_file_in_two_splits(tmp_path: Path) -> None:
    write_emozionalmente(tmp_path)
    write_text(tmp_path / "metadata" / "split" / "test.csv", "file_name\n1612872848291.wav\n")
    with pytest.raises(
        UserError, match=r"test\.csv line 2: 1612872848291\.wav is in the train split too|train\.csv line 2"
    ):
        open_corpus("emozionalmente", tmp_path)


EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t(caf\xe9)
A-E3:\tval 3; act 2; dom  2;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\tSes01F_impro01_F002\tfru\t[2.5000, 3.5000, 3.5000]
[19.2900 - 20.7875]\tSes01F_impro01_M003\txxx\t[2.5000, 3.5000, 3.5000]
[21.3257 - 24.7400]\tSes01F_impro01_F004\thap\t[2.5000, 3.5000, 3.5000]
"""
IEMOCAP_TURNS = {
    "Ses01F_impro01_F000": ("neutral", "Ses01F", "female", "Excuse me: café?", "Ses01"),
    "Ses01F_impro01_M001": ("happiness", "Ses01M", "male", "Do you have your forms?", "Ses01"),
    "Ses01F_impro01_F004": ("happiness", "Ses01F", "female", None, "Ses01"),
    "Ses05M_script01_1b_F002": ("anger", "Ses05F", "female", "Yeah.", "Ses05"),
    "Ses05M_script01_1b_M003": ("sadness", "Ses05M", "male", None, "Ses05"),
}
TRANSCRIPTIONS = {
    "Ses01F_impro01": """Ses01F_impro01_F000 [006.2901-008.2357]: Excuse  me: caf\xe9?
Ses01F_impro01_M001 [010.0100-011.3925]: Do you have your forms?
M: [010.0100-011.3925]: not of a turn
Ses01F_impro01_F004 [021.3257-024.7400]:
""",
    "Ses05M_script01_1b": "Ses05M_script01_1b_F002 [1.0-2.0]: Yeah.\n",
}


def write_iemocap(root: Path, suffix: str = ".wav") -> None:
    script = "".join(
        f"[1.0 - 2.0]\t{turn}\t{code}\t[2.5, 2.5, 2.5]\n"
        for turn, code in [("Ses05M_script01_1b_F002", "ang"), ("Ses05M_script01_1b_M003", "sad")]
    )
    for session, dialogue, text in [(1, "Ses01F_impro01", EVALUATION), (5, "Ses05M_script01_1b", script)]:
        folder = root / f"Session{session}"
        write_text(folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", text, "latin-1")
        write_text(folder / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt", text, "latin-1")
        write_text(
            folder / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialogue}_e2_cat.txt",
            f"{dialogue}_F000 :Anger; ()\n",
        )
        write_text(folder / "dialog" / "transcriptions" / f"{dialogue}.txt", TRANSCRIPTIONS[dialogue], "latin-1")
        write_audio(folder / "dialog" / "wav" / f"{dialogue}.wav")
        for turn in [*IEMOCAP_TURNS, "Ses01F_impro01_F002", "Ses01F_impro01_M003"]:
            if turn.startswith(dialogue):
                write_audio(folder / "sentences" / "wav" / dialogue / f"{turn}{suffix}")


@pytest.mark.parametrize("below", ["", "IEMOCAP_full_release"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_iemocap_keeps_the_four_classes(tmp_path: Path, below: str, suffix: str) -> None:
    write_iemocap(tmp_path / below, suffix)
    corpus = open_corpus("iemocap", tmp_path)
    assert {Path(u.utterance_id).stem: facts(u) for u in corpus.utterances} == IEMOCAP_TURNS


def test_iemocap_texts_are_read_as_they_are_published(tmp_path: Path) -> None:
    """UTF-8 too; a laugh is what was said; a session without transcriptions has no texts, and a copy without any the
    scripts. The speakers' movements, in files of the same names, are not looked into."""
    write_iemocap(tmp_path)
    first = tmp_path / "Session1" / "dialog"
    lines = ("F000 [006.2901-008.2357]: Où est-ce?", "M001 [010.0100-011.3925]: [LAUGHTER]", "F004 [1-2]: [BREATHING]")
    said = "".join(f"Ses01F_impro01_{line}\r\n" for line in lines)
    write_text(first / "transcriptions" / "Ses01F_impro01.txt", said, "utf-8-sig")
    other = tmp_path / "Session5" / "dialog"
    (other / "transcriptions" / "Ses05M_script01_1b.txt").unlink()
    write_text(other / "MOCAP_rotated" / "Ses05M_script01_1b.txt", "Ses05M_script01_1b_F002 [1-2]: 1.25 0.03")

    def texts() -> list[str | None]:
        return [one.text for one in open_corpus("iemocap", tmp_path).utterances]

    assert texts() == ["Où est-ce?", "[BREATHING]", "[LAUGHTER]", None, None]
    (first / "transcriptions" / "Ses01F_impro01.txt").unlink()
    assert texts() == [None, None, None, "script01_1", "script01_1"]


def test_iemocap_labels_can_be_chosen(tmp_path: Path) -> None:
    write_iemocap(tmp_path)
    labels = {"exc": "excitement", "fru": "frustration", "hap": "happiness"}
    corpus = open_corpus("iemocap", tmp_path, labels=labels)
    found = Counter(utterance.emotion for utterance in corpus.utterances)
    assert found == {"excitement": 1, "frustration": 1, "happiness": 1}
    assert corpus.labels == labels
    with pytest.raises(UserError, match=r"IEMOCAP has no code 'happy', its codes are ang, dis, exc"):
        open_corpus("iemocap", tmp_path, labels={"happy": "happiness"})
    with pytest.raises(UserError, match=r"the word for 'hap' is blank"):
        open_corpus("iemocap", tmp_path, labels={"hap": " "})
    with pytest.raises(UserError, match=r"no utterance below .* has one of the labels dis: change data\.labels"):
        open_corpus("iemocap", tmp_path, labels={"dis": "disgust"})


NEMO_TABLE = (
    "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
    'EB0_neutral_13.wav\tneutral\t"Interesuje mnie.\tinteresuje mnie\t        EB0\tfemale\t27\n'
    'KS0_surprised_10.wav\tsurprised\tKupiłem "nową" szafę.\tkupiłem nową szafę\t        KS0\tmale\t23\n'
)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("below", ["", "nEMO-main"])
def test_nemo_blanks_bare_quotes_and_the_other_ending(tmp_path: Path, suffix: str, below: str) -> None:
    write_text(tmp_path / below / "data.tsv", NEMO_TABLE)
    for stem in ("EB0_neutral_13", "KS0_surprised_10"):
        write_audio(tmp_path / below / "samples" / f"{stem}{suffix}")
    first, second = open_corpus("nemo", tmp_path).utterances
    assert facts(first) == ("neutral", "EB0", "female", '"Interesuje mnie.', None)
    assert facts(second) == ("surprise", "KS0", "male", 'Kupiłem "nową" szafę.', None)
    assert first.utterance_id == (Path(below) / "samples" / f"EB0_neutral_13{suffix}").as_posix()


# A table, its place for the audio of one utterance, and the folder that copies are put beside.
TABLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nemo": (lambda root: write_text(root / "data.tsv", NEMO_TABLE), "samples/EB0_neutral_13.wav"),
    "emozionalmente": (write_emozionalmente, "audio/1612872848291.wav"),
    "iemocap": (write_iemocap, "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"),
}


@pytest.mark.parametrize("place", ["denoised", "a", "z/deeper/still"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("name", TABLES)
def test_published_place_comes_before_other_files_of_that_name(
    tmp_path: Path, name: str, suffix: str, place: str
) -> None:
    """Denoised copies are the usual case; as FLAC the recording has another ending than the copy and the table."""
    write, published = TABLES[name]
    write(tmp_path)
    write_audio(tmp_path / "samples" / "KS0_surprised_10.wav")
    (tmp_path / published).unlink(missing_ok=True)
    recording = (tmp_path / published).with_suffix(suffix)
    write_audio(recording)
    write_audio(tmp_path / place / Path(published).name, seed="denoised")
    corpus = open_corpus(name, tmp_path)
    stem = Path(published).stem
    assert [utterance.path for utterance in corpus.utterances if stem in utterance.utterance_id] == [recording]


@pytest.mark.parametrize("name", TABLES)
def test_files_of_one_name_elsewhere_must_be_equal(tmp_path: Path, name: str) -> None:
    write, published = TABLES[name]
    write(tmp_path)
    write_audio(tmp_path / "samples" / "KS0_surprised_10.wav")
    (tmp_path / published).unlink(missing_ok=True)
    file = Path(published).name
    write_audio(tmp_path / "b" / "one" / file)
    write_audio(tmp_path / "b" / "two" / file)
    assert f"b/one/{file}" in {utterance.utterance_id for utterance in open_corpus(name, tmp_path).utterances}
    write_audio(tmp_path / "b" / "two" / file, seed="denoised")
    with pytest.raises(
        UserError, match=rf"b/one/{file} and .*b/two/{file} are both utterance '.*' and differ: remove one"
    ):
        open_corpus(name, tmp_path)


def test_missing_file_listed_twice_is_missing_not_different(tmp_path: Path) -> None:
    write_text(tmp_path / "data.tsv", NEMO_TABLE + NEMO_TABLE.partition("\n")[2])
    with pytest.raises(UserError, match=r"cannot read .*samples/EB0_neutral_13\.wav: no such file \(one of 2"):
        open_corpus("nemo", tmp_path)


def test_unknown_emotion_in_a_published_table(tmp_path: Path) -> None:
    write_text(tmp_path / "data.tsv", NEMO_TABLE.replace("\tneutral\t", "\tbored\t"))
    with pytest.raises(UserError, match=r"unknown emotion 'bored' of .*EB0_neutral_13\.wav: nEMO has anger, fear"):
        open_corpus("nemo", tmp_path)


@pytest.mark.skipif(not NEMO.exists(), reason="the nEMO subset is not here")
def test_real_nemo() -> None:
    corpus = open_corpus("nemo", NEMO)
    assert len(corpus.utterances) == 2006
    assert Counter(u.emotion for u in corpus.utterances) == {
        "anger": 335,
        "fear": 333,
        "happiness": 342,
        "neutral": 359,
        "sadness": 337,
        "surprise": 300,
    }
    sexes = {u.speaker: u.sex for u in corpus.utterances}
    assert len(sexes) == 9
    assert all(speaker == speaker.strip() for speaker in sexes)
    assert not [u for u in corpus.utterances if (u.speaker, u.emotion) == ("MK0", "surprise")]
    waveform_T, sample_rate_hz = corpus.read(corpus.utterances[0])
    assert sample_rate_hz == 16000
    assert 0.01 < waveform_T.abs().max() <= 1


# Manifests.


def write_manifest(folder: Path, lines: list[str], *, name: str = "manifest.csv", encoding: str = "utf-8") -> Path:
    write_text(folder / name, "\n".join(lines) + "\n", encoding)
    for audio in ("a.wav", "b.wav", "deep/c.flac"):
        write_audio(folder / audio)
    return folder / name


FULL = [
    "path,emotion,speaker,text,sex,session,split",
    "a.wav,Anger,s1,hello,F,one,train",
    'b.wav , menace,s2,"well, yes",male,,dev',
    "deep/c.flac,neutral, s2,,,,test",
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_manifest(tmp_path: Path, encoding: str, separator: str, given: str) -> None:
    lines = FULL if separator == "," else [line.replace("well, yes", "well; yes").replace(",", "\t") for line in FULL]
    table = write_manifest(tmp_path, lines, encoding=encoding)
    corpus = open_corpus("manifest", tmp_path if given == "folder" else table)
    comma = "well, yes" if separator == "," else "well; yes"
    assert [(u.utterance_id, *facts(u), u.split) for u in corpus.utterances] == [
        ("a.wav", "anger", "s1", "female", "hello", "one", "train"),
        ("b.wav", "menace", "s2", "male", comma, None, "validation"),
        ("deep/c.flac", "neutral", "s2", None, None, None, "test"),
    ]
    assert corpus.read(corpus.utterances[2])[1] == 16000


def test_a_recording_is_the_file_itself_or_what_a_manifest_says(tmp_path: Path) -> None:
    write_manifest(
        tmp_path,
        ["path,emotion,speaker,recording", "a.wav,joy,s1,tape 1", "b.wav,fear,s1,tape 1", "deep/c.flac,joy,s2,"],
    )
    corpus = open_corpus("manifest", tmp_path)
    assert [utterance.recording for utterance in corpus.utterances] == ["tape 1", "tape 1", "deep/c.flac"]
    write_audio(tmp_path / "wav" / "03a01Fa.wav")
    assert [utterance.recording for utterance in open_corpus("emodb", tmp_path).utterances] == ["wav/03a01Fa.wav"]


def test_manifest_labels_that_differ_by_case_are_one(tmp_path: Path) -> None:
    lines = ["path,emotion,speaker", "a.wav,Angry,s1", "b.wav,ANGRY,s1", "deep/c.flac,angry,s1"]
    write_manifest(tmp_path, lines)
    assert {utterance.emotion for utterance in open_corpus("manifest", tmp_path).utterances} == {"angry"}
    corpus = open_corpus("manifest", tmp_path, labels={"aNGRY": "anger"})
    assert {utterance.emotion for utterance in corpus.utterances} == {"anger"}
    assert corpus.labels == {"angry": "anger"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"angr": "fear"}, r"data\.labels: the table has no label 'angr', its labels are anger, menace, neutral$"),
        ({"anger": "fear", "ANGER": "joy"}, r"data\.labels: two of anger, ANGER differ by case only"),
        ({"anger": "Fear", "menace": "fear"}, r"labels 'Fear' and 'fear' differ by case only"),
        ({"menace": "Anger"}, r"labels '[aA]nger' and '[aA]nger' differ by case only"),
    ],
)
def test_faulty_labels_of_a_manifest(tmp_path: Path, labels: dict[str, str], message: str) -> None:
    write_manifest(tmp_path, FULL)
    with pytest.raises(UserError, match=message):
        open_corpus("manifest", tmp_path, labels=labels)


def test_manifest_labels_are_mapped(tmp_path: Path) -> None:
    write_manifest(tmp_path, FULL)
    corpus = open_corpus("manifest", tmp_path, labels={"menace": "anger", "Anger": "fear"})
    assert [utterance.emotion for utterance in corpus.utterances] == ["fear", "anger", "neutral"]


DEMOS = {
    "col": "guilt",
    "dis": "disgust",
    "gio": "happiness",
    "pau": "fear",
    "rab": "anger",
    "sor": "surprise",
    "tri": "sadness",
    "neu": "neutral",
}


def test_manifest_of_demos(tmp_path: Path) -> None:
    for code in DEMOS:
        write_audio(tmp_path / "wav" / f"PR_f_01_{code}a01.wav")
    lines = [f"wav/PR_f_01_{code}a01.wav,{code},f_01" for code in DEMOS]
    write_text(tmp_path / "manifest.csv", "\n".join(["path,emotion,speaker", *lines]))
    corpus = open_corpus("manifest", tmp_path)
    assert {u.utterance_id[-10:-7]: u.emotion for u in corpus.utterances} == DEMOS
    assert corpus.labels == DEMOS
    write_text(
        tmp_path / "manifest.csv", "\n".join(["path,emotion,speaker", *lines[:-1], lines[-1].replace(",neu,", ",odd,")])
    )
    found = {utterance.emotion for utterance in open_corpus("manifest", tmp_path).utterances}
    assert found == {"odd", *DEMOS} - {"neu"}, "one foreign label: nothing is taken for a DEMoS code"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,emotion", "a.wav,anger"], r"manifest\.csv lacks the column 'speaker': it has path, emotion"),
        ([""], r"manifest\.csv lacks the column 'path': it has nothing"),
        (["path,emotion,speaker"], r"no utterance of a manifest below .*: looked for a table"),
        (["path,emotion,speaker", "a.wav,,s1"], r"line 2 has no 'emotion'"),
        (["path,emotion,speaker", "a.wav,anger"], r"line 2 has no 'speaker'"),
        (["path,emotion,speaker", "a.wav,anger,s1,more"], r"line 2 has 4 fields, not 3"),
        (
            ["path,emotion,speaker", "a.wav,anger,s1", "", "./a.wav,fear,s1"],
            r"line 4 lists \./a\.wav again, after line 2",
        ),
        (["path,emotion,speaker", "../x.wav,anger,s1"], r"line 2 names \.\./x\.wav, outside the manifest's folder"),
        (["path,emotion,speaker", "..,anger,s1"], r"line 2 names \.\., outside the manifest's folder"),
        (["path,emotion,speaker", "/etc/x.wav,anger,s1"], r"line 2 names /etc/x\.wav, outside"),
        (["path,emotion,speaker", "deep/../../x.wav,anger,s1"], r"outside the manifest's folder"),
        (["path,emotion,speaker,split", "a.wav,anger,s1,held"], r"line 2 has the split 'held': use train, validation"),
        (["path,emotion,speaker", "gone.wav,anger,s1", "a.wav,anger,s1"], r"cannot read .*gone\.wav: no such file"),
    ],
)
def test_faulty_manifests(tmp_path: Path, lines: list[str], message: str) -> None:
    write_manifest(tmp_path, lines)
    with pytest.raises(UserError, match=message) as error:
        open_corpus("manifest", tmp_path)
    assert "\n" not in str(error.value)


def test_manifest_absolute_path_and_backslashes_below_the_folder(tmp_path: Path) -> None:
    write_manifest(tmp_path, ["path,emotion,speaker", f"{tmp_path}/a.wav,fear,s1", "deep\\c.flac,fear,s1"])
    assert [u.utterance_id for u in open_corpus("manifest", tmp_path).utterances] == ["a.wav", "deep/c.flac"]


def test_manifest_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.csv in .*path, emotion, speaker"):
        open_corpus("manifest", tmp_path)


# Tables as they come from spreadsheets and other systems.

SPOKEN = [
    ("a.wav", "Anger", "Zoë", "well, yes"),
    ("b.wav", "menace", "Łukasz", 'a "quoted" word'),
    ("deep/c.flac", "wütend", "José", "of two\nlines"),
]


def write_spoken(folder: Path, separator: str, ending: str, encoding: str, above: str = "") -> None:
    def quoted(field: str) -> str:
        return '"' + field.replace('"', '""') + '"'

    lines = [separator.join([" Path ", "EMOTION", "Speaker", " text"])]
    lines += [separator.join([path, emotion, quoted(who), quoted(text)]) for path, emotion, who, text in SPOKEN]
    write_manifest(folder, [])
    (folder / "manifest.csv").write_bytes((above + ending.join(lines) + ending).encode(encoding))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r", "\r\n\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_manifest_is_read_in_whatever_form_a_program_saves_it(
    tmp_path: Path, separator: str, ending: str, encoding: str
) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    for above in ("", f"sep={separator}{ending}", ending):
        write_spoken(tmp_path, separator, ending, encoding, mark + above)
        corpus = open_corpus("manifest", tmp_path)
        assert [(u.utterance_id, u.emotion, u.speaker, u.text) for u in corpus.utterances] == [
            (path, emotion.lower(), speaker, text.replace("\n", " ")) for path, emotion, speaker, text in SPOKEN
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,emotion,speaker\n\na.wav,anger,s1\nb.wav,wütend,s1\n".encode("cp1252"),
            r"line 4 is no UTF-8 \(byte 0xfc\); save it as UTF-8",
        ),
        ("path,emotion,speaker\ra.wav,wütend,s1".encode("latin-1"), r"line 2 is no UTF-8 \(byte 0xfc\)"),
        ("path,emotion,speaker\na.wav,joy,s1\n".encode("utf-16-le"), r"NUL characters; save it as UTF-8"),
        ("path,emotion,speaker\na.wav,joy,s1\n".encode("utf-16")[:-1], r"is no UTF-16"),
        (b"PK\3\4\x14\0\6\0xl/workbook.xml", r"it is a ZIP archive; save the table as CSV in UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"Git LFS pointer.*; fetch it with `git lfs pull`"),
        (b"<!DOCTYPE html>", r"it is a web page or XML; save the table as CSV"),
        (b"path,emotion,speaker,emotion\na.wav,joy,s1,fear\n", r"has the column 'emotion' twice: keep one"),
        (b"path,emotion,speaker,Emotion \na.wav,joy,s1,joy\n", r"has the column 'emotion' twice"),
        (b"path;emotion;speaker\na.wav;joy\n", r"line 2 has no 'speaker'"),
        (b"path,emotion,speaker\na.wav;joy;s1\n", r"line 2 has no 'emotion'"),
        (b"path,emotion,speaker;text\na.wav,joy,s1;x\n", r"lacks the column 'speaker': it has path, emotion, speaker;"),
        (b"path,emotion,speaker,,\na.wav,joy,s1,,,too much\n", r"line 2 has 6 fields, not 3"),
        ("path,emotion,speaker\na.wav,\u200b\u00ad,s1\n".encode(), r"line 2 has no 'emotion'"),
        (
            b'path,emotion,speaker,text\na.wav,joy,s1,"never ended\nb.wav,joy,s1,x\ndeep/c.flac,joy,s1,x\n',
            r"line 2: unexpected end of data: write quotation marks within a field twice",
        ),
        (b'path,emotion,speaker,text\na.wav,joy,s1,"so" she said\n', r"line 2: .*quotation marks within a field twice"),
        (b'path,emotion,speaker\na.wav,joy,s1\nb.wav,"x' + b"y" * 200_000 + b'",s1\n', r"line 3: field larger than"),
        (b"", r"lacks the column 'path': it has nothing"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_manifest(tmp_path, [])
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_corpus("manifest", tmp_path)
    assert "\n" not in str(error.value)


def test_what_a_spreadsheet_leaves_around_a_table_is_nothing(tmp_path: Path) -> None:
    """Blank lines, lines of separators alone, columns without a name at both ends, missing cells at the end."""
    lines = [
        "",
        ",,,",
        ",path,emotion,speaker,text,,",
        ",,,,",
        '0,a.wav,joy,"s1" ,x,,',
        "",
        "1,b.wav,fear,s1",
        ",,,,,,,",
    ]
    write_manifest(tmp_path, lines)
    assert [facts(u) for u in open_corpus("manifest", tmp_path).utterances] == [
        ("joy", "s1", None, "x", None),
        ("fear", "s1", None, None, None),
    ]


def test_a_row_twice_is_one_utterance_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["path,emotion,speaker,text", "a.wav,joy,s1,x", "b.wav,fear,s1,", "./a.wav, joy,s1 ,x,"]
    write_manifest(tmp_path, lines)
    assert len(open_corpus("manifest", tmp_path).utterances) == 2
    assert "lists 1 files twice, which are taken once: ./a.wav in line 4" in caplog.text
    write_manifest(tmp_path, [*lines, "a.wav,joy,s2,x"])
    with pytest.raises(UserError, match=r"line 5 lists a\.wav again, after line 2, and otherwise: keep one"):
        open_corpus("manifest", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["emozionalmente", "nemo"])
def test_tables_of_corpora_are_read_in_other_forms_too(
    tmp_path: Path, name: str, separator: str, encoding: str
) -> None:
    TABLES[name][0](tmp_path)
    for path in ("samples/EB0_neutral_13.wav", "samples/KS0_surprised_10.wav"):
        write_audio(tmp_path / path)
    expected = open_corpus(name, tmp_path).utterances
    quoting = csv.QUOTE_NONE if name == "nemo" else csv.QUOTE_MINIMAL
    for path in [*tmp_path.glob("**/*.csv"), *tmp_path.glob("*.tsv")]:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t" if name == "nemo" else ",", quoting=quoting))
        with path.open("w", encoding=encoding, newline="") as file:
            if separator == "\t" and name == "nemo":  # as published: quotation marks are text
                file.writelines("\t".join(row) + "\r\n" for row in rows)
            else:
                csv.writer(file, delimiter=separator).writerows(rows)
    assert open_corpus(name, tmp_path).utterances == expected


# Names that look the same.

UNSEEN = ["\u200b", "\ufeff", "\u00ad", "\u202a", "\u2060", "\ufe0f", "\x07"]


@pytest.mark.parametrize("unseen", UNSEEN)
def test_names_that_look_the_same_are_the_same(tmp_path: Path, unseen: str, caplog: pytest.LogCaptureFixture) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "José wütend"), unicodedata.normalize("NFD", "José wütend")
    assert composed != decomposed
    odd = f"\u00a0José{unseen} \u2009w\u00fctend"
    names = zip(("a.wav", "b.wav", "deep/c.flac"), (composed, decomposed, odd), strict=True)
    rows = [f"{path},{name},{name},{name}" for path, name in names]
    write_manifest(tmp_path, ["path,emotion,speaker,text", *rows])
    for labels in (None, {decomposed: f"anger{unseen}"}):
        corpus = open_corpus("manifest", tmp_path, labels=labels)
        assert {u.speaker for u in corpus.utterances} == {u.text for u in corpus.utterances} == {composed}
        assert {u.emotion for u in corpus.utterances} == ({composed.lower()} if labels is None else {"anger"})
    assert "invisible characters, which do not count: 3 fields" in caplog.text and "line 4" in caplog.text


def test_labels_that_look_the_same_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, FULL)
    with pytest.raises(UserError, match=r"data\.labels: two of 'anger', 'anger\\u200b' look the same"):
        open_corpus("manifest", tmp_path, labels={"anger": "fear", "anger\u200b": "joy"})
    with pytest.raises(UserError, match=r"the word for 'anger' is blank"):
        open_corpus("manifest", tmp_path, labels={"anger": "\u200b"})


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_file_is_found_in_whatever_form_it_is_written(tmp_path: Path, on_disk: str, written: str) -> None:
    """macOS writes names decomposed; what is opened is the file on the disk, the id is the same everywhere."""

    def form(name: str, which: str) -> str:
        return unicodedata.normalize("NFC" if which == "NFC" else "NFD", name)

    folder = tmp_path / form("Aufnahmé", on_disk)
    path = folder / form("José", on_disk) / form("wütend  1.wav", on_disk)
    write_audio(path)
    write_audio(path.with_name(form("wütend 2.wav", on_disk)))
    name = form("José/wütend", written)
    write_text(folder / "manifest.csv", f"path,emotion,speaker\n{name}  1.wav,joy,s1\n{name}\u00a02.wav,fear,s1\n")
    for root in (folder, tmp_path / form("Aufnahmé", written)):
        first, second = open_corpus("manifest", root).utterances
        assert first.utterance_id == form("José/wütend  1.wav", "NFC") == first.recording
        assert first.path == path and second.path == path.with_name(form("wütend 2.wav", on_disk))
    write_text(
        folder / "manifest.csv",
        f"path,emotion,speaker\n{form(name, 'NFC')}  1.wav,joy,s1\n{form(name, 'NFD')}  1.wav,joy,s1\n",
    )
    assert len(open_corpus("manifest", folder).utterances) == 1


def test_two_files_that_look_the_same_are_told_apart_or_refused(tmp_path: Path) -> None:
    for name in ("\u00e9.wav", "e\u0301.wav"):
        write_audio(tmp_path / name)
    write_text(tmp_path / "manifest.csv", "path,emotion,speaker\n\u00e9.wav,joy,s1\n")
    (only,) = open_corpus("manifest", tmp_path).utterances
    assert only.path == tmp_path / "\u00e9.wav"
    write_text(tmp_path / "manifest.csv", "path,emotion,speaker\n\u00e9\u200b.wav,joy,s1\n")
    with pytest.raises(UserError, match=r"'\\xe9\.wav'.* look the same: rename one"):
        open_corpus("manifest", tmp_path)
    write_text(tmp_path / "manifest.csv", "path,emotion,speaker\n\u00e9.wav,joy,s1\ne\u0301.wav,joy,s1\n")
    with pytest.raises(UserError, match=r"and differ: remove one"):
        open_corpus("manifest", tmp_path)


def test_schemes_match_names_as_they_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = CorpusInfo(
        name="own",
        title="our own",
        licence="ours",
        url="",
        label_map={"w\u00fctend": "anger"},
        example="names such as jos\u00e9_w\u00fctend.wav",
        find=named_files("(?P<speaker>jos\u00e9)_(?P<code>w\u00fctend)", sex=lambda speaker: None),
    )
    monkeypatch.setitem(CORPORA, "own", info)
    write_audio(tmp_path / unicodedata.normalize("NFD", "a/jos\u00e9_w\u00fctend.wav"))
    write_audio(
        tmp_path / "b" / "jos\u00e9_\u200bw\u00fctend.wav", seed=unicodedata.normalize("NFD", "jos\u00e9_w\u00fctend")
    )
    (only,) = open_corpus("own", tmp_path).utterances
    assert (only.emotion, only.speaker) == ("anger", "jos\u00e9")


def test_names_of_other_bytes_than_utf8_are_written_out(tmp_path: Path) -> None:
    write_audio(tmp_path / "03a01Fa.wav")
    (tmp_path / "caf").mkdir()
    (tmp_path / "03a01Fa.wav").rename(tmp_path / "caf" / "03a01Fa.wav")
    (tmp_path / "caf").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    corpus = open_corpus("emodb", tmp_path)
    (utterance,) = corpus.utterances
    assert utterance.utterance_id == utterance.recording == "caf\\udce9/03a01Fa.wav"
    assert json.loads(json.dumps(utterance.utterance_id).encode()) == utterance.utterance_id
    assert len(corpus.read(utterance)[0]) == 64


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "a" / "03a01Fa.wav")
    write_audio(tmp_path / "b" / "08a01Fa.wav")
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot list the folder .*/b: permission denied"):
        open_corpus("emodb", tmp_path)


def test_plain_text_is_plain() -> None:
    assert plain("\u202ea\u0301\u200b  b\n\u00a0") == "\u00e1 b"
    assert plain("e\u200b\u0301") == "\u00e9", "composed after the mark is gone"
    assert plain("\u3164") == plain("\u200d\ufeff") == ""
    draw = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(map(chr, draw.choice([*range(32, 0x250), *range(0x300, 0x370), *range(0x2000, 0x2070)], 8)))
        assert plain(plain(text)) == plain(text) == plain(unicodedata.normalize("NFD", text))
        if not has_unseen(text):
            assert plain(text) == unicodedata.normalize("NFC", " ".join(text.split(" "))).strip() or "  " in text
    assert not any(map(has_unseen, ["a b\n", "\u00e9", "e\u0301", ""]))
    assert all(has_unseen(f"a{unseen}b") for unseen in [*UNSEEN, "\u00a0", "\u2028"])


# Long files.


def write_long(folder: Path, samples: int, name: str = "a.wav") -> np.ndarray:
    values = np.random.default_rng(samples).integers(-9000, 9000, samples).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, values, 1000)
    return values / np.float32(32768)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (1000, None),
        (1001, [(0, 1000)]),
        (1499, [(0, 1000)]),
        (1500, [(0, 1000), (1000, 1500)]),
        (2000, [(0, 1000), (1000, 2000)]),
        (3400, [(0, 1000), (1000, 2000), (2000, 3000)]),
        (12_700, [(k * 1000, min(k * 1000 + 1000, 12_700)) for k in range(13)]),
    ],
)
def test_long_files_become_segments(tmp_path: Path, samples: int, expected: list[tuple[int, int]] | None) -> None:
    values = write_long(tmp_path, samples)
    write_long(tmp_path, 800, "b.wav")
    write_text(
        tmp_path / "manifest.csv",
        "path,emotion,speaker,text,sex,session,split\na.wav,joy,s1,x,f,7,test\nb.wav,fear,s2\n",
    )
    corpus = open_corpus("manifest", tmp_path, segment_s=1.0)
    *made, last = corpus.utterances
    assert last.utterance_id == "b.wav" and last.span_s is None
    width = len(str(len(expected or [0]) - 1))
    names = ["a.wav"] if expected is None else [f"a.wav#{k:0{width}d}" for k in range(len(expected))]
    assert [utterance.utterance_id for utterance in made] == names
    digests = set()
    for utterance, (begin, end) in zip(made, expected or [(0, samples)], strict=True):
        assert (*facts(utterance), utterance.split) == ("joy", "s1", "female", "x", "7", "test")
        assert utterance.recording == "a.wav"
        assert np.array_equal(corpus.read(utterance)[0].numpy(), values[begin:end])
        digests.add(corpus.content_digest(utterance))
    assert len(digests) == len(made)
    (whole, _) = open_corpus("manifest", tmp_path).utterances
    assert whole.utterance_id == "a.wav", "by default a file is an utterance"
    if expected:
        write_long(tmp_path, samples + 1)
        other = open_corpus("manifest", tmp_path, segment_s=1.0)
        assert not digests & {other.content_digest(utterance) for utterance in other.utterances}


def test_a_file_is_read_once_for_the_digests_of_its_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_long(tmp_path, 20_000)
    write_text(tmp_path / "manifest.csv", "path,emotion,speaker\na.wav,joy,s1\n")
    corpus = open_corpus("manifest", tmp_path, segment_s=1.0)
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    assert len({corpus.content_digest(utterance) for utterance in corpus.utterances}) == 20
    assert read == [tmp_path / "a.wav"]


# Opening.


def test_bad_settings_and_folders(tmp_path: Path) -> None:
    write_audio(tmp_path / "03a01Fa.wav")
    for call, message in [
        (lambda: open_corpus("emdb", tmp_path), r"unknown corpus 'emdb', did you mean 'emodb'\? Known: cremad"),
        (lambda: open_corpus("emodb", tmp_path / "gone"), r"no such folder: .*gone; set data\.root"),
        (lambda: open_corpus("emodb", tmp_path / "03a01Fa.wav"), r"03a01Fa\.wav is a file: set data\.root"),
        (lambda: open_corpus("emovo", tmp_path), r"no utterance of EMOVO below .*: looked for names such as dis-f1"),
        (lambda: open_corpus("emodb", tmp_path, channel="left"), r"unknown data\.channel 'left'"),
        (lambda: open_corpus("emodb", tmp_path, on_unreadable="go"), r"unknown data\.on_unreadable 'go'.*skip, stop"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"RIFF\x24\x00\x00\x00WAVE"])
def test_unreadable_files_stop_or_are_skipped(tmp_path: Path, content: bytes) -> None:
    write_audio(tmp_path / "wav" / "03a01Fa.wav")
    (tmp_path / "wav" / "03a02Fc.wav").write_bytes(content)
    with pytest.raises(
        UserError, match=r"cannot read .*wav/03a02Fc\.wav: .*one of 1 such files among 2.*on_unreadable=skip"
    ):
        open_corpus("emodb", tmp_path)
    corpus = open_corpus("emodb", tmp_path, on_unreadable="skip")
    assert [utterance.utterance_id for utterance in corpus.utterances] == ["wav/03a01Fa.wav"]
    assert [file.utterance_id for file in corpus.skipped] == ["wav/03a02Fc.wav"]
    assert corpus.skipped[0].reason
    (tmp_path / "wav" / "03a01Fa.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*(download it again|download the file|git lfs pull)"):
        open_corpus("emodb", tmp_path, on_unreadable="skip")


@pytest.mark.parametrize("samples", [[0.1, float("nan")], [0.1, 32768.0]], ids=["nan", "another scale"])
def test_files_with_unusable_samples_are_skipped_too(tmp_path: Path, samples: list[float]) -> None:
    write_audio(tmp_path / "03a01Fa.wav")
    soundfile.write(tmp_path / "03a02Fc.wav", np.array(samples, np.float32), 16000, subtype="FLOAT")
    corpus = open_corpus("emodb", tmp_path, on_unreadable="skip")
    assert [utterance.utterance_id for utterance in corpus.utterances] == ["03a01Fa.wav"]
    assert [file.utterance_id for file in corpus.skipped] == ["03a02Fc.wav"]


def test_files_without_the_channel_are_skipped_and_a_corpus_without_it_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "dis-f1-b1.wav", channels=2)
    write_audio(tmp_path / "gio-f1-b1.wav")
    corpus = open_corpus("emovo", tmp_path, channel="second", on_unreadable="skip")
    assert [file.utterance_id for file in corpus.skipped] == ["gio-f1-b1.wav"]
    (tmp_path / "dis-f1-b1.wav").unlink()
    with pytest.raises(UserError, match=r"one channel, no second; take the first .*one of 1 such files among 1\)$"):
        open_corpus("emovo", tmp_path, channel="second", on_unreadable="skip")


def test_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "speech" / "03a01Fa.wav")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_corpus("emodb", Path("~/speech")).utterances[0].path == tmp_path / "speech" / "03a01Fa.wav"
    with pytest.raises(UserError, match=r"no such folder: ~nobody-of-that-name/speech; set ROOT to the folder"):
        open_corpus("emodb", Path("~nobody-of-that-name/speech"), root_name="ROOT")


def test_channel_reaches_reading_and_digest(tmp_path: Path) -> None:
    write_audio(tmp_path / "dis-f1-b1.wav", channels=2)
    raw, _ = soundfile.read(tmp_path / "dis-f1-b1.wav", dtype="float32")
    digests = set()
    for channel, expected in [("first", raw[:, 0]), ("second", raw[:, 1]), ("mean", raw.mean(axis=1))]:
        corpus = open_corpus("emovo", tmp_path, channel=channel)
        assert np.allclose(corpus.read(corpus.utterances[0])[0].numpy(), expected, atol=1e-7)
        digests.add(corpus.content_digest(corpus.utterances[0]))
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)


def test_files_that_cannot_be_resampled_are_skipped_too(tmp_path: Path) -> None:
    """44,101 and 16,000 have no common divisor: the filter would have 700 million coefficients."""
    write_audio(tmp_path / "03a01Fa.wav")
    soundfile.write(tmp_path / "03a02Fc.wav", np.zeros(64), 44_101)
    assert len(open_corpus("emodb", tmp_path, on_unreadable="skip").utterances) == 2, "no rate is asked for"
    corpus = open_corpus("emodb", tmp_path, on_unreadable="skip", to_hz=16_000)
    assert [utterance.utterance_id for utterance in corpus.utterances] == ["03a01Fa.wav"]
    assert [(file.utterance_id, file.reason[:8]) for file in corpus.skipped] == [("03a02Fc.wav", "44101 Hz")]


def test_own_corpus_is_a_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = CorpusInfo(
        name="own",
        title="our own",
        licence="ours",
        url="",
        label_map={"JOY": "happiness", "mad": "anger"},
        left_out=("odd",),
        example="names such as s1-joy-hello-2.wav",
        find=named_files(
            r"(?P<speaker>s\d)-(?P<code>joy|mad|odd)-(?P<text>\w+)-(?P<take>\d)", sex=lambda speaker: None
        ),
    )
    for name in ("S1-JOY-hello-1.wav", "s2-mad-hello-2.wav", "s2-odd-hello-2.wav", "b/s1-joy-hello-1.wav"):
        write_audio(tmp_path / name, seed="joy" if "joy" in name.lower() else None)
    monkeypatch.setitem(CORPORA, "own", info)
    assert {u.utterance_id: (u.emotion, u.speaker, u.text) for u in open_corpus("own", tmp_path).utterances} == {
        "S1-JOY-hello-1.wav": ("happiness", "s1", "hello"),
        "s2-mad-hello-2.wav": ("anger", "s2", "hello"),
    }, "the copy below b is taken once, and the code that is left out is not"


@pytest.mark.parametrize("name", CORPORA)
def test_registry_is_consistent(name: str) -> None:
    """Label maps stay in the vocabulary, and published counts add up to the published total."""
    info, counts = CORPORA[name], CORPORA[name].published_counts
    assert info.name == name
    assert set(info.label_map.values()) <= set(EMOTIONS)
    words = set(info.label_map.values())
    for table in (counts.per_emotion, counts.of_each_speaker):
        assert not table or set(table) == words
    for table in (counts.per_emotion, counts.per_speaker):
        assert not table or sum(table.values()) == counts.num_utterances
    assert not counts.per_speaker or len(counts.per_speaker) == counts.num_speakers
