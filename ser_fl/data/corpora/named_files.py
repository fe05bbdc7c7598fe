"""The reader of corpora that tell speaker and emotion in their file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ser_fl.data.corpora.folder import audio_files
from ser_fl.data.corpora.info import Recording


def named_files(
    pattern: str,
    *,
    sex: Callable[[str], str | None],
    speaker: Callable[[str], str] = str,
    code: Callable[[str], str] = str,
    text: Callable[[str], str] = str,
) -> Callable[[Path], Iterator[Recording]]:
    """A reader of WAV and FLAC files whose names follow a scheme, in any folder and any case.

    Args:
        pattern: Regular expression of the whole name without its ending. Its groups ``speaker``, ``code`` (the emotion)
            and ``text`` are used, in lower case; all its named groups together tell one utterance from another.
        sex: Of a speaker.
        speaker: From the group's content to the speaker's id.
        code: From the group's content to the emotion code.
        text: From the group's content to what was said.
    """
    scheme = re.compile(pattern, re.IGNORECASE)

    def find(root: Path) -> Iterator[Recording]:
        for path in audio_files(root):
            if match := scheme.fullmatch(path.stem):
                parts = {name: part.lower() for name, part in match.groupdict("").items()}
                parts["speaker"], parts["code"] = speaker(parts["speaker"]), code(parts["code"])
                yield Recording(
                    path=path,
                    key="_".join(parts.values()),
                    code=parts["code"],
                    speaker=parts["speaker"],
                    sex=sex(parts["speaker"]),
                    text=text(parts["text"]),
                )

    return find
