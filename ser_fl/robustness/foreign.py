"""Models of any make, as the benchmark takes them; what it cannot take is refused before an attack runs.

Legend: B and N utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.registry import ATTACKS
from ser_fl.attacks.threat_model import Box
from ser_fl.attacks.training_attacks import attacked
from ser_fl.devices import default_dtype, send
from ser_fl.errors import UserError, one_line, shown
from ser_fl.robustness.arrays import Numbers, as_taken, box_in_shape, features_of, labels_of
from ser_fl.robustness.evaluator import EVALUATION_BATCH, evaluating
from ser_fl.robustness.test_set import TestSet

Model = nn.Module | Callable[[Any], Any]
"""Maps features to logits of shape (B, C): as a tensor, first in a tuple or list, or as ``logits`` of a dict or of any
other object, such as a ModelOutput of Hugging Face."""

_NO_ATTACKS_THERE = ("meta", "mps")
"""Devices without data, or without the float64 in which distances are measured."""


class ForeignModel(nn.Module):
    """A model of any make, as attacks question it: float32 features of shape (B, F, L) to float32 logits (B, C).

    The model itself is given features in its own type of number and in the shape that they came in. It runs under the
    caller's own default type of number, and never in inference mode, so that what it caches can be trained with later.

    Args:
        model: the model.
        shape: of one utterance, as the model takes it.
    """

    def __init__(self, model: Model, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self._shape = shape
        self._default_dtype = torch.get_default_dtype()
        tensors = chain(self.parameters(), self.buffers())
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C).

        Raises:
            UserError: they are no logits, or, where no gradient is asked for, not numbers.
        """
        logits_BC = self.logits(features_BFL)
        if features_BFL.requires_grad and torch.is_grad_enabled() and not logits_BC.requires_grad:
            return logits_BC + 0 * features_BFL.flatten(1).sum(1, keepdim=True)  # a gradient of zero is doubted later
        if not torch.is_grad_enabled() and bool(logits_BC.isnan().any()):
            raise UserError("the model answers NaN to features that an attack made: argmax would take it for class 0")
        return logits_BC

    def logits(self, features_BFL: Tensor) -> Tensor:
        """The same, NaN or not."""
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad), default_dtype(self._default_dtype):
            if features_BFL.is_inference():
                features_BFL = features_BFL.clone()
            given = as_taken(features_BFL, self._shape).to(self._dtype)
            logits_BC = _first_logits(self.model(given))
            if not logits_BC.is_floating_point() or logits_BC.ndim != 2 or len(logits_BC) != len(given):
                raise UserError(
                    f"the model must answer logits of shape ({len(given)}, classes) to features of shape "
                    f"{tuple(given.shape)}, got {tuple(logits_BC.shape)} of {logits_BC.dtype}"
                    + _way_out_of_one_logit(logits_BC)
                )
            if logits_BC.shape[1] < 2:
                raise UserError(
                    f"the model must tell two classes at least, got one logit{_way_out_of_one_logit(logits_BC)}"
                )
            return logits_BC.to(features_BFL.device, torch.float32)


def foreign_test_set(
    model: Model,
    features: Numbers,
    labels: Numbers,
    *,
    box: Box | None = None,
    ids: Sequence[str] | None = None,
    batch_size: int = EVALUATION_BATCH,
) -> TestSet:
    """Any model and its utterances, where the model is; the model is tried on all of them.

    Args:
        model: see `Model`; a plain function runs where the features are.
        features: of shape (B, F, L), (B, 1, F, L), (B, F) or any other that the model takes; cast to float32, in which
            attacks run, and clipped to the box.
        labels: true classes, whole numbers of any type, or one-hot.
        box: the values that features may take, sides of a shape that broadcasts to one utterance's; None for any.
        ids: utterance ids, each once; None numbers them.
        batch_size: utterances at a time.

    Raises:
        UserError: something does not fit; it is named.
    """
    features_NFL, shape = features_of(features)
    known_ids = tuple(map(str, ids)) if ids is not None else tuple(f"{row:06d}" for row in range(len(features_NFL)))
    check_ids(known_ids, len(features_NFL))
    if odd := (~features_NFL.isfinite()).flatten(1).any(1).nonzero().flatten().tolist():
        raise UserError(
            f"features must be finite, got NaN or infinity in {len(odd)} of {len(features_NFL)} utterances, "
            f"the first {known_ids[odd[0]]!r}: leave them out"
        )
    if not callable(model):
        raise UserError(f"model must be a torch module or a function of features, got {shown(model)}")
    whole = ForeignModel(model, shape)
    device = next((tensor.device for tensor in chain(whole.parameters(), whole.buffers())), features_NFL.device)
    if device.type in _NO_ATTACKS_THERE:
        raise UserError(f"a model on the device {device.type} cannot be attacked there: move it with model.to('cpu')")
    box = box_in_shape(box or Box.unbounded(), shape).to(device, torch.float32)
    features_NFL = box.clip(send(features_NFL, device))
    with evaluating(whole), torch.no_grad():
        logits_NC = _answers(whole, features_NFL, batch_size)
    if odd := logits_NC.isnan().any(1).nonzero().flatten().tolist():
        raise UserError(
            f"the model answers NaN to {len(odd)} of {len(features_NFL)} utterances, the first {known_ids[odd[0]]!r}: "
            "argmax would take it for class 0; is the model trained, and are the features in its units?"
        )
    if bool((logits_NC >= 0).all() and ((logits_NC.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "the model's answers look like probabilities: attacks want logits, since gradients vanish behind a "
            "softmax; leave it out of the model",
            stacklevel=3,
        )
    return TestSet(
        model=whole,
        features_NFL=features_NFL,
        labels_N=send(labels_of(labels, len(features_NFL), logits_NC.shape[1]), device),
        ids=known_ids,
        num_classes=logits_NC.shape[1],
        box=box,
        seed=0,
        batch_size=batch_size,
    )


def check_ids(ids: Sequence[str], num_utterances: int) -> None:
    """Refuse ids that are not one an utterance: they key random draws, and tell subsets apart.

    Raises:
        UserError: too few or too many, or one of them twice.
    """
    if len(ids) != num_utterances:
        raise UserError(f"ids must be one an utterance, got {len(ids)} for {num_utterances} utterances")
    if twice := [utterance_id for utterance_id, count in Counter(ids).items() if count > 1]:
        raise UserError(f"ids must differ, got {twice[0]!r} more than once: they key all random draws")


def check_gradients(test_set: TestSet, attacks: Iterable[Attack]) -> None:
    """Refuse the registry's attacks by gradients on a model that has none; what a caller brings may know its ways.

    Raises:
        UserError: no gradient comes back from the logits to the features.
    """
    assert isinstance(test_set.model, ForeignModel)
    if not any(attack.knowledge == "undefended" and attack.settings.name in ATTACKS for attack in attacks):
        return
    with attacked(test_set.model):
        features_BFL = test_set.features_NFL[:1].clone().requires_grad_()
        try:
            torch.autograd.grad(test_set.model.logits(features_BFL).sum(), features_BFL)
        except RuntimeError as error:
            raise UserError(
                f"no gradient comes through the model ({one_line(str(error), 200)}): let it compute in torch without "
                "detach, no_grad or NumPy, or take attacks that need none, such as square or hopskipjump"
            ) from error


def _answers(model: ForeignModel, features_NFL: Tensor, batch_size: int) -> Tensor:
    """Logits of all utterances."""
    try:
        return torch.cat([model.logits(batch) for batch in torch.split(features_NFL, batch_size)])
    except UserError:
        raise
    except Exception as error:
        shape = (min(batch_size, len(features_NFL)), *model._shape)
        raise UserError(
            f"the model fails on features of shape {shape} and {model._dtype} with {type(error).__name__}: "
            f"{one_line(str(error), 300)}"
        ) from error


def _first_logits(answer: Any) -> Tensor:
    """The logits in whatever a model answers."""
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping):
        if "logits" in answer:
            return _first_logits(answer["logits"])
    elif hasattr(answer, "logits"):
        return _first_logits(answer.logits)
    elif isinstance(answer, (tuple, list)) and answer:
        return _first_logits(answer[0])
    kind = f"a dict of {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else f"a {type(answer).__name__}"
    raise UserError(
        f"the model must answer logits as a tensor, first in a tuple, or as 'logits' of a dict or an object, got {kind}"
    )


def _way_out_of_one_logit(logits: Tensor) -> str:
    """What to do with a model of one logit an utterance; nothing for others."""
    if logits.ndim != 1 and logits.shape[1:] != (1,):
        return ""
    return ": of one logit z make two, torch.stack([torch.zeros_like(z), z], dim=-1)"
