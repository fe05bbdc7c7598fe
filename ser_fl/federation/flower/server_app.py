"""The ServerApp: the round loop of one machine, with its clients at Flower's nodes."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ser_fl.config.schema import Config
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.checkpoint import open_run
from ser_fl.federation.flower.flower_executor import FlowerExecutor, FlowerScorer
from ser_fl.federation.flower.nodes import Nodes
from ser_fl.federation.flower.submission import configured, error_line
from ser_fl.federation.own_objects import NOTHING, OwnObjects
from ser_fl.federation.rounds import Federation, Hooks
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import RoundRecord


def serve(
    config: Config,
    grid: Grid,
    hooks: Hooks,
    own: OwnObjects = NOTHING,
    given_up: Event | None = None,
) -> RunFolder:
    """Run an experiment, or go on with one, on whatever nodes a grid reaches, and return its run folder.

    `precision=auto` is float32 here: nodes differ, and no one of them can be measured for all.

    Args:
        config: what `ser_fl.compose` gives.
        grid: reaches the nodes.
        hooks: watch the rounds.
        own: objects of the caller's own, of the server's side.
        given_up: set by another thread when nobody will answer any more.

    Raises:
        UserError: the settings, the nodes or their data do not fit.
        RoundFailed: too few clients came back in a round, or a holder of test utterances gave no figures.
    """
    executor = config.executor
    with open_run(config) as (run, checkpoint), threads_limited_to(executor.threads), exact_arithmetic():
        if checkpoint is not None and checkpoint.precision is not None:
            config = replace(config, precision=checkpoint.precision)
        elif config.precision == "auto":
            config = replace(config, precision="32-true")
        nodes = Nodes(grid, config, given_up or Event())
        client_manifest = nodes.enrol(executor.num_nodes or 1, executor.wait_s)
        standardisation = client_manifest.standardisation
        federation = Federation(
            config=config,
            run=run,
            client_manifest=client_manifest,
            executor=FlowerExecutor(nodes, standardisation),
            scorer=FlowerScorer(nodes, standardisation),
            own=own,
            hooks=hooks,
        )
        federation.conduct(checkpoint)
    return run


app = ServerApp()
"""For a SuperLink: the experiment is in the run's configuration, as ``config`` (JSON) or ``settings`` (overrides)."""


@app.main()
def _main(grid: Grid, context: Context) -> None:
    try:
        config = configured(context.run_config)

        def on_round(record: RoundRecord) -> None:
            print(record.line(config.experiment), flush=True)
            for failure in record.failures:
                print(f"  {failure.client_id}, {failure.stage}: {failure.error}", flush=True)

        run = serve(config, grid, Hooks(on_round=on_round))
        print(f"run folder: {run.root}", flush=True)
    except (UserError, RoundFailed) as error:
        print(error_line(error), flush=True)
        raise
