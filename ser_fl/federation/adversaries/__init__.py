"""Hostile clients, a file for each kind of attack: what they do to their data, to their training, to what they send."""

from collections.abc import Callable, Mapping, Sequence

import torch

from ser_fl.config.adversaries import AdversariesConfig
from ser_fl.errors import UserError, unknown_name
from ser_fl.federation.adversaries.adversary import Adversary, LocalRound, Seen
from ser_fl.federation.adversaries.alie import ALIE
from ser_fl.federation.adversaries.backdoor import Backdoor, ModelReplacement
from ser_fl.federation.adversaries.enrolment import PoisonedEnrolment
from ser_fl.federation.adversaries.fang import FangKrum, FangTrimmedMean
from ser_fl.federation.adversaries.free_rider import FreeRider
from ser_fl.federation.adversaries.ipm import IPM
from ser_fl.federation.adversaries.label_flip import LabelFlip
from ser_fl.federation.adversaries.masked_gradient import MaskedGradient
from ser_fl.federation.adversaries.min_max import MinMax, MinSum
from ser_fl.federation.adversaries.noise import Noise
from ser_fl.federation.adversaries.scaled import Scaled
from ser_fl.federation.adversaries.sign_flip import SignFlip
from ser_fl.randomness import generator

__all__ = ["ADVERSARIES", "Adversary", "Backdoor", "LocalRound", "Seen", "drawn"]

ADVERSARIES: Mapping[str, Callable[[AdversariesConfig], Adversary]] = {
    "none": lambda config: Adversary(),
    "label_flip": lambda config: LabelFlip(config.source, config.target),
    "sign_flip": lambda config: SignFlip(config.strength),
    "noise": lambda config: Noise(config.strength),
    "scaled": lambda config: Scaled(config.strength),
    "alie": lambda config: ALIE(config.strength),
    "ipm": lambda config: IPM(config.strength),
    "min_max": lambda config: MinMax(config.strength),
    "min_sum": lambda config: MinSum(config.strength),
    "fang_krum": lambda config: FangKrum(config.strength),
    "fang_trimmed_mean": lambda config: FangTrimmedMean(config.strength),
    "backdoor": Backdoor,
    "model_replacement": ModelReplacement,
    "free_rider": lambda config: FreeRider(config.strength),
    "masked_gradient": lambda config: MaskedGradient(config.strength),
    "enrolment": lambda config: PoisonedEnrolment(config.strength),
}
"""By the name in the configuration."""


def drawn(settings: AdversariesConfig, client_ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """The hostile clients of a run, in their order: those that are named, or a share of all, drawn by the seed.

    Raises:
        UserError: a client that is not there, a share that is not even one of them, or no honest one is left.
    """
    if unknown := sorted(set(settings.clients) - set(client_ids)):
        raise unknown_name("client of adversaries.clients", unknown[0], client_ids)
    count = 0 if settings.name == "none" else round(settings.fraction * len(client_ids))
    if settings.name != "none" and not count and settings.fraction and not settings.clients:
        raise UserError(
            f"adversaries.fraction={settings.fraction:g} of {len(client_ids)} clients makes none hostile: have more "
            "clients, a larger fraction, or name some (adversaries.clients)"
        )
    order = torch.randperm(len(client_ids), generator=generator(seed, "adversaries"))[:count].tolist()
    chosen = set(settings.clients) or {client_ids[place] for place in order}
    if chosen and len(chosen) == len(client_ids):
        asked = f"clients names all {len(chosen)}" if settings.clients else f"fraction={settings.fraction:g}"
        raise UserError(f"adversaries.{asked} of {len(client_ids)} clients leaves no honest one: make fewer hostile")
    return tuple(name for name in client_ids if name in chosen)
