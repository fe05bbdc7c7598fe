"""One attack on one test set: adversarial utterances, batch by batch, and what every defence makes of them.

Legend: N utterances, F mel bins, L frames, R runs of a defence; "..." is whatever is moved.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.target import Expectation
from ser_fl.attacks.threat_model import budget_of
from ser_fl.defences import Defence
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.result_cache import Outcome, ResultCache
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
) -> Crafted:
    """Attack all utterances of a test set.

    ``expectation`` is of the randomised defence that the attacker knows of. ``start`` gives adversarial features of
    shape (N, F, L) that the attack may begin at; it is called where a batch needs them. Batches are found in ``cache``
    under ``key``, or kept there as soon as they are made.
    """
    begun_NFL: Tensor | None = None
    batches: list[Crafted] = []
    size = len(test_set) if attack.entry.whole_set else test_set.batch_size
    for first in range(0, len(test_set), max(size, 1)):
        rows = range(first, min(first + size, len(test_set)))
        batch = test_set.take(rows)
        if cache is not None and (made := cache.batch(key, batch.ids)) is not None:
            batches.append(made)
            on_batch(len(batch), 0.0)
            continue
        if start is not None and begun_NFL is None:
            begun_NFL = start()
        started = time.perf_counter()
        start_NFL = None if begun_NFL is None else begun_NFL[list(rows)]
        problem = batch.problem(attack.settings, expectation=expectation, start_NFL=start_NFL)
        made = replace(
            test_set.domain.craft(attack, problem),
            forward_passes=problem.passes.forward,
            backward_passes=problem.passes.backward,
            seconds=time.perf_counter() - started,
        )
        if cache is not None:
            cache.keep_batch(key, batch.ids, made)
        batches.append(made)
        on_batch(len(batch), made.seconds)
    return Crafted.join(batches, range(len(test_set)), test_set.features_NFL[:0])


def judge(unit: Unit, made: Crafted, *, leftover: bool = False) -> Outcome:
    """Show what an attack made to its defences; ``leftover``: of utterances that earlier ones had not broken."""
    attack, settings, part = unit.attack, unit.attack.settings, unit.part
    held = part.domain.held(made, attack, part.features_NFL)
    votes, written = (
        {} if shown_NFL is None else {defence.name: votes_of(part, shown_NFL, defence) for defence in unit.shown_to}
        for shown_NFL in (held.adversarial_NFL, held.written_NFL)
    )
    norms = {name: tuple(held.figures[name].tolist()) for name in ("l2", "linf")}
    measured = {
        name: tuple(value if isfinite(value) else None for value in value_N.tolist())
        for name, value_N in held.figures.items()
        if name not in norms and not bool(value_N.isnan().all())
    }
    epsilon = settings.epsilon if isfinite(settings.epsilon) else None
    return Outcome(
        attack=attack.name,
        library=attack.entry.library,
        knowledge=attack.knowledge_of(unit.expectation),
        domain=part.domain.name,
        norm="masking" if settings.masked else attack.entry.norm if settings.snr_db is None else "2",
        epsilon=epsilon,
        budget=None if epsilon is None else budget_of(epsilon, attack.entry.norm, part.features_NFL.shape),
        snr_db=settings.snr_db,
        steps=settings.steps,
        step_size=settings.step_size,
        restarts=settings.restarts,
        eot_samples=unit.eot_samples,
        adaptive_to=unit.adaptive_to,
        swept=unit.before is not None,
        leftover=leftover,
        minimal=attack.entry.minimal,
        ids=part.ids,
        l2_N=norms["l2"],
        linf_N=norms["linf"],
        votes=votes,
        written_votes=written,
        measured=measured,
        forward_passes=made.forward_passes,
        backward_passes=made.backward_passes,
        seconds=made.seconds,
    )


def votes_of(test_set: TestSet, features_NFL: Tensor, defence: Defence) -> tuple[tuple[int, ...], ...]:
    """What every run of a defended model says of features of these utterances, (R, N)."""
    votes = [torch.zeros(len(defence.run_weights), 0, dtype=torch.int64)]
    for start in range(0, len(features_NFL), test_set.batch_size):
        batch = slice(start, start + test_set.batch_size)
        ids = test_set.ids[batch]
        votes.append(defence.predict(test_set.model, features_NFL[batch], ids, seed=test_set.seed).cpu())
    return tuple(map(tuple, torch.cat(votes, dim=1).tolist()))


def spectrogram_pair(test_set: TestSet, attacks: Sequence[Attack], bundle: EmotionModel) -> dict[str, Any]:
    """The first utterance that an attack turned from right to wrong, as plain log-mel values, for the report.

    The attack is the last iterated one by gradients in the L-infinity ball, at the epsilon that most have. Values are
    natural-log magnitudes, standardisation undone. Where none was turned, the first one tried is shown as it is.
    """
    iterated = [
        attack
        for attack in attacks
        if attack.entry.norm == "inf"
        and attack.entry.knowledge not in ("score", "decision")
        and (attack.settings.steps or 1) > 1
    ]
    ((usual, _),) = Counter(attack.settings.epsilon for attack in iterated or attacks).most_common(1)
    attack = [attack for attack in iterated or attacks if attack.settings.epsilon == usual][-1]
    tried = test_set.subset(16)
    adversarial_NFL = craft(tried, attack).adversarial_NFL
    with torch.no_grad():
        before, after = (tried.model(features).argmax(dim=1) for features in (tried.features_NFL, adversarial_NFL))
    turned = ((before == tried.labels_N) & (after != tried.labels_N)).nonzero().flatten().tolist()
    row = turned[0] if turned else 0

    features_2FL = torch.stack([tried.features_NFL[row], adversarial_NFL[row]])
    raw_2FL = features_2FL * bundle.standardisation.deviation_F1 + bundle.standardisation.mean_F1
    if tried.scale is not None:
        scale = tried.scale.to(raw_2FL.device)
        raw_2FL = raw_2FL * scale.deviation[row] + scale.mean[row]
    clean, adversarial = ([[round(value, 4) for value in line] for line in raw] for raw in raw_2FL.tolist())
    return {
        "utterance_id": tried.ids[row],
        "attack": attack.name,
        "epsilon": attack.settings.epsilon,
        "emotion": tried.emotions[int(tried.labels_N[row])],
        "predicted_clean": tried.emotions[int(before[row])],
        "predicted_adversarial": tried.emotions[int(after[row])],
        "clean": clean,
        "adversarial": adversarial,
        "hop_s": bundle.frontend_config.hop_samples / bundle.frontend_config.sample_rate_hz,
    }
