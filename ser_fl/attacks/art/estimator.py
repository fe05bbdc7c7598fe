"""Our model as an ART classifier, for as long as one attack runs, and what an attack of ART's makes of it.

ART switches modes, wipes gradients, runs recurrent layers in training mode and moves the model to its own idea of a
device. So it is given `HiddenNetwork`, a module without parameters or children, in which there is nothing to change.
Nothing here is stored or pickled.

Legend: B utterances, N some of them, F mel bins, L frames, C classes. ART sees features as one-channel images, (B, 1,
F, L).
"""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Box

Array = npt.NDArray[np.float32]
ClipValues = tuple[Array, Array] | tuple[float, float]


def import_art() -> Any:
    """ART's evasion attacks, imported without what that import does to logging: it would close every handler."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        import art.attacks.evasion
        import art.estimators.classification
    finally:
        logging.config.dictConfig = configure
    # Its warnings are about choices that are made here on purpose, or are looked at by our own checks.
    logging.getLogger("art").setLevel(logging.ERROR)
    return art.attacks.evasion


class HiddenNetwork(nn.Module):
    """The network as ART gets to see it, to be used inside `surroundings.attacked`; ``to_features`` maps what the
    attack moves, of shape (B, F, L), to features. The target is no module, whose parameters and modes ART would find.
    """

    def __init__(self, target: Target, device: torch.device, to_features: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._target, self._device, self._to_features = target, device, to_features
        self._step = 0

    def forward(self, inputs_B1FL: Tensor) -> Tensor:
        """Logits of shape (B, C), on the device of the inputs; in expectation all inputs are of one utterance."""
        differentiated = torch.is_grad_enabled() and inputs_B1FL.requires_grad
        self._step += differentiated
        features_BFL = inputs_B1FL.squeeze(1).float().to(self._device)
        if self._to_features is not None:
            features_BFL = self._to_features(features_BFL)
        target, passes, draws = self._target, self._target.passes, 1
        if target.expectation is not None:
            draws = len(target.expectation.weights)
            target = replace(target, keys_B=[*target.keys_B] * len(features_BFL))
        logits_BC = target(features_BFL, self._step).to(inputs_B1FL.device)
        if differentiated:

            def count_backward(gradient_BC: Tensor) -> None:
                passes.backward += len(gradient_BC) * draws

            logits_BC.register_hook(count_backward)  # type: ignore[no-untyped-call]
        return logits_BC


def classifier_of(
    problem: Problem, clip_values: ClipValues | None, to_features: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """The model as an ART PyTorchClassifier, to be used while this problem is solved and never kept.

    In expectation every gradient draws anew, and what is asked for without one, such as the steps of a line search,
    meets the draws of the gradient before it. ART does not say whose images it shows: the problem is then one
    utterance's. It clips to ``clip_values``, which broadcast to (F, L); ``to_features`` is as of `HiddenNetwork`.
    """
    assert problem.expectation is None or len(problem.keys_B) == 1, f"{len(problem.keys_B)} utterances for ART"
    import_art()
    from art.estimators.classification import PyTorchClassifier

    device = problem.clean.device
    hidden = HiddenNetwork(problem.target, device, to_features)
    estimator = PyTorchClassifier(
        model=hidden,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, *problem.clean.shape[1:]),
        nb_classes=problem.num_classes,
        clip_values=clip_values,
        preprocessing=None,
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    by_class = estimator.class_gradient

    def class_gradient(x: Array, label: Any = None, **kwargs: Any) -> Any:
        """By one backward pass, where ART takes one a class; utterances do not see each other in eval mode."""
        if not isinstance(label, np.ndarray):
            return by_class(x, label=label, **kwargs)
        inputs = torch.from_numpy(x).to(estimator.device).requires_grad_()
        chosen_B1 = torch.from_numpy(label.astype(np.int64)).to(estimator.device)[:, None]
        (gradient,) = torch.autograd.grad(hidden(inputs).gather(1, chosen_B1).sum(), inputs)
        return gradient.cpu().numpy()[:, None]

    estimator.class_gradient = class_gradient
    return estimator


def generated(attack: Any, problem: Problem, **words: Any) -> Tensor:
    """What an attack of ART's makes of the clean features, given true classes unless ``y`` is said: shape (B, F, L)."""
    images, labels = problem.clean.cpu().numpy()[:, None].copy(), problem.labels_B.cpu().numpy()
    made: Array = attack.generate(images, **{"y": labels} | words)
    return torch.from_numpy(np.ascontiguousarray(made[:, 0], dtype=np.float32)).to(problem.clean.device)


def right_when_clean(problem: Problem) -> Tensor:
    """Rows of the utterances that the model gets right without an attack, shape (N,); ever, where it is randomised."""
    return problem.target.right(problem.clean, problem.labels_B).nonzero().flatten()


def clip_values_of(box: Box, *, scalar: bool = False) -> ClipValues | None:
    """Bounds of a box for ART, of all mel bins together for classes that know no others; None where there is no box.
    ART refuses an empty range: a mel bin that can take one value only is widened by one rounding.
    """
    if box.lower_F1 is None or box.upper_F1 is None:
        return None
    lower, upper = (side.detach().cpu().numpy().astype(np.float32) for side in (box.lower_F1, box.upper_F1))
    upper = np.maximum(upper, np.nextafter(lower, np.float32(np.inf)))
    return (float(lower.min()), float(upper.max())) if scalar else (lower, upper)
