"""The test of the model that a run selected, and what ``summary.json`` says of the run."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ser_fl.calibration import calibration_of, fitted
from ser_fl.config.schema import Config
from ser_fl.data.enrolment import in_words as scaling_in_words
from ser_fl.data.heard import in_words
from ser_fl.data.prepared import ClientManifest
from ser_fl.data.splits import PARTS
from ser_fl.errors import RoundFailed
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Executor, Scored
from ser_fl.federation.outliers import shown_parties
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.federation.server import Server
from ser_fl.metrics import Scores, figures_of_each, mean_scores, of_each_corpus, scores
from ser_fl.models.emotion_model import EmotionModel, save_local_models, save_model
from ser_fl.models.networks import build_network
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.parties import LeftOut
from ser_fl.runs.records import SUMMARY_SCHEMA, State

_LOG = logging.getLogger(__name__)


def scores_of(scored: Scored, config: Config) -> Scores:
    """Of all holders; with several corpora the means over these (`mean_scores`)."""
    each = of_each_corpus(scored.by_holder, config.data.corpora)
    return mean_scores([np.sum([*held.values()], axis=0) for held in each.values() if held])


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalTest:
    """Once all rounds are done; the fields are those of a `Federation`."""

    config: Config
    run: RunFolder
    client_manifest: ClientManifest
    executor: Executor
    own: OwnObjects

    def summary(self, server: Server, stopped: str) -> dict[str, Any]:
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
        test, scaling = scores_of(tested, config), None
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

    def without_liars(self, scored: Scored) -> tuple[Scored, list[LeftOut]]:
        """What the others say, where what somebody says cannot be, and who is left out for it."""
        liars = {self.executor.party_of(one.client_id): one.error for one in scored.failures if one.offence}
        names = {name for party in liars for name in party}
        honest = {holder: sums for holder, sums in scored.by_holder.items() if holder not in names}
        if not liars or not honest or not self.config.federation.strikes:
            return scored, []
        others = tuple(failure for failure in scored.failures if failure.client_id not in names)
        left_out = [self.executor.leave_out(*liar) for liar in liars.items()]
        for left in left_out:
            _LOG.warning("%s", left)
        return Scored(honest, others, scored.products), left_out
