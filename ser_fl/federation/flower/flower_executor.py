"""Clients and holders that are reached through Flower: an `Executor` and a `Scorer` like those of one machine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import RecordDict

from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import Part
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import ClientTask, Executor
from ser_fl.federation.flower.nodes import Answer, Nodes
from ser_fl.federation.flower.replies import Confusions, Refusal, Updates
from ser_fl.federation.flower.serialisation import WireError, put, take
from ser_fl.federation.scoring import Scored
from ser_fl.metrics import Confusion
from ser_fl.runs.records import ClientFailure, ClientUpdate, Outcome, State

_LOG = logging.getLogger(__name__)
NOT_CONNECTED = "its node is not connected"
_ATTEMPTS = 2
"""At scoring: a figure that is missing costs a round its place among those that may be selected."""


@dataclass(slots=True)
class FlowerExecutor(Executor):
    """An executor whose clients are at the nodes: one message a node and round, for all of its clients."""

    nodes: Nodes
    standardisation: Standardisation

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Each client's id and outcome, in the order of the tasks."""
        due = list(tasks)
        outcomes: dict[str, Outcome] = {}
        answers = self._outcomes(due, outcomes)
        for task in due:
            while task.client_id not in outcomes:
                next(answers)
            outcome = outcomes.pop(task.client_id)
            if isinstance(outcome, str):
                _LOG.warning("round %d: client %s failed: %s", task.round, task.client_id, outcome)
            yield task.client_id, outcome

    def _outcomes(self, tasks: Sequence[ClientTask], outcomes: dict[str, Outcome]) -> Iterator[None]:
        """Ask the nodes and put down what comes of each client, node by node."""
        connected = self.nodes.refresh()
        at_node: dict[int, list[ClientTask]] = {}
        for task in tasks:
            at_node.setdefault(self.nodes.of_client(task.client_id), []).append(task)
        for node in at_node.keys() - connected:
            outcomes |= {task.client_id: NOT_CONNECTED for task in at_node.pop(node)}
            yield
        questions = {node: self._question(given) for node, given in at_node.items()}
        number = tasks[0].round if tasks else 0
        for node, answer in self.nodes.ask("train", questions, Updates, number):
            outcomes |= {task.client_id: self._outcome(task, answer) for task in at_node[node]}
            yield

    def _question(self, tasks: Sequence[ClientTask]) -> RecordDict:
        first = tasks[0]  # all clients of a round start from one model
        records = self.nodes.question(
            round=first.round, learning_rate=first.learning_rate, clients=[task.client_id for task in tasks]
        )
        put(records, "standardisation", self.standardisation.state_dict())
        put(records, "model", first.state)
        for task in tasks:
            if task.optimiser_state:
                put(records, f"optimiser/{task.client_id}", task.optimiser_state)
        return records

    def _outcome(self, task: ClientTask, answer: Answer[Updates] | str) -> Outcome:
        if isinstance(answer, str):
            return answer
        figures = answer.content.updates.get(task.client_id)
        if figures is None:
            return "its node's answer does not name it"
        if isinstance(figures, Refusal):
            return figures.reason
        if figures.num_examples > (held := self.nodes.num_examples[task.client_id]):
            return f"it says that it trained on {figures.num_examples} utterances, of {held}"
        try:
            state = take(answer.records, f"update/{task.client_id}", like=task.state)
            kept = take(answer.records, f"optimiser/{task.client_id}") if self._keeps_optimiser else {}
        except WireError as error:
            return str(error)
        return ClientUpdate(client_id=task.client_id, state=state, optimiser_state=kept, **figures.figures())

    @property
    def _keeps_optimiser(self) -> bool:
        return self.nodes.config.federation.keep_optimiser


@dataclass(slots=True)
class FlowerScorer:
    """A `Scorer` that asks the nodes for their speakers' confusion matrices."""

    nodes: Nodes
    standardisation: Standardisation
    _asked: int = field(default=0, init=False)

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """Confusion matrices of all holders that answer; they are asked twice."""
        sizes = self.nodes.sizes[part]
        found: dict[str, Confusion] = {}
        problems: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            missing = [holder for holder in sorted(sizes) if holder not in found]
            if not missing:
                break
            self._ask(models[GLOBAL], part, attacked, missing, found, problems)
        failures = [
            ClientFailure(client_id=holder, error=problems[holder], stage="validation")
            for holder in sorted(sizes)
            if holder not in found
        ]
        for failure in failures:
            _LOG.warning("no %s figures of %s: %s", part, failure.client_id, failure.error)
        return Scored({holder: found[holder] for holder in sorted(found)}, tuple(failures))

    def _ask(
        self,
        model: State,
        part: Part,
        attacked: bool,
        holders: Sequence[str],
        found: dict[str, Confusion],
        problems: dict[str, str],
    ) -> None:
        connected = self.nodes.refresh()
        at_node: dict[int, list[str]] = {}
        for holder in holders:
            at_node.setdefault(self.nodes.of_speaker(holder), []).append(holder)
        for node in at_node.keys() - connected:
            problems |= dict.fromkeys(at_node.pop(node), NOT_CONNECTED)
        records = self.nodes.question(part=part, attacked=attacked)
        put(records, "standardisation", self.standardisation.state_dict())
        put(records, "model", model)
        self._asked += 1
        for node, answer in self.nodes.ask("evaluate", dict.fromkeys(at_node, records), Confusions, self._asked):
            for holder in at_node[node]:
                matrix = answer if isinstance(answer, str) else self._matrix(holder, part, answer.content)
                if isinstance(matrix, str):
                    problems[holder] = matrix
                else:
                    found[holder] = matrix

    def _matrix(self, holder: str, part: Part, content: Confusions) -> Confusion | str:
        rows, num_classes = content.confusions.get(holder), len(self.nodes.classes)
        if rows is None:
            return "its node's answer does not name it"
        if len(rows) != num_classes or any(len(row) != num_classes for row in rows):
            return f"its confusion matrix is not of {num_classes} classes"
        if (count := sum(map(sum, rows))) != (held := self.nodes.sizes[part][holder]):
            return f"its confusion matrix is of {count} utterances, it has {held}"
        return np.asarray(rows, dtype=np.float64)
