"""Figures in files of the run folder: ``metrics.csv``, which every run has, and TensorBoard's."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ser_fl.files import write_bytes
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.tracking.backend import Backend
from ser_fl.tracking.metric_names import (
    ROUND,
    ROUND_COLUMNS,
    attack_metrics,
    evaluation_metrics,
    round_metrics,
    summary_metrics,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsCsv(Backend):
    """A row a round, begun anew at the first one: rows of rounds that a resumed run repeats are left out."""

    def __init__(self, run: RunFolder) -> None:
        self._path = run.metrics_csv
        self._is_begun = False

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        if not self._is_begun:
            kept = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
            number = (line.partition(",")[0] for line in kept)
            kept = [
                line
                for line, of in zip(kept, number, strict=True)
                if of.isdecimal() and int(of) < record.round and line.endswith("\n")
            ]
            write_bytes(self._path, "".join([_row((ROUND, *ROUND_COLUMNS)), *kept]).encode())
            self._is_begun = True
        metrics = round_metrics(record, clients)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_row([record.round, *(metrics.get(name, "") for name in ROUND_COLUMNS)]))


def _row(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class TensorBoard(Backend):
    """Scalars for TensorBoard in the run folder, opened at the first figure."""

    def __init__(self, run: RunFolder, *, per_client: bool = False) -> None:
        self._folder = run.tensorboard
        self._per_client = per_client
        self._writer: SummaryWriter | None = None
        self.description = f"TensorBoard: tensorboard --logdir {self._folder}"

    def _write(self, metrics: Mapping[str, float], step: int, *, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # The purge hides rounds that a killed run logged after the checkpoint that this one goes on from.
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        metrics = round_metrics(record, clients, per_client=self._per_client)
        self._write(metrics, record.round, purge_step=record.round)

    def log_attacks(self, records: Sequence[AttackRecord], settings: Mapping[str, Any]) -> None:
        self._write(attack_metrics(records), 0)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._write(summary_metrics(summary), summary["selected_round"])

    def log_evaluation(self, name: str, figures: Mapping[str, Any]) -> None:
        self._write(evaluation_metrics(name, figures), 0)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
