"""Transfer attacks: made on one model, shown to another, from every given run to every other.

An attack is made on the source with true labels, within epsilon and the box of the source's standardised units. Units
differ from run to run, so that the source's standardisation is undone to raw log-mel, and the target's is applied with
its box. How large the perturbation is in the target's units is measured and recorded. So do outsiders who have a model
of their own and none of the target's gradients: Papernot et al. 2016, arXiv 1605.07277. Where source and target are one
model the figure is the white-box one.

Legend: N utterances, F mel bins, L frames.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.threat_model import Box
from ser_fl.data.frontend import Standardisation
from ser_fl.defences import Defence
from ser_fl.errors import UserError
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.crafting import craft, judge
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.test_set import TestSet, balanced_rows, rows_of
from ser_fl.runs.records import TransferRecord

KNOWLEDGE = "transfer"
DB_PER_NATURAL_LOG = 20 / math.log(10)
"""Decibels of a magnitude's factor e."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferModel:
    name: str
    network: nn.Module
    """Maps standardised features of shape (B, F, L) to logits of shape (B, C)."""
    standardisation: Standardisation
    """From raw log-mel to this model's units, with the box that features and attacks stay in."""
    logmel_NFL: Tensor
    """Its test utterances in raw log-mel, natural logarithm of magnitudes; scaled by speaker where models do so."""
    labels_N: Tensor
    ids: tuple[str, ...]
    num_classes: int
    recordings: tuple[str, ...] = ()
    """What each utterance is a part of; empty where each is its own."""
    unit_NF1: Tensor | None = None
    """What a unit of `logmel_NFL` is in raw log-mel, where it is scaled."""

    def test_set(self, ids: Sequence[str], *, seed: int, batch_size: int) -> TestSet:
        rows = rows_of(self.ids, ids)
        with torch.no_grad():
            features_NFL = self.standardisation(self.logmel_NFL[rows])
        return TestSet(
            model=self.network,
            features_NFL=features_NFL,
            labels_N=self.labels_N[rows],
            ids=tuple(ids),
            recordings=tuple(self.recordings[row] for row in rows) if self.recordings else (),
            num_classes=self.num_classes,
            box=Box.of(self.standardisation.lower_F1, self.standardisation.upper_F1),
            seed=seed,
            batch_size=batch_size,
        )


def carried_over(features_BFL: Tensor, source: Standardisation, target: Standardisation) -> Tensor:
    """Features in the target's units and box, shape (B, F, L), from those in the source's. The two affine maps, by way
    of raw log-mel, are taken as one, in float64, so that between equal units nothing changes, to the last bit.
    """
    mean_F1, deviation_F1 = target.mean_F1.double(), target.deviation_F1.double()
    scale_F1 = source.deviation_F1.double() / deviation_F1
    shift_F1 = (source.mean_F1.double() - mean_F1) / deviation_F1
    moved_BFL = (features_BFL.double() * scale_F1 + shift_F1).float()
    return torch.clamp(moved_BFL, target.lower_F1, target.upper_F1)


def in_common(source: TransferModel, target: TransferModel, size: int | None = None, seed: int = 0) -> tuple[str, ...]:
    """Ids of the test utterances of both, in alphabetical order; of ``size``, a fixed subset balanced over emotions.
    None at all, or one that is another recording or has another emotion in the other's data, is a `UserError`.
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
    if len({model.name for model in models}) < len(models):
        raise UserError(f"models must have names of their own, got {', '.join(model.name for model in models)}")
    for model in models:
        attack.check(Box.of(model.standardisation.lower_F1, model.standardisation.upper_F1), model.num_classes)
    pairs = product(models, repeat=2)
    shared = {(one.name, other.name): in_common(one, other, max_examples, seed) for one, other in pairs}
    records = []
    for source in models:
        wanted = sorted({utterance_id for target in models for utterance_id in shared[source.name, target.name]})
        attacked = source.test_set(wanted, seed=seed, batch_size=batch_size)
        with evaluating(source.network):
            made = _craft_on(source, attacked, attack, on_attack)
        for target in models:
            test_set = target.test_set(shared[source.name, target.name], seed=seed, batch_size=batch_size)
            rows = rows_of(attacked.ids, test_set.ids)
            carried, found = (
                replace(
                    made, adversarial_NFL=carried_over(moved_NFL[rows], source.standardisation, target.standardisation)
                )
                for moved_NFL in (attacked.features_NFL, made.adversarial_NFL)
            )
            change_NFL = (found.adversarial_NFL - test_set.features_NFL) * target.standardisation.deviation_F1
            if target.unit_NF1 is not None:
                change_NFL = change_NFL * target.unit_NF1[rows_of(target.ids, test_set.ids)]
            unit = Unit(attack=attack, part=test_set, shown_to=tuple(defences))
            with evaluating(target.network):
                bench = Bench(test_set, defences)
                unmoved, moved = (bench.records_of(judge(unit, shown)) for shown in (carried, found))
            records += [
                TransferRecord(
                    **asdict(record) | {"knowledge": KNOWLEDGE if source is not target else record.knowledge},
                    source=source.name,
                    target=target.name,
                    carried_uar=before.robust_uar,
                    max_db=float(change_NFL.abs().max()) * DB_PER_NATURAL_LOG,
                )
                for before, record in zip(unmoved, moved, strict=True)
            ]
    names = [defence.name for defence in defences]
    return sorted(records, key=lambda record: names.index(record.defence))


def _craft_on(source: TransferModel, test_set: TestSet, attack: Attack, on_attack: OnAttack) -> Crafted:
    name, done = f"{attack.name} on {source.name}", 0

    def on_batch(size: int, seconds: float) -> None:
        nonlocal done
        done += size
        on_attack(name, done, len(test_set))

    on_batch(0, 0.0)
    return craft(test_set, attack, on_batch=on_batch)
