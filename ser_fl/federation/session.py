"""`ser_fl.train`: one experiment, from configuration to run folder."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

from ser_fl.config.schema import Config, instantiated_objects
from ser_fl.data.features import OnFeatures
from ser_fl.data.prepared import prepare
from ser_fl.devices import devices_of, exact_arithmetic
from ser_fl.errors import UserError
from ser_fl.federation.checkpoint import open_run
from ser_fl.federation.client import Executor, LocalScorer, SerialExecutor, make_clients
from ser_fl.federation.own_objects import OwnObjects, check_network
from ser_fl.federation.processes import ProcessExecutor, count_workers
from ser_fl.federation.rounds import Federation, Hooks, cohort_size
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder
from ser_fl.training.precision import resolve_precision
from ser_fl.training.trainer import check_callbacks


def train(
    config: Config, *, hooks: Hooks | None = None, on_features: OnFeatures | None = None, **own_objects: Any
) -> RunFolder:
    """Run an experiment, or go on with one that was killed, and return its run folder.

    Args:
        config: what `ser_fl.compose` gives. Objects that it names by ``_target_`` are made here.
        hooks: who watches the run, and who may end it: by a signal, which raises `Stopped`.
        on_features: told how far the features are.
        **own_objects: of the caller's, as `ser_fl.train` describes them; they come before those of the configuration.

    Raises:
        UserError, RoundFailed: as `ser_fl.train` says.
    """
    own = OwnObjects.of(**instantiated_objects(config) | own_objects)
    hooks = hooks or Hooks()
    config = own.recorded_in(config)
    check_callbacks(config, own.callbacks)
    if config.executor.name == "flower":
        if own.callbacks:
            raise UserError("executor=flower runs no callbacks, got some: its clients are on other hosts")
        from ser_fl.federation.flower.launch import launch

        return launch(config, own, hooks)
    devices_of(config.executor.accelerator)  # refuses hardware that is not there before anything is written
    with open_run(config) as (run, checkpoint), threads_limited_to(config.executor.threads), exact_arithmetic():
        prepared = prepare(config, on_features)
        client_manifest = prepared.client_manifest()
        if own.network is not None:
            check_network(config, len(client_manifest.classes), own)
        if checkpoint is not None and checkpoint.precision is not None:
            config = replace(config, precision=checkpoint.precision)
        elif config.precision == "auto":
            config = resolve_precision(config, len(client_manifest.classes), own.network)
        clients = make_clients(config, prepared, own)
        size = cohort_size(len(client_manifest.client_ids), config.federation.fraction_train)
        executor: Executor = SerialExecutor(clients)
        if config.executor.name == "processes":
            executor = ProcessExecutor(clients, count_workers(config.executor, size))
        with closing(executor):
            federation = Federation(
                config=config,
                run=run,
                client_manifest=client_manifest,
                executor=executor,
                scorer=LocalScorer(config, prepared.store, prepared.standardisation, prepared.split, own.network),
                own=own,
                hooks=hooks,
            )
            federation.conduct(checkpoint)
    return run
