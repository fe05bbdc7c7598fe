"""RAVDESS, speech: English, 24 actors, two sentences, eight emotions; Livingstone and Russo, PLOS ONE 2018.

Names such as ``03-01-06-01-02-01-12.wav``: modality (03 audio only), channel (01 speech, 02 song), emotion, intensity,
statement, repetition, actor (odd: male). Song, video and audio-video files are left out.
"""

from __future__ import annotations

from ser_fl.data.corpora.info import CorpusInfo, balanced_counts
from ser_fl.data.corpora.named_files import named_files

_STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}

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
    find=named_files(
        r"03-01-(?P<code>0[1-8])-(?P<intensity>0[12])-(?P<text>0[12])-(?P<repetition>0[12])"
        r"-(?P<speaker>0[1-9]|1\d|2[0-4])",
        sex=lambda speaker: "male" if int(speaker) % 2 else "female",
        text=_STATEMENTS.__getitem__,
    ),
    # Two statements, two repetitions, two intensities; neutral has the normal intensity only.
    published_counts=balanced_counts(
        [f"{actor:02d}" for actor in range(1, 25)],
        dict.fromkeys(("anger", "calm", "disgust", "fear", "happiness", "sadness", "surprise"), 8) | {"neutral": 4},
    ),
)
