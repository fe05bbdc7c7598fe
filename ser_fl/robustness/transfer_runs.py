"""Transfer attacks between run folders: which runs, whether they can be compared, and ``transfer.json``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ser_fl.attacks.registry import build
from ser_fl.attacks.settings import AttackSettings
from ser_fl.config.robustness import TransferConfig
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.features import FeatureStore, OnFeatures
from ser_fl.data.splits import split_corpus
from ser_fl.defences import build_defence
from ser_fl.devices import CPU, devices_of, exact_arithmetic
from ser_fl.errors import UserError
from ser_fl.robustness.progress import OnAttack, silent
from ser_fl.robustness.test_set import TrainedRun, load_run
from ser_fl.robustness.transfer import TransferModel, transfer_matrix
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder, write_transfer
from ser_fl.runs.records import TransferMatrix
from ser_fl.runs.redaction import public_path


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
    attack = build(
        AttackSettings(name=config.attack, epsilon=config.epsilon, steps=config.steps, restarts=config.restarts)
    )
    defences = [build_defence(name) for name in config.defences]
    (device, *_) = devices_of(config.accelerator, "accelerator")
    found = [load_run(folder, root=config.root, client_id=client_id) for folder, client_id in places]
    runs = dict(zip(_names(places), found, strict=True))
    first = next(iter(runs))
    for name, run in runs.items():
        _refuse_unlike(first, runs[first], name, run)
    out = expand_home(config.out) if config.out else runs[first].folder
    if out.exists() and not out.is_dir():
        raise UserError(f"out must be a folder, got the file {out}")
    file = RunFolder(out).transfer
    with threads_limited_to(runs[first].config.executor.threads), exact_arithmetic():
        # Attacks measure distances in float64, which Apple's GPUs lack.
        models = [model.to(CPU if device.type == "mps" else device) for model in _models(runs, on_features)]
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
    matrix = TransferMatrix(
        models={name: _public(given) for name, given in zip(runs, config.runs, strict=True)},
        synthetic=any(run.model.synthetic for run in found),
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


def _refuse_unlike(first_name: str, first: TrainedRun, name: str, run: TrainedRun) -> None:
    """Refuse two runs between which nothing can be carried over.

    Raises:
        UserError: they have another corpus, other emotions or another front end.
    """
    pairs = {
        "corpus": (run.config.data.name, first.config.data.name),
        "emotions": (", ".join(run.model.classes), ", ".join(first.model.classes)),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(f"{name} and {first_name} differ in their {what}: {one} against {other}")
    theirs = vars(run.model.frontend_config)
    for setting, value in vars(first.model.frontend_config).items():
        # The front end's name and the box take no part in raw log-mel.
        if setting not in ("name", "clip") and theirs[setting] != value:
            raise UserError(
                f"{name} and {first_name} differ in frontend.{setting}: {theirs[setting]} against {value}; an "
                "attack on log-mel can be carried over between runs of one front end only"
            )


def _models(runs: dict[str, TrainedRun], on_features: OnFeatures | None) -> list[TransferModel]:
    """The runs with their test utterances; features that runs share are opened once."""
    models: list[TransferModel] = []
    before: tuple[TrainedRun, FeatureStore] | None = None
    for name, run in runs.items():
        data, frontend = run.config.data, run.config.frontend
        if before is None or (data, frontend) != (before[0].config.data, before[0].config.frontend):
            before = run, run.store(on_features)
        store = before[1]
        run.check_corpus(store)
        rows = torch.tensor(split_corpus(store.utterances, run.config.split).test)
        models.append(
            TransferModel(
                name=name,
                network=run.model.network,
                standardisation=run.model.standardisation,
                logmel_NFL=store.features_NFL[rows],
                labels_N=store.labels_N[rows],
                ids=tuple(store.utterances[row].utterance_id for row in rows.tolist()),
                num_classes=len(run.model.classes),
            )
        )
    return models
