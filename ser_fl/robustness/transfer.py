"""Transfer attacks: made on one model, shown to another, from every given run to every other.

An attack is made on the source with true labels, within epsilon and the box of the source's standardised units. Units
differ from run to run, so that the source's standardisation is undone to raw log-mel, and the target's is applied with
its box. How large the perturbation is in the target's units is measured and recorded. So do outsiders who have a model
of their own and none of the target's gradients: Papernot et al. 2016, arXiv 1605.07277. Where source and target are one
model the figure is the white-box one.

Legend: N utterances, F mel bins, L frames.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, AttackSettings
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.registry import build
from ser_fl.attacks.threat_model import Box
from ser_fl.config.robustness import TransferConfig
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.features import FeatureStore, OnFeatures
from ser_fl.data.frontend import Standardisation
from ser_fl.defences import Defence, build_defence
from ser_fl.devices import exact_arithmetic, send, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.crafting import craft, judge
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.test_set import Chosen, TestSet, TrainedRun, attack_device, balanced_rows, load_run, rows_of
from ser_fl.runs.folder import RunFolder, write_transfer
from ser_fl.runs.records import TransferMatrix, TransferRecord
from ser_fl.runs.redaction import public_path

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


def transfer_runs(
    config: TransferConfig, *, on_attack: OnAttack = silent, on_features: OnFeatures | None = None
) -> tuple[Path, TransferMatrix]:
    """The matrix of some runs, and the file: ``transfer.json`` in ``out`` or the first run's folder; one that is there
    is put aside as ``transfer.before.json``. A client's own model is measured on all test utterances of its run, or on
    other speech (`BenchmarkConfig.speech`).

    Raises:
        UserError: no such run, client or model, one given twice, runs of different corpora, emotions or front ends, or
            without a test utterance in common, an unknown attack or defence, or a corpus that moved.
    """
    places = [_place(text) for text in config.runs]
    base = Path(os.path.commonpath([folder.resolve().parent for folder, _ in places]))
    public: dict[str, str] = {}
    for text, (folder, client_id) in zip(config.runs, places, strict=True):
        # Short names that differ: each folder from where their paths part, and the client.
        client = f":{client_id}" if client_id else ""
        name = folder.resolve().relative_to(base).as_posix() + client
        if name in public:
            raise UserError(f"{text} is given twice: each run is attacked and shown to once")
        public[name] = public_path(folder) + client
    attack = build(
        AttackSettings(name=config.attack, epsilon=config.epsilon, steps=config.steps, restarts=config.restarts)
    )
    defences = [build_defence(name) for name in config.defences]
    loaded = [
        load_run(folder, config.speech, part=config.part, root=config.root, client_id=client_id)
        for folder, client_id in places
    ]
    first = loaded[0]
    for name, run in zip(public, loaded, strict=True):
        _refuse_unlike(next(iter(public)), first, name, run)
    out = expand_home(config.out) if config.out else first.run.root
    if out.exists() and not out.is_dir():
        raise UserError(f"out must be a folder, got the file {out}")
    device = attack_device(config.accelerator, first.config)
    with threads_limited_to(first.config.executor.threads), exact_arithmetic():
        models: list[TransferModel] = []
        chosen: list[Chosen] = []
        opened: tuple[object, FeatureStore] | None = None
        for name, run in zip(public, loaded, strict=True):
            corpus = run.config.data, run.config.frontend
            if opened is None or corpus != opened[0]:
                opened = corpus, run.store(on_features)
            chosen.append(run.choose(opened[1], allow_seen=config.allow_seen))
            models.append(_model_of(name, run, chosen[-1], device))
        started = time.perf_counter()
        records = transfer_matrix(
            models,
            attack,
            defences,
            max_examples=config.max_examples,
            batch_size=config.batch_size,
            seed=config.seed,
            on_attack=on_attack,
        )
    lines = (f"{name}: {line}" for name, one in zip(public, chosen, strict=True) for line in one.record.words)
    matrix = TransferMatrix(
        models=public,
        synthetic=any(run.model.synthetic for run in loaded),
        seconds=time.perf_counter() - started,
        records=tuple(records),
        speech=replace(chosen[0].record, words=tuple(lines)),
    )
    file = RunFolder(out).transfer
    write_transfer(file, matrix)
    return file, matrix


def _place(given: str) -> tuple[Path, str | None]:
    """RUN or RUN:CLIENT; either may hold colons, and the longest folder that is there is the run."""
    parts = given.split(":")
    for end in range(len(parts), 0, -1):
        folder = Path(":".join(parts[:end]))
        if folder.is_dir():
            return folder, ":".join(parts[end:]) or None
    raise UserError(f"no such run folder: {given}")


def _refuse_unlike(first_name: str, first: TrainedRun, name: str, run: TrainedRun) -> None:
    ours, theirs = (
        {
            "their corpus": each.config.data.name,
            "their emotions": ", ".join(each.model.classes),
            "normalisation": "speaker" if each.model.by_speaker else "pooled",
        }
        | {f"frontend.{setting}": value for setting, value in vars(each.model.frontend_config).items()}
        for each in (run, first)
    )
    for what, value in ours.items():
        # The front end's name and the box take no part in raw log-mel.
        if what not in ("frontend.name", "frontend.clip") and value != theirs[what]:
            told = f"{name} and {first_name} differ in {what}: {value} against {theirs[what]}"
            if what.startswith("frontend"):
                told += "; an attack on log-mel can be carried over between runs of one front end only"
            raise UserError(told)


def _model_of(name: str, run: TrainedRun, chosen: Chosen, device: torch.device) -> TransferModel:
    rows, store, scale = list(chosen.rows), chosen.store, chosen.scale
    logmel_NFL = store.features_NFL[rows]
    return TransferModel(
        name=name,
        network=run.model.network.to(device),
        standardisation=run.model.standardisation.to(device),
        logmel_NFL=send(logmel_NFL if scale is None else scale(logmel_NFL), device),
        unit_NF1=None if scale is None else send(scale.deviation, device),
        labels_N=send(store.labels_N[rows], device),
        ids=tuple(store.utterances[row].utterance_id for row in rows),
        num_classes=len(run.model.classes),
        recordings=tuple(store.utterances[row].recording for row in rows),
    )
