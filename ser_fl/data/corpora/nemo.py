"""nEMO: Polish, nine actors, ninety sentences, six emotions; Christop, LREC-COLING 2024.

``data.tsv`` beside ``samples/`` names the files. Its texts hold bare quotation marks, its speaker ids leading blanks.
The corpus is uneven as published: MP0 has few utterances and MK0 none of surprise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import AudioIndex, file_named, list_files, read_table
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, Recording
from ser_fl.data.corpora.labels import sex_of


def find(root: Path) -> Iterator[Recording]:
    """Utterances of data.tsv, wherever it and the audio lie; ``samples/`` beside it comes first."""
    files = list_files(root)
    table = file_named("data.tsv", files)
    if table is None:
        return
    audio = AudioIndex(files)
    for _, row in read_table(table, separator="\t", required=("file_id", "emotion", "speaker_id"), quoted=False):
        name = Path(row["file_id"]).name
        yield Recording(
            path=audio.find(table.parent / "samples" / name),
            key=Path(name).stem.lower(),
            code=row["emotion"],
            speaker=row["speaker_id"],
            sex=sex_of(row.get("gender", "")),
            text=row.get("raw_text") or None,
        )


INFO = CorpusInfo(
    name="nemo",
    title="nEMO",
    licence="CC BY-NC-SA 4.0",
    url="https://github.com/amu-cai/nEMO",
    label_map={
        "anger": "anger",
        "fear": "fear",
        "happiness": "happiness",
        "neutral": "neutral",
        "sadness": "sadness",
        "surprised": "surprise",
    },
    example="data.tsv beside samples/",
    find=find,
    published_counts=PublishedCounts(
        num_utterances=4481,
        num_speakers=9,
        per_emotion={
            "anger": 749,
            "fear": 736,
            "happiness": 749,
            "neutral": 809,
            "sadness": 769,
            "surprise": 669,
        },
    ),
)
