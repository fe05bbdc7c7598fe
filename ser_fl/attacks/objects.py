"""Attacks that a caller brings: an attack of ART, its class, or a plain function.

What they make is clipped to the box and held against the budget: beyond it an utterance counts as not broken.

Legend: B utterances, F mel bins, L frames.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import clip_values_of
from ser_fl.attacks.attack import Attack, Entry
from ser_fl.attacks.problem import Problem
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.step_size import default_step_size
from ser_fl.errors import UserError, shown

Function = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, features_BFL, labels_B) -> adversarial features of the same shape."""


def attack_from(given: object, epsilon: float) -> Attack:
    """An attack of a caller's own, held against an epsilon.

    Args:
        given: an instance of an evasion attack of ART, which keeps its own settings and attacks the classifier that it
            was made with; a class of such attacks, which is given this model and our settings as far as it knows them;
            or a function.
        epsilon: the L-infinity budget.

    Raises:
        UserError: it is none of these.
    """
    if inspect.isclass(given) and hasattr(given, "generate"):
        name, craft = given.__name__, _by_class(given)
    elif hasattr(given, "generate"):
        name, craft = type(given).__name__, _by_instance(given)
    elif callable(given):
        name, craft = getattr(given, "__name__", type(given).__name__), _by_function(given)
    else:
        raise UserError(
            f"an attack must be a name, settings, an attack of ART or a function (model, features, labels) -> "
            f"adversarial, got {shown(given)}"
        )
    home = getattr(given, "__module__", None) or type(given).__module__
    entry = Entry(craft=craft, library=f"{home.partition('.')[0]}.{name}", norm="inf", paper="", minimal=True)
    return Attack(settings=AttackSettings(name=name, epsilon=epsilon), entry=entry)


def _by_function(function: Function) -> Callable[[Problem], Tensor]:
    def craft(problem: Problem) -> Tensor:
        made = function(problem.network, problem.features_BFL.clone(), problem.labels_B.clone())
        return _checked(torch.as_tensor(made), problem)

    return craft


def _by_class(kind: type[Any]) -> Callable[[Problem], Tensor]:
    def craft(problem: Problem) -> Tensor:
        epsilon = problem.settings.epsilon
        words = {
            "norm": "inf",
            "eps": epsilon,
            "eps_step": default_step_size(epsilon),
            "batch_size": len(problem.keys_B),
            "targeted": False,
            "verbose": False,
        }
        known = inspect.signature(kind).parameters
        given = {word: value for word, value in words.items() if word in known}
        attack = kind(problem.classifier(clip_values=clip_values_of(problem.box)), **given)
        return _checked(problem.features(attack.generate(problem.inputs(), problem.labels())), problem)

    return craft


def _by_instance(attack: Any) -> Callable[[Problem], Tensor]:
    def craft(problem: Problem) -> Tensor:
        inputs = problem.features_BFL.cpu().numpy()
        shape = getattr(getattr(attack, "estimator", None), "input_shape", inputs.shape[1:])
        if math.prod(shape) != math.prod(inputs.shape[1:]):
            raise UserError(f"{problem.settings.name} attacks inputs of shape {shape}, got {inputs.shape[1:]}")
        made = attack.generate(inputs.reshape(len(inputs), *shape), problem.labels())
        made = np.asarray(made, dtype=np.float32).reshape(inputs.shape)
        return _checked(torch.from_numpy(made).to(problem.features_BFL.device), problem)

    return craft


def _checked(made: Tensor, problem: Problem) -> Tensor:
    """What came back, float32.

    Raises:
        UserError: it has another shape, or is not finite.
    """
    clean_BFL = problem.features_BFL
    if made.shape != clean_BFL.shape:
        raise UserError(f"{problem.settings.name} gave {tuple(made.shape)} for features of {tuple(clean_BFL.shape)}")
    if not bool(made.isfinite().all()):
        raise UserError(f"{problem.settings.name} gave features that are not finite")
    return made.detach().to(clean_BFL.device, clean_BFL.dtype)
