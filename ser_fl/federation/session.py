"""`ser_fl.train`: one experiment, from configuration to run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import lightning.pytorch as pl

from ser_fl.config.schema import Config
from ser_fl.data.features import OnFeatures
from ser_fl.data.prepared import prepare
from ser_fl.devices import devices_of, exact_arithmetic
from ser_fl.errors import UserError
from ser_fl.federation.aggregation import Aggregation
from ser_fl.federation.algorithm import Algorithm
from ser_fl.federation.conduct import Sites, conduct
from ser_fl.federation.experiment import (
    OwnObjects,
    check_client_manifest,
    check_network,
    local_scorer,
    make_clients,
    open_executor,
)
from ser_fl.federation.profile import OnProfile
from ser_fl.federation.rounds import Hooks, OnRound
from ser_fl.federation.run_setup import open_run
from ser_fl.models.registry import NetworkSource
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import Preemption
from ser_fl.training.objectives import Objective
from ser_fl.training.precision import resolve_precision, with_precision
from ser_fl.training.trainer import check_callbacks


def train(
    config: Config,
    *,
    network: NetworkSource | None = None,
    objective: Objective | type[Objective] | None = None,
    aggregation: Aggregation | type[Aggregation] | None = None,
    algorithm: Algorithm | type[Algorithm] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    on_round: OnRound = lambda record: None,
    on_features: OnFeatures | None = None,
    on_profile: OnProfile = lambda profile: None,
    preemption: Preemption | None = None,
) -> RunFolder:
    """Run an experiment, or go on with one that was killed, and return its run folder.

    Args:
        config: what `ser_fl.compose` gives.
        network: in place of the configured one: a module, whose weights are then the initial ones, or a class or
            function that makes one for a number of classes. It gives logits (B, C) for features (B, F, L).
        objective: what clients minimise, an `Objective` of `ser_fl.training.objectives`.
        aggregation: how updates become one state, an `Aggregation` of `ser_fl.federation.aggregation`.
        algorithm: what the server does, an `Algorithm` of `ser_fl.federation.algorithm`.
        callbacks: Lightning callbacks that see every batch of every client (`trainer.datamodule` says whose). With
            `executor=processes` each worker has a copy of its own, pickled before the first round: what one gathers
            stays in its process.
        on_round: told of every committed round.
        on_features: told how far the features are.
        on_profile: told where the time of the rounds went, with `profile=true`; of a run that is cut short too.
        preemption: whose signals a round in flight is sheltered from; None where the caller answers none.

    Raises:
        UserError: the corpus, the settings, the run folder or an object do not fit, or an object cannot be sent to a
            worker process.
        RoundFailed: too few clients came back in a round.
        Stopped: a signal that `preemption` listens to.
    """
    own = OwnObjects.of(
        network=network,
        objective=objective,
        aggregation=aggregation,
        algorithm=algorithm,
        callbacks=tuple(callbacks),
    )
    config = own.recorded_in(config)
    hooks = Hooks(on_round=on_round, on_profile=on_profile, preemption=preemption or Preemption())
    check_callbacks(config, callbacks)
    if config.executor.name == "flower":
        if callbacks:
            raise UserError("executor=flower runs no callbacks, got some: its clients are on other hosts")
        from ser_fl.federation.flower.launch import launch

        return launch(config, own, hooks)
    devices_of(config.executor.accelerator)  # refuses hardware that is not there before anything is written
    with open_run(config) as (run, checkpoint), threads_limited_to(config.executor.threads), exact_arithmetic():
        prepared = prepare(config, on_features)
        client_manifest = prepared.client_manifest()
        cohort_size = check_client_manifest(config, run, client_manifest, checkpoint)
        if own.network is not None:
            check_network(config, len(client_manifest.classes), own)
        if checkpoint is not None and checkpoint.precision is not None:
            config = with_precision(config, checkpoint.precision)
        elif config.precision == "auto":
            config = resolve_precision(config, len(client_manifest.classes), own.network)
        clients, scorer = make_clients(config, prepared, own), local_scorer(config, prepared, own)
        with closing(open_executor(clients, cohort_size)) as executor:
            conduct(config, run, client_manifest, checkpoint, Sites(executor, scorer), own, hooks)
    return run
