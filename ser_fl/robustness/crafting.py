"""Adversarial utterances, batch by batch, each of which is kept as soon as it is made.

Legend: N utterances, B of a batch, F mel bins, L frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.target import Expectation
from ser_fl.robustness.result_cache import Made, Memory, ResultCache
from ser_fl.robustness.test_set import TestSet

OnBatch = Callable[[int, float], None]
"""Told how many utterances a batch had and how many seconds it took, 0 where it was there already."""


def craft(
    test_set: TestSet,
    attack: Attack,
    *,
    expectation: Expectation | None = None,
    start: Callable[[], Tensor] | None = None,
    cache: ResultCache | None = None,
    key: str = "",
    on_batch: OnBatch = lambda size, seconds: None,
) -> Made:
    """Attack all utterances of a test_set.

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
    batches: list[Made] = []
    size = max(len(test_set), 1) if attack.entry.whole_set else test_set.batch_size
    for first in range(0, len(test_set), size):
        batch = slice(first, first + size)
        ids = test_set.ids[batch]
        made = cache.batch(key, ids)
        if made is not None:
            batches.append(made)
            on_batch(len(ids), 0.0)
            continue
        if start is not None and begun_NFL is None:
            begun_NFL = start()
        started = time.perf_counter()
        crafted = attack.generate(
            test_set.model,
            test_set.features_NFL[batch],
            test_set.labels_N[batch],
            box=test_set.box,
            num_classes=test_set.num_classes,
            keys_B=ids,
            seed=test_set.seed,
            batch_size=test_set.batch_size,
            expectation=expectation,
            start_BFL=None if begun_NFL is None else begun_NFL[batch],
        )
        made = Made(
            adversarial_NFL=crafted.adversarial_BFL,
            forward_passes=crafted.forward_passes,
            backward_passes=crafted.backward_passes,
            seconds=time.perf_counter() - started,
        )
        cache.keep_batch(key, ids, made)
        batches.append(made)
        on_batch(len(ids), made.seconds)
    return Made(
        adversarial_NFL=torch.cat([test_set.features_NFL[:0], *(made.adversarial_NFL for made in batches)]),
        forward_passes=sum(made.forward_passes for made in batches),
        backward_passes=sum(made.backward_passes for made in batches),
        seconds=sum(made.seconds for made in batches),
    )
