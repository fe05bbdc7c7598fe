"""CREMA-D: English, 91 actors, twelve sentences, six emotions; Cao et al., IEEE TAC 2014.

Names such as ``1001_DFA_ANG_XX.wav``: actor, sentence, emotion, level. The emotion is the acted one, not the raters'.
One published name ends in X instead of XX (``1040_ITH_SAD_X``). Published quirk: ``1076_MTI_SAD_XX`` is silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, Recording

_NAME = re.compile(r"(10\d\d)_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX?)", re.IGNORECASE)
_FEMALE = frozenset(
    f"10{actor}"
    for actor in (
        *("02", "03", "04", "06", "07", "08", "09", "10", "12", "13", "18", "20", "21", "24", "25", "28", "29", "30"),
        *("37", "43", "46", "47", "49", "52", "53", "54", "55", "56", "58", "60", "61", "63", "72", "73", "74", "75"),
        *("76", "78", "79", "82", "84", "89", "91"),
    )
)
"""The 43 actresses, from the corpus's VideoDemographics.csv."""


def find(root: Path) -> Iterator[Recording]:
    """Utterances by name, in any nesting."""
    for path in audio_files(root):
        match = _NAME.fullmatch(path.stem)
        if match and 1 <= int(match[1]) - 1000 <= 91:
            yield Recording(
                path=path,
                key=path.stem.upper(),
                code=match[3].upper(),
                speaker=match[1],
                sex="female" if match[1] in _FEMALE else "male",
                text=match[2].upper(),
            )


INFO = CorpusInfo(
    name="cremad",
    title="CREMA-D",
    licence="ODbL 1.0 (database), DbCL 1.0 (contents)",
    url="https://github.com/CheyneyComputerScience/CREMA-D",
    label_map={
        "ANG": "anger",
        "DIS": "disgust",
        "FEA": "fear",
        "HAP": "happiness",
        "NEU": "neutral",
        "SAD": "sadness",
    },
    example="names such as 1001_DFA_ANG_XX.wav",
    find=find,
    published_counts=PublishedCounts(
        per_emotion=dict.fromkeys(("anger", "disgust", "fear", "happiness", "sadness"), 1271) | {"neutral": 1087}
    ),
    num_speakers=91,
    num_utterances=7442,
)
