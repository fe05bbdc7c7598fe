"""One batch to be attacked: all that an attack of the catalogue is given.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Array, ClipValues, HiddenNetwork, Labels, Passes, classifier
from ser_fl.attacks.ball import Ball
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.target import Expectation, Target
from ser_fl.attacks.threat_model import Box


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Clean utterances, their true classes, and the model that an attack may question; all on the model's device."""

    network: nn.Module
    """Maps features_BFL to logits_BC; in eval mode already."""
    num_classes: int
    features_BFL: Tensor
    labels_B: Tensor
    keys_B: Sequence[str]
    """Utterance ids, which random starts are keyed by."""
    box: Box
    settings: AttackSettings
    """Resolved."""
    seed: int
    passes: Passes
    expectation: Expectation | None = None
    """What the attacker knows of the defence in front of the network; None where it knows of none."""
    start_BFL: Tensor | None = None
    """Adversarial features that an attack may begin at, such as those of a smaller budget; None to choose itself."""

    def subset(self, indices_N: Tensor) -> Self:
        """The same problem for some of its utterances."""
        chosen = indices_N.tolist()
        return replace(
            self,
            features_BFL=self.features_BFL[indices_N],
            labels_B=self.labels_B[indices_N],
            keys_B=[self.keys_B[index] for index in chosen],
            start_BFL=None if self.start_BFL is None else self.start_BFL[indices_N],
        )

    @property
    def target(self) -> Target:
        """What an attack of ours questions."""
        return Target(network=self.network, keys_B=self.keys_B, passes=self.passes, expectation=self.expectation)

    @property
    def ball(self) -> Ball:
        """The L-infinity ball of the budget."""
        radius_B = self.features_BFL.new_full((len(self.keys_B),), self.settings.epsilon)
        return Ball(self.features_BFL, radius_B, "inf")

    def logits(self, features_BFL: Tensor) -> Tensor:
        """Logits of features of these utterances, shape (B, C), counted as forward passes; see `Target`."""
        with torch.no_grad():
            return self.target(features_BFL)

    def right_when_clean(self) -> Tensor:
        """Indices of the utterances that the model gets right without an attack; ever, where it is randomised."""
        return self.target.right(self.features_BFL, self.labels_B).nonzero().flatten()

    def classifier(
        self, *, clip_values: ClipValues | None, to_features: Callable[[Tensor], Tensor] | None = None
    ) -> Any:
        """The model as an ART PyTorchClassifier, to be used while this problem is solved and never kept.

        In expectation its logits are means of log-probabilities over the draws of a step, as `Target` has them. Every
        gradient draws anew, and what is asked for without one, such as the steps of a line search, meets the draws of
        the gradient before it. ART does not say whose images it shows, so that the problem is then one utterance's.

        Args:
            clip_values: bounds that ART clips to, numbers or arrays that broadcast to (F, L); None for none.
            to_features: maps what ART moves, of shape (B, F, L), to features; None where it moves features.
        """
        assert self.expectation is None or len(self.keys_B) == 1, f"{len(self.keys_B)} utterances for ART"
        hidden = HiddenNetwork(
            self._questioned,
            to_features or (lambda same: same),
            self.passes,
            self.features_BFL.device,
            self.target.num_draws,
        )
        _, num_bins, num_frames = self.features_BFL.shape
        return classifier(hidden, clip_values, self.num_classes, (num_bins, num_frames))

    def _questioned(self, features_NFL: Tensor, step: int) -> Tensor:
        """Logits of any number of features, shape (N, C); all of the one utterance where draws depend on it."""
        keys_N = self.keys_B if self.expectation is None else [*self.keys_B] * len(features_NFL)
        return replace(self.target, keys_B=keys_N)(features_NFL, step)

    def inputs(self) -> Array:
        """Clean features as ART's images, shape (B, 1, F, L)."""
        images: Array = self.features_BFL.cpu().numpy()[:, None].copy()
        return images

    def labels(self) -> Labels:
        """True classes, shape (B,)."""
        labels: Labels = self.labels_B.cpu().numpy()
        return labels

    def features(self, images: Array) -> Tensor:
        """What ART returned, as features of shape (B, F, L) on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(images[:, 0], dtype=np.float32)).to(self.features_BFL.device)
