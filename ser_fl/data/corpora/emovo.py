"""EMOVO: Italian, six actors, fourteen sentences, seven emotions; Costantini et al., LREC 2014.

Names such as ``dis-f1-b1.wav``: emotion (Italian), speaker, sentence. The files are 48 kHz stereo from two spaced
microphones, see `ser_fl.data.audio.CHANNELS`.
"""

from __future__ import annotations

from ser_fl.data.corpora.info import CorpusInfo, balanced_counts
from ser_fl.data.corpora.named_files import named_files

ITALIAN_LABELS = {
    "neu": "neutral",
    "dis": "disgust",
    "gio": "happiness",
    "pau": "fear",
    "rab": "anger",
    "sor": "surprise",
    "tri": "sadness",
}

INFO = CorpusInfo(
    name="emovo",
    title="EMOVO",
    licence="free for research, see the site",
    url="http://voice.fub.it/activities/corpora/emovo/index.html",
    label_map=ITALIAN_LABELS,
    example="names such as dis-f1-b1.wav",
    find=named_files(
        r"(?P<code>neu|dis|gio|pau|rab|sor|tri)[-_](?P<speaker>[fm][123])[-_](?P<text>[a-z]\d)",
        sex=lambda speaker: "female" if speaker.startswith("f") else "male",
    ),
    published_counts=balanced_counts(
        ["f1", "f2", "f3", "m1", "m2", "m3"], dict.fromkeys(sorted(ITALIAN_LABELS.values()), 14)
    ),
)
