"""Emozionalmente: Italian, 431 amateurs, 18 sentences, seven emotions; Catania et al., IEEE TASLP 2025.

Files are named by time stamp; ``metadata/samples.csv`` (file_name, actor, emotion_expressed, sentence) tells the rest,
``metadata/users.csv`` (username, gender) the sex, and ``metadata/split/{train,dev,test}.csv``, from version 1.1 on, the
authors' speaker-independent split. The emotion is the acted one, not the listeners'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ser_fl.data.corpora.folder import AudioIndex, file_named, list_files, read_table
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, Recording
from ser_fl.data.corpora.labels import sex_of, split_of
from ser_fl.errors import UserError


def find(root: Path) -> Iterator[Recording]:
    """Utterances of the sample table, wherever it and the audio lie; ``audio/`` beside its folder comes first."""
    files = list_files(root)
    samples = file_named("samples.csv", files)
    if samples is None:
        return
    sexes, splits, audio = _sexes(files), _splits(files), AudioIndex(files)
    for _, row in read_table(samples, separator=",", required=("file_name", "actor", "emotion_expressed")):
        name = Path(row["file_name"]).name
        yield Recording(
            path=audio.find(samples.parent.parent / "audio" / name),
            key=Path(name).stem.lower(),
            code=row["emotion_expressed"],
            speaker=row["actor"],
            sex=sexes.get(row["actor"]),
            text=row.get("sentence") or None,
            split=splits.get(Path(name).stem.lower()),
        )


def _sexes(files: Iterable[Path]) -> Mapping[str, str | None]:
    users = file_named("users.csv", files)
    if users is None:
        return {}
    rows = read_table(users, separator=",", required=("username", "gender"))
    return {row["username"]: sex_of(row["gender"]) for _, row in rows}


def _splits(files: Iterable[Path]) -> Mapping[str, str]:
    """Split by file stem, from the tables named after it."""
    splits: dict[str, str] = {}
    for path in files:
        split = split_of(path.stem)
        if path.suffix.lower() != ".csv" or split is None:
            continue
        for line, row in read_table(path, separator=",", required=("file_name",)):
            stem = Path(row["file_name"]).stem.lower()
            if splits.setdefault(stem, split) != split:
                raise UserError(
                    f"{path} line {line}: {row['file_name']} is in the {splits[stem]} split too; mend the tables"
                )
    return splits


INFO = CorpusInfo(
    name="emozionalmente",
    title="Emozionalmente",
    licence="CC BY 4.0",
    url="https://zenodo.org/records/6569824",
    label_map={
        "anger": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "joy": "happiness",
        "neutrality": "neutral",
        "sadness": "sadness",
        "surprise": "surprise",
    },
    example="metadata/samples.csv beside audio/",
    find=find,
    published_counts=PublishedCounts(num_utterances=6902, num_speakers=431),
)
