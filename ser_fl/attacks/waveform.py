"""Attacks on recorded audio, through the differentiable front end, and the budgets that they keep to.

A budget is a signal-to-noise ratio in dB, an L2 ball whose radius belongs to the clip, or an amplitude, an L-infinity
ball. Both are of the recorded samples that the front end hears, at full scale 1.

When to choose which: `pgd` and `apgd_ce` are the ones to report, `apgd_dlr` where a model is very sure of itself;
`cw_l2` looks for the quietest perturbation, crafted once and held against every SNR; `psychoacoustic` asks what a
listener would not hear, and takes no budget but the clip's own masking threshold.

A caution for all: features are log(x + 1e-8), so that bins of digital silence react to the faintest noise. Where a
corpus holds silence, an attack at 60 dB may succeed by what no recording in a room would keep.

Legend: B clips, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.autopgd import restarted
from ser_fl.attacks.ball import Ball
from ser_fl.attacks.carlini_wagner import carlini_wagner_l2
from ser_fl.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio
from ser_fl.attacks.pgd import descend
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.attacks.target import Expectation, Target
from ser_fl.attacks.threat_model import Box, Norm
from ser_fl.attacks.waveform_input import ClipBall, Clips, WaveformToFeatures
from ser_fl.data.frontend import LogMel, Standardisation
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import generator

FULL_SCALE = Box(torch.tensor(-1.0), torch.tensor(1.0))
"""The values that samples may take."""
PGD_RADII = 4.0
"""Length of all steps together."""


@dataclass(frozen=True, slots=True)
class WaveformBudget:
    """How much a recording may be changed.

    Raises:
        UserError: an amplitude that is negative or no number, or an SNR that is no number.
    """

    unit: Literal["snr_db", "amplitude"]
    value: float
    """In dB: the energy of the clip over that of the perturbation. Or the largest change of a sample, full scale 1."""

    def __post_init__(self) -> None:
        finite = abs(self.value) < float("inf")
        if not finite or (self.unit == "amplitude" and self.value < 0):
            kind = "a finite number of dB" if self.unit == "snr_db" else ">= 0 and finite"
            raise UserError(f"a budget in {self.unit} must be {kind}, got {self.value}")

    def __str__(self) -> str:
        return f"{self.value:g} dB" if self.unit == "snr_db" else f"amplitude {self.value:g}"

    @property
    def norm(self) -> Norm:
        return "2" if self.unit == "snr_db" else "inf"

    def ball(self, clips: Clips) -> ClipBall:
        """What the budget allows; of a silent clip and an SNR, nothing but the clip."""
        if self.unit == "snr_db":
            radius_B = (clips.lengths(clips.waveform_BT) * 10 ** (-self.value / 20)).float()
        else:
            radius_B = clips.waveform_BT.new_full((len(clips),), self.value)
        return ClipBall(clips.waveform_BT, radius_B, self.norm, clips.heard_B)


def snr_db(clips: Clips, adversarial_BT: Tensor) -> Tensor:
    """Energy of each clip over that of its perturbation, in dB: float64, shape (B,).

    Over the samples that are heard. Infinite for no perturbation, minus infinity for one of a silent clip.
    """
    clean_B, step_B = clips.lengths(clips.waveform_BT), clips.lengths(adversarial_BT - clips.waveform_BT)
    return torch.where(step_B > 0, 20 * torch.log10(clean_B / step_B.clamp(min=1e-300)), torch.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class WaveformProblem:
    """Clips to be attacked, all on the model's device; to be used inside `ser_fl.attacks.training_attacks.attacked`."""

    network: nn.Module
    """Maps features_BFL to logits_BC."""
    frontend: LogMel
    standardisation: Standardisation
    clips: Clips
    labels_B: Tensor
    keys_B: Sequence[str]
    """Utterance ids, which random starts are keyed by."""
    budget: WaveformBudget | None
    """None for attacks that have their own."""
    steps: int
    restarts: int
    seed: int
    passes: Passes
    expectation: Expectation | None = None

    @cached_property
    def to_features(self) -> WaveformToFeatures:
        """From the recorded samples to what the network is shown."""
        return WaveformToFeatures(self.clips, self.frontend, self.standardisation)

    @property
    def target(self) -> Target:
        """The model from the recorded samples on."""
        return Target(
            network=self.network,
            keys_B=self.keys_B,
            passes=self.passes,
            to_features=self.to_features,
            expectation=self.expectation,
        )

    @property
    def box(self) -> Box:
        return FULL_SCALE.to(self.clips.waveform_BT.device)

    @property
    def ball(self) -> ClipBall:
        assert self.budget is not None
        return self.budget.ball(self.clips)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveformAttack:
    """An attack on recorded audio."""

    craft: Callable[[WaveformProblem], Tensor]
    """Maps a problem to adversarial waveforms of shape (B, T)."""
    library: str
    paper: str
    steps: int
    """Default."""
    restarts: int | None = None
    """Default number of random starts; None for attacks that start once, at the clean clip."""
    units: tuple[str, ...] = ("snr_db", "amplitude")
    """Budgets that it can be given; none for an attack that has its own."""
    minimal: bool = False
    """Looks for the smallest perturbation, whatever the budget: crafted once, and held against every budget."""
    min_classes: int = 2


def _start(problem: WaveformProblem, ball: Ball, rows_N: Tensor, number: int) -> Tensor:
    """A random start of some of the clips, keyed by (seed, utterance, number)."""
    keys_N = [problem.keys_B[row] for row in rows_N.tolist()]
    return ball.subset(rows_N).random(generator("waveform", problem.seed, key, number) for key in keys_N)


def craft_pgd(problem: WaveformProblem) -> Tensor:
    """PGD on the cross-entropy from each random start, or once from the clean clip.

    All steps together are 4 radii long: a random start in an L2 ball of so many dimensions lies at a right angle to
    the way up, and the usual 2.5 end 9 degrees short of it.
    """
    ball, rows_B = problem.ball, torch.arange(len(problem.clips), device=problem.labels_B.device)
    starts = [_start(problem, ball, rows_B, number) for number in range(problem.restarts)]
    return descend(
        problem.target,
        ball,
        problem.labels_B,
        steps=problem.steps,
        step_size=PGD_RADII * ball.radius_B / problem.steps,
        starts=torch.stack(starts) if starts else None,
        box=problem.box,
    )


def craft_cw_l2(problem: WaveformProblem) -> Tensor:
    """Carlini and Wagner's L2 attack; what it does not break stays clean."""
    return carlini_wagner_l2(
        problem.target,
        problem.clips.waveform_BT,
        problem.labels_B,
        box=problem.box,
        steps=problem.steps,
    )


def _climb(problem: WaveformProblem, ball: Ball, loss: Loss) -> Tensor:
    """AutoPGD from each random start, or once from the clean clip."""

    def starts(rows_N: Tensor, number: int) -> Tensor | None:
        return _start(problem, ball, rows_N, number) if problem.restarts else None

    return restarted(
        problem.target,
        ball,
        problem.labels_B,
        losses=[lambda rows_N: loss] * max(problem.restarts, 1),
        starts=starts,
        steps=problem.steps,
        box=problem.box,
    )


def craft_apgd_ce(problem: WaveformProblem) -> Tensor:
    """AutoPGD on the cross-entropy."""
    return _climb(problem, problem.ball, cross_entropy)


def craft_apgd_dlr(problem: WaveformProblem) -> Tensor:
    """AutoPGD on the difference of logits ratio."""
    return _climb(problem, problem.ball, difference_of_logits_ratio)


def craft_psychoacoustic(problem: WaveformProblem) -> Tensor:
    """AutoPGD on the cross-entropy among the perturbations under the clip's masking threshold."""
    return _climb(problem, MaskingBall.around(problem.clips), cross_entropy)


WAVEFORM_ATTACKS: Mapping[str, WaveformAttack] = MappingProxyType(
    {
        "pgd": WaveformAttack(
            craft=craft_pgd,
            library="ser_fl.descend",
            paper="Madry et al. 2018, arXiv 1706.06083",
            steps=50,
            restarts=1,
        ),
        "cw_l2": WaveformAttack(
            craft=craft_cw_l2,
            library="ser_fl.carlini_wagner_l2",
            paper="Carlini and Wagner 2017, arXiv 1608.04644",
            steps=20,
            units=("snr_db",),
            minimal=True,
        ),
        "apgd_ce": WaveformAttack(
            craft=craft_apgd_ce,
            library="ser_fl.AutoPGD",
            paper="Croce and Hein 2020, arXiv 2003.01690",
            steps=100,
            restarts=1,
        ),
        "apgd_dlr": WaveformAttack(
            craft=craft_apgd_dlr,
            library="ser_fl.AutoPGD",
            paper="Croce and Hein 2020, arXiv 2003.01690",
            steps=100,
            restarts=1,
            min_classes=3,
        ),
        "psychoacoustic": WaveformAttack(
            craft=craft_psychoacoustic,
            library="ser_fl.AutoPGD",
            paper="Qin et al. 2019, arXiv 1903.10346",
            steps=100,
            restarts=1,
            units=(),
        ),
    }
)


def attack_named(name: str) -> WaveformAttack:
    """The attack of that name.

    Raises:
        UserError: no such attack on waveforms; the known ones are listed.
    """
    if name not in WAVEFORM_ATTACKS:
        raise unknown_name("attack of domain=waveform", name, WAVEFORM_ATTACKS)
    return WAVEFORM_ATTACKS[name]
