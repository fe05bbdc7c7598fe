"""One attack: what it is, how it is run on a model, and what comes back.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.art.seeding import seeded
from ser_fl.attacks.problem import Problem
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.target import Expectation
from ser_fl.attacks.threat_model import Box, Norm, budget_of, keep_within
from ser_fl.attacks.training_attacks import attacked
from ser_fl.devices import current, send
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An attack of the catalogue."""

    craft: Callable[[Problem], Tensor]
    """Maps a problem to adversarial features of shape (B, F, L)."""
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crafted:
    """What an attack made, and what it cost."""

    adversarial_BFL: Tensor
    forward_passes: int
    """Utterances that went forward through the model, ART's own checks included."""
    backward_passes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """An attack with its settings; `build` makes it."""

    settings: AttackSettings
    """Resolved."""
    entry: Entry

    @property
    def norm(self) -> Norm:
        return self.entry.norm

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
                f"{self.settings.name} sees no gradient ({self.knowledge}) and asks for one prediction at a time: take "
                "an attack that can be in expectation over a defence, such as pgd or square"
            )
        return "adaptive"

    def budget(self, features_shape: tuple[int, ...]) -> float:
        """Largest norm that counts as a success for features of shape (..., F, L); see `budget.budget_of`."""
        return budget_of(self.settings.epsilon, self.norm, features_shape)

    def generate(
        self,
        model: nn.Module,
        features_BFL: Tensor,
        labels_B: Tensor,
        *,
        box: Box | None,
        num_classes: int,
        keys_B: Sequence[str],
        seed: int,
        batch_size: int,
        expectation: Expectation | None = None,
        start_BFL: Tensor | None = None,
    ) -> Crafted:
        """Adversarial utterances, within box and budget; clean ones where the attack failed.

        Args:
            model: maps features_BFL to logits_BC; its modes and gradients are as before when this returns.
            features_BFL: clean features, float32. They are clipped to the box first, and the budget is measured from
                there, so that what comes back lies inside the box even for features that did not.
            labels_B: true classes, int64.
            box: the values that features may take; None for any.
            num_classes: C.
            keys_B: utterance ids. Random draws depend on (seed, utterance), not on batches or their order.
            seed: of all random draws; the global random states stay as they are.
            batch_size: utterances at a time; an attack on the whole set (`Entry.whole_set`) chooses for itself.
            expectation: the defence that the attacker knows of, as `expectation.expectation_of` makes it; None for an
                attack on the network alone.
            start_BFL: adversarial features inside the budget that an attack may begin at (`Entry.warm`), such as those
                of a smaller one.

        Raises:
            UserError: an attack that needs a box has none, there are too few classes for it, one that cannot be
                adaptive is given an expectation, or one of ART's needs another kind of model.
        """
        if not len(features_BFL) == len(labels_B) == len(keys_B):
            raise ValueError(f"{len(features_BFL)} utterances, {len(labels_B)} labels and {len(keys_B)} keys")
        self.check_box(box)
        self.check_classes(num_classes)
        self.knowledge_of(expectation)
        if expectation is not None and not self.entry.adaptive:
            batch_size = 1
        box = Box.unbounded() if box is None else box.to(features_BFL.device)
        # Tensors made under inference_mode cannot take part in a gradient; their clones can.
        with torch.inference_mode(False):
            clean_BFL, labels_B = box.clip(features_BFL.detach().clone()), labels_B.clone()
        if self.settings.epsilon == 0 or not len(features_BFL):
            return Crafted(adversarial_BFL=clean_BFL, forward_passes=0, backward_passes=0)
        device = next((parameter.device for parameter in model.parameters()), features_BFL.device)
        passes = Passes()
        # ART goes to whichever GPU is the current one.
        with current(device), attacked(model), seeded(derive_seed("attack", seed), device), np.errstate(all="ignore"):
            problem = Problem(
                network=model,
                num_classes=num_classes,
                features_BFL=send(clean_BFL, device),
                labels_B=send(labels_B, device),
                keys_B=keys_B,
                box=box.to(device),
                settings=self.settings,
                seed=seed,
                passes=passes,
                expectation=expectation,
                start_BFL=None if start_BFL is None else send(start_BFL, device),
            )
            rows = torch.arange(len(labels_B), device=device)
            batches = torch.split(rows, len(rows) if self.entry.whole_set else batch_size)
            adversarial_BFL = torch.cat([self._craft(problem.subset(batch)) for batch in batches])
        return Crafted(
            adversarial_BFL=adversarial_BFL.to(features_BFL.device),
            forward_passes=passes.forward,
            backward_passes=passes.backward,
        )

    def check_box(self, box: Box | None) -> None:
        """Refuse a missing box before anything runs.

        Raises:
            UserError: there is none, and the attack needs one.
        """
        if self.entry.needs_box and (box is None or box.lower_F1 is None):
            raise UserError(
                f"{self.settings.name} needs a box (without one ART takes the range of what it is given, or fails): "
                "give clip bounds"
            )

    def check_classes(self, num_classes: int) -> None:
        """Refuse too few classes before anything runs.

        Raises:
            UserError: the loss of the attack compares more classes than there are.
        """
        if num_classes < self.entry.min_classes:
            raise UserError(
                f"{self.settings.name} needs at least {self.entry.min_classes} classes, the model has {num_classes}: "
                "take apgd_ce"
            )

    def _craft(self, problem: Problem) -> Tensor:
        adversarial_BFL = self.entry.craft(problem)
        if not self.entry.minimal:
            return adversarial_BFL
        budget = self.budget(tuple(adversarial_BFL.shape))
        return keep_within(problem.features_BFL, problem.box.clip(adversarial_BFL), self.norm, budget)
