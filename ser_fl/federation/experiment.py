"""One experiment from configuration to run folder: assemble, run the rounds, test the selected model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from ser_fl.attacks.budget import Box
from ser_fl.config import CONFIG_SCHEMA, Config, dump
from ser_fl.data.features import OnFeatures
from ser_fl.data.partition import holders
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.devices import devices_of, exact_arithmetic
from ser_fl.environment import describe_environment, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.evaluation.scoring import Evaluator
from ser_fl.federation.checkpoint import Progress, is_checkpoint_of, load_checkpoint
from ser_fl.federation.client import Clients
from ser_fl.federation.executors import Executor, open_executor
from ser_fl.federation.objectives import Objective
from ser_fl.federation.precision import resolve_precision, with_precision
from ser_fl.federation.profile import OnProfile, RunProfile, open_watch
from ser_fl.federation.rounds import Federation, OnRound, checkpoint_key
from ser_fl.federation.schedule import cohort_size
from ser_fl.federation.scoring import Scorer, total
from ser_fl.federation.server import GLOBAL, Server
from ser_fl.federation.trainers import has_installed_callbacks
from ser_fl.interruption import Interruption
from ser_fl.metrics import scores
from ser_fl.models.bundle import EmotionModel, save_local_models, save_model
from ser_fl.models.catalogue import build_network
from ser_fl.records import SUMMARY_SCHEMA, RunFolder, write_bytes, write_json
from ser_fl.tracking import Tracker, open_tracker


def train(
    config: Config,
    *,
    callbacks: Sequence[pl.Callback] = (),
    on_round: OnRound = lambda record: None,
    on_features: OnFeatures | None = None,
    on_profile: OnProfile = lambda profile: None,
    interruption: Interruption | None = None,
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
        interruption: whose signals a round in flight is sheltered from; None where the caller answers none.

    Raises:
        UserError: the corpus, the settings or the run folder do not fit, or a callback cannot be sent to a worker.
        RoundFailed: too few clients came back in a round.
        Stopped: a signal that `interruption` listens to.
    """
    if config.executor.engine == "loop" and (callbacks or has_installed_callbacks()):
        raise UserError("executor.engine=loop runs no callbacks, got some: use executor.engine=auto")
    devices_of(config.executor.accelerator)  # refuses hardware that is not there before anything is written
    run, progress = open_run(config)
    with threads_limited_to(config.executor.threads), exact_arithmetic():
        prepared = prepare(config, on_features)
        check_prepared(config, run, prepared, progress)
        begun_in = progress.precision if progress else None
        classes = len(prepared.store.classes)
        config = with_precision(config, begun_in) if begun_in else resolve_precision(config, classes)
        with open_executor(make_clients(config, prepared, callbacks), cohort_of(config, prepared)) as executor:
            run.root.mkdir(parents=True, exist_ok=True)  # only now: what is refused leaves no empty run behind
            progress = progress or first_progress(config, prepared)
            _run(config, run, prepared, progress, executor, on_round, on_profile, interruption or Interruption())
    return run


def _run(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    progress: Progress,
    executor: Executor,
    on_round: OnRound,
    on_profile: OnProfile,
    interruption: Interruption,
) -> None:
    """The rounds that are left, and the test of the selected model."""
    settings, profile = dump(config), RunProfile(config)
    tracker = open_tracker(
        **settings["tracking"], run=run, name=config.experiment, config=settings, state=progress.tracking
    )
    try:
        if progress.round == 0:
            devices = [str(device) for device in devices_of(config.executor.accelerator)]
            environment = describe_environment(seed=config.seed, threads=config.executor.threads, devices=devices)
            write_json(run.environment, environment)
            content = {"schema": CONFIG_SCHEMA, **settings}
            write_bytes(run.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
        for path in (run.rounds, run.clients):
            run.cut_back(path, progress.lengths.get(path.name, 0))
        scorer = Scorer(config, Evaluator(prepared.store, prepared.standardisation), box_of(prepared))
        federation = Federation(
            config=config,
            client_ids=tuple(prepared.clients),
            executor=executor,
            scorer=scorer,
            validation=holders(prepared.store.utterances, prepared.split.validation),
            run=run,
            tracker=tracker,
            profile=profile,
            interruption=interruption,
        )
        try:
            stopped = federation.run_rounds(progress, on_round)
        finally:
            if (record := profile.record()) is not None:
                run.write_profile(record)
                on_profile(record)
        conclude(config, prepared, scorer, progress, run, tracker, stopped)
    finally:
        tracker.finish()


def make_clients(config: Config, prepared: Prepared, callbacks: Sequence[pl.Callback] = ()) -> Clients:
    """The clients of an experiment."""
    watch = open_watch(config, rest="client")
    return Clients(
        config=config,
        store=prepared.store,
        indices=prepared.clients,
        standardisation=prepared.standardisation,
        objective=Objective(
            config.objective, config.augmentation, box_of(prepared), config.precision == "bf16-mixed", watch
        ),
        device=devices_of(config.executor.accelerator)[0],
        callbacks=callbacks,
        watch=watch,
    )


def box_of(prepared: Prepared) -> Box:
    """Where features and attacks on them stay."""
    return Box.of(prepared.standardisation.lower_F1, prepared.standardisation.upper_F1)


def cohort_of(config: Config, prepared: Prepared) -> int:
    """Clients of a round."""
    return cohort_size(len(prepared.clients), config.federation.fraction_train)


def check_prepared(config: Config, run: RunFolder, prepared: Prepared, progress: Progress | None) -> None:
    """Refuse what no round could put right, before anything is written.

    Raises:
        UserError: `federation.min_clients` is above the clients of a round, or a resumed run's data have changed.
    """
    settings, num_clients = config.federation, len(prepared.clients)
    size = cohort_of(config, prepared)
    if settings.min_clients > size:
        raise UserError(
            f"federation.min_clients must be at most {size}, the clients of a round (federation.fraction_train="
            f"{settings.fraction_train:g} of {num_clients}), got {settings.min_clients}"
        )
    if progress is not None and progress.data_digest != data_digest(prepared):
        raise UserError(f"{run.root} was trained on other data than {config.data.name} holds now: start a new run")


def data_digest(prepared: Prepared) -> str:
    """Of utterances, labels, split, clients and standardisation: a resumed run must find the data that it left."""
    utterances = [(u.utterance_id, u.emotion, u.speaker) for u in prepared.store.utterances]
    digest = blake2b(repr((utterances, prepared.split, prepared.clients)).encode(), digest_size=16)
    for tensor in prepared.standardisation.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def open_run(config: Config) -> tuple[RunFolder, Progress | None]:
    """The run folder, and the checkpoint in it that a resumed run goes on from."""
    folder = Path(config.run_dir).expanduser() if config.run_dir else None
    if folder is None and config.resume:
        folder = newest_run(config)
    if folder is None:
        folder = Path("runs") / config.experiment / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{config.seed}"
    run = RunFolder(folder)
    progress = load_checkpoint(run.checkpoint, checkpoint_key(config)) if config.resume else None
    if not config.resume and run.config.exists():
        raise UserError(f"{folder} holds a run already: add resume=true to go on with it, or choose another run_dir")
    return run, progress


def newest_run(config: Config) -> Path | None:
    """The newest run folder with a checkpoint of this configuration, for ``resume=true`` without ``run_dir``."""
    folders = (Path("runs") / config.experiment).glob(f"*-{config.seed}")
    key = checkpoint_key(config)
    return max((folder for folder in folders if is_checkpoint_of(RunFolder(folder).checkpoint, key)), default=None)


def first_progress(config: Config, prepared: Prepared) -> Progress:
    """Before the first round: initial weights drawn from the seed."""
    server = Server.start(
        build_network(config.model, len(prepared.store.classes), seed=config.seed),
        tuple(prepared.clients),
        local_only=config.federation.name == "local_only",
        momentum=config.federation.server_momentum,
        decay=config.federation.weight_average,
    )
    return Progress(
        round=0,
        server=server,
        best=dict(server.models),
        best_round=0,
        best_score=-1.0,
        data_digest=data_digest(prepared),
    )


def conclude(
    config: Config,
    prepared: Prepared,
    scorer: Scorer,
    progress: Progress,
    run: RunFolder,
    tracker: Tracker,
    stopped: str,
) -> None:
    """Test the selected round's model, and write the summary and the model itself.

    With `federation=local_only` the test figures are over all clients' models, and the model that is saved is the
    first client's, beside everybody's own.
    """
    network = build_network(config.model, len(prepared.store.classes), seed=config.seed)
    network.load_state_dict(progress.best.get(GLOBAL) or next(iter(progress.best.values())))
    bundle = EmotionModel(
        network,
        prepared.standardisation,
        classes=prepared.store.classes,
        model=config.model,
        frontend=config.frontend,
        synthetic=config.data.name == "builtin",
    )
    save_model(run.root, bundle)
    if GLOBAL not in progress.best:
        save_local_models(run.root, progress.best)
    content = summary(config, prepared, scorer, progress, stopped)
    write_json(run.summary, content)
    tracker.log_summary(content)


def summary(config: Config, prepared: Prepared, scorer: Scorer, progress: Progress, stopped: str) -> dict[str, Any]:
    """Content of ``summary.json``."""
    utterances = prepared.store.utterances
    by_speaker = scorer.by_holder(progress.best, holders(utterances, prepared.split.test))
    pooled = total(by_speaker)
    test = scores(pooled)
    parts = {"train": prepared.split.train, "validation": prepared.split.validation, "test": prepared.split.test}
    return {
        "schema": SUMMARY_SCHEMA,
        "experiment": config.experiment,
        "synthetic": config.data.name == "builtin",
        "classes": list(prepared.store.classes),
        "split": config.split.name,
        "split_speakers": {name: sorted({utterances[i].speaker for i in part}) for name, part in parts.items()},
        "split_sizes": {name: len(part) for name, part in parts.items()},
        "skipped": [{"id": file.utterance_id, "reason": file.reason} for file in prepared.skipped],
        "num_clients": len(prepared.clients),
        "num_rounds": progress.round,
        "selected_round": progress.best_round,
        "selection_score": progress.best_score,
        "stopped": stopped,
        "test": {
            "uar": test.uar,
            "accuracy": test.accuracy,
            "macro_f1": test.macro_f1,
            "confusion": pooled.tolist(),
            "per_class_recall": list(test.per_class_recall),
            "per_speaker_uar": {speaker: scores(confusion).uar for speaker, confusion in by_speaker.items()},
        },
    }
