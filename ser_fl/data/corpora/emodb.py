"""EmoDB (Berlin): German, ten actors, ten sentences, seven emotions; Burkhardt et al., Interspeech 2005.

Names such as ``03a04Wc.wav``: speaker, sentence, emotion (first letter of the German word), version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, Recording

_NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])[a-z]?", re.IGNORECASE)
_SEXES = dict.fromkeys(("03", "10", "11", "12", "15"), "male") | dict.fromkeys(("08", "09", "13", "14", "16"), "female")


def find(root: Path) -> Iterator[Recording]:
    """Utterances by name, in any nesting."""
    for path in audio_files(root):
        match = _NAME.fullmatch(path.stem)
        if match and match[1] in _SEXES:
            yield Recording(
                path=path,
                key=path.stem.lower(),
                code=match[3].upper(),
                speaker=match[1],
                sex=_SEXES[match[1]],
                text=match[2].lower(),
            )


INFO = CorpusInfo(
    name="emodb",
    title="EmoDB",
    licence="CC0-1.0 (as distributed through audb)",
    url="http://emodb.bilderbar.info",
    label_map={
        "W": "anger",
        "L": "boredom",
        "E": "disgust",
        "A": "fear",
        "F": "happiness",
        "T": "sadness",
        "N": "neutral",
    },
    example="names such as 03a04Wc.wav",
    find=find,
    published_counts=PublishedCounts(
        per_emotion={
            "anger": 127,
            "boredom": 81,
            "disgust": 46,
            "fear": 69,
            "happiness": 71,
            "neutral": 79,
            "sadness": 62,
        },
        per_speaker={
            "03": 49,
            "08": 58,
            "09": 43,
            "10": 38,
            "11": 55,
            "12": 35,
            "13": 61,
            "14": 69,
            "15": 56,
            "16": 71,
        },
    ),
    num_speakers=10,
    num_utterances=535,
)
