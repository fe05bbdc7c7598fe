"""Models and arrays of any make, as the benchmark takes them; what it cannot take is refused before an attack runs.

Attacks move features of shape (B, F, L). What comes without frames has one, and channels lie one above the other.

Legend: B and N utterances, F mel bins, L frames, C classes.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.registry import ATTACKS
from ser_fl.attacks.target import attacked
from ser_fl.attacks.threat_model import Box
from ser_fl.devices import default_dtype, send
from ser_fl.errors import UserError, one_line, shown
from ser_fl.robustness.evaluator import EVALUATION_BATCH, evaluating
from ser_fl.robustness.test_set import TestSet

Model = nn.Module | Callable[[Any], Any]
"""Maps features to logits of shape (B, C): as a tensor, first in a tuple or list, or as ``logits`` of a dict or of any
other object, such as a ModelOutput of Hugging Face."""
Numbers = Tensor | npt.ArrayLike
"""A tensor or an array of any real type, or nested lists of numbers."""

_NO_ATTACKS_THERE = ("meta", "mps")
"""Devices without data, or without the float64 in which distances are measured."""


class ForeignModel(nn.Module):
    """A model of any make, as attacks question it: float32 features of shape (B, F, L) to float32 logits (B, C).

    The model itself is given features in its own type of number and in the ``shape`` (of one utterance) that they came
    in. It runs under the caller's own default type of number, and never in inference mode, so that what it caches can
    be trained with later.
    """

    def __init__(self, model: Model, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self._shape = shape
        self._default_dtype = torch.get_default_dtype()
        tensors = chain(self.parameters(), self.buffers())
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C); a `UserError` where they are none, or, asked for without a gradient, no numbers."""
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
            given = self._as_taken(features_BFL).to(self._dtype)
            logits_BC = _first_logits(self.model(given))
            of_one_logit = ""
            if logits_BC.ndim == 1 or logits_BC.shape[1:] == (1,):
                of_one_logit = ": of one logit z make two, torch.stack([torch.zeros_like(z), z], dim=-1)"
            if not logits_BC.is_floating_point() or logits_BC.ndim != 2 or len(logits_BC) != len(given):
                raise UserError(
                    f"the model must answer logits of shape ({len(given)}, classes) to features of shape "
                    f"{tuple(given.shape)}, got {tuple(logits_BC.shape)} of {logits_BC.dtype}{of_one_logit}"
                )
            if logits_BC.shape[1] < 2:
                raise UserError(f"the model must tell two classes at least, got one logit{of_one_logit}")
            return logits_BC.to(features_BFL.device, torch.float32)

    def _as_taken(self, features_BFL: Tensor) -> Tensor:
        """Features of shape (B, F, L) in the shape that they came in."""
        shape = self._shape
        if len(shape) == 2:
            return features_BFL
        if len(shape) == 3 and shape[0] == 1:
            return features_BFL[:, None]
        if features_BFL.shape[1:].numel() != math.prod(shape):
            raise UserError(
                f"a defence changes the size of utterances, which those of shape {shape} cannot: give features of "
                "shape (utterances, bins, frames), or take a defence such as quantisation"
            )
        return features_BFL.reshape(len(features_BFL), *shape)


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
    features_NFL = _numbers(features, "features", torch.float32)
    total, shape = len(features_NFL) if features_NFL.ndim else 0, tuple(features_NFL.shape[1:])
    if features_NFL.ndim < 2 or not features_NFL.numel():
        raise UserError(
            f"features must be of shape (utterances, bins, frames) and not empty, got {tuple(features_NFL.shape)}"
        )
    features_NFL = _stacked(features_NFL)
    known_ids = tuple(map(str, ids)) if ids is not None else tuple(f"{row:06d}" for row in range(total))
    if len(known_ids) != total:
        raise UserError(f"ids must be one an utterance, got {len(known_ids)} for {total} utterances")
    if twice := [utterance_id for utterance_id, times in Counter(known_ids).items() if times > 1]:
        raise UserError(f"ids must differ, got {twice[0]!r} more than once: they key all random draws")
    if odd := (~features_NFL.isfinite()).flatten(1).any(1).nonzero().flatten().tolist():
        raise UserError(
            f"features must be finite, got NaN or infinity in {len(odd)} of {total} utterances, "
            f"the first {known_ids[odd[0]]!r}: leave them out"
        )
    if not callable(model):
        raise UserError(f"model must be a torch module or a function of features, got {shown(model)}")
    whole = ForeignModel(model, shape)
    device = next((tensor.device for tensor in chain(whole.parameters(), whole.buffers())), features_NFL.device)
    if device.type in _NO_ATTACKS_THERE:
        raise UserError(f"a model on the device {device.type} cannot be attacked there: move it with model.to('cpu')")
    box = _box_in_shape(box or Box.unbounded(), shape).to(device, torch.float32)
    features_NFL = box.clip(send(features_NFL, device))
    with evaluating(whole), torch.no_grad():
        try:
            logits_NC = torch.cat([whole.logits(batch) for batch in torch.split(features_NFL, batch_size)])
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the model fails on features of shape {(min(batch_size, total), *shape)} and {whole._dtype} with "
                f"{type(error).__name__}: {one_line(str(error), 300)}"
            ) from error
    if odd := logits_NC.isnan().any(1).nonzero().flatten().tolist():
        raise UserError(
            f"the model answers NaN to {len(odd)} of {total} utterances, the first {known_ids[odd[0]]!r}: "
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
        labels_N=send(_labels_of(labels, total, logits_NC.shape[1]), device),
        ids=known_ids,
        num_classes=logits_NC.shape[1],
        box=box,
        seed=0,
        batch_size=batch_size,
    )


def check_gradients(test_set: TestSet, attacks: Iterable[Attack]) -> None:
    """Refuse (`UserError`) the registry's attacks by gradients where none comes back from the logits to the features;
    what a caller brings may know its ways.
    """
    assert isinstance(test_set.model, ForeignModel)
    if not any(attack.entry.knowledge == "undefended" and attack.settings.name in ATTACKS for attack in attacks):
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


def _first_logits(answer: Any) -> Tensor:
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


def _labels_of(given: Numbers, num_utterances: int, num_classes: int) -> Tensor:
    """Labels as int64 of shape (N,), each in [0, C), from whole numbers or one-hot rows."""
    labels = _numbers(given, "labels", torch.float64).cpu()
    if not labels.ndim or len(labels) != num_utterances:
        raise UserError(
            f"labels must be one an utterance, got the shape {tuple(labels.shape)} for {num_utterances} utterances"
        )
    if labels.shape[1:] == (num_classes,):
        if not bool((((labels == 0) | (labels == 1)).all(1) & (labels.sum(1) == 1)).all()):
            raise UserError("labels of two dimensions must be one-hot, got rows that are not: give true classes")
        return labels.argmax(1)
    if labels.shape[1:] not in ((), (1,)):
        raise UserError(
            f"labels must be of shape ({num_utterances},), or one-hot ({num_utterances}, {num_classes}) as the model's "
            f"logits are, got {tuple(labels.shape)}"
        )
    labels = labels.flatten()
    if odd := (~((labels >= 0) & (labels < num_classes) & (labels == labels.floor()))).nonzero().flatten().tolist():
        raise UserError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, since the model answers {num_classes} logits, "
            f"got {labels[odd[0]]:g} for utterance {odd[0]}"
        )
    return labels.long()


def _box_in_shape(box: Box, shape: tuple[int, ...]) -> Box:
    """The box of utterances as they are attacked, from that of utterances as they came."""
    lower, upper = box.lower_F1, box.upper_F1
    if lower is None or upper is None:
        return box
    try:
        sides = [_stacked(torch.broadcast_to(side, shape)[None])[0] for side in (lower, upper)]
    except RuntimeError:
        got = f"{tuple(lower.shape)} and {tuple(upper.shape)} for {shape}"
        raise UserError(f"the sides of a box must broadcast to the shape of an utterance, got {got}") from None
    return box if len(shape) == 2 else Box(*sides)


def _stacked(features: Tensor) -> Tensor:
    """Of shape (N, F, L)."""
    return features[:, :, None] if features.ndim == 2 else features.reshape(len(features), -1, features.shape[-1])


def _numbers(given: Any, name: str, dtype: torch.dtype) -> Tensor:
    """Real numbers as a tensor: where it is, if it is one, or else on the CPU."""
    try:
        if isinstance(given, (list, tuple)) and given and all(isinstance(part, Tensor) for part in given):
            given = torch.stack(list(given))
        if not isinstance(given, Tensor):
            array = np.asarray(given)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"it holds {array.dtype}")
            return torch.from_numpy(array.astype(np.float32 if dtype == torch.float32 else np.float64))
        if given.is_complex():
            raise ValueError(f"it holds {given.dtype}")
        with torch.inference_mode(False):  # a tensor made under it cannot take part in a gradient; its clone can
            return (given.clone() if given.is_inference() else given.detach()).to(dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{name} must be real numbers, as many for every utterance, got {shown(given)} "
            f"({one_line(str(error), 200)}): give a tensor or an array"
        ) from error
