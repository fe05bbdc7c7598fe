"""One experiment from configuration to run folder: assemble, run the rounds, test the selected model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import yaml

from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import CONFIG_SCHEMA, Config, dump
from ser_fl.data.client_manifest import ClientManifest
from ser_fl.data.features import OnFeatures
from ser_fl.data.frontend import Standardisation
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.data.splits import PARTS, holders
from ser_fl.devices import devices_of, exact_arithmetic
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.checkpoint import Progress, check_fits
from ser_fl.federation.client import Clients
from ser_fl.federation.executors import Executor, open_executor
from ser_fl.federation.profile import OnProfile, RunProfile, open_watch
from ser_fl.federation.rounds import Federation, OnRound
from ser_fl.federation.run_setup import open_run
from ser_fl.federation.schedule import cohort_size
from ser_fl.federation.scoring import LocalScorer, Scored, Scorer
from ser_fl.federation.server import GLOBAL, Server
from ser_fl.files import write_bytes, write_json
from ser_fl.metrics import scores
from ser_fl.models.emotion_model import EmotionModel, save_local_models, save_model
from ser_fl.models.registry import build_network
from ser_fl.robustness.evaluator import Evaluator
from ser_fl.runs.environment import describe_environment, threads_limited_to
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.path_aliases import remember
from ser_fl.runs.preemption import Preemption
from ser_fl.runs.records import SUMMARY_SCHEMA
from ser_fl.runs.redaction import is_private
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.tracking import Tracker, open_tracker
from ser_fl.training.objectives import Objective
from ser_fl.training.precision import resolve_precision, with_precision
from ser_fl.training.trainer import has_installed_callbacks


def train(
    config: Config,
    *,
    callbacks: Sequence[pl.Callback] = (),
    on_round: OnRound = lambda record: None,
    on_features: OnFeatures | None = None,
    on_profile: OnProfile = lambda profile: None,
    preemption: Preemption | None = None,
) -> RunFolder:
    """Run an experiment, or go on with one that was killed, and return its run folder.

    Args:
        config: what `ser_fl.compose` gives.
        callbacks: Lightning callbacks that see every batch of every client (`trainer.datamodule` says whose). With
            `executor=processes` each worker has a copy of its own, pickled before the first round: what one gathers
            stays in its process.
        on_round: told of every committed round.
        on_features: told how far the features are.
        on_profile: told where the time of the rounds went, with `profile=true`; of a run that is cut short too.
        preemption: whose signals a round in flight is sheltered from; None where the caller answers none.

    Raises:
        UserError: the corpus, the settings or the run folder do not fit, or a callback cannot be sent to a worker.
        RoundFailed: too few clients came back in a round.
        Stopped: a signal that `preemption` listens to.
    """
    if config.executor.engine == "loop" and (callbacks or has_installed_callbacks()):
        raise UserError("executor.engine=loop runs no callbacks, got some: use executor.engine=auto")
    if config.executor.name == "flower":
        if callbacks:
            raise UserError("executor=flower runs no callbacks, got some: its clients are on other hosts")
        from ser_fl.federation.flower.launch import launch

        return launch(config, on_round, on_profile, preemption)
    devices_of(config.executor.accelerator)  # refuses hardware that is not there before anything is written
    with open_run(config) as (run, progress), threads_limited_to(config.executor.threads), exact_arithmetic():
        prepared = prepare(config, on_features)
        client_manifest = prepared.client_manifest()
        check_client_manifest(config, run, client_manifest, progress)
        config = settle_precision(config, client_manifest, progress)
        scorer = local_scorer(config, prepared)
        with open_executor(make_clients(config, prepared, callbacks), cohort_of(config, client_manifest)) as executor:
            conduct(config, run, client_manifest, progress, executor, scorer, on_round, on_profile, preemption)
    return run


def conduct(
    config: Config,
    run: RunFolder,
    client_manifest: ClientManifest,
    progress: Progress | None,
    executor: Executor,
    scorer: Scorer,
    on_round: OnRound,
    on_profile: OnProfile = lambda profile: None,
    preemption: Preemption | None = None,
) -> None:
    """The rounds that are left, and the test of the selected model, wherever the clients are.

    Args:
        config: with its precision settled.
        run: the run folder, which nobody else writes to.
        client_manifest: what the server knows of the data.
        progress: the checkpoint to go on from; None begins.
        executor: trains clients.
        scorer: scores models.
        on_round: told of every committed round.
        on_profile: told where the time of the rounds went, with `profile=true`.
        preemption: whose signals a round in flight is sheltered from.
    """
    start = first_progress(config, client_manifest)
    if progress is not None:
        check_fits(run.checkpoint, progress, start, client_manifest.client_ids)
    progress = progress or start
    settings, profile = dump(config), RunProfile(config)
    tracker = open_tracker(settings, run, progress.tracking)
    try:
        if progress.round == 0:
            write_settings(run, config)
        for path in (run.rounds, run.clients):
            run.cut_back(path, progress.lengths.get(path.name, 0))
        federation = Federation(
            config=config,
            client_ids=client_manifest.client_ids,
            executor=executor,
            scorer=scorer,
            run=run,
            tracker=tracker,
            profile=profile,
            preemption=preemption or Preemption(),
        )
        try:
            stopped = federation.run_rounds(progress, on_round)
        finally:
            if (record := profile.record()) is not None:
                run.write_profile(record)
                on_profile(record)
        conclude(config, client_manifest, scorer, progress, run, tracker, stopped)
    finally:
        tracker.finish()


def write_settings(run: RunFolder, config: Config) -> None:
    """What a run is and what it is computed with: ``environment.json`` and ``config.yaml``."""
    devices = [str(device) for device in devices_of(config.executor.accelerator)]
    environment = describe_environment(seed=config.seed, threads=config.executor.threads, devices=devices)
    write_json(run.environment, environment)
    content = {"schema": CONFIG_SCHEMA, **recorded(dump(config))}
    write_bytes(run.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def settle_precision(config: Config, client_manifest: ClientManifest, progress: Progress | None) -> Config:
    """The precision that a resumed run began in, or else the configured one, measured where that is "auto"."""
    begun_in = progress.precision if progress else None
    return with_precision(config, begun_in) if begun_in else resolve_precision(config, len(client_manifest.classes))


def local_scorer(config: Config, prepared: Prepared) -> LocalScorer:
    """Of all data on this machine."""
    utterances, split = prepared.store.utterances, prepared.split
    return LocalScorer(
        config,
        Evaluator(prepared.store, prepared.standardisation),
        box_of(prepared.standardisation),
        {"validation": holders(utterances, split.validation), "test": holders(utterances, split.test)},
    )


def make_clients(config: Config, prepared: Prepared, callbacks: Sequence[pl.Callback] = ()) -> Clients:
    """The clients of an experiment, on this machine."""
    watch = open_watch(config, rest="client")
    return Clients(
        config=config,
        store=prepared.store,
        indices=prepared.clients,
        standardisation=prepared.standardisation,
        objective=objective_of(config, prepared.standardisation, watch),
        device=devices_of(config.executor.accelerator)[0],
        callbacks=callbacks,
        watch=watch,
    )


def objective_of(config: Config, standardisation: Standardisation, watch: Watch = UNWATCHED) -> Objective:
    """What clients minimise."""
    is_bf16 = config.precision == "bf16-mixed"
    return Objective(config.objective, config.augmentation, box_of(standardisation), is_bf16, watch)


def box_of(standardisation: Standardisation) -> Box:
    """Where features and attacks on them stay."""
    return Box.of(standardisation.lower_F1, standardisation.upper_F1)


def cohort_of(config: Config, client_manifest: ClientManifest) -> int:
    """Clients of a round."""
    return cohort_size(len(client_manifest.client_ids), config.federation.fraction_train)


def check_client_manifest(
    config: Config, run: RunFolder, client_manifest: ClientManifest, progress: Progress | None
) -> None:
    """Refuse what no round could put right, before anything is written.

    Raises:
        UserError: `federation.min_clients` is above the clients of a round, or a resumed run's data have changed.
    """
    settings, size = config.federation, cohort_of(config, client_manifest)
    if settings.min_clients > size:
        raise UserError(
            f"federation.min_clients must be at most {size}, the clients of a round (federation.fraction_train="
            f"{settings.fraction_train:g} of {len(client_manifest.client_ids)}), got {settings.min_clients}"
        )
    if progress is not None and progress.data_digest != client_manifest.digest:
        raise UserError(f"{run.root} was trained on other data than {config.data.name} holds now: start a new run")


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as ``config.yaml`` holds them: without absolute folders (`ser_fl.runs.path_aliases` remembers them).

    The run folder itself is left out: a repetition is a run of its own.
    """
    data = {key: remember(settings["data"][key]) for key in ("root", "cache_dir") if settings["data"][key]}
    run_dir = settings["run_dir"] if settings["run_dir"] and not is_private(settings["run_dir"]) else None
    return {**settings, "run_dir": run_dir, "data": {**settings["data"], **data}}


def first_progress(config: Config, client_manifest: ClientManifest) -> Progress:
    """Before the first round: initial weights drawn from the seed."""
    server = Server.start(
        build_network(config.model, len(client_manifest.classes), seed=config.seed),
        client_manifest.client_ids,
        local_only=config.federation.name == "local_only",
        momentum=config.federation.server_momentum,
        adam=config.federation.server_optimiser == "adam",
        decay=config.federation.weight_average,
    )
    return Progress(
        round=0,
        server=server,
        best=dict(server.models),
        best_round=0,
        best_score=-1.0,
        data_digest=client_manifest.digest,
    )


def conclude(
    config: Config,
    client_manifest: ClientManifest,
    scorer: Scorer,
    progress: Progress,
    run: RunFolder,
    tracker: Tracker,
    stopped: str,
) -> None:
    """Test the selected round's model, and write the summary and the model itself.

    With `federation=local_only` the test figures are over all clients' models, and the model that is saved is the
    first client's, beside everybody's own.

    Raises:
        RoundFailed: a holder of test utterances gave no figures.
    """
    network = build_network(config.model, len(client_manifest.classes), seed=config.seed)
    network.load_state_dict(progress.best.get(GLOBAL) or next(iter(progress.best.values())))
    bundle = EmotionModel(
        network,
        client_manifest.standardisation,
        classes=client_manifest.classes,
        model=config.model,
        frontend=config.frontend,
        synthetic=config.data.name == "builtin",
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
    content = summary(config, client_manifest, tested, progress, stopped)
    write_json(run.summary, content)
    tracker.log_summary(content)


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
