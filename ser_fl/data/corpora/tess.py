"""TESS: English, two actresses, 200 words, seven emotions; Pichora-Fuller and Dupuis, 2020.

Names such as ``OAF_back_angry.wav``: speaker (older or younger), word, emotion; "ps" is pleasant surprise. A few
published names say OA for OAF. Public copies often hold the whole corpus twice, one folder inside the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, Recording, balanced_counts

_NAME = re.compile(
    r"(OAF?|YAF?)_(.+)_(angry|disgust|fear|happy|neutral|sad|ps|surprised?|pleasant_surprised?)", re.IGNORECASE
)


def find(root: Path) -> Iterator[Recording]:
    """Utterances by name, in any nesting."""
    for path in audio_files(root):
        if match := _NAME.fullmatch(path.stem):
            speaker, word, code = match[1].upper()[:2] + "F", match[2].lower(), match[3].lower()
            code = "ps" if "surprise" in code else code
            word = word.removesuffix("_pleasant")
            yield Recording(
                path=path, key=f"{speaker}_{word}_{code}", code=code, speaker=speaker, sex="female", text=word
            )


INFO = CorpusInfo(
    name="tess",
    title="TESS",
    licence="CC BY-NC-ND 4.0",
    url="https://doi.org/10.5683/SP2/E8H2MF",
    label_map={
        "angry": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "happy": "happiness",
        "neutral": "neutral",
        "ps": "surprise",
        "sad": "sadness",
    },
    example="names such as OAF_back_angry.wav",
    find=find,
    published_counts=balanced_counts(
        ["OAF", "YAF"],
        dict.fromkeys(("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"), 200),
    ),
    num_speakers=2,
    num_utterances=2800,
)
