"""The tracker of a run: which backends show it, and what happens when one fails."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.runs.redaction import public_text
from ser_fl.tracking.backend import Backend
from ser_fl.tracking.on_disk import MetricsCsv, TensorBoard
from ser_fl.tracking.wandb_settings import resolve_mode, wandb_settings
from ser_fl.tracking.weights_and_biases import WeightsAndBiases

logger = logging.getLogger(__name__)

BACKENDS = ("wandb", "tensorboard", "none")
MODES = ("auto", "online", "offline")


@dataclass(slots=True)
class Tracker:
    """Shows a run in its backends and never raises: a backend's first exception is one warning and its end."""

    state: dict[str, Any]
    """What `open_tracker` needs to go on in the same tracked run: JSON values, for the checkpoint."""
    backends: list[Backend] = field(default_factory=list, init=False)

    @property
    def description(self) -> str:
        """Where the run is shown, in words."""
        return ", ".join(filter(None, (backend.description for backend in self.backends)))

    @property
    def sending(self) -> str:
        """The command that sends what could not be sent; empty where there is nothing to send."""
        return "; ".join(filter(None, (backend.sending for backend in self.backends)))

    def open(self, backend: Callable[[], Backend]) -> None:
        self._attempt(lambda: self.backends.append(backend()))

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._each(lambda backend: backend.log_round(record, clients))

    def log_attacks(self, records: Sequence[AttackRecord], settings: Mapping[str, Any]) -> None:
        self._each(lambda backend: backend.log_attacks(records, settings))

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._each(lambda backend: backend.log_summary(summary))

    def log_evaluation(self, name: str, figures: Mapping[str, Any]) -> None:
        self._each(lambda backend: backend.log_evaluation(name, figures))

    def log_report(self) -> None:
        self._each(lambda backend: backend.log_report())

    def finish(self) -> None:
        self._each(lambda backend: backend.finish())
        self.backends.clear()

    def _each(self, show: Callable[[Backend], None]) -> None:
        self.backends = [backend for backend in self.backends if self._attempt(partial(show, backend))]

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Whether a call to a backend went well."""
        try:
            call()
        except Exception as error:
            reason = public_text(" ".join(f"{type(error).__name__}: {error}".split()))
            logger.warning(
                "tracking failed and is off for the rest of this run, its folder has everything (%s)", reason
            )
            return False
        return True


def open_tracker(settings: Mapping[str, Any], run: RunFolder, state: Mapping[str, Any] | None = None) -> Tracker:
    """Open the tracker of a run: ``metrics.csv``, and what the settings ask for.

    A resumed run goes on in the same W&B run, of the same project, entity and group, as do benchmarks, evaluations and
    reports. Offline it cannot append: it writes a second ``offline-run-*`` folder of the same id beside the first, and
    ``wandb sync`` of both, oldest first, gives the one run; rounds logged after the last checkpoint appear twice, with
    the same figures. Under an agent of a W&B sweep the run is the agent's, with its id, project and entity, whatever
    the settings and ``state`` say.

    Args:
        settings: the resolved configuration, as `ser_fl.config.schema.dump` gives it. "tracking" says where to show the
            run. W&B gets all of it but secrets, folders cut to their last name.
        run: the run folder; files go to ``wandb/`` or ``tensorboard/`` in it.
        state: `Tracker.state` before the run was interrupted.

    Raises:
        UserError: an unknown backend or mode, online without a key, or TensorBoard without its package.
    """
    tracking = settings["tracking"]
    backend, mode = tracking["backend"], tracking["mode"]
    if backend not in BACKENDS:
        raise unknown_name("tracking backend", backend, BACKENDS)
    if mode not in MODES:
        raise unknown_name("tracking mode", mode, MODES)
    tracker = Tracker(dict(state or {}))
    tracker.open(lambda: MetricsCsv(run))
    if backend == "tensorboard":
        if find_spec("tensorboard") is None:
            raise UserError("tracking.backend=tensorboard needs the extra `tracking`: pip install 'ser-fl[tracking]'")
        tracker.open(lambda: TensorBoard(run, per_client=tracking["per_client"]))
    elif backend == "wandb":
        given = wandb_settings(settings, run, tracker.state) | {"mode": resolve_mode(mode)}
        tracker.open(lambda: WeightsAndBiases(run, given, settings))
    return tracker
