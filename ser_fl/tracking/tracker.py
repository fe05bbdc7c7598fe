"""The tracker of a run: which backend shows it, and what happens when that fails."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.runs.redaction import public_config, public_text
from ser_fl.tracking.tensor_board import TensorBoard
from ser_fl.tracking.weights_and_biases import WeightsAndBiases, resolve_mode, run_begun_in, run_of_sweep_agent

logger = logging.getLogger(__name__)

BACKENDS = ("wandb", "tensorboard", "none")
MODES = ("auto", "online", "offline")


class Backend(Protocol):
    """Somewhere to show a run."""

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Figures of one round and of its clients."""
        ...

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        """Figures of attacks on the selected model."""
        ...

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """The content of ``summary.json``."""
        ...

    def finish(self) -> None:
        """Send what is left and close."""
        ...


class Tracker(Backend, Protocol):
    """A backend that never raises and knows how to go on after a restart."""

    def state(self) -> dict[str, Any]:
        """What `open_tracker` needs to go on in the same tracked run: JSON values, for the checkpoint."""
        ...


def open_tracker(settings: Mapping[str, Any], run: RunFolder, state: Mapping[str, Any] | None = None) -> Tracker:
    """Open the tracker of a run.

    A resumed run goes on in the same W&B run. Offline it cannot append: it writes a second ``offline-run-*`` folder
    of the same id beside the first, and ``wandb sync`` of both, oldest first, gives the one run. Rounds that were
    logged after the last checkpoint appear twice, with the same figures.

    Under an agent of a W&B sweep the run is the agent's, with its id, project and entity, whatever the settings and
    ``state`` say.

    Args:
        settings: the resolved configuration, as `ser_fl.config.schema.dump` gives it. "tracking" says where to show
            the run, and "experiment" is its name. W&B gets all of it but secrets, folders cut to their last name.
        run: the run folder; files go to ``wandb/`` or ``tensorboard/`` in it.
        state: what `Tracker.state` gave before the run was interrupted.

    Raises:
        UserError: an unknown backend or mode, online without a key, or TensorBoard without its package.
    """
    tracking = settings["tracking"]
    backend, mode = tracking["backend"], tracking["mode"]
    if backend not in BACKENDS:
        raise unknown_name("tracking backend", backend, BACKENDS)
    if mode not in MODES:
        raise unknown_name("tracking mode", mode, MODES)
    kept = dict(state or {})
    if backend == "none":
        return _Guarded(None, kept)
    if backend == "tensorboard":
        if find_spec("tensorboard") is None:
            raise UserError("tracking.backend=tensorboard needs the extra `tracking`: pip install 'ser-fl[tracking]'")
        return _Guarded(lambda: TensorBoard(run), kept)
    given = {"group": tracking["group"], "name": settings["experiment"], "mode": resolve_mode(mode)}
    if (run_id := run_of_sweep_agent()) is not None:
        kept["wandb_id"] = run_id
    else:
        run_id = kept.setdefault("wandb_id", run_begun_in(run) or uuid.uuid4().hex[:12])
        given |= {"project": tracking["project"], "entity": tracking["entity"], "id": str(run_id)}
    return _Guarded(lambda: WeightsAndBiases(run, given, public_config(settings)), kept)


class _Guarded:
    """A tracker around a backend: the first exception is one warning, and then there is no backend any more."""

    def __init__(self, open_backend: Callable[[], Backend] | None, state: dict[str, Any]) -> None:
        self._backend: Backend | None = None
        self._state = state
        if open_backend is not None:
            try:
                self._backend = open_backend()
            except Exception as error:
                self._give_up(error)

    def _try(self, call: Callable[[Backend], None]) -> None:
        if self._backend is None:
            return
        try:
            call(self._backend)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._backend = None
        reason = public_text(" ".join(f"{type(error).__name__}: {error}".split()))
        logger.warning("tracking failed and is off for the rest of this run, its folder has everything (%s)", reason)

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._try(lambda backend: backend.log_round(record, clients))

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        self._try(lambda backend: backend.log_attacks(records))

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._try(lambda backend: backend.log_summary(summary))

    def finish(self) -> None:
        self._try(lambda backend: backend.finish())
        self._backend = None

    def state(self) -> dict[str, Any]:
        return dict(self._state)
