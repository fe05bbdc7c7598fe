"""TensorBoard: scalars in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.tracking.metric_names import attack_metrics, round_metrics, summary_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Scalars for TensorBoard, opened at the first figure."""

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
