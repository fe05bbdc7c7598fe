"""Fine-tuning (`init_from`): a run that begins with the weights of another run's selected model, and has heard what
that one heard.

Features are standardised by the new corpus's own statistics, from its clients' sums as in any training, and not by the
first run's: another corpus has other microphones and levels, and normalising each corpus by itself is what carries
emotions across corpora best (Schuller et al., IEEE Transactions on Affective Computing 1(2), 2010). An attack's epsilon
is then in units of the speech that it is made for.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ser_fl.config.schema import Config
from ser_fl.config.values import ObjectConfig
from ser_fl.data.heard import Heard
from ser_fl.data.prepared import Prepared
from ser_fl.errors import UserError, shown
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.models.networks import NetworkSource, build_network
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import State
from ser_fl.runs.zoo import readable_run

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """The run that another one begins from."""

    said: str
    """The setting, for messages."""
    model: EmotionModel
    heard: Heard | None
    """None where it is not on record."""

    @classmethod
    def of(cls, config: Config, own_network: NetworkSource | None) -> Self:
        """The run that `init_from` names.

        Raises:
            UserError: there is no finished run, it has no model that all clients share, or one of another network or
                front end.
        """
        assert config.init_from is not None
        said, run = f"init_from={config.init_from}", RunFolder(readable_run(Path(config.init_from).expanduser()))
        if run.local_clients:
            raise UserError(f"{said} has a model for each client (federation=local_only) and none that they share")
        model = load_model(run, network=own_network)
        differing = [*_differing("frontend", model.frontend_config, config.frontend)]
        if own_network is None or isinstance(config.model, ObjectConfig):  # else it came from Python
            differing += _differing("model", model.model_config, config.model)
        own, its = config.normalisation.name, "speaker" if model.by_speaker else "pooled"
        differing += [("normalisation", its, own)] if its != own else []
        for setting, theirs, ours in differing:
            raise UserError(
                f"{said} has {setting}={shown(theirs)}, this run {shown(ours)}: take the same network, front end and "
                "normalisation"
            )
        if (heard := Heard.read(run.heard, run.heard_sounds)) is None:
            _LOG.warning("what %s heard in training is not on record: nothing can tell whether a test knows it", said)
        return cls(said=said, model=model, heard=heard)

    def initial_weights(self, config: Config, classes: Sequence[str], own_network: NetworkSource | None) -> State:
        """The first model's weights for these emotions. Rows of the final layer are copied where both know the emotion;
        the others are drawn anew, as without `init_from`, which is told.
        """
        state: State = dict(self.model.network.state_dict())
        known, theirs = [emotion for emotion in classes if emotion in self.model.classes], self.model.classes
        if theirs == tuple(classes):
            return state
        fresh, larger = (
            build_network(config.model, count, seed=config.seed, own=own_network, frontend=config.frontend).state_dict()
            for count in (len(classes), len(classes) + 1)
        )
        final = [name for name in fresh if larger[name].shape != fresh[name].shape]
        if not final or any(
            fresh[name].shape[:1] != (len(classes),) or state[name].shape != (len(theirs), *fresh[name].shape[1:])
            for name in final
        ):
            raise UserError(
                f"{self.said} knows the emotions {', '.join(theirs)}, this corpus has {', '.join(classes)}, and the "
                "network has no final layer with a row for each: take a corpus of the same emotions"
            )
        for name in final:
            rows, from_rows = ([names.index(emotion) for emotion in known] for names in (tuple(classes), theirs))
            fresh[name][rows] = state[name][from_rows]
            state[name] = fresh[name]
        anew = [emotion for emotion in classes if emotion not in known]
        left = [emotion for emotion in theirs if emotion not in known]
        _LOG.warning(
            "%s: the final layer knows %s%s%s",
            self.said,
            ", ".join(known) or "none of these emotions",
            f"; starts anew for {', '.join(anew)}" if anew else "",
            f"; has no use for {', '.join(left)}" if left else "",
        )
        return state

    def pass_on(self, run: RunFolder) -> None:
        """Write down in a run that begins what this one had heard."""
        Heard.before_training(self.heard).write(run.heard, run.heard_sounds)

    def warn_of(self, prepared: Prepared, config: Config) -> None:
        """Tell where test utterances are among what this run heard."""
        rows = prepared.split.test
        if self.heard and (seen := self.heard.recordings(prepared.store, rows, config.frontend)):
            _LOG.warning(
                "%s heard %d of the %d test utterances, such as %s: test figures are of speech that the model knows",
                self.said,
                len(seen),
                len(rows),
                prepared.store.utterances[seen[0]].utterance_id,
            )


def _differing(stage: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, and both values; dropout has no weights, and an encoder is not where it lies."""
    for setting in fields(ours):
        before, now = getattr(theirs, setting.name, None), getattr(ours, setting.name)
        if before != now and setting.name not in ("dropout", "path"):
            yield f"{stage}.{setting.name}", before, now
