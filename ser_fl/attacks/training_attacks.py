"""FGSM, BIM and PGD on tensors, for adversarial training: `pgd.descend` in L-infinity.

Given the same start and batch they equal ART's FastGradientMethod, BasicIterativeMethod and
ProjectedGradientDescentPyTorch to the last bit in float32. They differ in what they leave alone: no NumPy round trip,
no hidden forward passes (a step is one forward and one backward), no gradient of a parameter, no change of mode. They
can be called inside a training step, under ``no_grad`` and under ``inference_mode``.

When to choose which: FGSM costs one gradient and is weak (and training on it alone may fail against iterated
attacks); BIM iterates it from the clean utterance; PGD iterates it from a random start and is the strongest.

Legend: B utterances, F mel bins, L frames, C classes. A model maps features_BFL to logits_BC.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser_fl.attacks.losses import Loss, cross_entropy
from ser_fl.attacks.pgd import descend
from ser_fl.attacks.surroundings import attacked
from ser_fl.attacks.target import Passes, Target
from ser_fl.attacks.threat_model import Ball, Box
from ser_fl.devices import send
from ser_fl.errors import UserError


def divergence(logits_BC: Tensor, adversarial_BC: Tensor) -> Tensor:
    """KL(p || p') of each utterance, shape (B,): how far adversarial predictions p' are from clean ones p."""
    return F.kl_div(
        F.log_softmax(adversarial_BC, dim=1), F.log_softmax(logits_BC, dim=1), reduction="none", log_target=True
    ).sum(1)


def random_start(features_BFL: Tensor, epsilon: float, generator: Generator) -> Tensor:
    """Features moved by noise that is uniform in the L-infinity ball of radius epsilon, shape (B, F, L).

    The noise is drawn on the generator's device, so that a generator on the CPU gives the same start everywhere.
    """
    unit = torch.rand(features_BFL.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return features_BFL.detach() + send((2 * unit - 1) * epsilon, features_BFL.device)


def own_starts(features_BFL: Tensor, epsilon: float, generators: Iterable[Generator]) -> Tensor:
    """`random_start` of every utterance by a generator of its own, so that it does not hang on the rest of the batch.

    The generators are all on one device; their noise is sent in one copy.
    """
    return _ball(features_BFL.detach(), epsilon).random(generators)


def fgsm(model: nn.Module, features_BFL: Tensor, labels_B: Tensor, *, epsilon: float, **how: Any) -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of epsilon.

    With a random start it is the R+FGSM of Wong et al. 2020 (arXiv 2001.03994) at a step of epsilon; theirs of 1.25
    epsilon is one step of `pgd`. Arguments (``box``, ``start_BFL``, ``low_precision``), result and errors are those of
    `pgd`.
    """
    return pgd(model, features_BFL, labels_B, epsilon=epsilon, step_size=epsilon, steps=1, **how)


def bim(
    model: nn.Module,
    features_BFL: Tensor,
    labels_B: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    box: Box | None = None,
    low_precision: bool = False,
) -> Tensor:
    """Basic iterative method (Kurakin et al. 2017, arXiv 1607.02533): PGD that starts at the clean utterance."""
    lengths: dict[str, Any] = {"epsilon": epsilon, "step_size": step_size, "steps": steps}
    return pgd(model, features_BFL, labels_B, **lengths, box=box, low_precision=low_precision)


def pgd(
    model: nn.Module,
    features_BFL: Tensor,
    labels_B: Tensor | None,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    box: Box | None = None,
    start_BFL: Tensor | None = None,
    low_precision: bool = False,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) in the L-infinity ball.

    Args:
        model: maps features_BFL to logits_BC; its modes and gradients are as before when this returns.
        features_BFL: clean features, float32; clipped to the box before anything else.
        labels_B: true classes, int64; None to raise the `divergence` from the model's own clean predictions (TRADES:
            arXiv 1901.08573, section 4), which has no gradient at the clean utterance: start elsewhere.
        epsilon: radius of the ball, >= 0, in units of the features; 0 gives the clean features, clipped.
        step_size: how far each step moves every cell, >= 0, same units.
        steps: number of steps, >= 0, of one forward and one backward pass each.
        box: the values that features may take; None for any.
        start_BFL: where to start, inside the ball, such as `random_start` gives; None for the clean utterance.
        low_precision: run the model in bfloat16, as while it is trained so; not for benchmarks.

    Returns:
        Adversarial features of shape (B, F, L), detached; within epsilon of the clipped clean ones and inside the box,
        both up to one rounding to float32.

    Raises:
        UserError: epsilon, step_size or steps is below 0.
    """
    for name, value in (("epsilon", epsilon), ("step_size", step_size), ("steps", steps)):
        if not value >= 0:
            raise UserError(f"{name} must be >= 0, got {value}")
    box = Box.unbounded() if box is None else box.to(features_BFL.device)
    with attacked(model, low_precision=low_precision):
        # Tensors made under inference_mode cannot take part in a gradient; their clones can.
        clean_BFL = box.clip(features_BFL.detach().clone())
        return descend(
            Target(network=model, keys_B=[""] * len(clean_BFL), passes=Passes()),
            _ball(clean_BFL, epsilon),
            clean_BFL.new_zeros(len(clean_BFL), dtype=torch.int64) if labels_B is None else labels_B.clone(),
            steps=steps,
            step_size=step_size,
            starts=None if start_BFL is None else start_BFL.detach().clone(),
            box=box,
            loss=_away_from(model, clean_BFL) if labels_B is None else cross_entropy,
        )


def _ball(features_BFL: Tensor, epsilon: float) -> Ball:
    return Ball(features_BFL, features_BFL.new_full((len(features_BFL),), epsilon), "inf")


def _away_from(model: nn.Module, clean_BFL: Tensor) -> Loss:
    """The `divergence` from what the model says of clean utterances."""
    with torch.no_grad():
        clean_BC = model(clean_BFL)
    return lambda logits_BC, labels_B: divergence(clean_BC, logits_BC)
