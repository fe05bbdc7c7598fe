"""A run, wherever its clients are: its rounds, what they leave on disk, and the test of the selected model."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from ser_fl.config.schema import CONFIG_SCHEMA, Config, dump
from ser_fl.data.prepared import ClientManifest
from ser_fl.devices import devices_of
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.algorithm import GLOBAL, scheduled_share
from ser_fl.federation.checkpoint import Checkpoint, checkpoint_key, go_on_from, save_checkpoint
from ser_fl.federation.client import ClientTask, Executor
from ser_fl.federation.cohort import cohort_size, sample_cohort
from ser_fl.federation.fine_tuning import FirstRun
from ser_fl.federation.hooks import Hooks, Opening, num_parameters
from ser_fl.federation.own_objects import NOTHING, OwnObjects, qualified_name
from ser_fl.federation.profile import RunProfile
from ser_fl.federation.server import ClientResults, Server, new_server
from ser_fl.federation.summary import FinalTest, scores_of
from ser_fl.files import write_bytes, write_json
from ser_fl.runs.environment import describe_environment
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.parties import LeftOut, shown_names
from ser_fl.runs.records import PROFILE_SCHEMA, ClientFailure, RoundRecord
from ser_fl.runs.redaction import is_private, remember
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.tracking import Tracker, open_tracker

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """An experiment whose data are somewhere: what the server knows of them, and who trains and scores."""

    config: Config
    """With its precision settled."""
    run: RunFolder
    """Nobody else writes to it."""
    client_manifest: ClientManifest
    executor: Executor
    own: OwnObjects = NOTHING
    hooks: Hooks = field(default_factory=Hooks)
    first: FirstRun | None = None
    """Whose model this run begins from, where it does and no checkpoint is there to go on from."""

    def conduct(self, checkpoint: Checkpoint | None) -> None:
        """The rounds that are left after a checkpoint, and the test of the selected model.

        Raises:
            UserError: what no round could put right, before anything is written: too few clients for
                `federation.min_clients`, a checkpoint of other data or of another server.
            RoundFailed: too few clients came back in a round, or a holder of test utterances gave no figures.
        """
        config, run, client_ids = self.config, self.run, self.client_manifest.client_ids
        fraction, least = config.federation.fraction_train, config.federation.min_clients
        if least > (size := cohort_size(len(client_ids), fraction)):
            raise UserError(
                f"federation.min_clients must be at most {size}, the clients of a round (federation.fraction_train="
                f"{fraction:g} of {len(client_ids)}), got {least}"
            )
        if checkpoint is not None and checkpoint.committed.data_digest != self.client_manifest.digest:
            raise UserError(f"{run.root} was trained on other data than {config.data.name} holds now: start a new run")
        initial = None
        if self.first is not None:
            initial = self.first.initial_weights(config, self.client_manifest.classes, self.own.network)
        server = new_server(config, self.client_manifest, self.own, initial)
        aggregation = server.algorithm.aggregation
        cohort = sample_cohort(client_ids, fraction, config.seed, 1, aggregation.always)
        if (refusal := aggregation.refusal(cohort)) is not None:
            raise UserError(refusal)
        if checkpoint is not None:
            go_on_from(checkpoint, server, client_ids)
            for left in server.left_out:
                self.executor.leave_out(left.names, left.reason)
        settings, profile = dump(config), RunProfile(config) if config.profile else None
        tracker = open_tracker(settings, run, server.tracking)
        devices = [str(device) for device in devices_of(config.executor.accelerator)]
        try:
            if server.round == 0:
                if self.first is not None:
                    self.first.pass_on(run)
                environment = describe_environment(seed=config.seed, threads=config.executor.threads, devices=devices)
                callbacks = [qualified_name(callback) for callback in self.own.callbacks]
                write_json(run.environment, environment | {"objects": config.objects, "callbacks": callbacks})
            if checkpoint is None or checkpoint.num_rounds < config.federation.num_rounds:
                write_config(run, config)
            for path in filter(Path.exists, (run.rounds, run.clients)):  # drop what came after the last checkpoint
                os.truncate(path, min(server.lengths.get(path.name, 0), path.stat().st_size))
            self.hooks.on_opening(
                Opening(
                    config=config,
                    run=run,
                    client_manifest=self.client_manifest,
                    devices=devices,
                    num_parameters=num_parameters(next(iter(server.algorithm.models.values()))),
                    round=server.round,
                    tracked=tracker.description,
                    sending=tracker.sending,
                )
            )
            try:
                while (stopped := self.why_stop(server)) is None:
                    with self.hooks.preemption.round() if self.hooks.preemption else nullcontext():
                        self.run_round(server, tracker, profile)
            finally:
                if profile is not None and (record := profile.record()) is not None:
                    write_json(run.profile, {"schema": PROFILE_SCHEMA, **asdict(record)})
                    self.hooks.on_profile(record)
            found = self.executor.findings(server.best, server.algorithm.models, server.round)
            final = FinalTest(
                config=config,
                run=run,
                client_manifest=self.client_manifest,
                executor=self.executor,
                own=self.own,
            )
            summary = final.summary(server, stopped) | found
            write_json(run.summary, summary)
            tracker.log_summary(summary)
        finally:
            tracker.finish()

    def why_stop(self, server: Server) -> str | None:
        """All rounds done, or the validation plateau; None while there is something left to do."""
        settings, selection = self.config.federation, self.config.selection
        if server.round >= settings.num_rounds:
            return f"all {settings.num_rounds} rounds done"
        every = selection.robust_every if selection.by == "robust" else selection.every
        if server.round % every == 0 and settings.patience and server.round - server.best_round >= settings.patience:
            return f"no new best validation UAR for {settings.patience} rounds"
        return None

    def run_round(self, server: Server, tracker: Tracker, profile: RunProfile | None) -> None:
        """Train, score where the round does, then commit: the records, and the checkpoint, which makes it count."""
        config, selection, run = self.config, self.config.selection, self.run
        watch = UNWATCHED
        if profile is not None:
            profile.stopwatch.restart()
            watch = profile.stopwatch.part
        started, number = time.perf_counter(), server.round + 1
        out = server.names_out
        remaining = [client_id for client_id in self.client_manifest.client_ids if client_id not in out]
        if len(remaining) < (least := config.federation.min_clients):
            raise RoundFailed(
                f"round {number} has {len(remaining)} clients that are not left out, needs {least} "
                f"(federation.min_clients); left out after federation.strikes={config.federation.strikes} offences: "
                f"{shown_names(sorted(out))}"
            )
        always = server.algorithm.aggregation.always
        cohort = sample_cohort(remaining, config.federation.fraction_train, config.seed, number, always)
        rate, server_rate = config.optimiser.learning_rate, server.algorithm.learning_rate(number)
        if server_rate is None:  # else it is the server's that is scheduled
            rate *= scheduled_share(config.optimiser, number)
        results = self.train(server, cohort, number, rate, watch)
        with watch("evaluation"):
            is_last, validation, robust = number == config.federation.num_rounds, None, None
            failures, trained = list(results.failures), results.records
            is_validated = bool(self.client_manifest.sizes["validation"])
            if is_validated and (is_last or number % selection.every == 0):
                scored = self.executor.score(server.judged, "validation")
                validation = scores_of(scored, config)
                failures += scored.failures
            if selection.robust_every and (is_last or number % selection.robust_every == 0):
                attacked = self.executor.score(server.judged, "validation", attacked=True)
                robust = scores_of(attacked, config).uar
                failures += attacked.failures
            left_out = self.strike(server, failures, cohort)
            record = RoundRecord(
                round=number,
                cohort=cohort,
                train_loss=sum(client.train_loss * client.num_examples for client in trained)
                / sum(client.num_examples for client in trained),
                uar=validation.uar if validation else None,
                accuracy=validation.accuracy if validation else None,
                macro_f1=validation.macro_f1 if validation else None,
                learning_rate=rate,
                server_learning_rate=server_rate,
                robust_uar=robust,
                shares={name: float(f"{share:.6g}") for name, share in server.algorithm.shares.items()},
                failures=tuple(failures),
                left_out=tuple(left_out),
                seconds=time.perf_counter() - started,
            )
        with watch("records"):
            run.append(run.rounds, [record])
            run.append(run.clients, trained)
            with watch("tracking"):
                tracker.log_round(record, trained)
            server.round = number
            score = record.robust_uar if selection.by == "robust" else record.uar
            is_whole = all(failure.stage == "training" for failure in record.failures)  # else of fewer utterances
            server.select(score if is_whole else None, is_last=selection.by == "last")
            server.lengths = {path.name: path.stat().st_size for path in (run.rounds, run.clients)}
            server.tracking = tracker.state
            save_checkpoint(run.checkpoint, server, checkpoint_key(config))
        if profile is not None:
            profile.add(number, results.nanoseconds)
        self.hooks.on_round(record)

    def strike(self, server: Server, failures: Sequence[ClientFailure], cohort: Sequence[str]) -> list[LeftOut]:
        """Count this round's offences, and leave out who has had the last one. Figures are then of fewer utterances:
        what was selected before is held against nothing that comes.
        """
        most = self.config.federation.strikes
        offences = {self.executor.party_of(one.client_id): one.error for one in failures if one.offence}
        asked = offences.keys() | {self.executor.party_of(client_id) for client_id in cohort}
        reason = f"{most} offences (federation.strikes), the last one: "
        parties = server.strike(offences, len(asked), most)
        newly = [self.executor.leave_out(party, reason + offences[party]) for party in parties]
        for left in newly:
            _LOG.warning("%s", left)
        server.left_out += newly
        if newly and server.best_score > 0:
            server.best_score = 0.0
        return newly

    def train(
        self, server: Server, cohort: Sequence[str], number: int, learning_rate: float, watch: Watch = UNWATCHED
    ) -> ClientResults:
        """Broadcast, client updates, aggregation: the server has the round's model afterwards. `RoundFailed` tells what
        the others said where too few clients came back.
        """
        folders = (*self.config.data.folders.values(), self.config.data.cache_dir, str(self.run.root))
        server.algorithm.begin(number)
        reference = server.algorithm.model_for(cohort[0])
        results = ClientResults(
            round=number,
            reference=reference,
            server=server,
            num_examples=self.client_manifest.num_examples,
            folders=tuple(filter(None, folders)),
        )
        tasks = (
            ClientTask(
                round=number,
                client_id=client_id,
                state=server.algorithm.model_for(client_id),
                learning_rate=learning_rate,
                optimiser_state=server.optimiser_states.get(client_id, {}),
            )
            for client_id in cohort
        )
        with watch("waiting"):
            for client_id, outcome in self.executor.run(tasks):
                with watch("aggregation"):
                    results.take(client_id, outcome)
                del outcome  # else it would be kept while the next client trains
        count, minimum = len(results.records), self.config.federation.min_clients
        refusal = server.algorithm.refusal(
            [record.client_id for record in results.records], self.known_hostile(server, cohort, results.failures)
        )
        if count < minimum or refusal is not None:
            reasons = "\n".join(f"client {failure.client_id}: {failure.error}" for failure in results.failures)
            wanted = f", needs {minimum}" if count < minimum else f"; {refusal}"
            raise RoundFailed(f"round {number} has {count} updates{wanted}:\n{reasons}")
        with watch("aggregation"):
            server.algorithm.finish(number)
            results.note_lengths_and_directions()
            if server.average is not None:
                server.average.add(server.algorithm.models[GLOBAL])
        return results

    def known_hostile(self, server: Server, cohort: Sequence[str], failures: Sequence[ClientFailure]) -> int:
        """Those whose updates were refused in this round, and of those who were left out before as many as would have
        been in the cohort.
        """
        all_clients = self.client_manifest.client_ids
        left_out = len(server.names_out.intersection(all_clients))
        share = left_out / (len(all_clients) - left_out)
        return sum(failure.offence for failure in failures) + int(share * len(cohort) + 1e-9)


def write_config(run: RunFolder, config: Config) -> None:
    """What a run is: ``config.yaml``, which holds no absolute folders (`ser_fl.runs.redaction` remembers them), nor the
    run folder: a repetition is a run of its own.
    """
    settings = dump(config)
    data = settings["data"]
    for stage, key in ((data, "root"), (data, "cache_dir"), (settings, "init_from"), (settings["frontend"], "path")):
        if stage.get(key):
            stage[key] = remember(stage[key])
    data["roots"] = {name: remember(folder) for name, folder in data["roots"].items()}
    if not settings["run_dir"] or is_private(settings["run_dir"]):
        settings["run_dir"] = None
    content = {"schema": CONFIG_SCHEMA, **settings}
    write_bytes(run.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
