"""What a user says about an attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """One attack of the catalogue; None means this attack's default, which `catalogue.resolve` fills in.

    Raises:
        UserError: a value out of its range.
    """

    name: str
    """A name of `catalogue.ATTACKS`, or ``art:ClassName`` for any other evasion attack of ART."""
    epsilon: float
    """L-infinity budget, >= 0, in standardised log-mel units; attacks of norm "2" get epsilon * sqrt(F * L)."""
    steps: int | None = None
    """Gradient steps, >= 1; for C&W L2 per step of its search for the constant, for score attacks queries."""
    step_size: float | None = None
    """How far a step moves, > 0, same units as epsilon; None also for attacks that choose it themselves."""
    restarts: int | None = None
    """Random starts, >= 0; 0 starts once, at the clean utterance."""

    def __post_init__(self) -> None:
        # ART refuses NumPy's and torch's scalars.
        object.__setattr__(self, "epsilon", float(self.epsilon))
        if not 0 <= self.epsilon < math.inf:
            raise UserError(f"epsilon must be >= 0 and finite, got {self.epsilon} for the attack {self.name}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps} for the attack {self.name}")
        if self.step_size is not None:
            object.__setattr__(self, "step_size", float(self.step_size))
            if not 0 < float(self.step_size) < math.inf and self.epsilon > 0:
                raise UserError(f"step_size must be > 0 and finite, got {self.step_size} for the attack {self.name}")
        if self.restarts is not None and self.restarts < 0:
            raise UserError(f"restarts must be >= 0, got {self.restarts} for the attack {self.name}")
