"""What is trained on: the corpus and its augmentation, who tests, and how clients share the rest."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from ser_fl.config.resumable import Resumable
from ser_fl.config.values import (
    Amount,
    Count,
    Finite,
    Folder,
    NonNegative,
    Positive,
    Proportion,
    Reverberation,
    Share,
    Speaker,
    is_count,
    must_be,
    refuse_given,
    stage,
)

_SEVERAL = re.compile(r"[A-Za-z_][\w-]*(\+[A-Za-z_][\w-]*)+")


@stage
class DataConfig:
    name: str
    """A corpus (`ser-fl corpus list`), "manifest" for a CSV of your own, or "builtin": synthetic, needs no files. Of
    several, ``data=[nemo,ravdess]``: "nemo+ravdess", in alphabetical order, whatever was written."""
    root: Resumable[Folder | None]
    """Folder of the corpus, or the manifest file; null for "builtin"."""
    channel: Literal["first", "second", "mean"]
    """Channel of stereo files. "mean" comb-filters where two spaced microphones recorded (EMOVO)."""
    on_unreadable: Literal["stop", "skip"]
    """Files that cannot be read: stop and name the first, or leave them out and name them all."""
    labels: dict[str, str]
    """Own emotion codes to words of the vocabulary, for manifests; empty keeps the codes. Of several corpora it is the
    manifest's."""
    segment_s: Annotated[float, Field(ge=0.1, le=3600)] | None = None
    """Files longer than this many seconds become several utterances of this length, all in one part of a split; null:
    the front end takes the beginning of each."""
    cache_dir: Resumable[Folder | None]
    """Where features are kept; null is $XDG_CACHE_HOME/ser_fl or ~/.cache/ser_fl."""
    num_speakers: Annotated[int, Field(ge=2)]
    """Virtual speakers, "builtin" only."""
    utterances_per_emotion: Count
    """Utterances of each emotion and speaker, "builtin" only."""
    roots: Resumable[dict[str, Folder]] = field(default_factory=dict)
    """Of several corpora the folder of each, by name."""

    def __post_init__(self) -> None:
        names = self.corpora
        object.__setattr__(self, "name", "+".join(sorted(names)))
        if names == ("builtin",):
            refuse_given(self, "data", ("segment_s",), owner="files", instead="data=builtin")
        if len(names) == 1:
            if self.roots:
                given = ", ".join(self.roots)
                raise ValueError(
                    f"data.roots goes with several corpora, got {given} with {self.written}: give data.root"
                )
            return
        written = self.written
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{written} names {twice[0]} twice: take each corpus once")
        if self.root is not None:
            raise ValueError(
                f"data.root is the folder of one corpus, got {self.root} with {written}: give data.roots.NAME"
            )
        for name in self.roots:
            if name not in names or name == "builtin":
                raise ValueError(f"data.roots.{name} is the folder of no corpus of {written}")
        if self.labels and "manifest" not in names:
            raise ValueError(f"data.labels is of a manifest, got {', '.join(self.labels)} with {written}")

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names: one, or those of several corpora."""
        return tuple(self.name.split("+")) if _SEVERAL.fullmatch(self.name) else (self.name,)

    @property
    def folders(self) -> dict[str, str | None]:
        """Of each corpus but the built-in one, in the order of `corpora`; None where nobody said."""
        several = len(self.corpora) > 1
        return {name: self.roots.get(name) if several else self.root for name in self.corpora if name != "builtin"}

    @property
    def written(self) -> str:
        """As the user would write it."""
        return f"data=[{','.join(self.corpora)}]" if len(self.corpora) > 1 else f"data={self.name}"

    @property
    def lacks_folder(self) -> str | None:
        """What is to be said where the folder of a corpus is not given."""
        missing = [name for name, folder in self.folders.items() if folder is None]
        if not missing:
            return None
        setting = f"data.roots.{missing[0]}" if len(self.corpora) > 1 else "data.root"
        return f"{self.written} needs {setting}=DIR, the folder of the corpus"

    @property
    def synthetic(self) -> bool:
        """Whether any of it is synthetic."""
        return "builtin" in self.corpora


Enrolment = Annotated[
    int | Literal["all", "none"],
    must_be(
        "enrolment must be a number of clips from 1 up, all or none",
        lambda given: is_count(given) or given in ("all", "none"),
    ),
]


@stage
class NormalisationConfig:
    """By which mean and deviation each bin of the features is scaled."""

    name: Literal["pooled", "speaker"]
    """pooled: those of all training clips, from sums that clients send. speaker: those of each speaker's own clips,
    which leave nobody's machine; see `enrolment`. Clients of mixed speakers (iid, dirichlet, centralised) scale each by
    all the speaker's training clips."""
    share_mean: bool = False
    """speaker: clients tell the mean of their speakers' means and deviations, so that enrolment=none works."""

    def __post_init__(self) -> None:
        if self.name != "speaker":
            refuse_given(self, "normalisation", ("share_mean",), owner="normalisation=speaker", instead="pooled")


@stage
class SplitConfig:
    """Which utterances train, select and test."""

    name: Literal[
        "within_speaker", "speaker_independent", "text_independent", "speaker_and_text_independent", "published"
    ]
    """within_speaker: the paper's, a share of every speaker's utterances. speaker_independent: no speaker in two parts.
    text_independent: no text in two parts. speaker_and_text_independent: neither; utterances of speakers of one part
    with texts of another are left out. published: the corpus's or the manifest's own split column."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    """Draws the split; its own setting, so that runs of several seeds share one split."""
    test_fraction: Share
    """within_speaker: share of a speaker's utterances that is the pooled test set."""
    validation_fraction: Share
    """within_speaker: share of every speaker's remaining utterances that selects the round."""
    test_speakers: tuple[Speaker, ...]
    """Named test speakers; empty: folds."""
    validation_speakers: tuple[Speaker, ...]
    """Named validation speakers; empty: drawn."""
    fold: Amount
    """Without named speakers or texts: which fold is left out, from 0."""
    num_test_speakers: Count
    """Speakers of a fold, unless `num_folds` says how many folds."""
    num_validation_speakers: Amount | None
    """null: a sixth of those that do not test, and two where six are left: one alone selects badly. 0: nobody
    validates, and all others train (`selection.by=last`)."""
    test_texts: tuple[Speaker, ...] = ()
    """Named test texts, or their digests (`ser_fl.data.utterance.text_digest`); empty: folds."""
    validation_texts: tuple[Speaker, ...] = ()
    """Named validation texts, or their digests; empty: drawn."""
    num_test_texts: Count | None = None
    """null: a fifth of the texts."""
    num_validation_texts: Amount | None = None
    """null: a sixth of those that do not test; 0 as of speakers."""
    num_folds: Count | None = None
    """Folds of as equal size as can be, in place of so many speakers or texts each."""
    exchanges: tuple[tuple[str, str, str, str], ...] = ()
    """within_speaker: found by the program, so that no part lacks an emotion that it could have."""

    def __post_init__(self) -> None:
        others = {
            "split=speaker_independent": (self.is_by_speaker, ("test_speakers", "validation_speakers")),
            "split=text_independent": (
                self.is_by_text,
                ("test_texts", "validation_texts", "num_test_texts", "num_validation_texts"),
            ),
            "split=speaker_independent or text_independent": (
                self.is_by_speaker or self.is_by_text,
                ("fold", "num_folds"),
            ),
        }
        for owner, (is_it, names) in others.items():
            if not is_it:
                refuse_given(self, "split", names, owner=owner, instead=f"split={self.name}")
        both = self.num_validation_speakers, self.num_validation_texts
        if self.name == "speaker_and_text_independent" and both.count(0) == 1:
            raise ValueError(
                "split.num_validation_speakers and split.num_validation_texts must both be 0 for a split by both "
                f"without validation, got {both[0]} and {both[1]}"
            )

    @property
    def without_validation(self) -> str | None:
        """The setting that says that nobody validates, where one does."""
        asked = {
            "num_validation_speakers": self.is_by_speaker and not self.validation_speakers,
            "num_validation_texts": self.is_by_text and not self.validation_texts,
        }
        return next((f"split.{name}" for name, counts in asked.items() if counts and getattr(self, name) == 0), None)

    @property
    def is_by_speaker(self) -> bool:
        """Whether no speaker is in two parts."""
        return self.name in ("speaker_independent", "speaker_and_text_independent")

    @property
    def is_by_text(self) -> bool:
        """Whether no text is in two parts."""
        return self.name in ("text_independent", "speaker_and_text_independent")


@stage
class ClientsConfig:
    by: Literal["speaker", "session", "dirichlet", "iid"]
    """speaker, session: each is a client. dirichlet, iid: utterances are dealt out, skewed by emotion or at random."""
    num_clients: Count | None
    """For dirichlet and iid; null: as many as training speakers. For speaker and session: at most this many."""
    dirichlet_alpha: Positive
    """Label skew of "dirichlet": small is skewed, large is iid."""


Codec = Literal["mp3", "vorbis", "g711", "gsm"]


@stage
class WaveformConfig:
    """What is done to each copy of a training utterance (`ser_fl.data.copies`), from the mouth to the listener."""

    max_speed: Share = 0.1
    """Up to this share faster or slower, tempo and pitch together."""
    max_pitch: Share = 0.1
    """Pitch and formants up to this share higher or lower: another vocal tract."""
    rooms: Proportion = 0.3
    """Share of copies in a room."""
    rt60_s: tuple[Reverberation, Reverberation] = (0.1, 0.6)
    """In how many seconds its sound falls by 60 dB, from and to."""
    noise: Proportion = 0.5
    """Share of copies with noise, half of it white, half pink."""
    snr_db: tuple[Finite, Finite] = (10.0, 30.0)
    """Its distance from the speech, from and to."""
    max_gain_db: NonNegative = 6.0
    """Up to so much louder or softer."""
    transmitted: Proportion = 0.2
    """Share of copies that go through one of the codecs."""
    codecs: tuple[Codec, ...] = ("mp3", "vorbis", "g711", "gsm")
    """One is drawn for each copy that is transmitted."""

    def __post_init__(self) -> None:
        for name in ("rt60_s", "snr_db"):
            if (pair := getattr(self, name))[0] > pair[1]:
                raise ValueError(f"augmentation.waveform.{name} must be [LEAST,MOST], got {list(pair)}")
        if self.transmitted and not self.codecs:
            raise ValueError("augmentation.waveform.codecs must name one at least, got []: or set transmitted=0")


@stage
class AugmentationConfig:
    """Augmentation of training utterances: copies of their waveforms, and batches of their features."""

    roll: bool
    """Rotate clips in time by a random number of frames: clips are repeated, so a rotation is a later start."""
    time_masks: Amount
    """Masks over time of each utterance (SpecAugment: Park et al., arXiv 1904.08779)."""
    max_time_mask: Amount
    """Frames of one mask at most."""
    mel_masks: Amount
    """Masks over mel bins of each utterance."""
    max_mel_mask: Amount
    """Mel bins of one mask at most."""
    label_smoothing: Share
    """Share of a label that is spread over all emotions."""
    max_mel_warp: Share = 0.0
    """Stretch or squeeze the mel axis by up to this share: another vocal tract."""
    max_equalisation: NonNegative = 0.0
    """Add a smooth curve over mel bins of up to this many standardised log-mel units: another microphone or room."""
    splice: Proportion = 0.0
    """Share of utterances that go on, from a random frame, as another of their batch with the same emotion."""
    copies: Annotated[int, Field(ge=0, le=1000)] = 0
    """Copies of every training utterance, changed as waveforms. In each round a client draws for each of its utterances
    this or one of its copies, all equally often. Scales and the box are of the utterances themselves."""
    waveform: WaveformConfig = WaveformConfig()
    """Of the copies."""
    mixup: NonNegative = 0.0
    """Mix each utterance of a batch with another, labels too, by shares from Beta(mixup, mixup); 0: none. Whoever holds
    several speakers mixes them (federation=centralised), a client of one mixes that one. With objective=clean."""

    def __post_init__(self) -> None:
        if not self.copies and self.waveform != WaveformConfig():
            raise ValueError("augmentation.waveform is of copies, of which augmentation.copies=0 makes none: raise it")
