"""Randomisation at test time: a random resize and a random pad in front of an unchanged classifier.

Chang et al. (arXiv 2203.04696), after Xie et al. (2018): every log-mel image is resized by a few pixels and padded at a
random place to a fixed size, so that a perturbation made for one placement meets another. There are only 84 patterns,
so that the expectation can be exact (`ExpectedRandomisation`). Two deviations from the authors' code: they draw once
per batch, we draw once per utterance, keyed by (seed, utterance, draw), so that a score does not depend on batch size
or order; and no utterance is dropped from a last, smaller batch.

It is judged by an adaptive attack through `transform`, which is differentiable; shown only to adversarial examples of
the bare model, as in the paper, it looks stronger than it is (Athalye et al., 2018).

Legend: B utterances, F mel bins, L frames, C classes, R runs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ser_fl.defences.defence import Classifier, Defence
from ser_fl.devices import send
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed

NUM_WIDTHS = 7
"""Widths L to L + 6."""
NUM_HEIGHTS = 2
"""Heights F to F + 1."""
NUM_PATTERNS = 84
"""28 widths and places by 3 heights and places."""
PAD_VALUE = 0.5
"""In the units of the features. The paper's value: its source used it for images in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One resize and one placement, and how likely the two are together."""

    width: int
    height: int
    left: int
    """Padded frames before the utterance."""
    top: int
    """Padded bins below the lowest one, which is row 0 of the features."""
    probability: float


@lru_cache(maxsize=16)
def patterns(num_frames: int, num_bins: int) -> tuple[Pattern, ...]:
    """The `NUM_PATTERNS` patterns for features of L frames and F bins.

    The width is uniform in L to L + 6 and the height in F to F + 1; the offsets are then uniform in what is left to L +
    7 and F + 2, upper ends excluded. So patterns differ in probability, from 1/196 for the narrowest to 1/14 for the
    widest.
    """
    found = []
    for width in range(num_frames, num_frames + NUM_WIDTHS):
        for height in range(num_bins, num_bins + NUM_HEIGHTS):
            num_left, num_top = num_frames + NUM_WIDTHS - width, num_bins + NUM_HEIGHTS - height
            probability = 1 / (NUM_WIDTHS * NUM_HEIGHTS * num_left * num_top)
            places = product(range(num_left), range(num_top))
            found += [Pattern(width, height, left, top, probability) for left, top in places]
    return tuple(found)


def draw_pattern(seed: int, utterance_key: str, draw: int = 0, *, num_frames: int, num_bins: int) -> Pattern:
    """The pattern of one utterance in one draw: a function of the keys alone. The choices are digits of one 63-bit
    number, far quicker than a generator per utterance; their probabilities are off by less than 1e-16.
    """
    number = derive_seed(seed, "randomisation", utterance_key, draw)
    number, extra_width = divmod(number, NUM_WIDTHS)
    number, extra_height = divmod(number, NUM_HEIGHTS)
    num_left, num_top = NUM_WIDTHS - extra_width, NUM_HEIGHTS - extra_height
    number, left = divmod(number, num_left)
    top = number % num_top
    probability = 1 / (NUM_WIDTHS * NUM_HEIGHTS * num_left * num_top)
    return Pattern(num_frames + extra_width, num_bins + extra_height, left, top, probability)


def apply_patterns(features_BFL: Tensor, patterns_N: Sequence[Pattern]) -> Tensor:
    """Resize and pad each utterance by its own patterns; differentiable, one resize per size that occurs.

    ``patterns_N``, of `patterns(L, F)`, are of all utterances in the first draw, then in the second, and so on: N is a
    multiple of B. The result, of shape (N, F + 2, L + 7), is in their order, ready for one forward pass.
    """
    num_utterances, num_bins, num_frames = features_BFL.shape
    assert len(patterns_N) % num_utterances == 0, f"{len(patterns_N)} patterns for {num_utterances} utterances"
    for pattern in patterns_N:
        fits = 0 <= pattern.width - num_frames < NUM_WIDTHS and 0 <= pattern.height - num_bins < NUM_HEIGHTS
        assert fits, f"{pattern} is not one for {num_bins} bins and {num_frames} frames"
    wanted_N = [(pattern.height, pattern.width, number % num_utterances) for number, pattern in enumerate(patterns_N)]
    order = sorted(set(wanted_N))
    count_by_size = Counter((height, width) for height, width, _ in order)
    # One split of the sorted batch: an index per size would cost a gradient of the whole batch for each.
    rows = send(torch.tensor([row for _, _, row in order]), features_BFL.device)
    groups = torch.split(features_BFL.index_select(0, rows), list(count_by_size.values()))
    resized = []
    for (height, width), group in zip(count_by_size, groups, strict=True):
        # Aligned corners are what TensorFlow's crop_and_resize does over a whole image.
        if height == num_bins:  # the same to the last bit, with its gradient in less than half the time
            resized.append(interpolate(group, size=width, mode="linear", align_corners=True))
        else:
            image = interpolate(group[:, None], size=(height, width), mode="bilinear", align_corners=True)
            resized.append(image[:, 0])
    found = [(group, index) for group, count in enumerate(count_by_size.values()) for index in range(count)]
    where = dict(zip(order, found, strict=True))
    places_N = [
        (*where[wanted], pattern.top, pattern.left) for wanted, pattern in zip(wanted_N, patterns_N, strict=True)
    ]
    placed: Tensor = _Placed.apply(places_N, (num_bins + NUM_HEIGHTS, num_frames + NUM_WIDTHS), *resized)
    return placed


class _Placed(torch.autograd.Function):
    """Images of several sizes, each copied into one canvas or more: N copies forward and N backward. Padding and
    stacking would give the same, but with its gradient takes a third more time.
    """

    @staticmethod
    def forward(
        ctx: Any, places_N: Sequence[tuple[int, int, int, int]], size: tuple[int, int], *groups: Tensor
    ) -> Tensor:
        """Canvases of shape (N, *size) from groups of images of one size each, by (group, index in it, top, left)."""
        ctx.places_N, ctx.shapes = places_N, [group.shape for group in groups]
        canvases = groups[0].new_full((len(places_N), *size), PAD_VALUE)
        for canvas, (group, index, top, left) in zip(canvases, places_N, strict=True):
            _, height, width = groups[group].shape
            canvas[top : top + height, left : left + width] = groups[group][index]
        return canvases

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [gradient.new_empty(shape) for shape in ctx.shapes]
        begun: set[tuple[int, int]] = set()
        for canvas, (group, index, top, left) in zip(gradient, ctx.places_N, strict=True):
            _, height, width = ctx.shapes[group]
            part = canvas[top : top + height, left : left + width]
            if (group, index) in begun:
                gradients[group][index] += part
            else:
                gradients[group][index] = part
                begun.add((group, index))
        return (None, None, *gradients)


class _RandomPatterns(Defence):
    """Defences by a random resize and pad, with the `patterns` as outcomes; shown is shape (B, F + 2, L + 7)."""

    moves_bins: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_draws < 1:
            raise UserError(f"num_draws of {self.name} must be 1 or more, got {self.num_draws}")

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        _, num_bins, num_frames = features_BFL.shape
        drawn = [draw_pattern(seed, key, draw, num_frames=num_frames, num_bins=num_bins) for key in keys_B]
        return apply_patterns(features_BFL, drawn)

    @property
    def outcome_weights(self) -> tuple[float, ...]:
        """Probabilities of the patterns, in their order; they depend on neither frames nor bins."""
        return tuple(pattern.probability for pattern in patterns(64, 64))

    def outcomes(self, features_BFL: Tensor, numbers_KB: Sequence[Sequence[int]]) -> Tensor:
        _, num_bins, num_frames = features_BFL.shape
        listed = patterns(num_frames, num_bins)
        return apply_patterns(features_BFL, [listed[number] for numbers_B in numbers_KB for number in numbers_B])


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomisation(_RandomPatterns):
    """The paper's defence: one random pattern per utterance and run, each run scored by itself."""

    num_draws: int = 3
    """Runs whose confusion matrices are averaged; 3 in the paper."""
    name: str = "randomisation"


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomisationEnsemble(_RandomPatterns):
    """Ours: softmax probabilities averaged over several patterns per utterance, then one prediction. It has less noise
    to hide behind, and is usually more accurate on clean speech. With one draw it is a run of `Randomisation`.
    """

    num_draws: int = 10
    name: str = "randomisation_ensemble"

    @property
    def run_weights(self) -> tuple[float, ...]:
        return (1.0,)

    @torch.no_grad()
    def predict(self, model: Classifier, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int) -> Tensor:
        shown = (self.transform(features_BFL, keys_B, seed=seed, draw=draw) for draw in range(self.num_draws))
        # Summed in float64, so that the order of draws cannot turn a near tie.
        total_BC = torch.stack([model(features).double().softmax(dim=-1) for features in shown]).sum(dim=0)
        return total_BC.argmax(dim=-1)[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedRandomisation(_RandomPatterns):
    """The paper's defence in exact expectation: every pattern is a run, weighted by its probability. UAR is linear in
    the confusion matrix, so that the mean over independent draws an utterance, as in `Randomisation`, is this one.
    """

    num_draws: int = field(default=NUM_PATTERNS, init=False)
    name: str = "randomisation_expected"

    @property
    def run_weights(self) -> tuple[float, ...]:
        return self.outcome_weights

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        _, num_bins, num_frames = features_BFL.shape
        return apply_patterns(features_BFL, [patterns(num_frames, num_bins)[draw]] * len(features_BFL))
