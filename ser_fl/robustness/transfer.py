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
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack
from ser_fl.attacks.registry import build
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose
from ser_fl.config.robustness import TransferConfig
from ser_fl.config.schema import Config
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features
from ser_fl.data.frontend import Standardisation
from ser_fl.data.prepared import open_configured_corpus
from ser_fl.data.splits import split_corpus
from ser_fl.defences import Defence, build_defence
from ser_fl.devices import CPU, devices_of, exact_arithmetic, send
from ser_fl.errors import UserError
from ser_fl.metrics import scores
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.robustness.attack_metrics import Bench, judge
from ser_fl.robustness.crafting import craft
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.plan import Unit
from ser_fl.robustness.predictions import show
from ser_fl.robustness.progress import OnAttack, silent
from ser_fl.robustness.result_cache import Made
from ser_fl.robustness.test_set import TestSet, balanced_rows
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder, write_transfer
from ser_fl.runs.records import AttackRecord, TransferMatrix, TransferRecord
from ser_fl.runs.redaction import public_path

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

    @property
    def box(self) -> Box:
        return Box.of(self.standardisation.lower_F1, self.standardisation.upper_F1)

    def to(self, device: torch.device) -> TransferModel:
        """The same model on a device; network and standardisation themselves move there."""
        return replace(
            self,
            network=self.network.to(device),
            standardisation=self.standardisation.to(device),
            logmel_NFL=send(self.logmel_NFL, device),
            labels_N=send(self.labels_N, device),
        )

    def test_set(self, ids: Sequence[str], *, num_classes: int, seed: int, batch_size: int) -> TestSet:
        """The network and some of its utterances, in its own units and box."""
        rows = rows_of(self.ids, ids)
        with torch.no_grad():
            features_NFL = self.standardisation(self.logmel_NFL[rows])
        return TestSet(
            model=self.network,
            features_NFL=features_NFL,
            labels_N=self.labels_N[rows],
            ids=tuple(ids),
            num_classes=num_classes,
            box=self.box,
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
    num_classes: int,
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
        num_classes: C, of all models.
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
        attack.check_box(model.box)
    shared = {
        (source.name, target.name): in_common(source, target, max_examples, seed)
        for source in models
        for target in models
    }
    records: list[TransferRecord] = []
    for source in models:
        wanted = sorted({utterance_id for target in models for utterance_id in shared[source.name, target.name]})
        with evaluating(source.network):
            crafted = _craft_on(source, wanted, attack, num_classes, seed, batch_size, on_attack)
        for target in models:
            with evaluating(target.network):
                common = shared[source.name, target.name]
                records += _show_to(target, common, crafted, attack, defences)
    by_defence = {defence.name: place for place, defence in enumerate(defences)}
    return sorted(records, key=lambda record: by_defence[record.defence])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Crafted:
    """What an attack made on a source, in its units, and what that cost."""

    source: TransferModel
    test_set: TestSet
    made: Made


def _craft_on(
    source: TransferModel,
    ids: Sequence[str],
    attack: Attack,
    num_classes: int,
    seed: int,
    batch_size: int,
    on_attack: OnAttack,
) -> _Crafted:
    test_set = source.test_set(ids, num_classes=num_classes, seed=seed, batch_size=batch_size)
    name, done = f"{attack.settings.name} on {source.name}", 0
    on_attack(name, done, len(ids))

    def on_batch(size: int, seconds: float) -> None:
        nonlocal done
        done += size
        on_attack(name, done, len(ids))

    return _Crafted(source=source, test_set=test_set, made=craft(test_set, attack, on_batch=on_batch))


def _show_to(
    target: TransferModel, ids: Sequence[str], crafted: _Crafted, attack: Attack, defences: Sequence[Defence]
) -> list[TransferRecord]:
    """A record for every defence of the target."""
    source, attacked = crafted.source, crafted.test_set
    rows = rows_of(attacked.ids, ids)
    test_set = target.test_set(
        ids, num_classes=attacked.num_classes, seed=attacked.seed, batch_size=attacked.batch_size
    )
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """A run of the matrix, or a client's own model of one."""

    given: str
    """As on the command line."""
    name: str
    folder: Path
    config: Config
    bundle: EmotionModel


def transfer_runs(
    config: TransferConfig,
    *,
    on_attack: OnAttack = silent,
    on_features: OnFeatures | None = None,
) -> tuple[Path, TransferMatrix]:
    """The matrix of some runs, written as ``transfer.json`` into ``out`` or the first run's folder, at the end.

    A matrix that is there already is put aside as ``transfer.before.json``. A client's own model is measured on all
    test utterances of its run, of whichever speaker.

    Returns:
        The file, and what is in it.

    Raises:
        UserError: no such run, client or model, one given twice, runs of different corpora, emotions or front ends, or
            without a test utterance in common, an unknown attack or defence, or a corpus that moved.
    """
    places = _places(config.runs)
    for folder, _ in places:
        RunFolder(folder).refuse_links_out()
    attack = build(
        AttackSettings(name=config.attack, epsilon=config.epsilon, steps=config.steps, restarts=config.restarts)
    )
    defences = [build_defence(name) for name in config.defences]
    (device, *_) = devices_of(config.accelerator, "accelerator")
    root = [f"data.root={config.root}"] if config.root else []
    runs = [
        _Run(
            given=given,
            name=name,
            folder=folder,
            config=compose(root, config_file=RunFolder(folder).config),
            bundle=load_model(folder, client_id=client_id),
        )
        for given, name, (folder, client_id) in zip(config.runs, _names(places), places, strict=True)
    ]
    for run in runs[1:]:
        _refuse_unlike(runs[0], run)
    out = expand_home(config.out) if config.out else runs[0].folder
    if out.exists() and not out.is_dir():
        raise UserError(f"out must be a folder, got the file {out}")
    file = RunFolder(out).transfer
    with threads_limited_to(runs[0].config.executor.threads), exact_arithmetic():
        # Attacks measure distances in float64, which Apple's GPUs lack.
        models = [model.to(CPU if device.type == "mps" else device) for model in _models(runs, on_features)]
        started = time.perf_counter()
        records = transfer_matrix(
            models,
            attack,
            defences,
            num_classes=len(runs[0].bundle.classes),
            max_examples=config.max_examples,
            batch_size=config.batch_size,
            seed=config.seed,
            on_attack=on_attack,
        )
    matrix = TransferMatrix(
        models={run.name: _public(run.given) for run in runs},
        synthetic=any(run.bundle.synthetic for run in runs),
        seconds=time.perf_counter() - started,
        records=tuple(records),
    )
    write_transfer(file, matrix)
    return file, matrix


def _public(given: str) -> str:
    """RUN or RUN:CLIENT without the folders of this machine."""
    folder, client_id = _place(given)
    return public_path(folder) + (f":{client_id}" if client_id else "")


def _places(given: Sequence[str]) -> list[tuple[Path, str | None]]:
    """Run folders, each with the client whose own model is meant.

    Raises:
        UserError: there is no such folder, or one of them is given twice.
    """
    places = [_place(text) for text in given]
    seen: set[tuple[Path, str | None]] = set()
    for text, (folder, client_id) in zip(given, places, strict=True):
        place = (folder.resolve(), client_id)
        if place in seen:
            raise UserError(f"{text} is given twice: each run is attacked and shown to once")
        seen.add(place)
    return places


def _place(given: str) -> tuple[Path, str | None]:
    """RUN or RUN:CLIENT; either may hold colons, and the longest folder that is there is the run."""
    parts = given.split(":")
    for end in range(len(parts), 0, -1):
        folder = Path(":".join(parts[:end]))
        if folder.is_dir():
            return folder, ":".join(parts[end:]) or None
    raise UserError(f"no such run folder: {given}")


def _names(places: Sequence[tuple[Path, str | None]]) -> list[str]:
    """Short names that differ: each folder from where their paths part, and the client."""
    folders = [folder.resolve() for folder, _ in places]
    base = Path(os.path.commonpath([folder.parent for folder in folders]))
    relative = [folder.relative_to(base).as_posix() for folder in folders]
    return [f"{name}:{client}" if client else name for name, (_, client) in zip(relative, places, strict=True)]


def _refuse_unlike(first: _Run, other: _Run) -> None:
    """Refuse two runs between which nothing can be carried over.

    Raises:
        UserError: they have another corpus, other emotions or another front end.
    """
    pairs: list[tuple[str, Callable[[_Run], object]]] = [
        ("corpus", lambda run: run.config.data.name),
        ("emotions", lambda run: ", ".join(run.bundle.classes)),
    ]
    for what, of in pairs:
        if of(first) != of(other):
            raise UserError(f"{other.name} and {first.name} differ in their {what}: {of(other)} against {of(first)}")
    theirs = vars(other.bundle.frontend_config)
    for setting, value in vars(first.bundle.frontend_config).items():
        # The front end's name and the box take no part in raw log-mel.
        if setting not in ("name", "clip") and theirs[setting] != value:
            raise UserError(
                f"{other.name} and {first.name} differ in frontend.{setting}: {theirs[setting]} against {value}; an "
                "attack on log-mel can be carried over between runs of one front end only"
            )


def _models(runs: Sequence[_Run], on_features: OnFeatures | None) -> list[TransferModel]:
    """The runs with their test utterances; features that runs share are opened once."""
    models: list[TransferModel] = []
    store: FeatureStore | None = None
    opened: Config | None = None
    for run in runs:
        data = run.config.data
        if store is None or opened is None or (data, run.config.frontend) != (opened.data, opened.frontend):
            cache_dir = expand_home(data.cache_dir) if data.cache_dir else None
            corpus = open_configured_corpus(run.config)
            store = compute_features(corpus, run.config.frontend, cache_dir=cache_dir, progress=on_features)
            opened = run.config
        if store.classes != run.bundle.classes:
            raise UserError(
                f"the corpus at {data.root} has the emotions {', '.join(store.classes)}, the model of {run.name} knows "
                f"{', '.join(run.bundle.classes)}: set root=DIR to the corpus it was trained on"
            )
        rows = torch.tensor(split_corpus(store.utterances, run.config.split).test)
        models.append(
            TransferModel(
                name=run.name,
                network=run.bundle.network,
                standardisation=run.bundle.standardisation,
                logmel_NFL=store.features_NFL[rows],
                labels_N=store.labels_N[rows],
                ids=tuple(store.utterances[row].utterance_id for row in rows.tolist()),
            )
        )
    return models
