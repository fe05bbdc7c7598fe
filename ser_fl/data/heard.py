"""What a model has heard: the recordings, speakers and texts that it was trained on or selected by.

A figure on any of these recordings is no figure of what the model does with new ones. A recording is known again by its
sound, whatever the file is called: at another sampling rate, format or volume too.

Legend: N utterances, F mel bins, L frames, P numbers of a fingerprint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ser_fl.config.frontend import MOMENTS, AnyFrontend, TransformersConfig
from ser_fl.data.utterance import Utterance, text_key
from ser_fl.errors import UserError
from ser_fl.files import from_safetensors, to_safetensors, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from ser_fl.data.features import FeatureStore
    from ser_fl.data.splits import Indices, Split

TELEPHONE_HZ = 3400.0
"""Fingerprints are of what lies below: it is in every copy, down to a sampling rate of 8 kHz."""
BANDS = 8
_AT_ONCE = 1024
"""Utterances whose features are in memory at a time: those of a corpus are mapped from a file."""
SAME_SOUND = 0.1
"""Root mean square difference of two fingerprints, in nepers, below which they are of one recording. Copies at other
rates stay below 0.035, different recordings of one speaker, text and emotion above 0.22 (nEMO, RAVDESS). Of a sound
that changes by less than a neper over time it is this share of its change: silence is nobody's recording."""
LEAST_LEVEL = 1.0
"""Mean log-mel above that of digital silence, in nepers, of a sound that can be known: a pause of a long recording,
with a click in it, is nobody's."""
FIRST_RUN, CLIENTS = "the run that it began from", "its own clients"
"""Of whom it may be unknown what they heard: runs of earlier versions, and clients on other machines."""


def fingerprints(features_NFL: Tensor, frontend: AnyFrontend) -> Tensor:
    """Log-mel spectrograms, coarse, below 3400 Hz and at any volume: half floats of shape (N, P)."""
    import torch.nn.functional as functional

    lowest, highest, limit = (  # in mel, of Slaney's scale, as `LogMel`
        hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)
        for hz in (frontend.fmin_hz, frontend.fmax_hz, TELEPHONE_HZ)
    )
    log_mel_NML = _log_mel(features_NFL, frontend)
    step = (highest - lowest) / (frontend.num_mels + 1)
    below = min(frontend.num_mels, max(1, math.ceil((limit - lowest) / step) - 1))  # bins whose centre lies there
    coarse_NBM = functional.adaptive_avg_pool2d(log_mel_NML[:, None, :below].float(), (BANDS, MOMENTS))
    coarse_NP = coarse_NBM.flatten(1)
    return (coarse_NP - coarse_NP.mean(dim=1, keepdim=True)).half()


def _log_mel(features_NFL: Tensor, frontend: AnyFrontend) -> Tensor:
    """The mel bins among features, or those of the clips where the features are these."""
    import torch

    if not isinstance(frontend, TransformersConfig) or not frontend.is_waveform:
        log_mel_NML = features_NFL[:, : frontend.num_heard]
        if frontend.num_heard == frontend.num_mels:
            return log_mel_NML
        return torch.unflatten(log_mel_NML[:, :, 0], 1, (frontend.num_mels, -1))
    from ser_fl.data.frontend import LogMel

    of_clips_NML: Tensor = LogMel(frontend.heard)(features_NFL[:, 0])
    return of_clips_NML


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heard:
    """The training and validation utterances of a run, and of the run that it began from (`init_from`)."""

    ids: tuple[str, ...]
    speakers: frozenset[str]
    texts: frozenset[str]
    fingerprints_NP: Tensor
    missing: tuple[str, ...] = ()
    """Who heard more that is not on record: `FIRST_RUN`, `CLIENTS`."""

    @classmethod
    def of(cls, store: FeatureStore, split: Split, frontend: AnyFrontend) -> Self:
        """What training on a split hears: its training part, and its validation part, which selects."""
        import torch

        rows = sorted((*split.train, *split.validation))
        utterances = [store.utterances[row] for row in rows]
        return cls(
            ids=tuple(utterance.utterance_id for utterance in utterances),
            speakers=frozenset(utterance.speaker for utterance in utterances),
            texts=frozenset(utterance.text for utterance in utterances if utterance.text is not None),
            fingerprints_NP=torch.cat(
                [fingerprints(store.features_NFL[part], frontend) for part in torch.split(torch.tensor(rows), _AT_ONCE)]
            ),
        )

    @classmethod
    def before_training(cls, first: Self | None) -> Self:
        """What a run has heard that begins from another one, before its own clients' part is known."""
        import torch

        if first is not None:
            return replace(first, missing=(*first.missing, CLIENTS))
        nothing_NP = torch.empty(0, BANDS * MOMENTS, dtype=torch.float16)
        return cls(
            ids=(), speakers=frozenset(), texts=frozenset(), fingerprints_NP=nothing_NP, missing=(FIRST_RUN, CLIENTS)
        )

    def after(self, before: Self | None) -> Self:
        """What clients have heard whose model had heard ``before`` already; recordings of both are there once."""
        import torch

        if before is None:
            return self
        ours, theirs = (
            list(zip(heard.ids, map(bytes, heard.fingerprints_NP.numpy()), strict=True)) for heard in (self, before)
        )
        there = set(ours)
        rows = [row for row, recording in enumerate(theirs) if recording not in there]
        return replace(
            self,
            ids=(*self.ids, *(before.ids[row] for row in rows)),
            speakers=self.speakers | before.speakers,
            texts=self.texts | before.texts,
            fingerprints_NP=torch.cat([self.fingerprints_NP, before.fingerprints_NP[rows]]),
            missing=tuple(who for who in before.missing if who != CLIENTS),
        )

    def recordings(self, store: FeatureStore, rows: Indices, frontend: AnyFrontend) -> list[int]:
        """Which of some utterances are among the recordings heard, by their sound."""
        import torch

        known_NP = self.fingerprints_NP.float()
        if not rows or not len(known_NP):
            return []
        is_heard: list[bool] = []
        for part in torch.split(torch.tensor(rows), _AT_ONCE):
            features_NFL = store.features_NFL[part]
            theirs_NP = fingerprints(features_NFL, frontend).float()
            change_N = theirs_NP.reshape(-1, BANDS, MOMENTS).std(dim=2).square().mean(dim=1).sqrt()
            nearest_N = torch.cdist(theirs_NP, known_NP).amin(dim=1) / math.sqrt(BANDS * MOMENTS)
            is_alike_N = nearest_N < SAME_SOUND * change_N.clamp(max=1)
            level_N = _log_mel(features_NFL, frontend).mean(dim=(1, 2))
            is_audible_N = level_N > math.log(frontend.log_offset) + LEAST_LEVEL
            is_heard += (is_alike_N & is_audible_N).tolist()
        return list(compress(rows, is_heard))

    def shared(self, store: FeatureStore, rows: Indices, frontend: AnyFrontend, *, allow_seen: bool = False) -> Shared:
        """What some utterances share with those heard.

        Raises:
            UserError: recordings, and that is not allowed.
        """
        seen = self.recordings(store, rows, frontend)
        if seen and not allow_seen:
            raise UserError(
                f"{len(seen)} of {len(rows)} utterances were heard in training, the first is "
                f"{store.utterances[seen[0]].utterance_id}: take others, or count them with allow_seen=true"
            )
        utterances = [store.utterances[row] for row in rows]
        heard_texts = {*map(text_key, self.texts)}
        theirs = {u.speaker: not self.speakers.isdisjoint(_names(u, u.speaker)) for u in utterances}
        said = {
            text_key(u.text): not heard_texts.isdisjoint(map(text_key, _names(u, u.text)))
            for u in utterances
            if u.text is not None
        }
        return Shared(
            num_utterances=len(rows),
            recordings=len(seen),
            speakers=sum(theirs.values()),
            num_speakers=len(theirs),
            texts=sum(said.values()),
            num_texts=len(said),
            missing=self.missing,
        )

    def write(self, table: Path, sounds: Path) -> None:
        """Write both files whole: names as JSON, fingerprints as safetensors."""
        write_bytes(sounds, to_safetensors({"fingerprints": self.fingerprints_NP}))
        content = {"ids": list(self.ids), "speakers": sorted(self.speakers), "texts": sorted(self.texts)}
        write_json(table, content | ({"missing": self.missing} if self.missing else {}))

    @classmethod
    def read(cls, table: Path, sounds: Path) -> Self | None:
        """What `write` wrote; None where nobody did, as for runs of earlier versions and across machines.

        Raises:
            UserError: a file is damaged.
        """
        try:
            names = json.loads(table.read_text(encoding="utf-8"))
            fingerprints_NP = from_safetensors(sounds.read_bytes())["fingerprints"]
            if fingerprints_NP.shape != (len(names["ids"]), BANDS * MOMENTS):
                raise ValueError(f"fingerprints of shape {tuple(fingerprints_NP.shape)} for {len(names['ids'])} ids")
            return cls(
                ids=tuple(names["ids"]),
                speakers=frozenset(names["speakers"]),
                texts=frozenset(names["texts"]),
                fingerprints_NP=fingerprints_NP,
                missing=tuple(who for who in (FIRST_RUN, CLIENTS) if who in names.get("missing", ())),
            )
        except FileNotFoundError:
            return None
        except Exception as error:
            raise UserError(f"{table} or {sounds} is damaged ({error}): train again, or remove both") from None


def _names(utterance: Utterance, name: str) -> tuple[str, str]:
    """A speaker or text as the corpus alone names it, and as one of several."""
    alone = name.removeprefix(f"{utterance.corpus}:")
    return alone, f"{utterance.corpus}:{alone}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What some utterances share with what was heard; counts of utterances, and of all of them."""

    num_utterances: int
    speakers: int
    num_speakers: int
    recordings: int | None = None
    """None where clients on other machines alone could tell."""
    texts: int | None = None
    num_texts: int = 0
    """Different texts of the utterances; 0 where nobody knows any."""
    missing: tuple[str, ...] = ()
    """Who else heard something, which is not on record."""

    def __str__(self) -> str:
        """In words, for a terminal or a report's head."""
        said, untold = list[str](), list[str]()
        for shared, number, what in (
            (self.speakers, self.num_speakers, "speakers"),
            (self.texts, self.num_texts, "texts"),
            (self.recordings, self.num_utterances, "recordings"),
        ):
            if shared is None:
                untold.append(what)
            elif not number:
                said.append(f"unknown {what} (the corpus names none)")
            else:
                said.append(f"{'none' if not shared else 'all' if shared == number else shared} of {number} {what}")
        if untold:
            said.append(f"{' and '.join(untold)} are known to the clients' machines alone")
        return f"shared with training: {', '.join(said)}"


def in_words(
    shared: Shared | None, left_out: Mapping[str, int] | None = None, lacking: Sequence[str] = ()
) -> list[str]:
    """What a reader of figures on some speech must know, a line each: what it shares with training, utterances of
    emotions that the model does not know, by emotion, and emotions of the model that the speech lacks.
    """
    unknown = ", ".join(f"{emotion} ({count})" for emotion, count in (left_out or {}).items())
    missing = " and ".join(shared.missing) if shared else ""
    return [
        str(shared or "what was heard in training is not on record: these utterances may be among it"),
        *([f"what {missing} heard is not on record: these utterances may be among it"] if missing else []),
        *([f"left out, since the model does not know these emotions: {unknown}"] if left_out else []),
        *([f"no utterance of {', '.join(lacking)}, which the model knows"] if lacking else []),
    ]
