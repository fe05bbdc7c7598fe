"""The utterance table: what a corpus is to every later stage."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ser_fl.text import composed, plain

if TYPE_CHECKING:
    from torch import Tensor

EMOTIONS = (
    "anger", "anxiety", "boredom", "calm", "contempt", "disgust", "excitement", "fear", "frustration", "guilt",
    "happiness", "neutral", "other", "sadness", "surprise",
)  # fmt: skip
"""The one vocabulary that every corpus's own emotion codes are mapped to."""


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

    def __post_init__(self) -> None:
        """Names and texts are kept as they are compared (`ser_fl.text.plain`)."""
        object.__setattr__(self, "utterance_id", composed(self.utterance_id))
        object.__setattr__(self, "recording", composed(self.recording) or self.utterance_id)
        for name in ("emotion", "speaker", "session", "text"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain(given))

    @property
    def file(self) -> Path:
        assert self.path is not None, f"{self.utterance_id} is no file"
        return self.path


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
