"""Attacks x defences x budgets on one trained classifier.

An attack is crafted once, against the model without its test-time defence, and then shown to every defence: the
paper's own test, threat model ``undefended``. For a randomised defence that is a grey-box figure, since the attacker
does not know of it; it bounds the harm from below and is no evidence of robustness.

Legend: N utterances, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.budget import Box, distance
from ser_fl.attacks.catalogue import Attack
from ser_fl.defences import Defence
from ser_fl.devices import send
from ser_fl.metrics import Confusion, confusion_matrix, scores
from ser_fl.randomness import derive_seed
from ser_fl.records import AttackRecord

DOMAIN = "logmel"
WORST_CASE = "worst_case"
LIBRARY = "ser_fl"
"""What a record names as the class that ran where none of ART's did."""
OnAttack = Callable[[str, int, int], None]
"""Told the attack that runs, how many utterances are done, of how many."""
OnRecords = Callable[[list[AttackRecord]], None]
"""Given the records of all attacks that are done, whenever one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The utterances that are attacked, and the classifier."""

    model: nn.Module
    """Maps features of shape (B, F, L) to logits of shape (B, C); in evaluation mode."""
    features_NFL: Tensor
    """Standardised, inside the box."""
    labels_N: Tensor
    ids: tuple[str, ...]
    num_classes: int
    box: Box
    seed: int
    batch_size: int = 64

    def to(self, device: torch.device) -> Challenge:
        """The same challenge on a device; the model itself moves there."""
        return replace(
            self,
            model=self.model.to(device),
            features_NFL=send(self.features_NFL, device),
            labels_N=send(self.labels_N, device),
            box=self.box.to(device),
        )

    def subset(self, size: int | None) -> Challenge:
        """A fixed subset of about ``size`` utterances, spread evenly over the emotions; all where it is None."""
        if size is None or size >= len(self.labels_N):
            return self
        rows = balanced_rows(self.labels_N.tolist(), self.ids, size, self.seed)
        return replace(
            self,
            features_NFL=self.features_NFL[rows],
            labels_N=self.labels_N[rows],
            ids=tuple(self.ids[row] for row in rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a defended model said of clean or adversarial utterances."""

    votes_RN: Tensor
    run_weights: tuple[float, ...]
    """How much each run counts; they sum to 1."""
    labels_N: Tensor
    num_classes: int

    @property
    def confusion(self) -> Confusion:
        """Weighted mean of the runs' confusion matrices."""
        labels = self.labels_N.tolist()
        runs = [confusion_matrix(labels, run.tolist(), self.num_classes) for run in self.votes_RN]
        return np.asarray(np.average(runs, axis=0, weights=self.run_weights), dtype=np.float64)

    @property
    def right_RN(self) -> Tensor:
        """Which utterances were recognised, in each run."""
        return self.votes_RN == self.labels_N


def benchmark_attacks(
    challenge: Challenge,
    attacks: Sequence[Attack],
    defences: Sequence[Defence],
    *,
    subsets: Mapping[str, int] | None = None,
    on_attack: OnAttack = lambda name, done, total: None,
    on_records: OnRecords = lambda records: None,
) -> list[AttackRecord]:
    """Run every attack once, show what it made to every defence, and take the worst case per utterance.

    Args:
        challenge: classifier and utterances.
        attacks: in the order of the records.
        defences: "none" among them if the bare model is wanted.
        subsets: attack names to a number of utterances, for attacks that are too slow for all.
        on_attack: told of progress.
        on_records: given what a late error or a kill would lose; the worst cases, which need all attacks, come last.

    Returns:
        For every defence a record "clean", one an attack and, with two attacks or more, "worst_case" for every epsilon.

    Raises:
        UserError: an attack that needs a box has none, which is told before the first one runs.
    """
    for attack in attacks:
        attack.check_box(challenge.box)
        attack.check_classes(challenge.num_classes)
    cleans = {defence.name: show(challenge, challenge.features_NFL, defence) for defence in defences}
    records = [clean_record(challenge, defence.name, cleans[defence.name]) for defence in defences]
    right: dict[tuple[str, float], Tensor] = {}
    for attack in attacks:
        part = challenge.subset((subsets or {}).get(attack.settings.name))
        started = time.perf_counter()
        adversarial_NFL, forward, backward = craft(part, attack, on_attack)
        seconds = time.perf_counter() - started
        for defence in defences:
            record, survived_RN = judge(part, attack, defence, adversarial_NFL, (forward, backward), seconds)
            records.append(record)
            key = (defence.name, attack.settings.epsilon)
            so_far = right.get(key, cleans[defence.name].right_RN)
            right[key] = so_far & spread(survived_RN, part.ids, challenge.ids)
        on_records(list(records))
    return records + worst_cases(challenge, attacks, defences, cleans, right, subsets or {})


def show(challenge: Challenge, features_NFL: Tensor, defence: Defence) -> Shown:
    """Predictions of the defended model."""
    votes = []
    for start in range(0, len(features_NFL), challenge.batch_size):
        batch = slice(start, start + challenge.batch_size)
        ids = challenge.ids[batch]
        votes.append(defence.predict(challenge.model, features_NFL[batch], ids, seed=challenge.seed).cpu())
    return Shown(
        votes_RN=torch.cat(votes, dim=1),
        run_weights=defence.run_weights,
        labels_N=challenge.labels_N.cpu(),
        num_classes=challenge.num_classes,
    )


def craft(challenge: Challenge, attack: Attack, on_attack: OnAttack) -> tuple[Tensor, int, int]:
    """Adversarial utterances, and how many went forward and backward through the model."""
    made, forward, backward = [], 0, 0
    total = len(challenge.labels_N)
    size = max(total, 1) if attack.entry.whole_set else challenge.batch_size
    for start in range(0, total, size):
        batch = slice(start, start + size)
        on_attack(attack.settings.name, start, total)
        crafted = attack.generate(
            challenge.model,
            challenge.features_NFL[batch],
            challenge.labels_N[batch],
            box=challenge.box,
            num_classes=challenge.num_classes,
            keys_B=challenge.ids[batch],
            seed=challenge.seed,
            batch_size=challenge.batch_size,
        )
        made.append(crafted.adversarial_BFL)
        forward, backward = forward + crafted.forward_passes, backward + crafted.backward_passes
    on_attack(attack.settings.name, total, total)
    return torch.cat(made), forward, backward


def judge(
    challenge: Challenge,
    attack: Attack,
    defence: Defence,
    adversarial_NFL: Tensor,
    passes: tuple[int, int],
    seconds: float,
) -> tuple[AttackRecord, Tensor]:
    """The record of one attack under one defence, and which utterances are still recognised, (R, N)."""
    clean = show(challenge, challenge.features_NFL, defence)
    attacked = show(challenge, adversarial_NFL, defence)
    success_RN = clean.right_RN & ~attacked.right_RN
    l2_N = distance(challenge.features_NFL, adversarial_NFL, "2").cpu()
    linf_N = distance(challenge.features_NFL, adversarial_NFL, "inf")
    settings = attack.settings
    record = AttackRecord(
        attack=settings.name,
        library=attack.library,
        knowledge=attack.knowledge,
        domain=DOMAIN,
        norm=attack.norm,
        epsilon=attack.budget(tuple(adversarial_NFL.shape)),
        snr_db=None,
        steps=settings.steps,
        step_size=settings.step_size,
        restarts=settings.restarts,
        eot_samples=0,
        defence=defence.name,
        clean_uar=scores(clean.confusion).uar,
        robust_uar=scores(attacked.confusion).uar,
        attack_success_rate=success_rate(clean.right_RN, success_RN, defence.run_weights),
        mean_l2=mean_over_successes(l2_N, success_RN, defence.run_weights),
        max_linf=float(linf_N.max()),
        median_snr_db=None,
        num_examples=len(challenge.labels_N),
        forward_passes=passes[0],
        backward_passes=passes[1],
        seconds=seconds,
        seed=challenge.seed,
        device=challenge.features_NFL.device.type,
        confusion=as_tuples(attacked.confusion),
    )
    return record, attacked.right_RN


def clean_record(challenge: Challenge, defence: str, clean: Shown) -> AttackRecord:
    """The score without an attack."""
    return _scored_record(challenge, defence, "clean", None, clean.confusion, clean.confusion, 0.0)


def worst_cases(
    challenge: Challenge,
    attacks: Sequence[Attack],
    defences: Sequence[Defence],
    cleans: Mapping[str, Shown],
    right: Mapping[tuple[str, float], Tensor],
    subsets: Mapping[str, int],
) -> list[AttackRecord]:
    """One record a defence and epsilon: an utterance counts as recognised if it withstood every attack it was shown to.

    An utterance that an attack's subset leaves out was not shown to that attack, so that the true worst case may be
    lower: the record's `library` then names the attack, as in "ser_fl (cw_l2 on 21 of 64 utterances)". Its `knowledge`
    is that of all its attacks, or the different ones in alphabetical order, as in "score+undefended". UAR needs recalls
    only, so that the confusion matrix of the worst case keeps what was right and counts the rest as the next class.
    """
    records = []
    epsilons = sorted({attack.settings.epsilon for attack in attacks})
    for epsilon in epsilons:
        taken = [attack for attack in attacks if attack.settings.epsilon == epsilon]
        if len(taken) < 2:
            continue
        knowledge = "+".join(sorted({attack.knowledge for attack in taken}))
        library = _library_of_worst_case(taken, subsets, len(challenge.ids))
        for defence in defences:
            clean, survived_RN = cleans[defence.name], right[defence.name, epsilon]
            wrong_N = (clean.labels_N + 1) % challenge.num_classes
            worst = Shown(
                votes_RN=torch.where(survived_RN, clean.labels_N, wrong_N),
                run_weights=defence.run_weights,
                labels_N=clean.labels_N,
                num_classes=challenge.num_classes,
            )
            rate = success_rate(clean.right_RN, clean.right_RN & ~survived_RN, defence.run_weights)
            record = _scored_record(
                challenge, defence.name, WORST_CASE, epsilon, clean.confusion, worst.confusion, rate
            )
            records.append(replace(record, knowledge=knowledge, library=library))
    return records


def _library_of_worst_case(attacks: Sequence[Attack], subsets: Mapping[str, int], total: int) -> str:
    """Who took the worst case, and which attacks of it saw only some of the utterances."""
    sizes = {attack.settings.name: subsets.get(attack.settings.name, total) for attack in attacks}
    partial = [f"{name} on {size}" for name, size in sizes.items() if size < total]
    return f"{LIBRARY} ({', '.join(partial)} of {total} utterances)" if partial else LIBRARY


def _scored_record(
    challenge: Challenge,
    defence: str,
    name: str,
    epsilon: float | None,
    clean: Confusion,
    robust: Confusion,
    rate: float,
) -> AttackRecord:
    return AttackRecord(
        attack=name,
        library=LIBRARY,
        knowledge="undefended",
        domain=DOMAIN,
        norm="none",
        epsilon=epsilon,
        snr_db=None,
        steps=None,
        step_size=None,
        restarts=None,
        eot_samples=0,
        defence=defence,
        clean_uar=scores(clean).uar,
        robust_uar=scores(robust).uar,
        attack_success_rate=rate,
        mean_l2=0.0,
        max_linf=0.0,
        median_snr_db=None,
        num_examples=len(challenge.labels_N),
        forward_passes=0,
        backward_passes=0,
        seconds=0.0,
        seed=challenge.seed,
        device=challenge.features_NFL.device.type,
        confusion=as_tuples(robust),
    )


def success_rate(right_RN: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float:
    """Successes among the utterances that were right when clean, over all runs; 0 where none was right."""
    weights_R = torch.tensor(run_weights, dtype=torch.float64)
    right, success = (float(weights_R @ counts.sum(dim=1).double()) for counts in (right_RN, success_RN))
    return success / right if right else 0.0


def mean_over_successes(value_N: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float:
    """Mean over the successes that `success_rate` counts, each by the weight of its run; 0 where there was none."""
    weights_R = torch.tensor(run_weights, dtype=torch.float64)
    weight_N = weights_R @ success_RN.double()
    return float(weight_N @ value_N.double() / weight_N.sum()) if bool(weight_N.any()) else 0.0


def spread(survived_RN: Tensor, ids: Sequence[str], all_ids: Sequence[str]) -> Tensor:
    """Survival of a subset among all utterances; those that were not attacked count as survivors."""
    if len(ids) == len(all_ids):
        return survived_RN
    column = {utterance_id: index for index, utterance_id in enumerate(all_ids)}
    everybody = torch.ones(len(survived_RN), len(all_ids), dtype=torch.bool)
    everybody[:, [column[utterance_id] for utterance_id in ids]] = survived_RN
    return everybody


def balanced_rows(labels_N: Sequence[int], ids: Sequence[str], size: int, seed: int) -> list[int]:
    """Rows of a subset: emotions in turn, each in an order drawn per utterance, so that all attacks share it."""
    queues: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: derive_seed("subset", seed, ids[row])):
        queues.setdefault(labels_N[row], []).append(row)
    chosen: list[int] = []
    while len(chosen) < size:
        for label in sorted(queues):
            if queues[label] and len(chosen) < size:
                chosen.append(queues[label].pop(0))
    return sorted(chosen)


def as_tuples(confusion: Confusion) -> tuple[tuple[float, ...], ...]:
    """A matrix for JSON."""
    return tuple(tuple(row) for row in confusion.tolist())
