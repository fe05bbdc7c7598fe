"""Recorded waveforms as what an attack moves: clips of one sampling rate, padded, and the ball around them.

The padding behind a clip, and what the front end does not hear, keep their bits.

Legend: B clips, T samples of the padded batch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor

from ser_fl.attacks.threat_model import Ball, Rows
from ser_fl.data.frontend import FrontEnd
from ser_fl.devices import send

_MARGIN_S = 0.01
"""Recorded samples kept beyond the last one heard, in seconds: more than resampling reaches (6 periods of 8 kHz)."""


def heard_samples(frontend: FrontEnd, sample_rate_hz: int) -> int:
    """How many samples of a recording, at its own rate, the front end hears before it cuts."""
    return math.ceil(frontend.num_samples * sample_rate_hz / frontend.sample_rate_hz)


@dataclass(frozen=True, slots=True, eq=False)
class Clips(Rows):
    """Clean recordings of one sampling rate, padded with zeros to one length."""

    waveform_BT: Tensor
    """In [-1, 1]. T depends on the rate and the front end alone, so that no draw depends on who else is in a batch."""
    recorded_B: Tensor
    """How many of the T samples were recorded, int64."""
    heard_B: Tensor
    """How many of them may be moved: those that the front end hears, int64."""
    sample_rate_hz: int

    @classmethod
    def of(cls, waveforms: Sequence[Tensor], sample_rate_hz: int, frontend: FrontEnd) -> Self:
        """Clips of recordings of shape (T,) each; what lies far beyond the front end's length is left out."""
        heard = heard_samples(frontend, sample_rate_hz)
        width = heard + math.ceil(_MARGIN_S * sample_rate_hz)
        waveform_BT = torch.zeros(len(waveforms), width)
        for row, waveform_T in enumerate(waveforms):
            waveform_BT[row, : len(waveform_T)] = waveform_T[:width]
        recorded_B = torch.tensor([min(len(waveform_T), width) for waveform_T in waveforms])
        return cls(waveform_BT, recorded_B, recorded_B.clamp(max=heard), sample_rate_hz)

    def __len__(self) -> int:
        return len(self.recorded_B)

    def to(self, device: torch.device) -> Self:
        tensors = (self.waveform_BT, self.recorded_B, self.heard_B)
        waveform_BT, recorded_B, heard_B = (send(tensor, device) for tensor in tensors)
        return type(self)(waveform_BT, recorded_B, heard_B, self.sample_rate_hz)

    @property
    def movable_BT(self) -> Tensor:
        """Where a perturbation may be: a clip's own samples, as far as they are heard."""
        return torch.arange(self.waveform_BT.shape[1], device=self.heard_B.device) < self.heard_B[:, None]

    def moved(self, waveform_BT: Tensor) -> Tensor:
        """What was moved, where it may be; everywhere else the clean samples, bit for bit."""
        return torch.where(self.movable_BT, waveform_BT, self.waveform_BT)

    def snr_db(self, adversarial_BT: Tensor) -> Tensor:
        """Energy of each clip over its perturbation's, in dB, over heard samples: float64, shape (B,). Infinite for no
        perturbation, minus infinity for one of a silent clip.
        """
        clean_B, step_B = self.lengths(self.waveform_BT), self.lengths(adversarial_BT - self.waveform_BT)
        return torch.where(step_B > 0, 20 * torch.log10(clean_B / step_B.clamp(min=1e-300)), torch.inf)

    def lengths(self, samples_BT: Tensor) -> Tensor:
        """L2 norm over the samples that may be moved: float64, shape (B,)."""
        length_B: Tensor = torch.linalg.vector_norm((samples_BT * self.movable_BT).double(), dim=1)
        return length_B


@dataclass(frozen=True, slots=True, eq=False)
class ClipBall(Ball):
    """A ball around clips, whose random starts spend nothing on padding."""

    heard_B: Tensor

    def random(self, generators_B: Iterable[Generator]) -> Tensor:
        """Waveforms that are uniform in the ball of each clip's own samples, shape (B, T)."""
        moved = self.clean.clone()
        for row, (length, stream) in enumerate(zip(self.heard_B.tolist(), generators_B, strict=True)):
            own = Ball(self.clean[row : row + 1, :length], self.radius_B[row : row + 1], self.norm)
            moved[row, :length] = own.random([stream])[0]
        return moved
