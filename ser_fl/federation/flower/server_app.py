"""The ServerApp: the round loop of one machine, with its clients and holders of data at Flower's nodes."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from ser_fl.calibration import confidence_sums
from ser_fl.config.schema import Config
from ser_fl.data.prepared import prepare
from ser_fl.data.splits import Part
from ser_fl.devices import exact_arithmetic, threads_limited_to
from ser_fl.errors import RoundFailed, UserError, one_line
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.checkpoint import as_begun, open_run
from ser_fl.federation.client import Clients, ClientTask, Executor, Scored
from ser_fl.federation.fine_tuning import FirstRun
from ser_fl.federation.flower.enrolment import enrol
from ser_fl.federation.flower.nodes import Answer, Nodes, T
from ser_fl.federation.flower.serialisation import (
    Confidences,
    Confusions,
    Refusal,
    Updates,
    WireError,
    put,
    take,
    wire_bytes,
)
from ser_fl.federation.flower.submission import configured, error_line
from ser_fl.federation.hooks import Hooks
from ser_fl.federation.hostile import with_adversaries
from ser_fl.federation.own_objects import NOTHING, OwnObjects
from ser_fl.federation.rounds import Federation
from ser_fl.metrics import Floats
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.parties import LeftOut
from ser_fl.runs.records import FIGURES, ClientFailure, ClientUpdate, Offence, Outcome, RoundRecord, State

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 2
"""At scoring: a figure that is missing costs a round its place among those that may be selected."""
_MOST_MOMENTS = 3
"""Tensors that an optimiser keeps of each of the model's: Adam has two and a counter."""
_NOT_NAMED = "its node's answer does not name it"


@dataclass(slots=True)
class FlowerExecutor(Executor):
    """An executor and a scorer of what is at the nodes: one message a node for all clients or holders there."""

    nodes: Nodes
    _asked: int = field(default=0, init=False)
    _out: set[str] = field(default_factory=set, init=False)
    """Clients and speakers that are asked nothing more."""

    def party_of(self, name: str) -> tuple[str, ...]:
        """All who are at the node of a client or speaker."""
        nodes = self.nodes
        speaker_of = {speaker: speaker for speaker in nodes.node_of} | nodes.speaker_of
        node = nodes.node_of.get(speaker_of.get(name, name))
        return tuple(sorted(each for each, speaker in speaker_of.items() if nodes.node_of[speaker] == node)) or (name,)

    def leave_out(self, names: tuple[str, ...], reason: str) -> LeftOut:
        self._out |= {*names}
        speakers = (self.nodes.speaker_of.get(name, name) for name in names)
        node = next((self.nodes.node_of[speaker] for speaker in speakers if speaker in self.nodes.node_of), None)
        return LeftOut(names=names, node=None if node is None else str(node), reason=one_line(reason))

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        due = {task.client_id: task for task in tasks}
        if not due:
            return
        first = next(iter(due.values()))  # all clients of a round start from one model
        shared = self._shared(first.state)

        def question(clients: Sequence[str]) -> RecordDict:
            hostile = [client_id for client_id in clients if due[client_id].hostile]
            asked = {"round": first.round, "learning_rate": first.learning_rate, "clients": clients}
            records = self.nodes.question("train", first.round, **asked, **({"hostile": hostile} if hostile else {}))
            records.update(shared)
            for client_id in clients:
                if due[client_id].optimiser_state:
                    put(records, f"optimiser/{client_id}", due[client_id].optimiser_state)
            return records

        speakers = {client_id: self.nodes.speaker_of[client_id] for client_id in due}
        answers = self.nodes.ask_holders("train", speakers, question, Updates, first.round)
        outcomes: dict[str, Outcome] = {}
        for client_id in due:
            while client_id not in outcomes:
                other, answer = next(answers)
                outcomes[other] = self._outcome(due[other], answer)
            outcome = outcomes.pop(client_id)
            if isinstance(outcome, str):
                _LOG.warning("round %d: client %s failed: %s", first.round, client_id, outcome)
            yield client_id, outcome

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """Confusion matrices of all holders that answer; they are asked twice."""
        self._asked += 1
        records = self.nodes.question("evaluate", self._asked, part=part, attacked=attacked)

        def matrix(said: Confusions, holder: str) -> Floats | str:
            rows, num_classes = said.confusions.get(holder), len(self.nodes.classes)
            if rows is None:
                return Offence(_NOT_NAMED)
            if len(rows) != num_classes or any(len(row) != num_classes for row in rows):
                return Offence(f"its confusion matrix is not of {num_classes} classes")
            if (count := sum(map(sum, rows))) != (held := self.nodes.manifest.sizes[part][holder]):
                return Offence(f"its confusion matrix is of {count} utterances, it has {held}")
            return np.asarray(rows, dtype=np.float64)

        return self._gathered(models[GLOBAL], part, "evaluate", records, Confusions, matrix)

    def confidences(self, models: Mapping[str, State], part: Part, temperature: float | None = None) -> Scored:
        """Sums of all holders that answer; they are asked twice."""
        self._asked += 1
        records = self.nodes.question("query.confidences", self._asked, part=part, temperature=temperature)
        num_rows, num_sums = confidence_sums(np.empty((0, len(self.nodes.classes))), (), temperature).shape

        def sums(said: Confidences, holder: str) -> Floats | str:
            rows, held = said.confidences.get(holder), self.nodes.manifest.sizes[part][holder]
            if rows is None:
                return _NOT_NAMED
            if len(rows) != num_rows or any(len(row) != num_sums for row in rows):
                return f"its sums are not {num_rows} rows of {num_sums}"
            sums_GS = np.asarray(rows, dtype=np.float64)
            count_GB, *others = np.split(sums_GS[:, 1:], 3, axis=1)
            if (count_GB.sum(axis=1) != held).any() or any((other_GB > count_GB).any() for other_GB in others):
                return f"its sums are not of {held} utterances, which it has"
            return sums_GS

        return self._gathered(models[GLOBAL], part, "query.confidences", records, Confidences, sums)

    def _gathered(
        self,
        model: State,
        part: Part,
        message_type: str,
        records: RecordDict,
        kind: type[T],
        read: Callable[[T, str], Floats | str],
    ) -> Scored:
        """What all holders of a part say of a model, each read from its node's answer, or why it cannot be used."""
        records.update(self._shared(model))
        found, problems = dict[str, Floats](), dict[str, str]()
        holders = sorted(self.nodes.manifest.sizes[part].keys() - self._out)
        for _ in range(_ATTEMPTS):
            if len(found) == len(holders):
                break
            missing = {holder: holder for holder in holders if holder not in found}
            for holder, answer in self.nodes.ask_holders(message_type, missing, lambda _: records, kind, self._asked):
                sums = answer if isinstance(answer, str) else read(answer[0], holder)
                if isinstance(sums, str):
                    problems[holder] = sums
                else:
                    found[holder] = sums
        failures = [
            ClientFailure(
                client_id=holder,
                error=problems[holder],
                stage="validation",
                offence=isinstance(problems[holder], Offence),
            )
            for holder in holders
            if holder not in found
        ]
        for failure in failures:
            _LOG.warning("no %s figures of %s: %s", part, failure.client_id, failure.error)
        return Scored({holder: found[holder] for holder in sorted(found)}, tuple(failures))

    def _shared(self, model: State) -> RecordDict:
        """What all nodes are sent alike, serialised once."""
        records = RecordDict()
        put(records, "standardisation", self.nodes.manifest.standardisation.state_dict())
        put(records, "model", model)
        return records

    def _outcome(self, task: ClientTask, answer: Answer[Updates]) -> Outcome:
        if isinstance(answer, str):
            return answer
        said, records = answer
        figures = said.updates.get(task.client_id)
        if figures is None:
            return Offence(_NOT_NAMED)
        if isinstance(figures, Refusal):
            return figures.reason
        keeps = self.nodes.config.federation.keep_optimiser
        try:
            state = take(records, f"update/{task.client_id}", like=task.state)
            most_bytes = _MOST_MOMENTS * wire_bytes(task.state)
            kept = take(records, f"optimiser/{task.client_id}", most_bytes=most_bytes) if keeps else {}
        except WireError as error:
            return Offence(error)
        own = {name: getattr(figures, name) for name in FIGURES}
        return ClientUpdate(client_id=task.client_id, state=state, optimiser_state=kept, **own)


def serve(
    config: Config, grid: Grid, hooks: Hooks, own: OwnObjects = NOTHING, given_up: Event | None = None
) -> RunFolder:
    """Run an experiment, or go on with one, on whatever nodes a grid reaches, and return its run folder.
    `precision=auto` is float32 here: nodes differ, and none can be measured for all. Another thread sets `given_up`
    when nobody will answer any more.

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
        first = FirstRun.of(config, own.network) if config.init_from and checkpoint is None else None
        nodes = Nodes(grid, config, given_up or Event())
        known = checkpoint.committed.digests if checkpoint else {}
        manifest = enrol(nodes, executor.num_nodes or 1, executor.wait_s, known)
        # hostile clients are simulated: their recordings, and those that are tested, are on this machine
        sites = with_adversaries(FlowerExecutor(nodes), config, manifest, run, lambda: Clients(config, prepare(config)))
        Federation(
            config=config, run=run, client_manifest=manifest, executor=sites, own=own, hooks=hooks, first=first
        ).conduct(checkpoint)
    return run


def simulate(config: Config, own: OwnObjects, hooks: Hooks) -> RunFolder:
    """Run an experiment on simulated nodes, each with `executor.client_cpus` cores and `executor.client_gpus` GPUs. Ray
    starts here, with `executor.workers` clients at a time, or is the cluster of ``RAY_ADDRESS``.
    """
    from flwr.simulation import run_simulation

    from ser_fl.federation.flower.client_app import all_speakers, make_client_app, simulated_host

    speakers = all_speakers(config)
    config = replace(config, executor=replace(config.executor, num_nodes=len(speakers)))
    executor = config.executor
    outcome, given_up, app = list[RunFolder | BaseException](), Event(), ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # in a thread of its own, of which Flower hands on no more than an `Exception`
        try:
            outcome.append(serve(config, grid, hooks, own, given_up))
        except BaseException as error:
            outcome.append(error)

    ray: dict[str, Any] = {}  # a cluster that runs already has its own settings
    if executor.workers != "auto" and not os.environ.get("RAY_ADDRESS"):
        ray["num_cpus"] = math.ceil(executor.workers * executor.client_cpus)
    resources: dict[str, Any] = {"num_cpus": executor.client_cpus, "num_gpus": executor.client_gpus}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the coming end of `run_simulation`, every time
        try:
            run_simulation(
                server_app=app,
                client_app=make_client_app(lambda context: simulated_host(config, speakers, context)),
                num_supernodes=len(speakers),
                backend_config={"client_resources": resources, "init_args": ray},
            )
        finally:
            given_up.set()  # where we are interrupted: else the server would wait for answers until its deadline
    (ended,) = outcome
    if isinstance(ended, BaseException):
        raise ended
    return ended


app = ServerApp()
"""For a SuperLink: the experiment is in the run's configuration, as ``config`` (JSON) or ``settings`` (overrides)."""


@app.main()
def _main(grid: Grid, context: Context) -> None:
    try:
        config = as_begun(configured(context.run_config))

        def on_round(record: RoundRecord) -> None:
            print(record.line(config.title), flush=True)
            for failure in record.failures:
                print(f"  {failure.client_id}, {failure.stage}: {failure.error}", flush=True)

        run = serve(config, grid, Hooks(on_round=on_round))
        print(f"run folder: {run.root}", flush=True)
    except (UserError, RoundFailed) as error:
        print(error_line(error), flush=True)
        raise
