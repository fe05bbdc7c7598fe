"""What an adaptive attacker does about a defence: expectation over its randomness, and a gradient where it has none.

Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397; against defences arXiv 1802.00420, section 4.2)
averages loss and gradient over what the defence may do, exactly where its outcomes can be listed. Backward pass
differentiable approximation (BPDA, section 4.1 there) goes forward through the defence and backward through a smooth
stand-in.

Legend: B utterances, F mel bins, L frames, K draws.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ser_fl.attacks.target import Expectation
from ser_fl.defences import Defence, NoDefence
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed

_WHOLE = 1 << 63
"""`derive_seed` is below it."""


def expectation_of(
    defence: Defence, *, seed: int, samples: int | None, fixed: Sequence[int] | None = None
) -> Expectation | None:
    """What an attacker who knows this defence takes the mean over; None where there is no defence.

    Args:
        defence: one of `ser_fl.defences.DEFENCES`, or any other.
        seed: of the attacker's draws, which are others than the defence's under the same seed.
        samples: draws a step, fresh in every step; None for every outcome by its probability. A defence without
            randomness has one outcome, however many are asked for.
        fixed: numbers of the defence's own draws under this very seed, as in its `predict`, which alone are attacked:
            by an attacker who knows the dice, the first thing to try. `samples` is then None.

    Raises:
        UserError: fewer than one draw, both samples and fixed, or outcomes that cannot be listed.
    """
    if isinstance(defence, NoDefence):
        return None
    if fixed is not None:
        if samples is not None or not fixed:
            raise UserError(f"fixed needs one draw or more and no samples, got {list(fixed)} and samples={samples}")
        return _OverDefence(defence, seed, (1 / len(fixed),) * len(fixed), fixed=tuple(fixed))
    if samples is not None and samples < 1:
        raise UserError(f"EOT samples must be 1 or more, or none for the exact expectation, got {samples}")
    outcomes = defence.outcome_weights
    if outcomes is not None and (samples is None or len(outcomes) == 1):
        return _OverDefence(defence, seed, tuple(outcomes), every=True)
    if samples is None:
        raise UserError(f"the outcomes of {defence.name} cannot be listed: take a number of samples, such as 16")
    ends = None if outcomes is None else tuple(accumulate(outcomes))
    return _OverDefence(defence, seed, (1 / samples,) * samples, ends=ends)


@dataclass(frozen=True, slots=True)
class _OverDefence:
    """Outcomes or draws of a defence.

    Draws among listed outcomes are keyed by (seed, utterance, step). Those of one step are systematic: the list, each
    outcome as long as it is probable, is cut into K equal lengths, and all are drawn at the same random place of their
    length. So each draw has the outcomes' probabilities (means are unbiased), but the K differ from each other, and
    their mean is much nearer to the exact one than that of independent draws.
    """

    defence: Defence
    seed: int
    weights: tuple[float, ...]
    every: bool = False
    """Draw number n is outcome number n, whatever the step: the exact expectation."""
    ends: tuple[float, ...] | None = None
    """Cumulative probabilities of the outcomes that are drawn among; None where the defence lists none."""
    fixed: tuple[int, ...] | None = None
    """Numbers of the defence's own draws under its own seed; None for the attacker's, other ones in every step."""

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        """What is shown in K draws of B utterances, with the gradient of the defence's stand-in where it has one."""
        if self.every:
            shown = self.defence.outcomes(features_BFL, [[number] * len(features_BFL) for number in draws])
        elif self.ends is not None:
            offsets_B = [derive_seed("adaptive", self.seed, key, step) / _WHOLE for key in keys_B]
            places_KB = [[(draw + offset) / len(self.weights) for offset in offsets_B] for draw in draws]
            last = len(self.ends) - 1
            numbers_KB = [[min(bisect_right(self.ends, place), last) for place in places_B] for places_B in places_KB]
            shown = self.defence.outcomes(features_BFL, numbers_KB)
        else:
            seed = derive_seed("adaptive", self.seed, step) if self.fixed is None else self.seed
            numbers = draws if self.fixed is None else [self.fixed[draw] for draw in draws]
            drawn = [self.defence.transform(features_BFL, keys_B, seed=seed, draw=number) for number in numbers]
            shown = torch.cat(drawn)
        if self.defence.approximation is None:
            return shown
        smooth_BFL = self.defence.approximation(features_BFL)
        smooth = smooth_BFL.repeat(len(draws), *(1,) * (smooth_BFL.dim() - 1))
        return shown.detach() + (smooth - smooth.detach())  # plus zero, so that the forward pass is exact
