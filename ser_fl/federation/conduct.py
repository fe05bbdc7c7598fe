"""How a run is conducted: settings on record, the rounds, the test of the selected model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ser_fl.config.schema import CONFIG_SCHEMA, Config, dump
from ser_fl.data.client_manifest import ClientManifest
from ser_fl.data.splits import PARTS
from ser_fl.devices import devices_of
from ser_fl.errors import RoundFailed
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.checkpoint import Checkpoint, Progress
from ser_fl.federation.executors.executor import Executor
from ser_fl.federation.experiment import OwnObjects, first_progress, qualified_name
from ser_fl.federation.profile import RunProfile
from ser_fl.federation.rounds import Federation, Hooks
from ser_fl.federation.scoring import Scored, Scorer
from ser_fl.files import write_bytes, write_json
from ser_fl.metrics import scores
from ser_fl.models.emotion_model import EmotionModel, save_local_models, save_model
from ser_fl.models.registry import build_network
from ser_fl.runs.environment import describe_environment
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.path_aliases import remember
from ser_fl.runs.records import SUMMARY_SCHEMA
from ser_fl.runs.redaction import is_private
from ser_fl.stopwatch import UNWATCHED
from ser_fl.tracking import open_tracker


@dataclass(frozen=True, slots=True)
class Sites:
    """Where the data are."""

    executor: Executor
    """Trains clients."""
    scorer: Scorer
    """Scores models."""


def conduct(
    config: Config,
    run: RunFolder,
    client_manifest: ClientManifest,
    checkpoint: Checkpoint | None,
    sites: Sites,
    own: OwnObjects,
    hooks: Hooks,
) -> None:
    """The rounds that are left, and the test of the selected model, wherever the clients are.

    Args:
        config: with its precision settled.
        run: the run folder, which nobody else writes to.
        client_manifest: what the server knows of the data.
        checkpoint: to go on from; None begins.
        sites: train clients and score models.
        own: objects of the caller's own.
        hooks: watch the rounds.
    """
    progress = first_progress(config, client_manifest, own)
    if checkpoint is not None:
        progress.go_on_from(checkpoint, client_manifest.client_ids)
    settings, profile = dump(config), RunProfile(config) if config.profile else None
    tracker = open_tracker(settings, run, progress.tracking)
    try:
        if progress.round == 0:
            write_settings(run, config, own)
        for path in (run.rounds, run.clients):
            run.cut_back(path, progress.lengths.get(path.name, 0))
        federation = Federation(
            config=config,
            client_ids=client_manifest.client_ids,
            executor=sites.executor,
            scorer=sites.scorer,
            run=run,
            tracker=tracker,
            profile=profile,
            watch=profile.watch if profile else UNWATCHED,
            hooks=hooks,
        )
        try:
            stopped = federation.run_rounds(progress)
        finally:
            if profile is not None and (record := profile.record()) is not None:
                run.write_profile(record)
                hooks.on_profile(record)
        tested = test(config, client_manifest, sites.scorer, progress, run, own)
        content = summary(config, client_manifest, tested, progress, stopped)
        write_json(run.summary, content)
        tracker.log_summary(content)
    finally:
        tracker.finish()


def write_settings(run: RunFolder, config: Config, own: OwnObjects) -> None:
    """What a run is and what it is computed with: ``environment.json`` and ``config.yaml``."""
    devices = [str(device) for device in devices_of(config.executor.accelerator)]
    environment = describe_environment(seed=config.seed, threads=config.executor.threads, devices=devices)
    callbacks = [qualified_name(callback) for callback in own.callbacks]
    write_json(run.environment, environment | {"objects": config.objects, "callbacks": callbacks})
    content = {"schema": CONFIG_SCHEMA, **recorded(dump(config))}
    write_bytes(run.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as ``config.yaml`` holds them: without absolute folders (`ser_fl.runs.path_aliases` remembers them).

    The run folder itself is left out: a repetition is a run of its own.
    """
    data = {key: remember(settings["data"][key]) for key in ("root", "cache_dir") if settings["data"][key]}
    run_dir = settings["run_dir"] if settings["run_dir"] and not is_private(settings["run_dir"]) else None
    return {**settings, "run_dir": run_dir, "data": {**settings["data"], **data}}


def test(
    config: Config,
    client_manifest: ClientManifest,
    scorer: Scorer,
    progress: Progress,
    run: RunFolder,
    own: OwnObjects,
) -> Scored:
    """Write the selected round's model, and score it on the test part.

    With `federation=local_only` the test figures are over all clients' models, and the model that is saved is the
    first client's, beside everybody's own.

    Raises:
        RoundFailed: a holder of test utterances gave no figures.
    """
    network = build_network(config.model, len(client_manifest.classes), seed=config.seed, own=own.network)
    network.load_state_dict(progress.best.get(GLOBAL) or next(iter(progress.best.values())))
    bundle = EmotionModel(
        network,
        client_manifest.standardisation,
        classes=client_manifest.classes,
        model=config.model,
        frontend=config.frontend,
        synthetic=config.data.name == "builtin",
        own_network=config.objects.get("network"),
    )
    save_model(run.root, bundle)
    if GLOBAL not in progress.best:
        save_local_models(run.root, progress.best)
    tested = scorer.score(progress.best, "test")
    if tested.failures:
        reasons = "\n".join(f"{failure.client_id}: {failure.error}" for failure in tested.failures)
        raise RoundFailed(
            f"all rounds are done, but {len(tested.failures)} of {len(client_manifest.sizes['test'])} holders of test "
            f"utterances gave no figures; the same command with resume=true asks again:\n{reasons}"
        )
    return tested


def summary(
    config: Config, client_manifest: ClientManifest, tested: Scored, progress: Progress, stopped: str
) -> dict[str, Any]:
    """Content of ``summary.json``."""
    test = scores(tested.total)
    return {
        "schema": SUMMARY_SCHEMA,
        "experiment": config.experiment,
        "synthetic": config.data.name == "builtin",
        "classes": list(client_manifest.classes),
        "split": config.split.name,
        "split_speakers": {part: client_manifest.speakers(part) for part in PARTS},
        "split_sizes": {part: client_manifest.num_utterances(part) for part in PARTS},
        "skipped": [{"id": file.utterance_id, "reason": file.reason} for file in client_manifest.skipped],
        "num_clients": len(client_manifest.client_ids),
        "num_rounds": progress.round,
        "selected_round": progress.best_round,
        "selection_score": progress.best_score,
        "stopped": stopped,
        "test": {
            "uar": test.uar,
            "accuracy": test.accuracy,
            "macro_f1": test.macro_f1,
            "confusion": tested.total.tolist(),
            "per_class_recall": list(test.per_class_recall),
            "per_speaker_uar": {speaker: scores(confusion).uar for speaker, confusion in tested.by_holder.items()},
        },
    }
