"""SAVEE: English, four men, seven emotions; Haq and Jackson, AVSP 2009.

``DC/a01.wav`` as published, ``DC_a01.wav`` in flat copies: speaker, emotion (one or two letters), sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, Recording, balanced_counts

_SPEAKERS = ("DC", "JE", "JK", "KL")
_NAME = re.compile(r"(?:(DC|JE|JK|KL)[-_]?)?((sa|su|[adfhn])\d\d)", re.IGNORECASE)


def find(root: Path) -> Iterator[Recording]:
    """Utterances whose speaker is told by the name or by a folder above, the nearest first."""
    for path in audio_files(root):
        if match := _NAME.fullmatch(path.stem):
            folders = path.relative_to(root).parent.parts
            names = [name.upper() for name in (match[1] or "", *reversed(folders), root.resolve().name)]
            speaker, sentence = next((name for name in names if name in _SPEAKERS), None), match[2].lower()
            if speaker is not None:
                key = f"{speaker}_{sentence}"
                yield Recording(path=path, key=key, code=match[3], speaker=speaker, sex="male", text=sentence)


INFO = CorpusInfo(
    name="savee",
    title="SAVEE",
    licence="free for research, on registration",
    url="http://kahlan.eps.surrey.ac.uk/savee/",
    label_map={
        "a": "anger",
        "d": "disgust",
        "f": "fear",
        "h": "happiness",
        "n": "neutral",
        "sa": "sadness",
        "su": "surprise",
    },
    example="DC/a01.wav or DC_a01.wav",
    find=find,
    published_counts=balanced_counts(
        _SPEAKERS,
        dict.fromkeys(("anger", "disgust", "fear", "happiness", "sadness", "surprise"), 15) | {"neutral": 30},
    ),
)
