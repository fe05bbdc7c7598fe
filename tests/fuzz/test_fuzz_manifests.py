"""Tables and folders of anybody's making: a corpus, or one line that says what is wrong with them."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from harness import cases_of, digest, result_or_line
from hypothesis import strategies as st

from ser_fl.data.corpora import CORPORA, FileCorpus, open_corpus

NAMED = sorted(set(CORPORA) - {"manifest"})


def recording(seed: int) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(seed).integers(-9000, 9000, 80).astype(np.int16)
    soundfile.write(buffer, samples, 16000, format="WAV")
    return buffer.getvalue()


RECORDINGS = [recording(seed) for seed in range(3)]
WORDS = ["path", "emotion", "speaker", "text", "sex", "session", "split", "PATH", " Emotion ", "wav", ""]
PATHS = [
    *("a.wav", "b.wav", "sub/c.wav", "A.wav", "sub\\c.wav", "./a.wav", "sub/../a.wav", "missing.wav", ".", "sub"),
    *("../outside.wav", "/etc/passwd", "~/a.wav", "a.wav\0", "\0", "con", "x" * 300 + ".wav", "x/" * 3000 + "a.wav"),
    *("pipe", "loop", "out", "a.wav\nb.wav", "\x1b[2J.wav", "ünï.wav", "a.wav ", "\u202egnp.wav", "dev"),
]
FIELDS = [
    *("anger", "Anger", "neutral", "", " ", "s1", "s2", "7", "train", "test", "dev", "nonsense", "female", "f"),
    *(
        "col",
        "neu",
        "x" * 140_000,
        "nul\0nul",
        '"',
        '""',
        '"unclosed',
        "a,b",
        "a\tb",
        "two\nlines",
        "é",
        "\x1b]0;",
        "=1+1",
    ),
    *("ſ", "İ", "\x85", "\u2028", "\ufeff"),
]
texts = st.text(max_size=12)
fields = st.one_of(st.sampled_from(FIELDS), texts)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A manifest, honest or nearly so, as bytes."""
    header = draw(
        st.one_of(
            st.just(["path", "emotion", "speaker"]),
            st.just(["path", "emotion", "speaker", "split", "text"]),
            st.lists(st.sampled_from(WORDS), max_size=6),
        )
    )
    honest = st.tuples(st.sampled_from(PATHS[:3]), st.sampled_from(["anger", "neutral"]), st.sampled_from(["s1", "s2"]))
    odd = st.tuples(st.one_of(st.sampled_from(PATHS), texts), fields, fields)
    rows = draw(st.lists(st.one_of(honest, honest, odd), max_size=5))
    lines = [header, *([*row, *draw(st.lists(fields, max_size=2))] for row in rows)]
    separator = draw(st.sampled_from([",", ",", ",", "\t", ";"]))
    quote = draw(st.booleans())
    ending = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))

    def written(field: str) -> str:
        return '"' + field.replace('"', '""') + '"' if quote else field

    text = ending.join(separator.join(map(written, line)) for line in lines) + draw(st.sampled_from(["", ending]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-32-le"]))
    content = bytearray(text.encode(encoding, "replace"))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.none(), st.integers(0, len(content))))])


labels = st.one_of(st.none(), st.none(), st.dictionaries(fields, fields, max_size=3))


def make_folder(folder: Path) -> None:
    """Recordings, and what a folder can hold besides: a pipe, a loop of links, a link to a file elsewhere."""
    (folder / "sub").mkdir(parents=True)
    for name, content in zip(("a.wav", "b.wav", "sub/c.wav"), RECORDINGS, strict=True):
        (folder / name).write_bytes(content)
    (folder.parent / "outside.wav").write_bytes(RECORDINGS[0])
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "out").symlink_to("../outside.wav")
    (folder / "dev").symlink_to("/dev/zero")


def read_all(corpus: FileCorpus) -> None:
    """What a run does with a corpus that it was given."""
    assert corpus.utterances
    ids = [utterance.utterance_id for utterance in corpus.utterances]
    assert ids == sorted(set(ids))
    for utterance in corpus.utterances:
        assert utterance.emotion.strip() and utterance.speaker.strip()
        waveform_T, rate_hz = corpus.read(utterance)
        assert (waveform_T.shape, rate_hz) == ((80,), 16000)
        assert len(corpus.content_digest(utterance)) == 16


@cases_of("manifests", quick=40)
def test_manifests(explore: Callable[..., None], num_cases: int, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    make_folder(folder)

    def open_one(case: tuple[bytes, Mapping[str, str] | None, str, bool]) -> None:
        content, words, on_unreadable, by_file = case
        table = folder / "manifest.csv"
        table.write_bytes(content)
        before = digest(tmp_path)
        root = table if by_file else folder
        corpus = result_or_line(open_corpus, "manifest", root, on_unreadable=on_unreadable, labels=words)
        if corpus is not None:
            result_or_line(read_all, corpus)
            below = [utterance.utterance_id for utterance in corpus.utterances]
            assert not any(name.startswith(("/", "..")) for name in below)
        assert digest(tmp_path) == before

    explore(st.tuples(tables(), labels, st.sampled_from(["stop", "skip", "skip"]), st.booleans()), open_one)


PUBLISHED = {
    "emodb": ["wav/03a01Fa.wav", "wav/08b10Wa.wav", "wav/03a01Nb.wav"],
    "emovo": ["f1/dis-f1-b1.wav", "m1/gio-m1-l4.wav"],
    "ravdess": ["Actor_01/03-01-01-01-01-01-01.wav", "Actor_02/03-01-02-01-02-01-02.wav"],
    "savee": ["AudioData/DC/a01.wav", "AudioData/JE/sa02.wav", "DC_n03.wav"],
    "tess": ["OAF_angry/OAF_back_angry.wav", "YAF_sad/YAF_bar_sad.wav"],
    "cremad": ["AudioWAV/1001_DFA_ANG_XX.wav", "1040_ITH_SAD_X.wav"],
    "nemo": ["samples/WK0_ang_1.wav"],
    "iemocap": ["Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"],
    "emozionalmente": ["audio/1.wav", "audio/2.wav"],
}
TABLES = {
    "data.tsv": 'file_id\temotion\tspeaker_id\tgender\traw_text\nWK0_ang_1.wav\tanger\tWK0\tfemale\t"Tak\n',
    "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": "[6.2 - 8.2]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\n",
    "metadata/samples.csv": "file_name,actor,emotion_expressed,sentence\n1.wav,u1,joy,x\n2.wav,u2,anger,y\n",
    "metadata/users.csv": "username,gender\nu1,f\nu2,m\n",
    "metadata/split/train.csv": "file_name\n1.wav\n",
    "metadata/split/dev.csv": "file_name\n2.wav\n",
}
NAMES = sorted({name for names in PUBLISHED.values() for name in names} | set(TABLES))


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Files of some corpora, some with their names or contents changed a little."""
    tree: dict[str, bytes] = {}
    chosen = draw(st.lists(st.sampled_from(NAMES), max_size=8))
    if draw(st.booleans()):
        chosen += PUBLISHED[draw(st.sampled_from(NAMED))]
    if draw(st.booleans()):
        chosen += sorted(TABLES)
    for name in chosen:
        content = TABLES[name].encode() if name in TABLES else draw(st.sampled_from(RECORDINGS))
        match draw(st.sampled_from(["same", "same", "same", "case", "letter", "copy", "nest", "bytes", "table"])):
            case "case":
                name = name.swapcase()
            case "letter":
                place = draw(st.integers(0, len(name) - 1))
                letter = draw(st.sampled_from("abzAZ019_-. é\x1b\n()"))
                name = name[:place] + letter + name[place + 1 :]
            case "copy":
                tree[f"copy of it/{name}"] = draw(st.sampled_from([content, RECORDINGS[0]]))
            case "nest":
                name = f"{draw(st.sampled_from(['Session1', 'deep/er', 'wav', '__MACOSX', '.hidden']))}/{name}"
            case "bytes" if content:
                place = draw(st.integers(0, len(content) - 1))
                content = content[:place] + draw(st.binary(max_size=6)) + content[place + draw(st.integers(0, 9)) :]
            case "table":
                content = draw(tables())
        tree[name] = content
    return tree


def plant(folder: Path, tree: Mapping[str, bytes]) -> None:
    for name, content in tree.items():
        path = folder / name.strip("/")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a name is a file here and a folder there
            continue


@cases_of("trees", quick=30)
def test_trees(explore: Callable[..., None], num_cases: int, tmp_path: Path) -> None:
    def open_all(case: tuple[dict[str, bytes], str, Any, str]) -> None:
        tree, on_unreadable, words, first = case
        folder = tmp_path / "tree"
        folder.mkdir()
        plant(folder, tree)
        before = digest(folder)
        for name in dict.fromkeys([first, *NAMED]):
            given = words if name == first else None
            corpus = result_or_line(open_corpus, name, folder, on_unreadable=on_unreadable, labels=given)
            if corpus is not None and on_unreadable == "skip":
                for utterance in corpus.utterances:
                    result_or_line(corpus.read, utterance)
        assert digest(folder) == before
        shutil.rmtree(folder)

    explore(st.tuples(trees(), st.sampled_from(["stop", "skip"]), labels, st.sampled_from(NAMED)), open_all)
