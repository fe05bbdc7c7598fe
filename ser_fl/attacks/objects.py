"""Attacks that a caller brings: an attack of ART, its class, or a plain function.

What they make is clipped to the box and held against the budget: beyond it an utterance counts as not broken.

Legend: B utterances, F mel bins, L frames.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import classifier_of, clip_values_of, generated
from ser_fl.attacks.attack import Attack, AttackSettings, Entry, Problem
from ser_fl.attacks.step_size import default_step_size
from ser_fl.errors import UserError, shown


def attack_from(given: Any, epsilon: float) -> Attack:
    """An attack of a caller's own, held against an L-infinity epsilon.

    It is an instance of an evasion attack of ART, which keeps its own settings and attacks the classifier that it was
    made with; a class of such attacks, which is given this model and our settings as far as it knows them; or a
    function, (model, features_BFL, labels_B) -> adversarial features of the same shape. Anything else is a `UserError`.
    """
    make: Callable[[Any, Problem], Tensor]
    if hasattr(given, "generate"):
        make, name = (_by_class, given.__name__) if inspect.isclass(given) else (_by_instance, type(given).__name__)
    elif callable(given):
        make, name = _by_function, getattr(given, "__name__", type(given).__name__)
    else:
        raise UserError(
            f"an attack must be a name, settings, an attack of ART or a function (model, features, labels) -> "
            f"adversarial, got {shown(given)}"
        )

    def craft(problem: Problem) -> Tensor:
        made, clean_BFL, name = make(given, problem), problem.clean, problem.settings.name
        if made.shape != clean_BFL.shape:
            raise UserError(f"{name} gave {tuple(made.shape)} for features of {tuple(clean_BFL.shape)}")
        if not bool(made.isfinite().all()):
            raise UserError(f"{name} gave features that are not finite")
        return made.detach().to(clean_BFL.device, clean_BFL.dtype)

    home = getattr(given, "__module__", None) or type(given).__module__
    entry = Entry(craft, f"{home.partition('.')[0]}.{name}", "", minimal=True)
    return Attack(settings=AttackSettings(name=name, epsilon=epsilon), entry=entry)


def _by_function(function: Any, problem: Problem) -> Tensor:
    return torch.as_tensor(function(problem.network, problem.clean.clone(), problem.labels_B.clone()))


def _by_class(kind: Any, problem: Problem) -> Tensor:
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
    attack = kind(
        classifier_of(problem, clip_values_of(problem.box)),
        **{word: value for word, value in words.items() if word in known},
    )
    return generated(attack, problem)


def _by_instance(attack: Any, problem: Problem) -> Tensor:
    inputs = problem.clean.cpu().numpy()
    shape = getattr(getattr(attack, "estimator", None), "input_shape", inputs.shape[1:])
    if math.prod(shape) != math.prod(inputs.shape[1:]):
        raise UserError(f"{problem.settings.name} attacks inputs of shape {shape}, got {inputs.shape[1:]}")
    made = attack.generate(inputs.reshape(len(inputs), *shape), problem.labels_B.cpu().numpy())
    return torch.from_numpy(np.asarray(made, dtype=np.float32).reshape(inputs.shape))
