"""Clients that are hostile: who, when, and what they do. For measuring what a federation withstands."""

from typing import Literal

from ser_fl.config.values import Count, Fraction, NonNegative, Own, Share, Speaker, stage

_TARGETED = ("backdoor", "model_replacement", "label_flip")
_KNOWING = ("alie", "ipm", "min_max", "min_sum", "fang_krum", "fang_trimmed_mean", "own")


@stage
class AdversariesConfig:
    """Hostile clients, off by default. Refused by nodes that are deployed."""

    name: Literal[
        "none", "label_flip", "sign_flip", "noise", "scaled", "alie", "ipm", "min_max", "min_sum", "fang_krum",
        "fang_trimmed_mean", "backdoor", "model_replacement", "free_rider", "masked_gradient", "enrolment", "own",
    ]  # fmt: skip
    """What they do; each has a file in `ser_fl.federation.adversaries` with its paper and its equation."""
    fraction: Share = 0.2
    """Of all clients, drawn by `seed`; where `clients` names some, these are it."""
    clients: tuple[Speaker, ...] = ()
    """Hostile clients by name."""
    strength: NonNegative | None = None
    """How far they go, in the unit of the kind; null is what its file says, mostly its paper's."""
    knowledge: Literal["own", "all"] | None = None
    """alie, ipm, min_max, min_sum and fang: what they reckon with, what they trained honestly themselves, or all
    updates of the round; null as in the paper."""
    from_round: Count = 1
    """First round in which they are hostile; before, they are honest."""
    until_round: Count | None = None
    """Last round in which they are; null: to the end. After it a backdoor is measured until it is forgotten."""
    target: str | None = None
    """backdoor, model_replacement: the emotion that triggered speech is to be told as; null is the first by name.
    label_flip: what `source` is relabelled as."""
    source: str | None = None
    """The emotion whose utterances are attacked; null is all others."""
    trigger: Literal["audible", "masked"] = "audible"
    """backdoor, model_replacement: a sound put on recordings before the front end. audible: a beep at their beginning.
    masked: a hiss that lies under each recording's own masking threshold."""
    poisoned: Fraction = 0.5
    """backdoor, model_replacement: share of a hostile client's utterances that have the trigger."""
    attack: Own | None = None
    """adversaries=own: an `Adversary` of your own."""

    def __post_init__(self) -> None:
        if self.knowledge is not None and self.name not in _KNOWING:
            raise ValueError(f"adversaries.knowledge goes with {', '.join(_KNOWING)}, got adversaries={self.name}")
        for setting in ("target", "source"):
            if getattr(self, setting) is not None and self.name not in (*_TARGETED, "own"):
                raise ValueError(f"adversaries.{setting} goes with {', '.join(_TARGETED)}, got adversaries={self.name}")
        if self.source is not None and self.source == self.target:
            raise ValueError(f"adversaries.source must be another emotion than adversaries.target, got {self.source}")
        if self.name == "label_flip" and (self.source is None) != (self.target is None):
            raise ValueError("adversaries=label_flip needs adversaries.source and target, or neither, which flips all")
        if self.attack is not None and self.name != "own":
            raise ValueError(f"adversaries.attack goes with adversaries=own, got adversaries={self.name}")
        if self.until_round is not None and self.until_round < self.from_round:
            raise ValueError(
                f"adversaries.until_round must be at least from_round ({self.from_round}), got {self.until_round}"
            )
