"""Each speaker scaled by own clips: what a federation gets for free, since nobody needs anybody else's sums.

Legend: B batch, N utterances, S speakers, F bins of the front end, L frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ser_fl.data.frontend import FeatureStatistics
from ser_fl.devices import send
from ser_fl.errors import UserError

_CLIPS_OF_OTHERS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Mean and deviation per bin of a speaker's clips, each of shape (F, 1); of several speakers (S, F, 1)."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, features_BFL: Tensor) -> Tensor:
        return (features_BFL - self.mean) / self.deviation

    @classmethod
    def of(cls, statistics: FeatureStatistics) -> Scale:
        return cls(*(column_F.float()[:, None] for column_F in statistics.mean_and_deviation()))

    @classmethod
    def enrolled(cls, features_KFL: Tensor, near: Scale | None) -> Scale:
        """Of a speaker by the clips that enrol. Where features are one frame of a clip, a few say little of how far
        they vary: the deviation of training speakers, where it is known, then counts as that of so many clips more.

        Raises:
            UserError: one such clip, and nothing is known of training speakers.
        """
        own = cls.of(FeatureStatistics.of(features_KFL))
        num_clips, _, num_frames = features_KFL.shape
        if num_frames > 1 or (near is None and num_clips > 1):
            return own
        if near is None:
            raise UserError(
                "a speaker is enrolled by 1 clip, and features of one frame (frontend.pool=clip, functionals) have no "
                "deviation over it: enrol by 2 or more, or train with normalisation.share_mean=true"
            )
        sum_F1 = num_clips * own.deviation.square() + _CLIPS_OF_OTHERS * near.to(own.mean.device).deviation.square()
        return replace(own, deviation=(sum_F1 / (num_clips + _CLIPS_OF_OTHERS)).sqrt())

    @classmethod
    def average(cls, scales: Iterable[Scale]) -> Scale:
        """What a speaker is scaled by of whom there is no clip: the mean of others' means, and of their deviations."""
        scales = list(scales)
        columns = ([scale.mean for scale in scales], [scale.deviation for scale in scales])
        return cls(*(torch.stack(column).double().mean(0).float() for column in columns))

    def rows(self, rows: Sequence[int]) -> Scale:
        """Of some utterances, where there is one for each."""
        return Scale(self.mean[list(rows)], self.deviation[list(rows)])

    def to(self, device: torch.device) -> Scale:
        return Scale(send(self.mean, device), send(self.deviation, device))

    def plain(self) -> dict[str, list[float]]:
        """For JSON."""
        return {"mean": self.mean.flatten().tolist(), "deviation": self.deviation.flatten().tolist()}


@dataclass(frozen=True, slots=True, eq=False)
class SpeakerScales:
    """A scale for every utterance, by its speaker, or by its corpus where there are several."""

    of_speakers: Scale
    speaker_N: Tensor
    """Row of each utterance's speaker, int64; -1 for speakers of no part."""
    enrolled_by: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The utterances by which each speaker is enrolled of whom others are scored, and nothing was trained on."""
    near: Scale | None = None
    """Of training speakers, as `Scale.enrolled` takes it."""

    @classmethod
    def of_names(
        cls, scales: Mapping[str, Scale], names_N: Iterable[str], enrolled_by: Mapping[str, Sequence[int]] | None = None
    ) -> SpeakerScales:
        """By the name that each utterance goes by."""
        rows = {name: row for row, name in enumerate(scales)}
        columns = ([scale.mean for scale in scales.values()], [scale.deviation for scale in scales.values()])
        speaker_N = torch.tensor([rows.get(name, -1) for name in names_N])
        return cls(Scale(*map(torch.stack, columns)), speaker_N, enrolled_by or {})

    def of(self, rows_N: Tensor) -> Scale:
        """Of some utterances: columns of shape (N, F, 1)."""
        speakers_N = self.speaker_N[rows_N]
        assert bool((speakers_N >= 0).all()), "a speaker without a scale"
        return Scale(self.of_speakers.mean[speakers_N], self.of_speakers.deviation[speakers_N])
