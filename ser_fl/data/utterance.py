"""The utterance table: what a corpus is to every later stage. Names and texts in it are kept as they are compared: two
that look the same are the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

EMOTIONS = (
    "anger", "anxiety", "boredom", "calm", "contempt", "disgust", "excitement", "fear", "frustration", "guilt",
    "happiness", "neutral", "other", "sadness", "surprise",
)  # fmt: skip
"""The one vocabulary that every corpus's own emotion codes are mapped to."""
_BLANK_BY_DESIGN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One recorded (or synthesised) utterance and what is known of it."""

    utterance_id: str
    """Unique in its corpus and stable over machines: the path below the corpus folder, with forward slashes, in
    Unicode's composed form."""
    emotion: str
    """A word of `EMOTIONS`, or a manifest's own label."""
    speaker: str
    """Unique in the corpus; the natural client."""
    path: Path | None = None
    """None for synthetic utterances."""
    sex: str | None = None
    """"female", "male" or None where the corpus does not say."""
    session: str | None = None
    text: str | None = None
    """What was said, or the code of the sentence."""
    split: str | None = None
    """"train", "validation" or "test" where the corpus's authors published a split."""
    recording: str = ""
    """What it is a part of: utterances of one recording are never in different parts of a split. By default it is its
    own, and this its utterance_id."""
    span_s: tuple[float, float] | None = None
    """From which second of its file to which; None for all of it."""
    corpus: str = ""
    """Whose it is; "" where nobody says."""

    def __post_init__(self) -> None:
        """Names and texts are kept as they are compared (`plain`)."""
        object.__setattr__(self, "utterance_id", composed(self.utterance_id))
        object.__setattr__(self, "recording", composed(self.recording) or self.utterance_id)
        for name in ("emotion", "speaker", "session", "text"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain(given))

    def among_others(self) -> Utterance:
        """As one of several corpora: names and texts have the corpus's before them, ``nemo:SM0``, so that no two are
        alike.
        """
        return self._renamed(lambda name: f"{self.corpus}:{name}")

    def alone(self) -> Utterance:
        """As its own corpus has it."""
        return self._renamed(lambda name: name.removeprefix(f"{self.corpus}:"))

    def _renamed(self, rename: Callable[[str], str]) -> Utterance:
        return replace(
            self,
            utterance_id=rename(self.utterance_id),
            recording=rename(self.recording),
            speaker=rename(self.speaker),
            session=None if self.session is None else rename(self.session),
            text=None if self.text is None else rename(self.text),
        )

    @property
    def file(self) -> Path:
        assert self.path is not None, f"{self.utterance_id} is no file"
        return self.path


def plain(text: str) -> str:
    """A text in Unicode's composed form (NFC, where macOS writes NFD), every run of blanks of any kind a single one,
    none at the ends, and without what cannot be seen: zero-width characters, soft hyphens, marks of direction or order.

    >>> plain(" wu\u0308tend\u200b ") == "wütend"
    True
    """
    if not (text.isascii() and text.isprintable()):
        text = composed("".join(filter(_is_seen, text)))
    return " ".join(text.split())


def composed(text: str) -> str:
    """A text in NFC. Bytes of a file name that are no UTF-8, which Python keeps as surrogates, are written out, since
    nothing could be written with them.
    """
    return unicodedata.normalize("NFC", text.encode("utf-8", "backslashreplace").decode())


def has_unseen(text: str) -> bool:
    """Whether a text has characters that cannot be told from others or from none: odd blanks, or none to be seen."""
    return not all(map(_is_seen, text)) or any(char.isspace() and char not in " \n\r\t" for char in text)


def _is_seen(character: str) -> bool:
    if character.isspace():
        return True
    is_variation = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return not (is_variation or unicodedata.category(character) in ("Cc", "Cf") or character in _BLANK_BY_DESIGN)


def text_key(text: str) -> str:
    """What two spellings of one text have in common: letters and digits, in one case."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split()) or text


def text_digest(text: str) -> str:
    """A name of a text, which does not tell it."""
    return blake2b(text_key(text).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that was left out, and why."""

    utterance_id: str
    reason: str


class Corpus(Protocol):
    name: str
    synthetic: bool
    """True for the built-in corpus: whatever is computed from it must say so."""
    utterances: tuple[Utterance, ...]
    """Sorted by utterance_id."""
    skipped: tuple[SkippedFile, ...]
    """Files that could not be used and were left out, where that was asked for."""

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        """Waveform of shape (T,), float32 in [-1, 1], and its rate in Hz; a `UserError` names an unreadable file."""
        ...

    def content_digest(self, utterance: Utterance) -> bytes:
        """What the waveform depends on, as a digest of 16 bytes or more: the key of the feature cache."""
        ...
