"""The tracker of a run: which backend shows it, and what happens when that fails."""

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.runs.redaction import public_config, public_text
from ser_fl.tracking.metric_names import attack_metrics, round_metrics, summary_metrics
from ser_fl.tracking.weights_and_biases import WeightsAndBiases, resolve_mode, run_begun_in

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

BACKENDS = ("wandb", "tensorboard", "none")
MODES = ("auto", "online", "offline")
_LONGEST_NAME = 128
"""Characters of a W&B run's name."""

T = TypeVar("T")


class TensorBoard:
    """Scalars for TensorBoard in the run folder, opened at the first figure."""

    def __init__(self, run: RunFolder) -> None:
        self._folder = run.root / "tensorboard"
        self._writer: SummaryWriter | None = None

    def _write(self, metrics: Mapping[str, float], step: int, *, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # The purge hides rounds that a killed run logged after the checkpoint that this one goes on from.
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._write(round_metrics(record, clients), record.round, purge_step=record.round)

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        self._write(attack_metrics(records), 0)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._write(summary_metrics(summary), summary["selected_round"])

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


@dataclass(slots=True)
class Tracker:
    """Shows a run in its backend and never raises: the first exception is one warning and the end of the backend."""

    state: dict[str, Any]
    """What `open_tracker` needs to go on in the same tracked run: JSON values, for the checkpoint."""
    backend: WeightsAndBiases | TensorBoard | None = field(default=None, init=False)

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        if self.backend is not None:
            self.attempt(self.backend.log_round, record, clients)

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        if self.backend is not None:
            self.attempt(self.backend.log_attacks, records)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        if self.backend is not None:
            self.attempt(self.backend.log_summary, summary)

    def finish(self) -> None:
        if self.backend is not None:
            self.attempt(self.backend.finish)
            self.backend = None

    def attempt(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """What a call to the backend gives, or None and no backend any more."""
        try:
            return call(*arguments)
        except Exception as error:
            self.backend = None
            reason = public_text(" ".join(f"{type(error).__name__}: {error}".split()))
            logger.warning(
                "tracking failed and is off for the rest of this run, its folder has everything (%s)", reason
            )
            return None


def open_tracker(settings: Mapping[str, Any], run: RunFolder, state: Mapping[str, Any] | None = None) -> Tracker:
    """Open the tracker of a run.

    A resumed run goes on in the same W&B run, of the same project, entity and group. Offline it cannot append: it
    writes a second ``offline-run-*`` folder of the same id beside the first, and ``wandb sync`` of both, oldest first,
    gives the one run; rounds logged after the last checkpoint appear twice, with the same figures. Under an agent of a
    W&B sweep the run is the agent's, with its id, project and entity, whatever the settings and ``state`` say.

    Args:
        settings: the resolved configuration, as `ser_fl.config.schema.dump` gives it. "tracking" says where to show the
            run, "run_name" or "experiment" is its name. W&B gets all of it but secrets, folders cut to their last name.
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
    if backend == "tensorboard":
        if find_spec("tensorboard") is None:
            raise UserError("tracking.backend=tensorboard needs the extra `tracking`: pip install 'ser-fl[tracking]'")
        tracker.backend = TensorBoard(run)
    elif backend == "wandb":
        given = {
            "group": tracking["group"],
            "name": str(settings.get("run_name") or settings["experiment"])[:_LONGEST_NAME],
            "mode": resolve_mode(mode),
        }
        if os.environ.get("WANDB_SWEEP_ID") and (of_agent := os.environ.get("WANDB_RUN_ID")) is not None:
            tracker.state["wandb_id"] = of_agent
        else:
            run_id = tracker.state.setdefault("wandb_id", run_begun_in(run) or uuid.uuid4().hex[:12])
            place = {name: tracker.state.setdefault(name, tracking[name]) for name in ("project", "entity", "group")}
            given |= {**place, "id": str(run_id)}
        tracker.backend = tracker.attempt(WeightsAndBiases, run, given, public_config(settings))
    return tracker
