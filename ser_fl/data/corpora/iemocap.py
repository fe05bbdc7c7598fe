"""IEMOCAP: English, ten actors in five sessions of two; Busso et al., LREC 2008.

The labels are in the text files of ``Session?/dialog/EmoEvaluation``, one bracketed line a turn with the majority of
the raters, the audio of each turn in ``Session?/sentences/wav``. The default label map is the field's four classes:
anger, happiness with excitement merged into it, neutral and sadness, 5,531 utterances; other codes are left out. With
``data.labels`` each code can have its own word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import AudioIndex, list_files
from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, Recording

_TURN = re.compile(
    r"^\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+((Ses0[1-5])[FM]_\S+_([FM])\w+)\s+(\w{3})\s+\[", re.IGNORECASE | re.MULTILINE
)
_DIALOGUE = re.compile(r"Ses0[1-5][FM]_.*\.txt", re.IGNORECASE)


def find(root: Path) -> Iterator[Recording]:
    """Labelled turns of all sessions; the speaker is the session with the speaking side, such as Ses01F."""
    files = list_files(root)
    audio = AudioIndex(files)
    for table in files:
        if not _DIALOGUE.fullmatch(table.name):
            continue
        # Some comments of the raters are not UTF-8; names and labels are ASCII.
        for match in _TURN.finditer(table.read_text(encoding="latin-1")):
            turn, session, side = match[1], match[2].capitalize(), match[3].upper()
            yield Recording(
                path=audio.find(_published_path(table, turn)),
                key=turn.lower(),
                code=match[4],
                speaker=session + side,
                sex="female" if side == "F" else "male",
                session=session,
            )


def _published_path(table: Path, turn: str) -> Path:
    """Where the audio of a turn is as published."""
    return table.parents[min(2, len(table.parents) - 1)] / "sentences" / "wav" / turn.rpartition("_")[0] / f"{turn}.wav"


INFO = CorpusInfo(
    name="iemocap",
    title="IEMOCAP",
    licence="signed licence of USC SAIL",
    url="https://sail.usc.edu/iemocap/",
    label_map={"ang": "anger", "hap": "happiness", "exc": "happiness", "neu": "neutral", "sad": "sadness"},
    left_out=("dis", "fea", "fru", "oth", "sur", "xxx"),
    example="dialog/EmoEvaluation/Ses01F_impro01.txt",
    find=find,
    published_counts=PublishedCounts(
        num_utterances=5531,
        num_speakers=10,
        per_emotion={"anger": 1103, "happiness": 1636, "neutral": 1708, "sadness": 1084},
    ),
)
