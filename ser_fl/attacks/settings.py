"""What a user says about an attack."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ser_fl.config.robustness import Backend
from ser_fl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """One attack of the registry; None means this attack's default, which `registry.resolve` fills in.

    Its budget is an epsilon, an SNR or the masking threshold of each recording.

    Raises:
        UserError: a value out of its range.
    """

    name: str
    """A name of `registry.ATTACKS`, or ``art:ClassName`` for any other evasion attack of ART."""
    epsilon: float = math.inf
    """L-infinity budget, >= 0: standardised log-mel units (attacks of norm "2" get epsilon * sqrt(F * L)), or the
    largest change of a sample, full scale 1. Infinite where the budget is another."""
    steps: int | None = None
    """Gradient steps, >= 1; for C&W L2 per step of its search for the constant, for score attacks queries."""
    step_size: float | None = None
    """How far a step moves, > 0, same units as epsilon; None also for attacks that choose it themselves."""
    restarts: int | None = None
    """Random starts, >= 0; 0 starts once, at the clean utterance."""
    snr_db: float | None = None
    """Budget of a recording: the energy of the clip over that of the perturbation, in dB."""
    masked: bool = False
    """Whether the budget of a recording is its own masking threshold."""
    labels: bool = True
    """Whether the attack knows the true classes; else the model's own predictions of clean utterances stand for them,
    as in published studies."""
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        # ART refuses NumPy's and torch's scalars.
        object.__setattr__(self, "epsilon", float(self.epsilon))
        if self.snr_db is not None and not math.isfinite(self.snr_db):
            raise UserError(f"snr_db must be a finite number of dB, got {self.snr_db} for the attack {self.name}")
        elsewhere = self.snr_db is not None or self.masked
        if not self.epsilon >= 0 or (math.isinf(self.epsilon) and not elsewhere):
            raise UserError(f"epsilon must be >= 0 and finite, got {self.epsilon} for the attack {self.name}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps} for the attack {self.name}")
        if self.step_size is not None:
            object.__setattr__(self, "step_size", float(self.step_size))
            if not 0 < float(self.step_size) < math.inf and self.epsilon > 0:
                raise UserError(f"step_size must be > 0 and finite, got {self.step_size} for the attack {self.name}")
        if self.restarts is not None and self.restarts < 0:
            raise UserError(f"restarts must be >= 0, got {self.restarts} for the attack {self.name}")

    @property
    def budget(self) -> str:
        """For whoever waits: ``0.05``, ``30 dB``."""
        if self.masked:
            return "the masking threshold"
        return f"{self.epsilon:g}" if self.snr_db is None else f"{self.snr_db:g} dB"

    @property
    def strength(self) -> tuple[bool, float]:
        """Grows with the budget; SNRs come before epsilons."""
        return self.snr_db is None, self.epsilon if self.snr_db is None else -self.snr_db

    @property
    def key(self) -> dict[str, Any]:
        """All that what is made depends on; a setting that came later only where it is set."""
        content = asdict(self)
        del content["backend"]  # which code runs is said by the library
        unset = {"snr_db": None, "masked": False, "labels": True}
        return {name: value for name, value in content.items() if name not in unset or value != unset[name]}
