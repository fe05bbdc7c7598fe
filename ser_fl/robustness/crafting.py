"""Adversarial utterances, batch by batch, each of which is kept as soon as it is made.

Legend: N utterances, F mel bins, L frames; "..." is whatever is moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.attack import Attack
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.problem import Problem
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.target import Expectation
from ser_fl.robustness.result_cache import Memory, ResultCache
from ser_fl.robustness.test_set import TestSet

OnBatch = Callable[[int, float], None]
"""Told how many utterances a batch had and how many seconds it took, 0 where it was there already."""


def problems_of(
    test_set: TestSet,
    settings: AttackSettings,
    *,
    expectation: Expectation | None = None,
    start_NFL: Tensor | None = None,
) -> list[tuple[list[int], Problem]]:
    """All utterances of a test set as what its domain moves: the rows of some, and their problem; every row once."""
    problem = Problem(
        network=test_set.model,
        num_classes=test_set.num_classes,
        clean=test_set.features_NFL,
        labels_B=test_set.labels_N,
        keys_B=test_set.ids,
        box=test_set.box,
        settings=settings,
        seed=test_set.seed,
        passes=Passes(),
        expectation=expectation,
        start_BFL=start_NFL,
    )
    return test_set.domain.problems(problem)


def craft(
    test_set: TestSet,
    attack: Attack,
    *,
    expectation: Expectation | None = None,
    start: Callable[[], Tensor] | None = None,
    cache: ResultCache | None = None,
    key: str = "",
    on_batch: OnBatch = lambda size, seconds: None,
) -> Crafted:
    """Attack all utterances of a test set.

    Args:
        test_set: classifier and utterances.
        attack: with its settings.
        expectation: the randomised defence that the attacker knows of.
        start: gives adversarial features of shape (N, F, L) that the attack may begin at; called where a batch needs
            them.
        cache: where batches that are made already are found, and others are kept.
        key: under which.
        on_batch: told of progress.
    """
    cache = Memory() if cache is None else cache
    begun_NFL: Tensor | None = None
    batches: list[Crafted] = []
    for rows in _batches(test_set, attack):
        batch = test_set.take(rows)
        if (kept := cache.batch(key, batch.ids)) is not None:
            batches.append(kept)
            on_batch(len(batch), 0.0)
            continue
        if start is not None and begun_NFL is None:
            begun_NFL = start()
        started = time.perf_counter()
        parts, places, passes = [], [], []
        start_NFL = None if begun_NFL is None else begun_NFL[list(rows)]
        for taken, problem in problems_of(batch, attack.settings, expectation=expectation, start_NFL=start_NFL):
            adversarial = attack.craft(problem)
            parts.append(test_set.domain.crafted(attack, problem, adversarial))
            places += taken
            passes.append(problem.passes)
        made = replace(
            Crafted.join(parts, places, batch.features_NFL[:0]),
            forward_passes=sum(counted.forward for counted in passes),
            backward_passes=sum(counted.backward for counted in passes),
            seconds=time.perf_counter() - started,
        )
        cache.keep_batch(key, batch.ids, made)
        batches.append(made)
        on_batch(len(batch), made.seconds)
    return Crafted.join(batches, range(len(test_set)), test_set.features_NFL[:0])


def features_under(test_set: TestSet, attack: Attack) -> Tensor:
    """What an attack on the bare model shows it of all utterances, shape (N, F, L); nothing is kept."""
    adversarial_NFL = torch.empty_like(test_set.features_NFL)
    for rows in _batches(test_set, attack):
        for taken, problem in problems_of(test_set.take(rows), attack.settings):
            with torch.no_grad():
                adversarial_NFL[[rows[row] for row in taken]] = problem.target.features(attack.craft(problem))
    return adversarial_NFL


def _batches(test_set: TestSet, attack: Attack) -> Iterator[range]:
    total = len(test_set)
    size = total if attack.entry.whole_set else test_set.batch_size
    for first in range(0, total, max(size, 1)):
        yield range(first, min(first + size, total))
