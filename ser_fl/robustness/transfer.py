"""Transfer attacks: made on one model, shown to another, from every given run to every other.

An attack is made on the source with true labels, within epsilon and the box of the source's standardised units. Those
differ from run to run, so that the source's standardisation is undone to raw log-mel, and the target's is applied with
its box. Epsilon is the source's: how large the perturbation is in the target's units is measured and recorded.

What outsiders do who have a model of their own and none of the target's gradients: Papernot et al. 2016, arXiv
1605.07277. Where source and target are one model the figure is the white-box one.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.domains import Crafted
from ser_fl.data.frontend import Standardisation
from ser_fl.defences import Defence
from ser_fl.devices import send
from ser_fl.errors import UserError
from ser_fl.metrics import scores
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.crafting import craft
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.outcomes import judge
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.predictions import show
from ser_fl.robustness.progress import OnAttack, silent
from ser_fl.robustness.test_set import TestSet, balanced_rows, box_of
from ser_fl.runs.records import AttackRecord, TransferRecord

KNOWLEDGE = "transfer"
DB_PER_NATURAL_LOG = 20 / math.log(10)
"""Decibels of a magnitude's factor e."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferModel:
    """A model of the matrix: attacked as a source, and shown to as a target."""

    name: str
    network: nn.Module
    """Maps standardised features of shape (B, F, L) to logits of shape (B, C)."""
    standardisation: Standardisation
    """From raw log-mel to this model's units, with the box that features and attacks stay in."""
    logmel_NFL: Tensor
    """Its test utterances in raw log-mel, natural logarithm of magnitudes."""
    labels_N: Tensor
    ids: tuple[str, ...]
    num_classes: int

    def to(self, device: torch.device) -> TransferModel:
        """The same model on a device; network and standardisation themselves move there."""
        return replace(
            self,
            network=self.network.to(device),
            standardisation=self.standardisation.to(device),
            logmel_NFL=send(self.logmel_NFL, device),
            labels_N=send(self.labels_N, device),
        )

    def test_set(self, ids: Sequence[str], *, seed: int, batch_size: int) -> TestSet:
        """The network and some of its utterances, in its own units and box."""
        rows = rows_of(self.ids, ids)
        with torch.no_grad():
            features_NFL = self.standardisation(self.logmel_NFL[rows])
        return TestSet(
            model=self.network,
            features_NFL=features_NFL,
            labels_N=self.labels_N[rows],
            ids=tuple(ids),
            num_classes=self.num_classes,
            box=box_of(self.standardisation),
            seed=seed,
            batch_size=batch_size,
        )


def carried_over(features_BFL: Tensor, source: Standardisation, target: Standardisation) -> Tensor:
    """Features in the target's units and box, shape (B, F, L), from those in the source's.

    The source's standardisation is undone to raw log-mel, and the target's applied. The two affine maps are taken as
    one, in float64, so that between equal units nothing changes, to the last bit.
    """
    mean_F1, deviation_F1 = target.mean_F1.double(), target.deviation_F1.double()
    scale_F1 = source.deviation_F1.double() / deviation_F1
    shift_F1 = (source.mean_F1.double() - mean_F1) / deviation_F1
    moved_BFL = (features_BFL.double() * scale_F1 + shift_F1).float()
    return torch.clamp(moved_BFL, target.lower_F1, target.upper_F1)


def rows_of(all_ids: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Where utterances lie among all."""
    places = {utterance_id: row for row, utterance_id in enumerate(all_ids)}
    return [places[utterance_id] for utterance_id in ids]


def in_common(source: TransferModel, target: TransferModel, size: int | None = None, seed: int = 0) -> tuple[str, ...]:
    """Ids of the test utterances of both, in alphabetical order; of ``size``, a fixed subset balanced over emotions.

    Raises:
        UserError: there are none, or one of them is another recording or has another emotion in the other model's data.
    """
    common = sorted(set(source.ids) & set(target.ids))
    if not common:
        raise UserError(
            f"{source.name} and {target.name} have no test utterance in common: give runs of one corpus and one split "
            "(split.seed, split.fold)"
        )
    ours, theirs = rows_of(source.ids, common), rows_of(target.ids, common)
    labels_N = source.labels_N[ours]
    # Recordings read by other numbers of threads may differ by rounding.
    same_N = torch.isclose(source.logmel_NFL[ours], target.logmel_NFL[theirs], rtol=0, atol=1e-3).all(2).all(1)
    if differing := (~(same_N & (labels_N == target.labels_N[theirs]))).nonzero().flatten().tolist():
        raise UserError(
            f"{source.name} and {target.name} hold different recordings or emotions as {common[differing[0]]!r}: give "
            "runs of one corpus, read from one channel"
        )
    if size is not None and size < len(common):
        common = [common[row] for row in balanced_rows(labels_N.tolist(), common, size, seed)]
    return tuple(common)


def transfer_matrix(
    models: Sequence[TransferModel],
    attack: Attack,
    defences: Sequence[Defence],
    *,
    max_examples: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    on_attack: OnAttack = silent,
) -> list[TransferRecord]:
    """Attack every model once and show what it made to every model under every defence.

    Args:
        models: sources and targets, all on one device; each pair is measured on the test utterances of both.
        attack: what `ser_fl.attacks.registry.build` gives; its epsilon is in the units of the source.
        defences: of the target. The attacker knows of none.
        max_examples: a balanced subset of the utterances that a pair has in common; None for all.
        batch_size: utterances at a time.
        seed: of all random draws, which are keyed by utterance: the same for every pair.
        on_attack: told of progress, by the name of attack and source.

    Returns:
        For every defence each source with each target, in the order of the models.

    Raises:
        UserError: two models share a name or no test utterance, or the attack needs a box that one lacks: all before
            the first attack.
    """
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"models must have names of their own, got {', '.join(names)}")
    for model in models:
        attack.check(box_of(model.standardisation), model.num_classes)
    shared = {
        (source.name, target.name): in_common(source, target, max_examples, seed)
        for source in models
        for target in models
    }
    records: list[TransferRecord] = []
    for source in models:
        wanted = sorted({utterance_id for target in models for utterance_id in shared[source.name, target.name]})
        with evaluating(source.network):
            crafted = _craft_on(source, source.test_set(wanted, seed=seed, batch_size=batch_size), attack, on_attack)
        for target in models:
            with evaluating(target.network):
                common = shared[source.name, target.name]
                records += _show_to(target, common, crafted, attack, defences)
    by_defence = {defence.name: place for place, defence in enumerate(defences)}
    return sorted(records, key=lambda record: by_defence[record.defence])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _CraftedOn:
    """What an attack made on a source, in its units."""

    source: TransferModel
    test_set: TestSet
    made: Crafted


def _craft_on(source: TransferModel, test_set: TestSet, attack: Attack, on_attack: OnAttack) -> _CraftedOn:
    name, done = f"{attack.name} on {source.name}", 0
    on_attack(name, done, len(test_set))

    def on_batch(size: int, seconds: float) -> None:
        nonlocal done
        done += size
        on_attack(name, done, len(test_set))

    return _CraftedOn(source=source, test_set=test_set, made=craft(test_set, attack, on_batch=on_batch))


def _show_to(
    target: TransferModel, ids: Sequence[str], crafted: _CraftedOn, attack: Attack, defences: Sequence[Defence]
) -> list[TransferRecord]:
    """A record for every defence of the target."""
    source, attacked = crafted.source, crafted.test_set
    rows = rows_of(attacked.ids, ids)
    test_set = target.test_set(ids, seed=attacked.seed, batch_size=attacked.batch_size)
    clean_NFL = carried_over(attacked.features_NFL[rows], source.standardisation, target.standardisation)
    adversarial_NFL = carried_over(crafted.made.adversarial_NFL[rows], source.standardisation, target.standardisation)
    change_NFL = (adversarial_NFL - test_set.features_NFL) * target.standardisation.deviation_F1
    max_db = float(change_NFL.abs().max()) * DB_PER_NATURAL_LOG
    unit = Unit(attack=attack, part=test_set, shown_to=tuple(defences))
    outcome = judge(unit, test_set, replace(crafted.made, adversarial_NFL=adversarial_NFL))
    records = []
    for defence, record in zip(defences, Bench(test_set, defences).records_of(outcome), strict=True):
        known = attack.knowledge if source.name == target.name else KNOWLEDGE
        records.append(
            TransferRecord(
                **_fields(replace(record, knowledge=known)),
                source=source.name,
                target=target.name,
                carried_uar=scores(show(test_set, clean_NFL, defence).confusion).uar,
                max_db=max_db,
            )
        )
    return records


def _fields(record: AttackRecord) -> dict[str, Any]:
    return {entry.name: getattr(record, entry.name) for entry in fields(record)}
