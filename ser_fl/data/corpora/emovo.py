"""EMOVO: Italian, six actors, fourteen sentences, seven emotions; Costantini et al., LREC 2014.

Names such as ``dis-f1-b1.wav``: emotion (Italian), speaker, sentence. The files are 48 kHz stereo from two spaced
microphones, see `ser_fl.data.audio.CHANNELS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import CorpusInfo, Recording, balanced_counts

ITALIAN_LABELS = {
    "neu": "neutral",
    "dis": "disgust",
    "gio": "happiness",
    "pau": "fear",
    "rab": "anger",
    "sor": "surprise",
    "tri": "sadness",
}
_NAME = re.compile(r"(neu|dis|gio|pau|rab|sor|tri)[-_]([fm][123])[-_]([a-z]\d)", re.IGNORECASE)


def find(root: Path) -> Iterator[Recording]:
    """Utterances by name, in any nesting."""
    for path in audio_files(root):
        if match := _NAME.fullmatch(path.stem):
            code, speaker, sentence = (part.lower() for part in match.groups())
            yield Recording(
                path=path,
                key=f"{code}-{speaker}-{sentence}",
                code=code,
                speaker=speaker,
                sex="female" if speaker.startswith("f") else "male",
                text=sentence,
            )


INFO = CorpusInfo(
    name="emovo",
    title="EMOVO",
    licence="free for research, see the site",
    url="http://voice.fub.it/activities/corpora/emovo/index.html",
    label_map=ITALIAN_LABELS,
    example="names such as dis-f1-b1.wav",
    find=find,
    published_counts=balanced_counts(
        ["f1", "f2", "f3", "m1", "m2", "m3"], dict.fromkeys(sorted(ITALIAN_LABELS.values()), 14)
    ),
    num_speakers=6,
    num_utterances=588,
)
