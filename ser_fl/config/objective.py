"""What a training step minimises."""

from __future__ import annotations

from typing import Literal

from ser_fl.config.values import Amount, Count, Epsilon, Fraction, Positive, as_yaml, stage


@stage
class ObjectiveConfig:
    """What a training step minimises: the loss on clean utterances, or on a mix with adversarial ones."""

    name: Literal["clean", "fgsm", "bim", "pgd", "fast", "free", "trades"]
    """fgsm, bim, pgd: by one of the recipes below. fast (Wong et al., arXiv 2001.03994) and free (Shafahi et al., arXiv
    1904.12843): adversarial training for the price of two training passes a step, and of one. trades (Zhang et al.,
    arXiv 1901.08573): the clean loss, and how far predictions move within the budget."""
    recipe: Literal["per_round", "per_step"]
    """per_round: the paper's. At the start of a round a client draws a random share of its utterances, makes
    adversarial copies with the received model and trains on that share and its copies. per_step: a share of every
    batch is replaced by its adversarial version."""
    from_round: Count
    """First adversarial round; the paper starts at 2."""
    fraction: Fraction
    """The share, of utterances or of a batch."""
    epsilon: Epsilon
    """L-infinity budget, in standardised log-mel units."""
    steps: Count
    step_size: Positive | None
    """Null: epsilon / 4, and epsilon for one step; 1.25 epsilon for fast."""
    random_start: bool
    warm_up_rounds: Amount = 0
    """Epsilon grows from 0 to its full value over so many adversarial rounds; 0: full from the first."""
    beta: Positive | None = None
    """trades: weight of the divergence between clean and adversarial predictions."""
    replays: Count | None = None
    """free: how many times in a row each minibatch is trained on. An epoch then takes one in so many minibatches, and
    costs as many passes as ever. Its default is for the config.yaml of runs from before it was a setting."""

    def __post_init__(self) -> None:
        what_they_are: dict[str, dict[str, object]] = {
            "fast": {"recipe": "per_step", "steps": 1, "random_start": True, "fraction": 1.0},
            "free": {"recipe": "per_step", "steps": 1, "random_start": False, "fraction": 1.0},
            "trades": {"recipe": "per_step", "random_start": True, "fraction": 1.0},
        }
        for setting, needed in what_they_are.get(self.name, {}).items():
            given = getattr(self, setting)
            if given != needed:
                raise ValueError(
                    f"objective.{setting} must be {as_yaml(needed)} with objective={self.name}, got {as_yaml(given)}"
                )
        if self.name == "free" and self.replays is None:
            raise ValueError("objective=free needs objective.replays of at least 1, got null")
        if self.name == "trades" and self.beta is None:
            raise ValueError("objective=trades needs objective.beta above 0, got null")
        for setting, given, owner in (("replays", self.replays, "free"), ("beta", self.beta, "trades")):
            if self.name != owner and given is not None:
                raise ValueError(
                    f"objective.{setting} goes with objective={owner}, got {given:g} with objective={self.name}"
                )
