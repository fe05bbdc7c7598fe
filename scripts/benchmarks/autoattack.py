"""The catalogue's strongest attacks against AutoAttack's four, on one model, one set of utterances and one box.

AutoAttack (Croce and Hein 2020, arXiv 2003.01690) is APGD-CE, targeted APGD-DLR, targeted FAB and Square. The peer is
torchattacks' (extra ``bench-attacks``, in an environment of its own because of its pins), with what its wrapper does
against the paper put right: APGD and FAB get 100 steps, not 10; targets are the C - 1 classes that there are; the seed
is not the clock; and Square's first windows, which would be taller than an utterance has mel bins and then land
nowhere, are as tall as they can be. Its inputs are in [0, 1]: the box is mapped there, and what it makes is mapped back
and put into our ball, whose edge it may miss by a rounding.

The model is a CRNN that was trained adversarially on an easy task, until robust UAR is neither 0 nor 1 but in between,
where attacks differ.

Legend: N utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.attacks import BOX_WIDTH, NUM_CLASSES, NUM_MELS, SEED, Target, one_thread
from benchmarks.figures import Figure
from ser_fl.attacks.attack import AttackSettings
from ser_fl.attacks.pgd import pgd
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose
from ser_fl.metrics import confusion_matrix, scores
from ser_fl.models.networks import build_network

NUM_UTTERANCES, NUM_FRAMES = 180, 64
TRAINED_AT, EPSILON = 0.05, 0.07
CLEAN_STEPS, ADVERSARIAL_STEPS, TRAINING_BATCH = 60, 60, 32
QUERIES = 5000
HALF_A_POINT = 0.005
OURS = ("apgd_ce", "apgd_t", "square")
"""What a suite runs beside weaker attacks; more attacks could only break more."""


def figures() -> Iterator[Figure]:
    """Robust UAR in the worst case over ours, less that over AutoAttack's four."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers, on numbers that they are given
        target = adversarially_trained()
        clean_N = target.wrong(target.features_BFL)
        ours_N, ours_detail = by_catalogue(target)
        theirs_N, theirs_detail = by_torchattacks(target)
    ours, theirs = (robust_uar(target, clean_N | broken_N) for broken_N in (ours_N, theirs_N))
    yield Figure(
        name=f"worst case of {', '.join(OURS)}: robust UAR less AutoAttack's",
        value=ours - theirs,
        bar=HALF_A_POINT,
        detail={
            "clean_uar": robust_uar(target, clean_N),
            "robust_uar": {"ser_fl": ours, "AutoAttack": theirs},
            "broken_by_ser_fl_only": int((ours_N & ~theirs_N & ~clean_N).sum()),
            "broken_by_autoattack_only": int((theirs_N & ~ours_N & ~clean_N).sum()),
            "utterances": NUM_UTTERANCES,
            "epsilon": EPSILON,
            "ser_fl": ours_detail,
            "AutoAttack": theirs_detail,
        },
    )


def adversarially_trained() -> Target:
    """A CRNN of ``model=crnn`` that has learnt noise around a pattern per class, clean and then by PGD-3; and a set."""
    stream = torch.Generator().manual_seed(SEED)
    lower_F1 = torch.linspace(-3.2, -2.8, NUM_MELS)[:, None]
    box = Box(lower_F1, lower_F1 + BOX_WIDTH)
    patterns_CF1 = 0.16 * torch.randn(NUM_CLASSES, NUM_MELS, 1, generator=stream)

    def drawn(number: int) -> tuple[Tensor, Tensor]:
        labels_N = torch.randint(NUM_CLASSES, (number,), generator=stream)
        noise_NFL = torch.randn(number, NUM_MELS, NUM_FRAMES, generator=stream)
        return box.clip(patterns_CF1[labels_N] + noise_NFL), labels_N

    network = build_network(compose(["model=crnn"]).model, NUM_CLASSES, seed=SEED)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for step in range(CLEAN_STEPS + ADVERSARIAL_STEPS):
            features_NFL, labels_N = drawn(TRAINING_BATCH)
            if step >= CLEAN_STEPS:  # from the first step on, nothing would be learnt
                features_NFL = pgd(
                    network, features_NFL, labels_N, epsilon=TRAINED_AT, step_size=TRAINED_AT / 2, steps=3, box=box
                )
            optimiser.zero_grad()
            functional.cross_entropy(network(features_NFL), labels_N).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    network.eval().requires_grad_(False)
    return Target(network, *drawn(NUM_UTTERANCES), box)


def robust_uar(target: Target, broken_N: Tensor) -> float:
    """UAR where utterances that are broken are wrong; UAR needs recalls only, so that any wrong class will do."""
    said_N = torch.where(broken_N, (target.labels_B + 1) % NUM_CLASSES, target.labels_B)
    confusion = confusion_matrix(target.labels_B.tolist(), said_N.tolist(), NUM_CLASSES)
    return scores(np.asarray(confusion, dtype=np.float64)).uar


def by_catalogue(target: Target) -> tuple[Tensor, dict[str, Any]]:
    """Which utterances one of ours breaks, each attack shown to those that the ones before have left."""
    broken_N, left, started = target.wrong(target.features_BFL), [], time.process_time()
    for name in OURS:
        rows_N = (~broken_N).nonzero().flatten()
        settings = AttackSettings(name=name, epsilon=EPSILON, steps=QUERIES if name == "square" else None)
        adversarial_BFL = target.by(settings, rows_N)
        broken_N = broken_N | wrong_within(target, rows_N, adversarial_BFL)
        left.append(NUM_UTTERANCES - int(broken_N.sum()))
    return broken_N, {"still_right": dict(zip(OURS, left, strict=True)), "seconds": time.process_time() - started}


def by_torchattacks(target: Target) -> tuple[Tensor, dict[str, Any]]:
    """Which utterances one of AutoAttack's four breaks, as its own loop shows them to one after another."""
    from torchattacks import AutoAttack

    assert target.box.lower_F1 is not None
    lower_F1: Tensor = target.box.lower_F1

    class FromUnit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = target.network

        def forward(self, units_N1FL: Tensor) -> Tensor:
            logits_NC: Tensor = self.network(units_N1FL[:, 0] * BOX_WIDTH + lower_F1)
            return logits_NC

    wrapper = AutoAttack(
        FromUnit().eval(), norm="Linf", eps=EPSILON / BOX_WIDTH, version="standard", n_classes=NUM_CLASSES, seed=SEED
    )
    *ascents, square = wrapper._autoattack.attacks
    for attack in ascents:
        attack.steps = 100
    square.n_queries, chosen_share = QUERIES, square.p_selection
    tallest = (NUM_MELS - 1) ** 2 / (NUM_MELS * NUM_FRAMES)
    square.p_selection = lambda query: min(chosen_share(query), tallest)
    started = time.process_time()
    rows_N = torch.arange(NUM_UTTERANCES)
    made_N1FL = wrapper((target.features_BFL - lower_F1)[:, None] / BOX_WIDTH, target.labels_B)
    broken_N = wrong_within(target, rows_N, made_N1FL[:, 0] * BOX_WIDTH + lower_F1)
    return broken_N, {
        "still_right": NUM_UTTERANCES - int(broken_N.sum()),
        "seconds": time.process_time() - started,
        "targets": [getattr(attack, "n_target_classes", None) for attack in wrapper._autoattack.attacks],
    }


def wrong_within(target: Target, rows_N: Tensor, made_NFL: Tensor) -> Tensor:
    """Which of all utterances are wrong where some are replaced by what an attack made, put into ball and box."""
    clean_NFL = target.features_BFL[rows_N]
    inside_NFL = target.box.clip(torch.clamp(made_NFL, clean_NFL - EPSILON, clean_NFL + EPSILON))
    return target.wrong(target.features_BFL.index_copy(0, rows_N, inside_NFL))
