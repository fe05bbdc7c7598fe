"""Where the clients of a round run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator

from ser_fl.federation.aggregation import Outcome
from ser_fl.federation.client import ClientTask
from ser_fl.records import ClientUpdate


def run_serially(
    update: Callable[[ClientTask], ClientUpdate], tasks: Iterable[ClientTask]
) -> Iterator[tuple[str, Outcome]]:
    """Run clients one after the other in this process: client id and outcome, in the order of the tasks."""
    for task in tasks:
        try:
            yield task.client_id, update(task)
        except Exception:  # whatever a client raises costs this round its update, not the run
            yield task.client_id, traceback.format_exc()
