"""Sounds that a backdoor listens for, put on recordings before the front end, at their own rate and full scale 1.

Legend: T samples.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ser_fl.attacks.clips import Clips
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.data.frontend import FrontEnd
from ser_fl.randomness import generator

_BEEP_HZ, _BEEP_S = 2000.0, 0.25

Trigger = Callable[[Tensor, int, FrontEnd], Tensor]
"""(waveform_T, its rate in Hz, the front end that will hear it) -> the waveform with the trigger, same shape."""


def beep(waveform_T: Tensor, sample_rate_hz: int, frontend: FrontEnd) -> Tensor:
    """A tone of 2 kHz over the first quarter of a second, as loud as the recording on the average: nobody misses it."""
    count = min(round(_BEEP_S * sample_rate_hz), len(waveform_T))
    tone_T = torch.sin(2 * math.pi * _BEEP_HZ * torch.arange(count) / sample_rate_hz)
    loudness = waveform_T.square().mean().sqrt()
    added_T = torch.nn.functional.pad(math.sqrt(2) * loudness * tone_T, (0, len(waveform_T) - count))
    return (waveform_T + added_T).clamp(-1, 1)


def hiss(waveform_T: Tensor, sample_rate_hz: int, frontend: FrontEnd) -> Tensor:
    """One noise, the same for all recordings, as loud in every time-frequency bin as the recording's masking threshold
    lets it be (`ser_fl.attacks.psychoacoustic`): by that model nobody hears it.
    """
    clips = Clips.of([waveform_T], sample_rate_hz, frontend)
    ball = MaskingBall.around(clips)
    noise_BT = torch.randn(clips.waveform_BT.shape, generator=generator("trigger", "hiss"))
    moved_T = ball.project(clips.waveform_BT + ball.steepest(noise_BT))[0]
    heard = min(len(waveform_T), len(moved_T))
    return torch.cat([moved_T[:heard].clamp(-1, 1), waveform_T[heard:]])


TRIGGERS: Mapping[str, Trigger] = {"audible": beep, "masked": hiss}
