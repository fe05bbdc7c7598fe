"""Every attack of the benchmark by name: what it is, what it costs by default, and how to run it.

To add an attack, write a function that maps a `Problem` to adversarial features and give it an entry in `ATTACKS`.

When to choose which: `pgd` is the one to report; `fgsm` and `bim` show whether gradients are masked (they must not beat
it); `cw_l2`, `cw_linf` and `deepfool` look for the nearest adversarial utterance; `pgd_paper` and `fgsm` are the
paper's; ``art:SquareAttack`` and ``art:HopSkipJump`` need no gradient and expose models that hide theirs.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks import any_art
from ser_fl.attacks.budget import Box, Norm, budget_of, keep_within
from ser_fl.attacks.estimator import Passes
from ser_fl.attacks.gradient import attacked
from ser_fl.attacks.linf import craft_bim, craft_fgsm, craft_pgd
from ser_fl.attacks.minimal import craft_cw_l2, craft_cw_linf, craft_deepfool
from ser_fl.attacks.problem import Problem
from ser_fl.attacks.seeding import seeded
from ser_fl.attacks.settings import AttackSettings
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import derive_seed

__all__ = ["ATTACKS", "Attack", "AttackSettings", "Crafted", "Entry", "build", "resolve"]


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
    quiet_step: bool = False
    """A step size above epsilon is what this attack is."""


def _quarter(epsilon: float) -> float:
    return epsilon / 4


ATTACKS: Mapping[str, Entry] = MappingProxyType(
    {
        "fgsm": Entry(
            craft=craft_fgsm,
            library="art.FastGradientMethod",
            norm="inf",
            paper="Goodfellow et al. 2015, arXiv 1412.6572",
            steps=1,
            step_size=float,
            settable=frozenset(),
        ),
        "bim": Entry(
            craft=craft_bim,
            library="art.BasicIterativeMethod",
            norm="inf",
            paper="Kurakin et al. 2017, arXiv 1607.02533",
            steps=10,
            step_size=_quarter,
            settable=frozenset({"steps", "step_size"}),
        ),
        "pgd": Entry(
            craft=craft_pgd,
            library="art.ProjectedGradientDescentPyTorch",
            norm="inf",
            paper="Madry et al. 2018, arXiv 1706.06083",
            steps=50,
            step_size=_quarter,
            restarts=5,
            settable=frozenset({"steps", "step_size", "restarts"}),
        ),
        # Weak: without a random start, and with steps of ART's default 0.1, which above an epsilon of 0.05 throw every
        # cell from one face of the ball to the other. Here for comparison with the paper only.
        "pgd_paper": Entry(
            craft=craft_pgd,
            library="art.ProjectedGradientDescentPyTorch",
            norm="inf",
            paper="Chang et al. 2022, arXiv 2203.04696, as in its published code",
            steps=5,
            step_size=lambda epsilon: 0.1,
            settable=frozenset({"steps"}),
            quiet_step=True,
        ),
        "cw_l2": Entry(
            craft=craft_cw_l2,
            library="art.CarliniL2Method",
            norm="2",
            paper="Carlini and Wagner 2017, arXiv 1608.04644",
            steps=10,
            minimal=True,
            needs_box=True,
        ),
        "cw_linf": Entry(
            craft=craft_cw_linf,
            library="art.CarliniLInfMethod",
            norm="inf",
            paper="Carlini and Wagner 2017, arXiv 1608.04644",
            steps=30,
            minimal=True,
            needs_box=True,
        ),
        "deepfool": Entry(
            craft=craft_deepfool,
            library="art.DeepFool",
            norm="2",
            paper="Moosavi-Dezfooli et al. 2016, arXiv 1511.04599",
            steps=50,
            minimal=True,
        ),
    }
)


def _entry(name: str) -> Entry:
    if name in ATTACKS:
        return ATTACKS[name]
    if not name.startswith(any_art.PREFIX):
        raise unknown_name("attack", name, [*ATTACKS, "art:ClassName"])
    class_name = name.removeprefix(any_art.PREFIX)
    return Entry(
        craft=any_art.craft,
        library=f"art.{class_name}",
        norm=any_art.norm_of(name),
        paper=f"see ART's {class_name}",
        knowledge=any_art.KNOWLEDGE.get(class_name, "undefended"),
        minimal=True,
    )


def resolve(settings: AttackSettings) -> AttackSettings:
    """Settings with every None filled by this attack's default, where it has one.

    A setting that the attack does not have is put to what the attack does, with a warning: what a record says is what
    ran.

    Raises:
        UserError: unknown name; the known ones are listed.
    """
    entry = _entry(settings.name)
    if settings.name not in ATTACKS:
        return any_art.resolve(settings)
    defaults = {
        "steps": entry.steps,
        "step_size": entry.step_size and entry.step_size(settings.epsilon),
        "restarts": entry.restarts,
    }
    chosen = {word: getattr(settings, word) for word in defaults if getattr(settings, word) is not None}
    for word in chosen.keys() - entry.settable:
        if chosen.pop(word) != defaults[word]:
            warnings.warn(
                f"{settings.name} has its own {word}: {defaults[word]}; the given one is unused", stacklevel=3
            )
    return replace(settings, **(defaults | chosen))


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
        keys_B: Sequence[str],
        seed: int,
        batch_size: int,
    ) -> Crafted:
        """Adversarial utterances, within box and budget; clean ones where the attack failed.

        Args:
            model: maps features_BFL to logits_BC; its modes and gradients are as before when this returns.
            features_BFL: clean features, float32, inside the box.
            labels_B: true classes.
            box: the values that features may take; None for any.
            keys_B: utterance ids. Random draws depend on (seed, utterance), not on batches or their order.
            seed: of all random draws; the global random states stay as they are.
            batch_size: utterances at a time.

        Raises:
            UserError: C&W without a box, or an attack of ART that needs another kind of model.
        """
        if not len(features_BFL) == len(labels_B) == len(keys_B):
            raise ValueError(f"{len(features_BFL)} utterances, {len(labels_B)} labels and {len(keys_B)} keys")
        box = Box.unbounded() if box is None else box
        if self.entry.needs_box and box.lower_F1 is None:
            raise UserError(
                f"{self.settings.name} needs a box (ART would take the range of each batch): give clip bounds"
            )
        if self.settings.epsilon == 0 or not len(features_BFL):
            return Crafted(adversarial_BFL=features_BFL.detach().clone(), forward_passes=0, backward_passes=0)
        device = next((parameter.device for parameter in model.parameters()), features_BFL.device)
        seed_of_rest = derive_seed("attack", seed)
        with attacked(model), seeded(seed_of_rest, device), np.errstate(all="ignore"):
            # Tensors made under inference_mode cannot take part in a gradient; their clones can.
            clean_BFL, labels_B = features_BFL.detach().clone().to(device), labels_B.clone().to(device)
            problem = Problem(
                network=model,
                num_classes=0,
                features_BFL=clean_BFL,
                labels_B=labels_B,
                keys_B=keys_B,
                box=box.to(device),
                settings=self.settings,
                seed=seed,
                passes=Passes(),
            )
            problem = replace(problem, num_classes=problem.logits(clean_BFL[:1]).shape[1])
            rows = torch.arange(len(clean_BFL), device=device)
            batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
            adversarial_BFL = torch.cat([self._craft(problem.subset(batch)) for batch in batches])
        return Crafted(
            adversarial_BFL=adversarial_BFL.to(features_BFL.device),
            forward_passes=problem.passes.forward,
            backward_passes=problem.passes.backward,
        )

    def _craft(self, problem: Problem) -> Tensor:
        adversarial_BFL = self.entry.craft(problem)
        if not self.entry.minimal:
            return adversarial_BFL
        budget = self.budget(tuple(adversarial_BFL.shape))
        return keep_within(problem.features_BFL, problem.box.clip(adversarial_BFL), self.norm, budget)


def build(settings: AttackSettings) -> Attack:
    """The attack that settings name.

    Raises:
        UserError: unknown name; the known ones are listed.
    """
    resolved = resolve(settings)
    entry = _entry(settings.name)
    step_size = resolved.step_size
    if step_size is not None and resolved.epsilon > 0 and step_size > resolved.epsilon and not entry.quiet_step:
        warnings.warn(
            f"{settings.name}: a step size of {step_size:g} exceeds epsilon {resolved.epsilon:g}, so that every step "
            "ends on the ball's edge",
            stacklevel=2,
        )
    return Attack(settings=resolved, entry=entry)
