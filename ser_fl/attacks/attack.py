"""One attack: what a user says of it, what it is, the batch that it is given, and how it is run.

Legend: B utterances, F mel bins, L frames, C classes; "..." is whatever is moved: mel bins and frames, or samples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from ser_fl.attacks.target import Expectation, Target, attacked
from ser_fl.attacks.threat_model import Ball, Box, Norm, budget_of, keep_within
from ser_fl.config.robustness import Backend
from ser_fl.devices import seeded_streams
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed, generator
from ser_fl.runs.records import ON_ENROLMENT, WITH_ENROLMENT

UNLABELLED = "_unlabelled"
"""Ends the name of an attack that does not know the true classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """One attack of the registry; None means this attack's default, which `registry.build` fills in. Its budget is an
    epsilon, an SNR or the masking threshold of each recording.

     A value out of its range is a `UserError`.
    """

    name: str
    """A name of `registry.ATTACKS`, or ``art:ClassName`` for any other evasion attack of ART. One that ends in
    "_unlabelled" is kept without, and says that there are no `labels`."""
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
    """Whether it knows the true classes; else the model's predictions of clean utterances stand for them."""
    backend: Backend = "auto"
    enrolment: Literal["clean", "attacked", "both"] = "clean"
    """Whether the clips that enrol a speaker are attacked (`ser_fl.attacks.enrolment`), in place of the scored ones or
    before them."""

    def __post_init__(self) -> None:
        if self.name.endswith(UNLABELLED):
            object.__setattr__(self, "name", self.name.removesuffix(UNLABELLED))
            object.__setattr__(self, "labels", False)
        for word in ("epsilon", "step_size"):  # ART refuses NumPy's and torch's scalars
            if getattr(self, word) is not None:
                object.__setattr__(self, word, float(getattr(self, word)))
        epsilon, step_size, elsewhere = self.epsilon, self.step_size, self.snr_db is not None or self.masked
        for word, fits, allowed in (
            ("snr_db", self.snr_db is None or math.isfinite(self.snr_db), "a finite number of dB"),
            ("epsilon", epsilon >= 0 and (elsewhere or math.isfinite(epsilon)), ">= 0 and finite"),
            ("steps", self.steps is None or self.steps >= 1, ">= 1"),
            ("step_size", step_size is None or 0 < step_size < math.inf or epsilon == 0, "> 0 and finite"),
            ("restarts", self.restarts is None or self.restarts >= 0, ">= 0"),
        ):
            if not fits:
                raise UserError(f"{word} must be {allowed}, got {getattr(self, word)} for the attack {self.name}")

    @property
    def budget(self) -> str:
        if self.masked:
            return "the masking threshold"
        return f"{self.epsilon:g}" if self.snr_db is None else f"{self.snr_db:g} dB"

    @property
    def strength(self) -> tuple[bool, float]:
        """Grows with the budget; SNRs come before epsilons."""
        return self.snr_db is None, self.epsilon if self.snr_db is None else -self.snr_db


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem(Target):
    """One batch to be attacked: the model, in eval mode already, clean utterances and their true classes, all on one
    device. Random starts are keyed by `keys_B`: draws depend on (seed, utterance), not on batches.
    """

    num_classes: int
    clean: Tensor
    """What is moved, shape (B, ...): features of shape (B, F, L), or recorded samples of shape (B, T)."""
    labels_B: Tensor
    box: Box
    settings: AttackSettings
    seed: int
    start_BFL: Tensor | None = None
    """Adversarial inputs that an attack may begin at, such as those of a smaller budget; None to choose itself."""

    @property
    def steps(self) -> int:
        assert self.settings.steps is not None, self.settings.name
        return self.settings.steps

    @property
    def ball(self) -> Ball:
        """All that the budget allows: of features an L-infinity ball, of recordings what their budget says."""
        if self.to_features is not None:
            return self.to_features.ball(self.settings.epsilon, self.settings.snr_db, self.settings.masked)
        return Ball(self.clean, self.clean.new_full((len(self.keys_B),), self.settings.epsilon), "inf")

    def streams(self, name: str, *numbers: int) -> Iterator[Generator]:
        """A stream of random numbers for every utterance, keyed by (seed, utterance) and what is given."""
        name = name if self.to_features is None else "waveform"
        return (generator(name, self.seed, key, *numbers) for key in self.keys_B)

    def starts(self, ball: Ball) -> list[Tensor]:
        """Where PGD starts, each of shape (B, ...): at random, the first where a smaller budget led to; else clean."""
        starts = [ball.random(self.streams("pgd", restart)) for restart in range(self.settings.restarts or 0)]
        if self.start_BFL is not None:
            starts[:1] = [self.start_BFL]
        return starts or [ball.clean]


@dataclass(frozen=True, slots=True)
class Entry:
    craft: Callable[[Problem], Tensor]
    """Maps a problem to adversarial inputs, in the shape of the clean ones."""
    library: str
    """The class that runs."""
    paper: str
    _: KW_ONLY
    norm: Norm = "inf"
    """The norm that it keeps to, or minimises."""
    knowledge: str = "undefended"
    """The threat model: "undefended" (gradients of the model without its test-time defence), "score", "decision"."""
    steps: int | None = None
    steps_to_edge: float | None = None
    """Of how many steps of the default size the way to the ball's edge is; None for attacks that choose their own."""
    fixed_step: float | None = None
    """A step size that is what this attack is, whatever the epsilon."""
    restarts: int | None = 0
    settable: frozenset[str] = frozenset({"steps"})
    """Which of steps, step_size and restarts a user may set; the others are what the attack is."""
    minimal: bool = False
    """Looks for the smallest perturbation; the result must be held against the budget."""
    needs_box: bool = False
    """Refused without a box."""
    adaptive: bool = False
    """Attacks a defence in expectation a batch at a time, by what a `Target` answers; others an utterance at a time."""
    warm: bool = False
    """Can begin at `Problem.start_BFL`."""
    min_classes: int = 2
    """Refused with fewer."""
    whole_set: bool = False
    """Makes one perturbation for all utterances, and is to be given them at once."""
    on_recordings: tuple[str, ...] = ()
    """Budgets that it can be given on recorded samples, of "snr_db", "amplitude" and "masking"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """`registry.build` makes it."""

    settings: AttackSettings
    entry: Entry

    @property
    def name(self) -> str:
        """As records name it."""
        suffix = {"clean": "", "attacked": ON_ENROLMENT, "both": WITH_ENROLMENT}[self.settings.enrolment]
        return self.settings.name + ("" if self.settings.labels else UNLABELLED) + suffix

    def knowledge_of(self, expectation: Expectation | None) -> str:
        """The threat model of a record: "adaptive" where the attacker differentiates a defence, else the entry's. A
        `UserError` says that this attack sees no gradient, and is one of ART's that asks for predictions of single
        draws.
        """
        known = self.entry.knowledge
        if expectation is not None and known != "undefended" and not self.entry.adaptive:
            raise UserError(
                f"{self.name} sees no gradient ({known}) and asks for one prediction at a time: take an attack that "
                "can be in expectation over a defence, such as pgd or square"
            )
        return "adaptive" if expectation is not None and known == "undefended" else known

    def check(self, box: Box, num_classes: int) -> None:
        """Refuse, before anything runs, where it needs a box or more classes: a `UserError`."""
        if self.entry.needs_box and box.lower_F1 is None:
            why = "without one ART takes the range of what it is given, or fails"
            raise UserError(f"{self.name} needs a box ({why}): give clip bounds")
        if num_classes < (least := self.entry.min_classes):
            raise UserError(f"{self.name} needs at least {least} classes, the model has {num_classes}: take apgd_ce")

    def craft(self, problem: Problem) -> Tensor:
        """Adversarial inputs, within box and budget; clean ones where the attack failed.

        Clean inputs are clipped to the box first, and the budget is measured from there. Global random states and the
        modes and gradients of the model stay.

        Raises:
            UserError: as `check` and `knowledge_of`, or one of ART's needs another kind of model.
        """
        self.check(problem.box, problem.num_classes)
        self.knowledge_of(problem.expectation)
        # Tensors made under inference_mode cannot take part in a gradient; their clones can.
        with torch.inference_mode(False):
            clean, labels_B = problem.box.clip(problem.clean.detach().clone()), problem.labels_B.clone()
        if self.settings.epsilon == 0 or not len(clean):
            return clean
        problem = replace(problem, clean=clean, labels_B=labels_B)
        parts = [problem]
        if problem.expectation is not None and not self.entry.adaptive:  # an utterance at a time
            parts = [problem.subset(row) for row in torch.split(torch.arange(len(clean), device=clean.device), 1)]
        found, seed = [], derive_seed("attack", problem.seed)
        streams = seeded_streams(seed, clean.device, everywhere=True)
        with streams, attacked(problem.network), np.errstate(all="ignore"):
            for part in parts:
                if not self.settings.labels:
                    with torch.no_grad():
                        part = replace(part, labels_B=part(part.clean).argmax(1))
                made = self.entry.craft(part)
                if part.to_features is not None:
                    made = part.to_features.own(part.box.clip(made.detach()))
                elif self.entry.minimal:
                    budget = budget_of(self.settings.epsilon, self.entry.norm, made.shape)
                    made = keep_within(part.clean, part.box.clip(made), self.entry.norm, budget)
                found.append(made)
        return torch.cat(found)
