"""What shows a run somewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord


class Backend:
    """Takes what there is to show, and leaves out what it has no place for."""

    description = ""
    """Where the run is shown, in words; empty where nobody need know."""
    sending = ""
    """The command that sends what could not be sent; empty where there is nothing to send."""

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None: ...

    def log_attacks(self, records: Sequence[AttackRecord], settings: Mapping[str, Any]) -> None:
        """``settings`` are the benchmark's."""

    def log_summary(self, summary: Mapping[str, Any]) -> None: ...

    def log_evaluation(self, name: str, figures: Mapping[str, Any]) -> None:
        """Content of an ``evaluation.json``, by what speech it is of."""

    def log_report(self) -> None:
        """``report.html`` of the run folder."""

    def finish(self) -> None: ...
