"""CREMA-D: English, 91 actors, twelve sentences, six emotions; Cao et al., IEEE TAC 2014.

Names such as ``1001_DFA_ANG_XX.wav``: actor, sentence, emotion, level. The emotion is the acted one, not the raters'.
One published name ends in X instead of XX (``1040_ITH_SAD_X``). ``1076_MTI_SAD_XX`` is silent as published.
"""

from __future__ import annotations

from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts
from ser_fl.data.corpora.named_files import named_files

_ACTRESSES = (
    "02 03 04 06 07 08 09 10 12 13 18 20 21 24 25 28 29 30 37 43 46 47 49 52 53 54 55 56 58 60 61 63 72 73 74 75 76 78 "
    "79 82 84 89 91"
)
"""The 43, by the last two digits of their ids; from the corpus's VideoDemographics.csv."""

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
    find=named_files(
        r"(?P<speaker>10(?:0[1-9]|[1-8]\d|9[01]))_(?P<text>[A-Z]{3})_(?P<code>ANG|DIS|FEA|HAP|NEU|SAD)"
        r"_(?P<level>LO|MD|HI|XX?)",
        sex=lambda speaker: "female" if speaker[2:] in _ACTRESSES.split() else "male",
        text=str.upper,
    ),
    published_counts=PublishedCounts(
        num_utterances=7442,
        num_speakers=91,
        per_emotion=dict.fromkeys(("anger", "disgust", "fear", "happiness", "sadness"), 1271) | {"neutral": 1087},
    ),
)
