"""Transfer attacks between trained runs: which runs go together, and what becomes of the matrix."""

import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from ser_fl.attacks.attack import AttackSettings
from ser_fl.attacks.registry import build
from ser_fl.config.robustness import TransferConfig
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.features import FeatureStore, OnFeatures
from ser_fl.devices import exact_arithmetic, send, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.robustness.trained_run import Chosen, TrainedRun, attack_device, load_run
from ser_fl.robustness.transfer_matrix import TransferModel, transfer_matrix
from ser_fl.runs.folder import RunFolder, write_transfer
from ser_fl.runs.records import TransferMatrix
from ser_fl.runs.redaction import public_path
from ser_fl.runs.zoo import is_zoo_model, writable_run


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
    loaded = [
        load_run(folder, config.speech, part=config.part, root=config.root, client_id=client_id)
        for folder, client_id in places
    ]
    first = loaded[0]
    for run in loaded:
        run.refuse_mixed()
    defences = [run.defences(config.defences) for run in loaded][-1]  # all say whether they take them
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
    """RUN, RUN:CLIENT or a model of the zoo; any may hold colons, and the longest folder there is the run."""
    if is_zoo_model(given):
        return writable_run(given), None
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
            "their emotions": ", ".join(each.classes),
            "normalisation": "speaker" if each.model.by_speaker else "pooled",
        }
        | {f"frontend.{setting}": value for setting, value in vars(each.model.frontend_config).items()}
        for each in (run, first)
    )
    for what, value in ours.items():
        # The front end's name and the box take no part in raw log-mel, nor does where an encoder lies.
        if what not in ("frontend.name", "frontend.clip", "frontend.path") and value != theirs.get(what):
            told = f"{name} and {first_name} differ in {what}: {value} against {theirs.get(what)}"
            if what.startswith("frontend"):
                told += "; an attack on log-mel can be carried over between runs of one front end only"
            raise UserError(told)


def _model_of(name: str, run: TrainedRun, chosen: Chosen, device: torch.device) -> TransferModel:
    rows, store, scale = list(chosen.rows), chosen.store, chosen.scale
    logmel_NFL = store.features_NFL[rows]
    return TransferModel(
        name=name,
        network=run.network.to(device),
        standardisation=run.model.standardisation.to(device),
        logmel_NFL=send(logmel_NFL if scale is None else scale(logmel_NFL), device),
        unit_NF1=None if scale is None else send(scale.deviation, device),
        labels_N=send(store.labels_N[rows], device),
        ids=tuple(store.utterances[row].utterance_id for row in rows),
        num_classes=len(run.classes),
        recordings=tuple(store.utterances[row].recording for row in rows),
    )
