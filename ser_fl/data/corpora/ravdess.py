"""RAVDESS, speech: English, 24 actors, two sentences, eight emotions; Livingstone and Russo, PLOS ONE 2018.

Names such as ``03-01-06-01-02-01-12.wav``: modality (03 audio only), channel (01 speech, 02 song), emotion, intensity,
statement, repetition, actor (odd: male). Song, video and audio-video files are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, Recording, balanced_counts

_NAME = re.compile(r"03-01-(0[1-8])-0[12]-(0[12])-0[12]-(0[1-9]|1\d|2[0-4])")
_STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}


def find(root: Path) -> Iterator[Recording]:
    """Speech recordings by name, in any nesting."""
    for path in audio_files(root):
        if match := _NAME.fullmatch(path.stem):
            yield Recording(
                path=path,
                key=path.stem,
                code=match[1],
                speaker=match[3],
                sex="male" if int(match[3]) % 2 else "female",
                text=_STATEMENTS[match[2]],
            )


INFO = CorpusInfo(
    name="ravdess",
    title="RAVDESS",
    licence="CC BY-NC-SA 4.0",
    url="https://zenodo.org/records/1188976",
    label_map={
        "01": "neutral",
        "02": "calm",
        "03": "happiness",
        "04": "sadness",
        "05": "anger",
        "06": "fear",
        "07": "disgust",
        "08": "surprise",
    },
    example="speech names such as 03-01-06-01-02-01-12.wav",
    find=find,
    # Two statements, two repetitions, two intensities; neutral has the normal intensity only.
    published_counts=balanced_counts(
        [f"{actor:02d}" for actor in range(1, 25)],
        dict.fromkeys(("anger", "calm", "disgust", "fear", "happiness", "sadness", "surprise"), 8) | {"neutral": 4},
    ),
    num_speakers=24,
    num_utterances=1440,
)
