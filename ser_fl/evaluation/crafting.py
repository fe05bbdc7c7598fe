"""Adversarial utterances, batch by batch, each of which is kept as soon as it is made.

Legend: N utterances, B of a batch, F mel bins, L frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.victim import Expectation
from ser_fl.evaluation.challenge import Challenge
from ser_fl.evaluation.kept import Keeper, Made, Memory

OnBatch = Callable[[int, float], None]
"""Told how many utterances a batch had and how many seconds it took, 0 where it was there already."""


def craft(
    challenge: Challenge,
    attack: Attack,
    *,
    expectation: Expectation | None = None,
    start: Callable[[], Tensor] | None = None,
    keeper: Keeper | None = None,
    key: str = "",
    on_batch: OnBatch = lambda size, seconds: None,
) -> Made:
    """Attack all utterances of a challenge.

    Args:
        challenge: classifier and utterances.
        attack: with its settings.
        expectation: the randomised defence that the attacker knows of.
        start: gives adversarial features of shape (N, F, L) that the attack may begin at; called where a batch needs
            them.
        keeper: where batches that are made already are found, and others are kept.
        key: under which.
        on_batch: told of progress.
    """
    keeper = Memory() if keeper is None else keeper
    begun_NFL: Tensor | None = None
    batches: list[Made] = []
    size = max(len(challenge), 1) if attack.entry.whole_set else challenge.batch_size
    for first in range(0, len(challenge), size):
        batch = slice(first, first + size)
        ids = challenge.ids[batch]
        made = keeper.batch(key, ids)
        if made is not None:
            batches.append(made)
            on_batch(len(ids), 0.0)
            continue
        if start is not None and begun_NFL is None:
            begun_NFL = start()
        started = time.perf_counter()
        crafted = attack.generate(
            challenge.model,
            challenge.features_NFL[batch],
            challenge.labels_N[batch],
            box=challenge.box,
            num_classes=challenge.num_classes,
            keys_B=ids,
            seed=challenge.seed,
            batch_size=challenge.batch_size,
            expectation=expectation,
            start_BFL=None if begun_NFL is None else begun_NFL[batch],
        )
        made = Made(
            adversarial_NFL=crafted.adversarial_BFL,
            forward_passes=crafted.forward_passes,
            backward_passes=crafted.backward_passes,
            seconds=time.perf_counter() - started,
        )
        keeper.keep_batch(key, ids, made)
        batches.append(made)
        on_batch(len(ids), made.seconds)
    return Made(
        adversarial_NFL=torch.cat([challenge.features_NFL[:0], *(made.adversarial_NFL for made in batches)]),
        forward_passes=sum(made.forward_passes for made in batches),
        backward_passes=sum(made.backward_passes for made in batches),
        seconds=sum(made.seconds for made in batches),
    )
