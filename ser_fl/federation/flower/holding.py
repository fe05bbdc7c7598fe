"""What a node says that it holds, held against itself, its experiment, and what was said of the same speakers before.

Legend: F features of a frame.
"""

import math
from dataclasses import dataclass

import torch
from flwr.app import RecordDict
from torch import Tensor

from ser_fl.config.schema import Config
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.data.splits import PARTS
from ser_fl.federation.flower.serialisation import Enrolled, WireError, take

MOST_UTTERANCES = 1_000_000
"""Of one client: an epoch of more would take days."""
_LOUDEST_LOG = 12.0
"""Natural log of a magnitude: a full-scale tone in a window of 4 s at 48 kHz has less in any mel bin."""
_LOUDEST = 10.0
"""Amplitude: full scale is 1, and resampling and files of floating point go beyond."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one node; what cannot be is a `WireError`."""

    said: Enrolled
    statistics: dict[str, FeatureStatistics]
    """By client; empty where nobody needs them (`is_told`)."""

    @classmethod
    def of(cls, said: Enrolled, records: RecordDict, config: Config) -> "Holding":
        """From a node's answer. Sums over features are taken once the counts beside them can be."""
        tellers = said.clients.keys() if is_told(config) else set()
        if said.sizes.keys() != set(PARTS) or tellers != said.frames.keys():
            raise WireError("it tells parts or frames that were not asked for")
        for client, count in said.clients.items():
            if count > MOST_UTTERANCES:
                raise WireError(f"client {client} has {count} training utterances, {MOST_UTTERANCES} is the most")
        if (trained := sum(said.clients.values())) > (held := sum(said.sizes["train"].values())):
            raise WireError(f"its clients have {trained} training utterances, its speakers {held}")
        sum_F = torch.empty(config.frontend.num_features, dtype=torch.float64)
        like = dict.fromkeys(("sum_F", "sum_of_squares_F", "maximum_F"), sum_F)
        statistics = dict[str, FeatureStatistics]()
        for client, count in said.clients.items() if is_told(config) else ():
            if (frames := said.frames[client]) != (due := count * config.frontend.num_frames):
                raise WireError(f"client {client} has {frames} frames, of {count} utterances there are {due}")
            statistics[client] = FeatureStatistics(frames, **take(records, f"statistics/{client}", like=like))
            if (problem := find_implausible(statistics[client], config)) is not None:
                raise WireError(f"client {client} has sums over features that cannot be: {problem}")
        return cls(said, statistics)

    def check_same(self, speaker: str, before: "Holding") -> None:
        """Refuse other data of a speaker than those that were told before: by the digest of ids, emotions and parts,
        and where sums over features are told by these, which nobody knows who has not heard the speech.
        """
        if self.said.digests.get(speaker) != before.said.digests.get(speaker):
            raise WireError(f"of {speaker} it holds other utterances than were enrolled")
        for client in self.said.clients.keys() & before.said.clients.keys():
            if self.said.clients[client] != before.said.clients[client]:
                raise WireError(f"client {client} has other training utterances than were enrolled")
            own, its = self.statistics.get(client), before.statistics.get(client)
            if own and its and not torch.allclose(own.sum_of_squares_F, its.sum_of_squares_F, rtol=1e-4):
                raise WireError(f"client {client} has other sums over features than were enrolled")


def is_told(config: Config) -> bool:
    """Whether nodes tell sums over their features."""
    return config.normalisation.name == "pooled" or config.normalisation.share_mean


def find_implausible(sums: FeatureStatistics, config: Config) -> str | None:
    """Why no features have these sums, or None: of values whose squares add up to more than their mean says, whose
    largest is one of them, and which are within what the front end can give.
    """
    tensors = (sums.sum_F, sums.sum_of_squares_F, sums.maximum_F)
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        return "not finite"
    mean_F, power_F = sums.sum_F / sums.count, sums.sum_of_squares_F / sums.count
    slack_F = _ROUNDING * (1 + power_F)
    if (power_F - mean_F.square() < -slack_F).any():
        return "a variance below 0"
    if (sums.maximum_F < mean_F - slack_F.sqrt()).any():
        return "a maximum below the mean"
    if (sums.maximum_F.square() > sums.sum_of_squares_F + slack_F).any():
        return "a maximum beyond the sum of squares"
    lowest, highest = heard_between(config)
    heard_F: Tensor = torch.stack([mean_F, sums.maximum_F])[:, : config.frontend.num_heard]
    if (heard_F < lowest).any() or (heard_F > highest).any():
        return f"{float(heard_F.min()):.3g} to {float(heard_F.max()):.3g}, where {lowest:.3g} to {highest:.3g} can be"
    return None


def heard_between(config: Config) -> tuple[float, float]:
    """Lowest and highest value of the first bins: of amplitudes within full scale."""
    if config.frontend.is_waveform:
        return -_LOUDEST, _LOUDEST
    return math.log(config.frontend.log_offset) - 0.01, _LOUDEST_LOG
