"""One attack: what it is, and how it is run on a batch.

Legend: B utterances, F mel bins, L frames, C classes; "..." is whatever is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ser_fl.attacks.art.seeding import seeded
from ser_fl.attacks.problem import Problem
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.target import Expectation
from ser_fl.attacks.threat_model import Box, Norm, budget_of, keep_within
from ser_fl.attacks.training_attacks import attacked
from ser_fl.devices import current
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed

UNLABELLED = "_unlabelled"
"""Ends the name of an attack that does not know the true classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An attack of the registry."""

    craft: Callable[[Problem], Tensor]
    """Maps a problem to adversarial inputs, in the shape of the clean ones."""
    library: str
    """The class that runs."""
    norm: Norm
    """The norm that it keeps to, or minimises."""
    paper: str
    knowledge: str = "undefended"
    """The threat model: "undefended" (gradients of the model without its test-time defence), "score", "decision"."""
    steps: int | None = None
    step_size: Callable[[float], float] | None = None
    """Default step size for an epsilon; None for attacks that choose it themselves."""
    restarts: int = 0
    settable: frozenset[str] = frozenset({"steps"})
    """Which of steps, step_size and restarts a user may set; the others are what the attack is."""
    minimal: bool = False
    """Looks for the smallest perturbation, so that its result must be held against the budget."""
    needs_box: bool = False
    """Refused without a box: ART would take the range of what it is given for one, or fail."""
    adaptive: bool = False
    """Questions the model through `Problem.target` alone, and attacks a defence in expectation a batch at a time. Other
    attacks that use gradients do so through `Problem.classifier`, an utterance at a time."""
    warm: bool = False
    """Can begin at `Problem.start_BFL`."""
    min_classes: int = 2
    """Refused with fewer."""
    whole_set: bool = False
    """Makes one perturbation for all utterances, and is to be given them at once."""
    quiet_step: bool = False
    """A step size above epsilon is what this attack is."""
    on_recordings: tuple[str, ...] = ()
    """Budgets that it can be given on recorded samples: "snr_db", "amplitude", "masking"; none where it moves features
    alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """An attack with its settings; `registry.build` makes it."""

    settings: AttackSettings
    """Resolved."""
    entry: Entry

    @property
    def name(self) -> str:
        """As records name it."""
        return self.settings.name + ("" if self.settings.labels else UNLABELLED)

    @property
    def norm(self) -> str:
        """ "inf", "2", or "masking"."""
        if self.settings.masked:
            return "masking"
        return self.entry.norm if self.settings.snr_db is None else "2"

    @property
    def library(self) -> str:
        return self.entry.library

    @property
    def knowledge(self) -> str:
        return self.entry.knowledge

    def knowledge_of(self, expectation: Expectation | None) -> str:
        """The threat model of a record: "adaptive" where the attacker differentiates a defence, else `knowledge`.

        An attack of ours that sees no gradient asks the defended model, in expectation, and is what it is: "score".

        Raises:
            UserError: this attack sees no gradient, and one of ART's asks for predictions of single draws.
        """
        if expectation is None:
            return self.knowledge
        if self.knowledge != "undefended":
            if self.entry.adaptive:
                return self.knowledge
            raise UserError(
                f"{self.name} sees no gradient ({self.knowledge}) and asks for one prediction at a time: take "
                "an attack that can be in expectation over a defence, such as pgd or square"
            )
        return "adaptive"

    def budget(self, features_shape: tuple[int, ...]) -> float | None:
        """Largest norm that counts as a success for features of shape (..., F, L); None where that is no epsilon."""
        epsilon = self.settings.epsilon
        return None if math.isinf(epsilon) else budget_of(epsilon, self.entry.norm, features_shape)

    def check(self, box: Box | None, num_classes: int) -> None:
        """Refuse, before anything runs, what cannot run.

        Raises:
            UserError: there is no box, or there are too few classes, for this attack.
        """
        if self.entry.needs_box and (box is None or box.lower_F1 is None):
            raise UserError(
                f"{self.name} needs a box (without one ART takes the range of what it is given, or fails): "
                "give clip bounds"
            )
        if num_classes < self.entry.min_classes:
            raise UserError(
                f"{self.name} needs at least {self.entry.min_classes} classes, the model has {num_classes}: "
                "take apgd_ce"
            )

    def craft(self, problem: Problem, batch_size: int | None = None) -> Tensor:
        """Adversarial inputs, within box and budget; clean ones where the attack failed.

        Clean inputs are clipped to the box first, and the budget is measured from there, so that what comes back lies
        inside the box even for inputs that did not. The global random states stay as they are, and so do the modes and
        gradients of the model.

        Args:
            problem: with the settings of this attack.
            batch_size: utterances at a time, None for all; an attack on the whole set (`Entry.whole_set`) and one of
                ART's on a defended model choose for themselves.

        Raises:
            UserError: an attack that needs a box has none, there are too few classes for it, one that cannot be
                adaptive is given an expectation, or one of ART's needs another kind of model.
        """
        self.check(problem.box, problem.num_classes)
        self.knowledge_of(problem.expectation)
        total = len(problem.keys_B)
        size = total if self.entry.whole_set or batch_size is None else batch_size
        if problem.expectation is not None and not self.entry.adaptive:
            size = 1
        # Tensors made under inference_mode cannot take part in a gradient; their clones can.
        with torch.inference_mode(False):
            clean, labels_B = problem.box.clip(problem.clean.detach().clone()), problem.labels_B.clone()
        if self.settings.epsilon == 0 or not total:
            return clean
        problem = replace(problem, clean=clean, labels_B=labels_B)
        device = clean.device
        # ART goes to whichever GPU is the current one.
        with (
            current(device),
            attacked(problem.network),
            seeded(derive_seed("attack", problem.seed), device),
            np.errstate(all="ignore"),
        ):
            batches = torch.split(torch.arange(total, device=device), max(size, 1))
            return torch.cat([self._craft(problem.subset(batch)) for batch in batches])

    def _craft(self, problem: Problem) -> Tensor:
        if not self.settings.labels:
            problem = replace(problem, labels_B=problem.logits(problem.clean).argmax(1))
        adversarial = self.entry.craft(problem)
        if problem.to_features is not None:
            return problem.to_features.own(problem.box.clip(adversarial.detach()))
        if not self.entry.minimal:
            return adversarial
        budget = budget_of(self.settings.epsilon, self.entry.norm, tuple(adversarial.shape))
        return keep_within(problem.clean, problem.box.clip(adversarial), self.entry.norm, budget)
