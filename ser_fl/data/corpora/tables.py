"""Corpora that tell speaker and emotion in tables, and any other one by a manifest."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unicodedata import category

from ser_fl.data.corpora.folder import (
    AudioIndex,
    file_named,
    list_files,
    on_disk,
    read_table,
    refuse_difference,
    sex_of,
    split_of,
)
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, counts, pairs
from ser_fl.data.corpora.named_files import ITALIAN_LABELS
from ser_fl.data.utterance import Utterance, composed, plain
from ser_fl.errors import UserError

_LOG = logging.getLogger(__name__)


def _find_emozionalmente(root: Path) -> Iterator[Utterance]:
    """Utterances of the sample table, wherever it and the audio lie; ``audio/`` beside its folder comes first."""
    files = list_files(root)
    samples, users = file_named("samples.csv", files), file_named("users.csv", files)
    if samples is None:
        return
    people = () if users is None else read_table(users, required=("username", "gender"))
    sexes = {plain(row["username"]): sex_of(row["gender"]) for _, row in people}
    splits: dict[str, str] = {}
    for path in files:
        split = split_of(path.stem) if path.suffix.lower() == ".csv" else None
        for line, row in read_table(path, required=("file_name",)) if split else ():
            stem = plain(Path(row["file_name"]).stem).lower()
            if splits.setdefault(stem, split or "") != split:
                place = f"{path} line {line}: {row['file_name']}"
                raise UserError(f"{place} is in the {splits[stem]} split too; mend the tables")
    audio = AudioIndex(files)
    for _, row in read_table(samples, required=("file_name", "actor", "emotion_expressed")):
        name = Path(row["file_name"]).name
        stem = plain(Path(name).stem).lower()
        yield Utterance(
            path=audio.find(samples.parent.parent / "audio" / name),
            utterance_id=stem,
            emotion=row["emotion_expressed"],
            speaker=row["actor"],
            sex=sexes.get(plain(row["actor"])),
            text=row.get("sentence") or None,
            split=splits.get(stem),
        )


# Emozionalmente: Italian, 431 amateurs, 18 sentences, seven emotions; Catania et al., IEEE TASLP 2025. Files are named
# by time stamp; metadata/samples.csv (file_name, actor, emotion_expressed, sentence) tells the rest, metadata/users.csv
# (username, gender) the sex, and metadata/split/{train,dev,test}.csv, from version 1.1 on, the authors'
# speaker-independent split. The emotion is the acted one, not the listeners'.
EMOZIONALMENTE = CorpusInfo(
    name="emozionalmente",
    title="Emozionalmente",
    licence="CC BY 4.0",
    url="https://zenodo.org/records/6569824",
    label_map=pairs(
        "anger=anger disgust=disgust fear=fear joy=happiness neutrality=neutral sadness=sadness surprise=surprise"
    ),
    example="metadata/samples.csv beside audio/",
    texts_in="column `sentence` of metadata/samples.csv",
    find=_find_emozionalmente,
    published_counts=PublishedCounts(num_utterances=6902, num_speakers=431),
)

_TURN = re.compile(
    r"^\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+((Ses0[1-5])[FM]_\S+_([FM])\w+)\s+(\w{3})\s+\[", re.IGNORECASE | re.MULTILINE
)
_SAID = re.compile(r"^(Ses0[1-5][FM]_\S+_[FM]\w+)\s+\[[^]\n]*\]:[^\S\n]*(.*)$", re.IGNORECASE | re.MULTILINE)
_SCRIPT = re.compile(r"script\d+_\d+", re.IGNORECASE)
_DIALOGUE = re.compile(r"Ses0[1-5][FM]_.*\.txt", re.IGNORECASE)


def _find_iemocap(root: Path) -> Iterator[Utterance]:
    """Labelled turns of all sessions; the speaker is the session with the speaking side, such as Ses01F, the text the
    transcription, or in a copy without any the script, such as script01_1.
    """
    files = list_files(root)
    audio = AudioIndex(files)
    dialogues = [
        (path, _as_written(path))
        for path in files
        if _DIALOGUE.fullmatch(path.name)
        # The speakers' movements are in files of the same names, of gigabytes.
        and not any(part.lower().startswith("mocap") for part in path.relative_to(root).parts)
    ]
    said = {match[1].lower(): match[2] for _, text in dialogues for match in _SAID.finditer(text)}
    for table, text in dialogues:
        published = table.parents[min(2, len(table.parents) - 1)] / "sentences" / "wav"
        for match in _TURN.finditer(text):
            turn, session, side = match[1], match[2].capitalize(), match[3].upper()
            script = None if said else _SCRIPT.search(turn)
            yield Utterance(
                path=audio.find(published / turn.rpartition("_")[0] / f"{turn}.wav"),
                utterance_id=turn.lower(),
                emotion=match[4],
                speaker=session + side,
                sex="female" if side == "F" else "male",
                session=session,
                text=said.get(turn.lower(), script and script[0].lower()) or None,
            )


def _as_written(path: Path) -> str:
    """A text in UTF-8, or in Latin-1, in which some comments of the raters and some copies are."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r", "\n")


# IEMOCAP: English, ten actors in five sessions of two; Busso et al., LREC 2008. The labels are in the text files of
# Session?/dialog/EmoEvaluation, one bracketed line a turn with the majority of the raters, the audio of each turn in
# Session?/sentences/wav. The default label map is the field's four classes: anger, happiness with excitement merged
# into it, neutral and sadness, 5,531 utterances; other codes are left out. With data.labels each can have its own word.
IEMOCAP = CorpusInfo(
    name="iemocap",
    title="IEMOCAP",
    licence="signed licence of USC SAIL",
    url="https://sail.usc.edu/iemocap/",
    label_map=pairs("ang=anger hap=happiness exc=happiness neu=neutral sad=sadness"),
    left_out=("dis", "fea", "fru", "oth", "sur", "xxx"),
    example="dialog/EmoEvaluation/Ses01F_impro01.txt",
    texts_in="Session?/dialog/transcriptions",
    find=_find_iemocap,
    published_counts=PublishedCounts(
        num_utterances=5531, num_speakers=10, per_emotion=counts("anger=1103 happiness=1636 neutral=1708 sadness=1084")
    ),
)


def _find_nemo(root: Path) -> Iterator[Utterance]:
    """Utterances of data.tsv, wherever it and the audio lie; ``samples/`` beside it comes first."""
    files = list_files(root)
    table = file_named("data.tsv", files)
    if table is None:
        return
    audio = AudioIndex(files)
    for _, row in read_table(table, required=("file_id", "emotion", "speaker_id"), quoted=False):
        name = Path(row["file_id"]).name
        yield Utterance(
            path=audio.find(table.parent / "samples" / name),
            utterance_id=plain(Path(name).stem).lower(),
            emotion=row["emotion"],
            speaker=row["speaker_id"],
            sex=sex_of(row.get("gender", "")),
            text=row.get("raw_text") or None,
        )


# nEMO: Polish, nine actors, ninety sentences, six emotions; Christop, LREC-COLING 2024. data.tsv beside samples/ names
# the files. Its texts hold bare quotation marks, its speaker ids leading blanks. The corpus is uneven as published: MP0
# has few utterances and MK0 none of surprise.
NEMO = CorpusInfo(
    name="nemo",
    title="nEMO",
    licence="CC BY-NC-SA 4.0",
    url="https://github.com/amu-cai/nEMO",
    label_map=pairs("anger=anger fear=fear happiness=happiness neutral=neutral sadness=sadness surprised=surprise"),
    example="data.tsv beside samples/",
    texts_in="column `raw_text` of data.tsv",
    find=_find_nemo,
    published_counts=PublishedCounts(
        num_utterances=4481,
        num_speakers=9,
        per_emotion=counts("anger=749 fear=736 happiness=749 neutral=809 sadness=769 surprise=669"),
    ),
)

_REQUIRED = ("path", "emotion", "speaker")


def _find_listed(root: Path) -> Iterator[Utterance]:
    """Utterances of the table at ``root``, a file or the folder of manifest.csv. A written path may not leave the
    folder. Links may, since on clusters a corpus is often a folder of links, made by its owner, while a table comes
    from anywhere.
    """
    names = ("manifest.csv", "manifest.tsv")
    named = [root] if root.is_file() else [path for path in sorted(root.iterdir()) if path.name.lower() in names]
    if not named:
        raise UserError(f"no manifest.csv in {root}: a table with the columns {', '.join(_REQUIRED)}")
    table, listed = named[0], dict[Path, dict[str, list[str]]]()
    told, again = dict[str, tuple[int, Path, dict[str, str]]](), list[str]()
    for line, row in read_table(table, required=_REQUIRED):
        written, place = row.pop("path"), f"{table} line {line}"
        if any(category(character) in ("Cc", "Cs") for character in written):
            raise UserError(f"{place} names {written!r}: a path without control characters is wanted")
        relative = os.path.relpath(table.parent / written.replace("\\", "/"), table.parent)
        if relative == ".." or relative.startswith("../"):
            raise UserError(f"{place} names {written}, outside the manifest's folder: move or link the audio below it")
        path = on_disk(table.parent, Path(relative), listed)
        facts = {name: plain(field) for name, field in row.items()}
        earlier, first, known = told.setdefault(composed(path.as_posix()), (line, path, facts))
        if earlier != line:
            if facts != known:
                raise UserError(f"{place} lists {written} again, after line {earlier}, and otherwise: keep one of them")
            refuse_difference(first, path, written)
            again.append(f"{written} in line {line}")
            continue
        split = split_of(facts.get("split", ""))
        if facts.get("split") and split is None:
            raise UserError(f"{place} has the split {row['split']!r}: use train, validation or test")
        yield Utterance(
            path=path,
            utterance_id=path.as_posix(),
            emotion=row["emotion"],
            speaker=row["speaker"],
            sex=sex_of(row.get("sex", "")),
            session=facts.get("session") or None,
            text=facts.get("text") or None,
            split=split,
            recording=facts.get("recording", ""),
        )
    if again:
        _LOG.warning("%s lists %d files twice, which are taken once: %s", table, len(again), again[0])


# Any other corpus, through a table: path, emotion, speaker, and where known text, sex, session, split, and recording:
# what several files were cut from. manifest.csv lies at the top of the folder its paths start from. Labels are taken in
# lower case, so that "anger", "Anger" and "ANGER" are one class, and stay as they are unless data.labels maps them.
# DEMoS, whose files need a signed licence, comes this way: where every label is one of its codes they are mapped.
MANIFEST = CorpusInfo(
    name="manifest",
    title="a manifest",
    licence="yours",
    url="",
    label_map={},
    example=f"a table with the columns {', '.join(_REQUIRED)}",
    texts_in="column `text` of the table",
    find=_find_listed,
    recognised_labels={"DEMoS": {**ITALIAN_LABELS, "col": "guilt"}},  # "colpa"; the other seven are EMOVO's
)
