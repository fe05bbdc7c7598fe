"""The round loop: broadcast, client updates, aggregation, evaluation, record, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ser_fl.config.schema import Config
from ser_fl.errors import RoundFailed
from ser_fl.federation.algorithm import scheduled_share
from ser_fl.federation.checkpoint import Progress, checkpoint_key, save_checkpoint
from ser_fl.federation.client import ClientTask
from ser_fl.federation.client_results import ClientResults
from ser_fl.federation.executors.executor import Executor
from ser_fl.federation.profile import OnProfile, RunProfile
from ser_fl.federation.scoring import Scorer
from ser_fl.federation.server import Server
from ser_fl.metrics import scores
from ser_fl.randomness import generator
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import Preemption
from ser_fl.runs.records import ClientRecord, RoundRecord
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.tracking import Tracker

OnRound = Callable[[RoundRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Who watches a run, and who may end it."""

    on_round: OnRound = lambda record: None
    """Told of every committed round."""
    on_profile: OnProfile = lambda profile: None
    """Told where the time of the rounds went, with `profile=true`; of a run that is cut short too."""
    preemption: Preemption = field(default_factory=Preemption)
    """Whose signals a round in flight is sheltered from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """A server's view of its clients, and of whoever scores its models."""

    config: Config
    client_ids: tuple[str, ...]
    executor: Executor
    scorer: Scorer
    run: RunFolder
    tracker: Tracker
    profile: RunProfile | None = None
    """Where the time goes, if anybody wants to know."""
    watch: Watch = UNWATCHED
    """The server's; the profile's, where there is one."""
    hooks: Hooks = field(default_factory=Hooks)

    def run_rounds(self, progress: Progress) -> str:
        """Run the rounds that are left, and say why there are no more."""
        while (reason := self.why_stop(progress)) is None:
            with self.hooks.preemption.round():
                self.run_round(progress)
        return reason

    def run_round(self, progress: Progress) -> None:
        """The next round, up to its commit."""
        self.watch.restart()
        started, server, number = time.perf_counter(), progress.server, progress.round + 1
        cohort = self.cohort(number)
        results = self.train(server, cohort, number)
        with self.watch.part("evaluation"):
            record = self.measure(server, cohort, results, started)
        with self.watch.part("records"):
            self.commit(progress, record, results.records)
        if self.profile is not None:
            self.profile.add(number, results.nanoseconds)
        self.hooks.on_round(record)

    def why_stop(self, progress: Progress) -> str | None:
        """All rounds done, or the validation plateau; None while there is something left to do."""
        settings, selection = self.config.federation, self.config.selection
        if progress.round >= settings.num_rounds:
            return f"all {settings.num_rounds} rounds done"
        was_scored = self.is_due(
            selection.robust_every if selection.by == "robust" else selection.every, progress.round
        )
        if was_scored and settings.patience and progress.round - progress.best_round >= settings.patience:
            return f"no new best validation UAR for {settings.patience} rounds"
        return None

    def train(self, server: Server, cohort: tuple[str, ...], number: int) -> ClientResults:
        """Broadcast, client updates, aggregation: the server has the round's model afterwards.

        Raises:
            RoundFailed: too few clients came back; it tells what the others said.
        """
        results = ClientResults(
            round=number,
            reference=server.algorithm.model_for(cohort[0]),
            server=server,
            folders=tuple(
                folder for folder in (self.config.data.root, self.config.data.cache_dir, str(self.run.root)) if folder
            ),
        )
        with self.watch.part("waiting"):
            for client_id, outcome in self.executor.run(self.task(server, client, number) for client in cohort):
                with self.watch.part("aggregation"):
                    results.take(client_id, outcome)
                del outcome  # else it would be kept while the next client trains
        count, minimum = len(results.records), self.config.federation.min_clients
        if count < minimum:
            reasons = "\n".join(f"client {failure.client_id}: {failure.error}" for failure in results.failures)
            raise RoundFailed(f"round {number} has {count} updates, needs {minimum}:\n{reasons}")
        with self.watch.part("aggregation"):
            server.finish(number)
        return results

    def cohort(self, number: int) -> tuple[str, ...]:
        """Clients that take part in a round."""
        return sample_cohort(self.client_ids, self.config.federation.fraction_train, self.config.seed, number)

    def learning_rate(self, server: Server, number: int) -> float:
        """Of the clients: scheduled, unless the server has a rate of its own that is."""
        optimiser = self.config.optimiser
        is_scheduled = server.algorithm.learning_rate(number) is None
        return optimiser.learning_rate * scheduled_share(optimiser, number) if is_scheduled else optimiser.learning_rate

    def task(self, server: Server, client_id: str, number: int) -> ClientTask:
        """What a client receives."""
        return ClientTask(
            round=number,
            client_id=client_id,
            state=server.algorithm.model_for(client_id),
            learning_rate=self.learning_rate(server, number),
            optimiser_state=server.optimiser_states.get(client_id, {}),
        )

    def measure(self, server: Server, cohort: tuple[str, ...], results: ClientResults, started: float) -> RoundRecord:
        """Score the new models on the validation part in rounds that do, under attack in those that do; in the last
        round in any case.
        """
        selection, number = self.config.selection, results.round
        validation, robust, failures = None, None, list(results.failures)
        if self.is_due(selection.every, number):
            scored = self.scorer.score(server.judged, "validation")
            validation = scores(scored.total)
            failures += scored.failures
        if selection.robust_every and self.is_due(selection.robust_every, number):
            attacked = self.scorer.score(server.judged, "validation", attacked=True)
            robust = scores(attacked.total).uar
            failures += attacked.failures
        return RoundRecord(
            round=number,
            cohort=cohort,
            train_loss=results.train_loss,
            uar=validation.uar if validation else None,
            accuracy=validation.accuracy if validation else None,
            macro_f1=validation.macro_f1 if validation else None,
            learning_rate=self.learning_rate(server, number),
            server_learning_rate=server.algorithm.learning_rate(number),
            robust_uar=robust,
            failures=tuple(failures),
            seconds=time.perf_counter() - started,
        )

    def is_due(self, every: int, number: int) -> bool:
        """Whether a round takes what every so many rounds take, and the last one."""
        return number % every == 0 or number == self.config.federation.num_rounds

    def commit(self, progress: Progress, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Append the round's records, select, then write the checkpoint, which makes the round count."""
        self.run.append(self.run.rounds, [record])
        self.run.append(self.run.clients, clients)
        with self.watch.part("tracking"):
            self.tracker.log_round(record, clients)
        progress.round = record.round
        score = record.robust_uar if self.config.selection.by == "robust" else record.uar
        progress.select(score if record.is_fully_scored else None)
        progress.lengths = {path.name: path.stat().st_size for path in (self.run.rounds, self.run.clients)}
        progress.tracking = self.tracker.state()
        save_checkpoint(self.run.checkpoint, progress, checkpoint_key(self.config))


def cohort_size(num_clients: int, fraction: float) -> int:
    """Clients of a round: a share of all, and at least one."""
    return max(1, round(fraction * num_clients))


def sample_cohort(client_ids: Sequence[str], fraction: float, seed: int, number: int) -> tuple[str, ...]:
    """Clients of a round: a share of all, drawn without replacement by (seed, round); kept in their order."""
    count = cohort_size(len(client_ids), fraction)
    drawn = torch.randperm(len(client_ids), generator=generator(seed, "cohort", number))[:count]
    return tuple(client_ids[index] for index in sorted(drawn.tolist()))
