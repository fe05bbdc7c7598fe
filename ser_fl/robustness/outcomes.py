"""What one attack did to each of its utterances, and what every defence made of it.

Legend: N utterances, R runs of a defence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from ser_fl.attacks.domains import Crafted
from ser_fl.defences import Defence
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.predictions import show
from ser_fl.robustness.test_set import TestSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attack did to each of its utterances: `ser_fl.robustness.attack_metrics` makes records of it."""

    attack: str
    library: str
    knowledge: str
    domain: str
    norm: str
    epsilon: float | None
    """As it was set, in L-infinity; None for a budget that is no epsilon."""
    budget: float | None
    """Of the attack's own norm."""
    snr_db: float | None
    """The budget, where it is an SNR."""
    steps: int | None
    step_size: float | None
    restarts: int | None
    eot_samples: int
    adaptive_to: str | None
    """The defence that the attacker knew of."""
    swept: bool
    """Whether it went on from a smaller epsilon, what that one broke included."""
    leftover: bool
    """Whether it saw only what earlier attacks had not broken."""
    minimal: bool
    """Whether the attack looks for the nearest adversarial utterance."""
    ids: tuple[str, ...]
    """Of the utterances that were attacked, and of those that a smaller epsilon had broken already."""
    l2_N: tuple[float, ...]
    """Norms of the perturbations."""
    linf_N: tuple[float, ...]
    votes: dict[str, tuple[tuple[int, ...], ...]]
    """By defence, what each run said of each utterance, (R, N)."""
    written_votes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """The same of recordings that went through a 16-bit file."""
    measured: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """More figures of each utterance, by the name of the record's median over successes; None where there is none."""
    forward_passes: int
    backward_passes: int
    seconds: float
    adversarials_kept: bool = False

    def was_shown_to(self, defence: Defence) -> bool:
        """Whether it says what all runs of this defence said."""
        return len(self.votes.get(defence.name, ())) == len(defence.run_weights)

    def votes_RN(self, defence: str) -> Tensor:
        """What each run of a defence said, int64."""
        return torch.tensor(self.votes[defence], dtype=torch.int64)

    @property
    def threat(self) -> tuple[str, float | None, float | None]:
        """Norm, epsilon and SNR: what attacks must share to have a common worst case."""
        return self.norm, self.epsilon, self.snr_db


def judge(unit: Unit, part: TestSet, made: Crafted, *, leftover: bool = False) -> Outcome:
    """Show what an attack made to the defences that it is meant for.

    Args:
        unit: the attack and the attacker.
        part: the utterances that were attacked.
        made: their adversarial versions.
        leftover: whether these are the utterances that earlier attacks had not broken.
    """
    attack, settings = unit.attack, unit.attack.settings
    held = part.domain.held(made, attack, part.features_NFL)
    votes, written = (
        {} if shown_NFL is None else {defence.name: _votes(part, shown_NFL, defence) for defence in unit.shown_to}
        for shown_NFL in (held.adversarial_NFL, held.written_NFL)
    )
    norms = {name: tuple(held.figures[name].tolist()) for name in ("l2", "linf")}
    measured = {
        name: tuple(value if isfinite(value) else None for value in value_N.tolist())
        for name, value_N in held.figures.items()
        if name not in norms and not bool(value_N.isnan().all())
    }
    return Outcome(
        attack=attack.name,
        library=attack.library,
        knowledge=unit.knowledge,
        domain=part.domain.name,
        norm=attack.norm,
        epsilon=settings.epsilon if isfinite(settings.epsilon) else None,
        budget=attack.budget(tuple(part.features_NFL.shape)),
        snr_db=settings.snr_db,
        steps=settings.steps,
        step_size=settings.step_size,
        restarts=settings.restarts,
        eot_samples=unit.eot_samples,
        adaptive_to=unit.adaptive_to,
        swept=unit.before is not None,
        leftover=leftover,
        minimal=attack.entry.minimal,
        ids=part.ids,
        l2_N=norms["l2"],
        linf_N=norms["linf"],
        votes=votes,
        written_votes=written,
        measured=measured,
        forward_passes=made.forward_passes,
        backward_passes=made.backward_passes,
        seconds=made.seconds,
    )


def _votes(part: TestSet, features_NFL: Tensor, defence: Defence) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, show(part, features_NFL, defence).votes_RN.tolist()))
