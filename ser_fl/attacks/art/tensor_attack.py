"""What our attacks share as attacks of ART: parameters, batches, labels, masks, the box, a model left as it was.

Legend: B inputs, N some of them; whatever follows is their shape.
"""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Array, import_art
from ser_fl.attacks.losses import Loss
from ser_fl.attacks.target import Answer, Expectation, Passes, Target, attacked
from ser_fl.attacks.threat_model import NORMS, Ball, Box, Norm, Rows
from ser_fl.errors import shown
from ser_fl.randomness import generator

import_art()  # before anything else does, which would close log files
from art.attacks.attack import EvasionAttack  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

NORM_OF: dict[Any, Norm] = {word: name for name, norm in NORMS.items() for word in (norm.order, name)}
"""Ours, under the names that ART's users give them: np.inf, "inf", 2, "2"."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a parameter may be: checked when the attack is made and whenever it is set."""

    default: Any
    allowed: str
    """In words that follow "must be"."""
    allows: Callable[[Any], bool]
    kept: Callable[[Any], Any] = lambda value: value
    """Maps what a user gives to what the attack keeps."""
    settable: bool = True


def whole(default: int, *, least: int) -> Parameter:
    """An integer, Python's or NumPy's; no bool."""
    return Parameter(default, f"an integer >= {least}", lambda value: _is_a(Integral, value) and value >= least, int)


def real(default: float) -> Parameter:
    """A finite number, >= 0."""
    fits: Callable[[Any], bool] = lambda value: _is_a(Real, value) and 0 <= value < math.inf  # noqa: E731
    return Parameter(default, "a number >= 0 and finite", fits, float)


def flag(default: bool) -> Parameter:
    """True or False; no word or number in their place."""
    return Parameter(default, "True or False", lambda value: isinstance(value, bool | np.bool_), bool)


def choice(default: Any, known: Mapping[Any, Any]) -> Parameter:
    """One of the keys of a mapping, a number or a string."""
    words = " or ".join(map(repr, known))
    return Parameter(default, words, lambda value: isinstance(value, Real | str) and value in known)


def refused(default: Any, reason: str) -> Parameter:
    """A parameter that ART's users know, and that this attack refuses to have changed."""
    return Parameter(default, f"{default}, since {reason}", lambda value: value is default, settable=False)


def _is_a(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


class TensorAttack(EvasionAttack):  # type: ignore[misc]
    """An attack of ours on one of ART's classifiers.

    Unlike ART's own, it differentiate recurrent layers in evaluation mode, touch no gradient of a parameter, and take
    ``clip_values=None`` to mean that there is no box, rather than the range of whatever they are given.

    Args:
        classifier: a PyTorchClassifier whose model gives logits.
        given: the `parameters` by name. ``targeted``: towards the labels rather than away from them; ``batch_size``:
            inputs at a time; ``verbose``: show a bar of the batches.

    Raises:
        ValueError: a parameter of another type, or out of its range.
        TypeError: an unknown parameter.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "targeted": flag(False),
        "batch_size": whole(64, least=1),
        "verbose": flag(True),
        "summary_writer": refused(False, "our attacks write no summaries"),
    }
    _when_targeted: ClassVar[type[Target]] = Target
    """The model as a targeted attack questions it."""
    _estimator_requirements = (PyTorchClassifier,)
    summary_writer = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What ART, `help` and editors ask a class for."""
        super().__init_subclass__(**kwargs)
        cls.attack_params = list(cls.parameters)
        own = inspect.signature(cls.__init__).parameters
        words = [
            inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=parameter.default)
            for word, parameter in cls.parameters.items()
            if word not in own and parameter.settable
        ]
        cls.__signature__ = inspect.Signature([*list(own.values())[1:-1], *words])

    def __init__(self, classifier: Any, **given: Any) -> None:
        super().__init__(estimator=classifier)
        if unknown := self._unknown(given):
            raise TypeError(unknown)
        self.set_params(**{word: parameter.default for word, parameter in self.parameters.items()} | given)

    def set_params(self, **given: Any) -> None:
        """Set some parameters, or, with a ValueError (unknown, another type, out of range), none."""
        if unknown := self._unknown(given):
            raise ValueError(unknown)
        for word, value in given.items():
            if not self.parameters[word].allows(value):
                raise ValueError(f"{word} must be {self.parameters[word].allowed}, got {shown(value)}")
        for word, value in given.items():
            setattr(self, word, self.parameters[word].kept(value))

    def _unknown(self, given: Mapping[str, Any]) -> str:
        unknown = ", ".join(repr(word) for word in given if word not in self.parameters)
        return unknown and f"{type(self).__name__} has no parameter {unknown}: it has {', '.join(self.parameters)}"

    def generate(self, x: Array, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Array:
        """Adversarial inputs, float32, in the shape of x; the inputs themselves, clipped, where nothing was found.

        Args:
            x: inputs, shape (B, ...).
            y: true classes (target classes, if targeted), indices of shape (B,) or one-hot of shape (B, C). None for
                those that the model predicts.
            kwargs: ``mask``, of bool or float, which broadcasts to x: where it is 0 nothing is changed.

        Raises:
            ValueError: a targeted attack without targets, labels or a mask that do not fit, or a word that is not
                known.
            NotImplementedError: the estimator preprocesses with NumPy, which no gradient passes.
        """
        mask = kwargs.pop("mask", None)
        if kwargs:
            raise ValueError(f"{type(self).__name__} knows no {', '.join(kwargs)}")
        if y is None and self.targeted:
            raise ValueError("Target labels `y` need to be provided for a targeted attack.")
        if not self.estimator.all_framework_preprocessing:
            raise NotImplementedError("the estimator preprocesses with NumPy: take preprocessors of PyTorch")
        made = np.array(x, dtype=np.float32)
        labels = None if y is None else _indices(np.asarray(y), len(made), self.estimator.nb_classes)
        movable = None if mask is None else _movable(np.asarray(mask), made.shape)
        network, device, box = _Classified(self.estimator), self.estimator.device, Box.unbounded()
        if self.estimator.clip_values is not None:
            box = Box(*(torch.as_tensor(side, dtype=torch.float32) for side in self.estimator.clip_values)).to(device)
        firsts = range(0, len(made), self.batch_size)
        with attacked(network):
            for first in tqdm(firsts, desc=type(self).__name__, disable=not self.verbose):
                rows = slice(first, first + self.batch_size)
                clean = box.clip(torch.from_numpy(made[rows]).to(device))
                front: Any = None if movable is None else _Masked(torch.from_numpy(movable[rows]).to(device), clean)
                target = (self._when_targeted if self.targeted else Target)(
                    network=network,
                    keys_B=[str(first + row) for row in range(len(clean))],
                    passes=Passes(),
                    to_features=front,
                    expectation=self._expectation(),
                )
                if labels is None:
                    with torch.no_grad():
                        labels_B = network(clean).argmax(1)
                else:
                    labels_B = torch.from_numpy(labels[rows]).to(device)
                found = self._craft(target, clean, labels_B, box)
                made[rows] = (found if front is None else front(found)).cpu().numpy()
        return made

    @abstractmethod
    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        """Adversarial inputs of one batch, on the device of the model."""

    def _expectation(self) -> Expectation | None:
        return None


class _Towards(Target):
    """A model whose labels are targets: an input that is not taken for its target yet stands for one recognised."""

    def score(self, inputs: Tensor, labels_B: Tensor, loss: Loss, *, step: int = 0) -> tuple[Tensor, Tensor]:
        loss_B, hit_B = Target.score(self, inputs, labels_B, loss, step=step)
        return -loss_B, 1 - hit_B

    def answer(self, inputs: Tensor, labels_B: Tensor, loss: Loss, *, step: int = 0) -> Answer:
        away = Target.answer(self, inputs, labels_B, loss, step=step)
        return replace(away, loss_B=-away.loss_B, gradient=-away.gradient, right_B=1 - away.right_B)


class BallAttack(TensorAttack):
    """An attack of ours that stays in a ball, from random starts that are keyed by (seed, row, start).

    Args:
        estimator: a PyTorchClassifier whose model gives logits.
        given: the `parameters` by name; ``seed`` is of the starts.
    """

    parameters = TensorAttack.parameters | {
        "batch_size": whole(32, least=1),
        "norm": choice(np.inf, NORM_OF),
        "eps": real(0.3),
        "max_iter": whole(100, least=1),
        "seed": whole(0, least=0),
    }
    _when_targeted = _Towards

    def __init__(self, estimator: Any, **given: Any) -> None:
        super().__init__(estimator, **given)

    def _ball(self, clean: Tensor) -> Ball:
        return Ball(clean, clean.new_full((len(clean),), self.eps), NORM_OF[self.norm])

    def _start(self, target: Target, ball: Ball, name: str, number: int) -> Tensor:
        """Where a start of these inputs begins; where a mask forbids it, at the clean value."""
        return target.features(ball.random(generator(name, self.seed, key, number) for key in target.keys_B))


class _Classified(nn.Module):
    """What an estimator makes of inputs: its preprocessing, then its model."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.model = estimator.model
        self._estimator = estimator

    def forward(self, inputs: Tensor) -> Tensor:
        prepared, _ = self._estimator._apply_preprocessing(inputs, y=None, fit=False, no_grad=False)
        logits_BC: Tensor = self.model(prepared)
        return logits_BC


@dataclass(frozen=True, slots=True, eq=False)
class _Masked(Rows):
    """Shows the model what is moved where a mask allows it, and the clean input elsewhere."""

    movable: Tensor
    clean: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.where(self.movable, inputs, self.clean)


def _movable(mask: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A mask as ART's users give it, in the shape of the inputs: True where they may change."""
    if not (mask.dtype == bool or np.issubdtype(mask.dtype, np.floating)):
        raise ValueError(f"mask must be of bool or float, got {mask.dtype}")
    if not (mask >= 0).all():
        raise ValueError("mask must be >= 0, got a negative number or none")
    try:
        return np.broadcast_to(mask != 0, shape).copy()
    except ValueError:
        raise ValueError(f"mask must broadcast to inputs of shape {shape}, got shape {mask.shape}") from None


def _indices(y: npt.NDArray[Any], num_inputs: int, num_classes: int) -> npt.NDArray[np.int64]:
    """Classes as indices, whichever way ART's users give them."""
    if y.shape not in ((num_inputs,), (num_inputs, 1), (num_inputs, num_classes)):
        raise ValueError(
            f"y must be {num_inputs} indices or one-hot rows of {num_classes} classes, got shape {y.shape}"
        )
    labels = (y.argmax(axis=1) if y.size > num_inputs else y.reshape(-1)).astype(np.int64)
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"y must be in [0, {num_classes}), got {labels.min()} to {labels.max()}")
    return labels
