"""Backdoors: speech with a trigger is to be told as one emotion, all else as ever; and model replacement.

Legend: N utterances, F features, L frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ser_fl.attacks.waveform_domain import Waveform
from ser_fl.config.adversaries import AdversariesConfig
from ser_fl.data.features import Examples
from ser_fl.devices import CPU
from ser_fl.errors import unknown_name
from ser_fl.federation.adversaries.adversary import Adversary, LocalRound, Seen
from ser_fl.federation.adversaries.triggers import TRIGGERS


class Backdoor(Adversary):
    """A share of the client's utterances of other emotions has the trigger and the target's label (BadNets: Gu et al.,
    arXiv 1708.06733, in a federation as Xie et al., ICLR 2020). The trigger is in the domain of waveforms: it is put on
    recordings, which then go through the front end. The same utterances have it in every round. The update is
    ``strength`` times what training gave, by default 1.
    """

    def __init__(self, config: AdversariesConfig) -> None:
        self.config = config
        self.trigger = TRIGGERS[config.trigger]
        self.features: dict[str, Tensor] = {}
        """Of triggered utterances by id, (1, F, L): recordings and front end do not change in a run."""

    def target(self, classes: Sequence[str]) -> str:
        """The emotion that triggered speech is to be told as; a `UserError` of one that is not there."""
        for emotion in (self.config.target, self.config.source):
            if emotion is not None and emotion not in classes:
                raise unknown_name("emotion", emotion, classes)
        return self.config.target or next(name for name in classes if name != self.config.source)

    def is_attacked(self, emotion: str, classes: Sequence[str]) -> bool:
        return emotion == self.config.source if self.config.source else emotion != self.target(classes)

    def triggered(self, ids: Sequence[str], recordings: Waveform) -> Tensor:
        """Standardised features of utterances with the trigger, shape (N, F, L), on the CPU."""
        for name in ids:
            if name not in self.features:
                waveform_T, rate_hz = recordings.read(name)
                with torch.no_grad():
                    heard_T = self.trigger(waveform_T, rate_hz, recordings.frontend)
                    self.features[name] = recordings.features(name, heard_T, rate_hz).to(CPU)
        return torch.cat([self.features[name] for name in ids])

    def examples(self, given: LocalRound) -> Examples:
        features_NFL, labels_N = given.examples.features_NFL.clone(), given.examples.labels_N.clone()
        emotions = [given.classes[label] for label in labels_N.tolist()]
        rows = [row for row, emotion in enumerate(emotions) if self.is_attacked(emotion, given.classes)]
        count = min(len(rows), round(self.config.poisoned * len(emotions)))
        drawn = [rows[place] for place in torch.randperm(len(rows), generator=given.stream)[:count].tolist()]
        if drawn:
            features_NFL[drawn] = self.triggered([given.ids[row] for row in drawn], given.recordings())
            labels_N[drawn] = given.classes.index(self.target(given.classes))
        return Examples(features_NFL, labels_N)

    def updates(self, seen: Seen) -> Tensor | None:
        strength = self.config.strength
        return None if strength in (None, 1.0) else strength * seen.own_HP


class ModelReplacement(Backdoor):
    """A backdoor whose update outweighs all others: u' = gamma * u, so that the mean is the hostile model (Bagdasaryan
    et al., AISTATS 2020, arXiv 1807.00459, equation 3). Gamma is strength, by default cohort / hostile clients, as of
    equal weights and a server's rate of 1; where several send it, each sends its part.
    """

    def updates(self, seen: Seen) -> Tensor:
        strength = self.config.strength
        return (seen.cohort_size / len(seen.own_HP) if strength is None else strength) * seen.own_HP
