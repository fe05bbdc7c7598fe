"""What a client trains on in a round, a class each: clean utterances, or a mix with adversarial ones.

FGSM, BIM and PGD are made by one of two recipes, `PerRound` and `PerStep`. Fast, free and TRADES begin in round 1,
since they need no model that has learnt: their authors attack from the first step on.
"""

from collections.abc import Callable, Mapping

from ser_fl.config.training import ObjectiveConfig
from ser_fl.training.objectives.adversarial import Free, OnRecordings, PerRound, PerStep, Trades
from ser_fl.training.objectives.domain_adversarial import DomainAdversarial
from ser_fl.training.objectives.objective import (
    ClientRound,
    HeldRecordings,
    Objective,
    TrainingPlan,
    balanced_weights,
)

__all__ = ["OBJECTIVES", "ClientRound", "HeldRecordings", "Objective", "TrainingPlan", "balanced_weights"]


def _by_recipe(config: ObjectiveConfig) -> Objective:
    if config.snr_db is not None:
        return OnRecordings(config)
    return {"per_round": PerRound, "per_step": PerStep}[config.recipe](config)


OBJECTIVES: Mapping[str, Callable[[ObjectiveConfig], Objective]] = {
    "clean": lambda config: Objective(),
    **dict.fromkeys(("fgsm", "bim", "pgd", "fast"), _by_recipe),
    "free": Free,
    "trades": Trades,
    "domain_adversarial": DomainAdversarial,
}
"""By the name in the configuration: an entry here and a word in `ObjectiveConfig.name` make a new one."""
