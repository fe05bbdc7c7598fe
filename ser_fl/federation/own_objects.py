"""Objects of the caller's own, in place of what the configuration names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ser_fl.config.schema import Config, instantiated_objects
from ser_fl.errors import UserError, one_line
from ser_fl.federation.adversaries import ADVERSARIES, Adversary
from ser_fl.federation.aggregation import Aggregation
from ser_fl.federation.algorithm import Algorithm
from ser_fl.models.networks import NetworkSource, build_network
from ser_fl.training.objectives import Objective

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnObjects:
    """None leaves what the configuration names."""

    network: NetworkSource | None = None
    objective: Objective | None = None
    aggregation: Aggregation | None = None
    algorithm: Algorithm | None = None
    adversary: Adversary | None = None
    callbacks: tuple[pl.Callback, ...] = ()
    """Beside the configured training, of which they change nothing that they do not reach into."""


NOTHING = OwnObjects()


def adversary_of(config: Config, own: OwnObjects) -> Adversary:
    """What hostile clients do: the caller's own, or what is configured."""
    return own.adversary or ADVERSARIES[config.adversaries.name](config.adversaries)


def qualified_name(value: object) -> str:
    """Of a class or function, or of an object's class: ``module.Class``."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def settled_objects(config: Config, given: Mapping[str, Any]) -> tuple[OwnObjects, Config]:
    """The objects of the caller, by argument of `ser_fl.train`, or else of the configuration, and one that names them.

    A class stands for an object that is made without arguments, but a network's. Callbacks are not named, since no
    result depends on them.

    Raises:
        UserError: an object is of another kind, the configuration names others, or they do not go with it.
    """
    made = {**instantiated_objects(config), **given}
    kinds = {"objective": Objective, "aggregation": Aggregation, "algorithm": Algorithm, "adversary": Adversary}
    for name, kind in kinds.items():
        one = made.get(name)
        made[name] = one = one() if isinstance(one, type) else one
        if one is not None and not isinstance(one, kind):
            raise UserError(f"{name} must be a {kind.__module__}.{kind.__name__}, got {qualified_name(one)}")
    if (network := made.get("network")) is not None and not callable(network):
        raise UserError(f"network must be a module, or make one for a number of classes, got {network!r}")
    callbacks = tuple(made.pop("callbacks", ()))
    if (made["adversary"] is None) == (config.adversaries.name == "own"):
        raise UserError(
            "an adversary of your own goes with adversaries=own, and that with one: adversaries.attack._target_="
            f"PACKAGE.CLASS, or ser_fl.train(adversary=...); got adversaries={config.adversaries.name}"
        )
    ordered = ("network", "objective", "aggregation", "algorithm", "adversary")
    names = {name: qualified_name(made[name]) for name in ordered if made.get(name) is not None}
    for name, wanted in config.objects.items():
        if names.get(name) != wanted:
            raise UserError(f"this configuration is of a run with {name}={wanted}: give it to ser_fl.train")
    executor = config.executor
    for name in ("aggregation", "algorithm"):
        if name in names and config.federation.name == "local_only":
            raise UserError(f"federation=local_only averages nothing, got {name}={names[name]}")
    for name in names if executor.name == "flower" else ():
        if name in ("network", "objective", "adversary") or executor.superlink is not None:
            raise UserError(
                f"executor=flower sends no code to other hosts, got {name}={names[name]}: use executor=serial or "
                "executor=processes"
            )
    return OwnObjects(**made, callbacks=callbacks), replace(config, objects=names) if names else config


def check_network(config: Config, num_classes: int, own: OwnObjects) -> None:
    """Refuse a network of the caller's own that gives no (2, C) for two utterances of zeros, or trains nothing."""
    network: object = build_network(
        config.model, num_classes, seed=config.seed, own=own.network, frontend=config.frontend
    )
    name, shape = qualified_name(network), (2, config.frontend.num_features, config.frontend.num_frames)
    if not isinstance(network, nn.Module):
        raise UserError(f"network must make a torch.nn.Module, got {name}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"network {name} has no parameter to train")
    if getattr(config.objective, "name", "") == "domain_adversarial" and not hasattr(network, "embed"):
        raise UserError(
            f"objective=domain_adversarial needs the methods embed, (B, F, L) to (B, H), and classify, (B, H) to (B, C)"
            f", which {name} has not"
        )
    if odd := [key for key, value in network.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"network {name} keeps {odd[0]} in its state, which is no tensor: clients could not send it")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits_BC = copy.deepcopy(network).eval()(torch.zeros(shape))
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"network {name} cannot take features of shape {shape}: {reason}") from None
    if not isinstance(logits_BC, torch.Tensor) or logits_BC.shape != (2, num_classes):
        given = tuple(logits_BC.shape) if isinstance(logits_BC, torch.Tensor) else type(logits_BC).__name__
        raise UserError(f"network {name} must give logits of shape {(2, num_classes)} for {shape}, got {given}")
