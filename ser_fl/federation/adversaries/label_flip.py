"""Label flip: training on wrong emotions."""

import torch

from ser_fl.data.features import Examples
from ser_fl.errors import unknown_name
from ser_fl.federation.adversaries.adversary import Adversary, LocalRound


class LabelFlip(Adversary):
    """y' = C - 1 - y, of C emotions by name (Fang et al., arXiv 1911.11815, section 6.1); or with source and target the
    one is called the other (Tolpegin et al., arXiv 2007.08432).
    """

    def __init__(self, source: str | None = None, target: str | None = None) -> None:
        self.source, self.target = source, target

    def examples(self, given: LocalRound) -> Examples:
        labels_N, classes = given.examples.labels_N, given.classes
        if self.source is None or self.target is None:
            return Examples(given.examples.features_NFL, len(classes) - 1 - labels_N)
        if missing := {self.source, self.target} - {*classes}:
            raise unknown_name("emotion", min(missing), classes)
        source, target = classes.index(self.source), classes.index(self.target)
        return Examples(given.examples.features_NFL, torch.where(labels_N == source, target, labels_N))
