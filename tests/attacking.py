"""Short ways to attack something in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, Problem
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.target import Expectation, Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.defences import Defence
from ser_fl.robustness.plan import EOT_SAMPLES, plan
from ser_fl.robustness.runner import run_plan
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.records import AttackRecord


def generate(
    attack: Attack,
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
    """What an attack makes of features."""
    passes = Passes()
    problem = Problem(
        network=model,
        num_classes=num_classes,
        clean=features_BFL,
        labels_B=labels_B,
        keys_B=keys_B,
        box=Box.unbounded() if box is None else box,
        settings=attack.settings,
        seed=seed,
        passes=passes,
        expectation=expectation,
        start_BFL=start_BFL,
    )
    size = len(keys_B) if attack.entry.whole_set else batch_size
    batches = [problem.subset(rows) for rows in torch.arange(len(keys_B)).split(max(size, 1))]
    adversarial_BFL = torch.cat([attack.craft(batch) for batch in batches])
    return Crafted(adversarial_NFL=adversarial_BFL, forward_passes=passes.forward, backward_passes=passes.backward)


def benchmark_attacks(
    test_set: TestSet,
    attacks: Sequence[Attack],
    defences: Sequence[Defence],
    *,
    adaptive: Sequence[Attack] = (),
    eot_samples: int | None = EOT_SAMPLES,
    subsets: Mapping[str, int] | None = None,
    sweep: bool = True,
    **running: Any,
) -> list[AttackRecord]:
    """Attacks of a benchmark, planned and run."""
    units = plan(test_set, attacks, defences, adaptive=adaptive, eot_samples=eot_samples, subsets=subsets, sweep=sweep)
    return run_plan(test_set, units, defences, **running)
