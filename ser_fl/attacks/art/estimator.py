"""Our model as an ART classifier, for as long as one attack runs.

ART switches modes, wipes gradients, runs recurrent layers in training mode and moves the model to its own idea of a
device. It is therefore given `HiddenNetwork`, a module without parameters or children: there is nothing for ART to
change. Nothing here is stored or pickled.

Legend: B utterances, F mel bins, L frames, C classes. ART sees features as one-channel images, (B, 1, F, L).
"""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.threat_model import Box

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
ClipValues = tuple[Array, Array] | tuple[float, float]


@dataclass(slots=True)
class Passes:
    """Cost of an attack, in utterances that went through the model."""

    forward: int = 0
    backward: int = 0


class HiddenNetwork(nn.Module):
    """The network as ART gets to see it, to be used inside `ser_fl.attacks.training_attacks.attacked`.

    Args:
        answer: maps features_BFL and the number of a step to logits_BC, and counts its forward passes. It must be no
            module, whose parameters and modes ART would find.
        to_features: maps what the attack moves, of shape (B, F, L), to features; differentiable.
        passes: counts every backward pass.
        device: where the network is.
        draws: passes of each utterance in one answer.
    """

    def __init__(
        self,
        answer: Callable[[Tensor, int], Tensor],
        to_features: Callable[[Tensor], Tensor],
        passes: Passes,
        device: torch.device,
        draws: int = 1,
    ) -> None:
        super().__init__()
        self._answer = answer
        self._to_features = to_features
        self._passes = passes
        self._device = device
        self._draws = draws
        self._step = 0

    def forward(self, inputs_B1FL: Tensor) -> Tensor:
        """Logits of shape (B, C), on the device of the inputs."""
        differentiated = torch.is_grad_enabled() and inputs_B1FL.requires_grad
        self._step += differentiated
        features_BFL = self._to_features(inputs_B1FL.squeeze(1).float().to(self._device))
        logits_BC = self._answer(features_BFL, self._step).to(inputs_B1FL.device)
        if differentiated:
            logits_BC.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits_BC

    def _count_backward(self, gradient_BC: Tensor) -> None:
        self._passes.backward += len(gradient_BC) * self._draws


def import_art() -> None:
    """Import ART without what its import does to logging: it would close every handler there is."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        import art.attacks.evasion
        import art.estimators.classification  # noqa: F401
    finally:
        logging.config.dictConfig = configure
    # Its warnings are about choices that are made here on purpose, or are looked at by our own checks.
    logging.getLogger("art").setLevel(logging.ERROR)


def classifier(hidden: HiddenNetwork, clip_values: ClipValues | None, num_classes: int, shape: tuple[int, int]) -> Any:
    """An ART PyTorchClassifier over a hidden network, with one method made affordable.

    Args:
        hidden: the network.
        clip_values: (lower, upper) of what the attack moves, numbers or arrays that broadcast to (F, L); or None.
        num_classes: C.
        shape: (F, L).
    """
    import_art()
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model=hidden,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, *shape),
        nb_classes=num_classes,
        clip_values=clip_values,
        preprocessing=None,
        device_type="gpu" if hidden._device.type == "cuda" else "cpu",
    )
    by_class = estimator.class_gradient

    def class_gradient(x: Array, label: Any = None, **kwargs: Any) -> Any:
        """Gradient of each utterance's own logit by one backward pass, where ART takes one per class.

        In eval mode utterances do not see each other, so that the result is the same.
        """
        if not isinstance(label, np.ndarray):
            return by_class(x, label=label, **kwargs)
        inputs = torch.from_numpy(x).to(estimator.device).requires_grad_()
        chosen_B1 = torch.from_numpy(label.astype(np.int64)).to(estimator.device)[:, None]
        (gradient,) = torch.autograd.grad(hidden(inputs).gather(1, chosen_B1).sum(), inputs)
        return gradient.cpu().numpy()[:, None]

    estimator.class_gradient = class_gradient
    return estimator


def clip_values_of(box: Box) -> tuple[Array, Array] | None:
    """Bounds of a box for ART; None where there is no box.

    ART refuses an empty range: a mel bin that can take one value only is widened by one rounding.
    """
    if box.lower_F1 is None or box.upper_F1 is None:
        return None
    lower: Array = box.lower_F1.detach().cpu().numpy().astype(np.float32)
    upper: Array = box.upper_F1.detach().cpu().numpy().astype(np.float32)
    return lower, np.maximum(upper, np.nextafter(lower, np.float32(np.inf)))


def scalar_clip_values_of(box: Box) -> tuple[float, float] | None:
    """The smallest and the largest value of a box, for classes of ART that know no bounds per mel bin."""
    bounds = clip_values_of(box)
    return None if bounds is None else (float(bounds[0].min()), float(bounds[1].max()))
