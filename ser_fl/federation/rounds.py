"""A run, wherever its clients are: its rounds, what they leave on disk, and the test of the selected model."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ser_fl.calibration import calibration_of, fitted
from ser_fl.config.schema import CONFIG_SCHEMA, Config, dump
from ser_fl.data.enrolment import in_words as scaling_in_words
from ser_fl.data.heard import in_words
from ser_fl.data.prepared import ClientManifest
from ser_fl.data.splits import PARTS
from ser_fl.devices import devices_of
from ser_fl.errors import RoundFailed, UserError, one_line
from ser_fl.federation.algorithm import GLOBAL, scheduled_share
from ser_fl.federation.checkpoint import Checkpoint, checkpoint_key, go_on_from, save_checkpoint
from ser_fl.federation.client import ClientTask, Executor, Scored
from ser_fl.federation.fine_tuning import FirstRun
from ser_fl.federation.hooks import Hooks, Opening, num_parameters
from ser_fl.federation.own_objects import NOTHING, OwnObjects, qualified_name
from ser_fl.federation.parties import shown_parties
from ser_fl.federation.profile import RunProfile
from ser_fl.federation.server import ClientResults, Server, new_server
from ser_fl.files import write_bytes, write_json
from ser_fl.metrics import Scores, figures_of_each, mean_scores, of_each_corpus, scores
from ser_fl.models.emotion_model import EmotionModel, save_local_models, save_model
from ser_fl.models.networks import build_network
from ser_fl.randomness import generator
from ser_fl.runs.environment import describe_environment
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import (
    PROFILE_SCHEMA,
    SUMMARY_SCHEMA,
    ClientFailure,
    LeftOut,
    RoundRecord,
    State,
    shown_names,
)
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
                self.executor.leave_out(left.names)
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
            summary = self.test(server, stopped) | found
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
        out = {name for left in server.left_out for name in left.names}
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
                validation = self.figures(scored)
                failures += scored.failures
            if selection.robust_every and (is_last or number % selection.robust_every == 0):
                attacked = self.executor.score(server.judged, "validation", attacked=True)
                robust = self.figures(attacked).uar
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
        newly = [self.leave_out(party, reason + offences[party]) for party in server.strike(offences, len(asked), most)]
        server.left_out += newly
        if newly and server.best_score > 0:
            server.best_score = 0.0
        return newly

    def leave_out(self, party: tuple[str, ...], reason: str) -> LeftOut:
        left_out = replace(self.executor.leave_out(party), reason=one_line(reason))
        _LOG.warning("%s", left_out)
        return left_out

    def without_liars(self, scored: Scored) -> tuple[Scored, list[LeftOut]]:
        """What the others say, where what somebody says cannot be, and who is left out for it."""
        liars = {self.executor.party_of(one.client_id): one.error for one in scored.failures if one.offence}
        names = {name for party in liars for name in party}
        honest = {holder: sums for holder, sums in scored.by_holder.items() if holder not in names}
        if not liars or not honest or not self.config.federation.strikes:
            return scored, []
        others = tuple(failure for failure in scored.failures if failure.client_id not in names)
        return Scored(honest, others, scored.products), [self.leave_out(*liar) for liar in liars.items()]

    def figures(self, scored: Scored) -> Scores:
        """Of all holders; with several corpora the means over these (`mean_scores`)."""
        each = of_each_corpus(scored.by_holder, self.config.data.corpora)
        return mean_scores([np.sum([*held.values()], axis=0) for held in each.values() if held])

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
        left_out = len({name for left in server.left_out for name in left.names}.intersection(all_clients))
        share = left_out / (len(all_clients) - left_out)
        return sum(failure.offence for failure in failures) + int(share * len(cohort) + 1e-9)

    def calibrate(self, models: Mapping[str, State]) -> dict[str, Any]:
        """One temperature for the selected models, by the validation utterances of all clients together, and how far
        probabilities of test utterances can be believed without and with it. Models of `federation=local_only` share
        it: few clients have the utterances for one of their own. None in place of figures that a holder is missing in.
        """
        validated = self.executor.confidences(models, "validation")
        fit = fitted(validated.by_holder, [failure.client_id for failure in validated.failures])
        tested = self.executor.confidences(models, "test", fit.temperature)
        before, after = [None, None] if tested.failures else [asdict(calibration_of(sums)) for sums in tested.total]
        return {**asdict(fit), "uncalibrated": before, "calibrated": after}

    def test(self, server: Server, stopped: str) -> dict[str, Any]:
        """Write the selected round's model, score it on the test part, and tell of the run what ``summary.json`` does.
        With `federation=local_only` the figures are over all clients' models, and the first client's is saved as the
        model, beside everybody's own. `RoundFailed` where a holder of test utterances gave no figures.
        """
        config, run, manifest, best = self.config, self.run, self.client_manifest, server.best
        network = build_network(
            config.model, len(manifest.classes), seed=config.seed, own=self.own.network, frontend=config.frontend
        )
        network.load_state_dict(best.get(GLOBAL) or next(iter(best.values())))
        calibration = self.calibrate(best)
        bundle = EmotionModel(
            network,
            manifest.standardisation,
            classes=manifest.classes,
            model=config.model,
            frontend=config.frontend,
            synthetic=config.data.synthetic,
            own_network=config.objects.get("network"),
            by_speaker=config.normalisation.name == "speaker",
            fallback=manifest.fallback,
            corpora=manifest.corpora,
            temperature=calibration["temperature"],
        )
        save_model(run.root, bundle)
        if GLOBAL not in best:
            save_local_models(run.root, best)
        tested, liars = self.without_liars(self.executor.score(best, "test"))
        if tested.failures:
            reasons = "\n".join(f"{failure.client_id}: {failure.error}" for failure in tested.failures)
            raise RoundFailed(
                f"all rounds are done, but {len(tested.failures)} of {len(manifest.sizes['test'])} holders of test "
                f"utterances gave no figures; the same command with resume=true asks again:\n{reasons}"
            )
        test, scaling = self.figures(tested), None
        if config.normalisation.name == "speaker":
            scaling = scaling_in_words(config.enrolment, len(manifest.sizes["test"].keys() - manifest.sizes["train"]))
        own_emotions = {name: member.emotions for name, member in manifest.corpora.items()}
        cut = {} if tested.products is None else {"recording_products": tested.products.tolist()}
        return {
            "schema": SUMMARY_SCHEMA,
            "experiment": config.experiment,
            "synthetic": config.data.synthetic,
            "classes": list(manifest.classes),
            "split": config.split.name,
            "split_speakers": {part: sorted(manifest.sizes[part]) for part in PARTS},
            "split_sizes": {part: sum(manifest.sizes[part].values()) for part in PARTS},
            "shared": manifest.shared and asdict(manifest.shared) | {"words": "; ".join(in_words(manifest.shared))},
            "normalisation": scaling,
            "left_out": [asdict(left) for left in (*manifest.left_out, *server.left_out, *liars)],
            "parties": shown_parties(run, self.executor.party_of, manifest, tested.by_holder),
            "skipped": [{"id": file.utterance_id, "reason": file.reason} for file in manifest.skipped],
            "num_clients": len(manifest.client_ids),
            "num_rounds": server.round,
            "selected_round": server.best_round,
            "selection_score": None if server.best_score < 0 else server.best_score,
            "stopped": stopped,
            "calibration": calibration,
            "test": {
                **asdict(test),
                "confusion": tested.total.tolist(),
                "per_speaker_uar": {speaker: scores(confusion).uar for speaker, confusion in tested.by_holder.items()},
                "per_speaker_confusion": {name: confusion.tolist() for name, confusion in tested.by_holder.items()},
                **cut,
            },
            **({"corpora": figures_of_each(tested.by_holder, own_emotions, manifest.classes)} if own_emotions else {}),
        }


def cohort_size(num_clients: int, fraction: float) -> int:
    """Clients of a round: a share of all, and at least one."""
    return max(1, round(fraction * num_clients))


def sample_cohort(
    client_ids: Sequence[str], fraction: float, seed: int, number: int, always: str | None = None
) -> tuple[str, ...]:
    """Clients of a round: a share of all, drawn without replacement by (seed, round); kept in their order. One that is
    in all of them, ``always``, is the first.
    """
    count = cohort_size(len(client_ids), fraction)
    drawn = torch.randperm(len(client_ids), generator=generator(seed, "cohort", number))[:count]
    cohort = tuple(client_ids[index] for index in sorted(drawn.tolist()))
    if always is None or always not in client_ids:
        return cohort
    return always, *(each for each in cohort if each != always)


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
