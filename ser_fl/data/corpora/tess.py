"""TESS: English, two actresses, 200 words, seven emotions; Pichora-Fuller and Dupuis, 2020.

Names such as ``OAF_back_angry.wav``: speaker (older or younger), word, emotion; "ps" is pleasant surprise. A few
published names say OA for OAF. Public copies often hold the whole corpus twice, one folder inside the other.
"""

from __future__ import annotations

from ser_fl.data.corpora.info import CorpusInfo, balanced_counts
from ser_fl.data.corpora.named_files import named_files

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
    find=named_files(
        r"(?P<speaker>OA|YA)F?_(?P<text>.+?)_"
        r"(?P<code>angry|disgust|fear|happy|neutral|sad|ps|(?:pleasant_)?surprised?)",
        sex=lambda speaker: "female",
        speaker=lambda initials: f"{initials.upper()}F",
        code=lambda code: "ps" if "surprise" in code else code,
    ),
    published_counts=balanced_counts(
        ["OAF", "YAF"],
        dict.fromkeys(("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"), 200),
    ),
)
