"""EmoDB (Berlin): German, ten actors, ten sentences, seven emotions; Burkhardt et al., Interspeech 2005.

Names such as ``03a04Wc.wav``: speaker, sentence, emotion (first letter of the German word), version.
"""

from __future__ import annotations

from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts
from ser_fl.data.corpora.named_files import named_files

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
    find=named_files(
        r"(?P<speaker>03|08|09|1[0-6])(?P<text>[ab]\d\d)(?P<code>[WLEAFTN])(?P<version>[a-z]?)",
        sex=lambda speaker: "male" if speaker in ("03", "10", "11", "12", "15") else "female",
    ),
    published_counts=PublishedCounts(
        num_utterances=535,
        num_speakers=10,
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
)
