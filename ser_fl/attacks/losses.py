"""What an attack raises: losses of each utterance from its logits. Larger is nearer to, or deeper in, a wrong class.

When to choose which: cross-entropy is the usual one, and flattens out where a model is sure of itself; the difference
of logits ratio ignores the scale and shift of logits, so that no sure model hides behind it; the margin is what
minimal-norm attacks push over zero.

Legend: B utterances, C classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fl.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits_BC, labels_B) -> loss_B; differentiable by the logits."""

_TINY = 1e-12


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Of each utterance, shape (B,)."""
    return F.cross_entropy(logits_BC, labels_B, reduction="none")


def margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Lead of the best wrong class over the true one, in logits, shape (B,); above 0 where misclassified."""
    true_B = logits_BC.gather(1, labels_B[:, None])[:, 0]
    others_BC = logits_BC.masked_fill(F.one_hot(labels_B, logits_BC.shape[1]).bool(), -torch.inf)
    return others_BC.amax(dim=1) - true_B


def difference_of_logits_ratio(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The margin as a share of the distance from the largest logit to the third, shape (B,): Croce and Hein 2020 (arXiv
    2003.01690, equation 6). Fewer than three classes are a `UserError`.
    """
    if logits_BC.shape[1] < 3:
        raise UserError(f"the DLR loss needs at least 3 classes, got {logits_BC.shape[1]}: take cross-entropy")
    ordered_BC = logits_BC.sort(dim=1, descending=True).values
    return margin(logits_BC, labels_B) / (ordered_BC[:, 0] - ordered_BC[:, 2] + _TINY)


def targeted_difference_of_logits_ratio(targets_B: Tensor) -> Loss:
    """Towards one wrong class each: the lead of the target over the true class, scaled as in equation 7 of the same.
    Fewer than four classes are a `UserError`, when it is called.
    """

    def loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        if logits_BC.shape[1] < 4:
            raise UserError(
                f"the targeted DLR loss needs at least 4 classes, got {logits_BC.shape[1]}: take apgd_ce or apgd_dlr"
            )
        ordered_BC = logits_BC.sort(dim=1, descending=True).values
        scale_B = ordered_BC[:, 0] - (ordered_BC[:, 2] + ordered_BC[:, 3]) / 2 + _TINY
        true_B, target_B = (logits_BC.gather(1, which_B[:, None])[:, 0] for which_B in (labels_B, targets_B))
        return (target_B - true_B) / scale_B

    return loss
