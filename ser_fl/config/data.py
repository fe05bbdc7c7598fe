"""Which corpus is read, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ser_fl.config.resumable import Resumable
from ser_fl.config.values import Count, Folder, stage


@stage
class DataConfig:
    """Which corpus, and how its files are read."""

    name: str
    """A corpus (`ser-fl corpus list`), "manifest" for a CSV of your own, or "builtin": synthetic, needs no files."""
    root: Resumable[Folder | None]
    """Folder of the corpus, or the manifest file; null for "builtin"."""
    channel: Literal["first", "second", "mean"]
    """Channel of stereo files. "mean" comb-filters where two spaced microphones recorded (EMOVO)."""
    on_unreadable: Literal["stop", "skip"]
    """Files that cannot be read: stop and name the first, or leave them out and name them all."""
    labels: dict[str, str]
    """Own emotion codes to words of the vocabulary, for manifests; empty keeps the codes."""
    cache_dir: Resumable[Folder | None]
    """Where features are kept; null is $XDG_CACHE_HOME/ser_fl or ~/.cache/ser_fl."""
    num_speakers: Annotated[int, Field(ge=2)]
    """Virtual speakers, "builtin" only."""
    utterances_per_emotion: Count
    """Utterances of each emotion and speaker, "builtin" only."""
