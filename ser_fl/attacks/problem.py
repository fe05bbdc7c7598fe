"""One batch to be attacked: all that an attack is given.

Legend: B utterances, F mel bins, L frames, C classes; "..." is whatever is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ser_fl.attacks.art.estimator import Array, ClipValues, HiddenNetwork, Labels, Passes, classifier
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.target import Expectation, Target, ToFeatures
from ser_fl.attacks.threat_model import Ball, Box
from ser_fl.randomness import generator


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Clean utterances, their true classes, and the model that an attack may question; all on the model's device."""

    network: nn.Module
    """Maps features of shape (B, F, L) to logits of shape (B, C); in eval mode already."""
    num_classes: int
    clean: Tensor
    """What is moved, shape (B, ...): features of shape (B, F, L), or recorded samples of shape (B, T)."""
    labels_B: Tensor
    keys_B: Sequence[str]
    """Utterance ids, which random starts are keyed by: draws depend on (seed, utterance), not on batches."""
    box: Box
    settings: AttackSettings
    """Resolved."""
    seed: int
    passes: Passes
    expectation: Expectation | None = None
    """What the attacker knows of the defence in front of the network; None where it knows of none."""
    start_BFL: Tensor | None = None
    """Adversarial inputs that an attack may begin at, such as those of a smaller budget; None to choose itself."""
    to_features: ToFeatures | None = None
    """From what is moved to features; None where features themselves are moved."""

    def subset(self, indices_N: Tensor) -> Self:
        """The same problem for some of its utterances."""
        chosen = indices_N.tolist()
        return replace(
            self,
            clean=self.clean[indices_N],
            labels_B=self.labels_B[indices_N],
            keys_B=[self.keys_B[index] for index in chosen],
            start_BFL=None if self.start_BFL is None else self.start_BFL[indices_N],
            to_features=None if self.to_features is None else self.to_features.subset(indices_N),
        )

    @property
    def features_BFL(self) -> Tensor:
        """What is moved, for attacks that move features alone."""
        assert self.to_features is None, f"{self.settings.name} on recordings"
        return self.clean

    @property
    def steps(self) -> int:
        """The resolved number of steps."""
        assert self.settings.steps is not None, self.settings.name
        return self.settings.steps

    @property
    def target(self) -> Target:
        """What an attack of ours questions."""
        return Target(
            network=self.network,
            keys_B=self.keys_B,
            passes=self.passes,
            to_features=self.to_features,
            expectation=self.expectation,
        )

    @property
    def ball(self) -> Ball:
        """All that the budget allows: of features an L-infinity ball, of recordings what their budget says."""
        if self.to_features is not None:
            return self.to_features.ball(self.settings)
        radius_B = self.clean.new_full((len(self.keys_B),), self.settings.epsilon)
        return Ball(self.clean, radius_B, "inf")

    def streams(self, name: str, *numbers: int) -> Iterator[Generator]:
        """A stream of random numbers for every utterance, keyed by (seed, utterance) and what is given."""
        name = name if self.to_features is None else "waveform"
        return (generator(name, self.seed, key, *numbers) for key in self.keys_B)

    def logits(self, features_BFL: Tensor) -> Tensor:
        """Logits of features of these utterances, shape (B, C), counted as forward passes; see `Target`."""
        with torch.no_grad():
            return self.target(features_BFL)

    def right_when_clean(self) -> Tensor:
        """Indices of the utterances that the model gets right without an attack; ever, where it is randomised."""
        return self.target.right(self.clean, self.labels_B).nonzero().flatten()

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
