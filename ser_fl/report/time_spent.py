"""Where the time of a run's rounds went, as a table."""

from __future__ import annotations

from ser_fl.report.markup import Table
from ser_fl.runs.records import ProfileRecord, TimeSpent

ALL_CLIENTS, ALL_ROUNDS = "= clients", "= rounds"
"""Rows of sums."""

_SERIAL = "Shares are of the rounds' wall time."
_PROCESSES = (
    "Clients trained side by side: their seconds are worker-seconds, several of which pass in one second of a round, "
    "and their shares are of these; the server's shares are of the rounds' wall time."
)
_PARTS = (
    "Forward, backward, optimiser: of training steps; attack: adversarial utterances, with the passes they take; "
    "trainer: what is around these, with callbacks and metrics; client and other: the rest of a client and of a "
    "round; waiting: for worker processes."
)


def profile_table(profile: ProfileRecord) -> Table:
    """A row a part: seconds and share in the first round and in all later ones, and milliseconds a client-round."""
    spans = [profile.first] if profile.later is None else [profile.first, profile.later]
    columns = [column for span in spans for column in _columns(span, profile.executor)]
    last = spans[-1]
    per_client = [f"{1000 * seconds / max(1, last.client_rounds):.1f}" for seconds in _seconds(last).values()]
    client_rounds = ", ".join(f"{span.client_rounds} in {_rounds(span)}" for span in spans)
    shares = _SERIAL if profile.executor == "serial" else _PROCESSES
    return Table(
        title="Where the time of the rounds went",
        header=("part", *(head for span in spans for head in (f"{_rounds(span)}, s", "%")), "ms a client-round"),
        rows=tuple(zip(_seconds(last), *columns, per_client, strict=True)),
        caption=f"Client-rounds: {client_rounds}; the last column is of {_rounds(last)}. {shares} {_PARTS}",
    )


def _seconds(span: TimeSpent) -> dict[str, float]:
    """Parts and sums, from top to bottom."""
    clients = sum(span.clients.values())
    return {**span.clients, ALL_CLIENTS: clients, **span.server, ALL_ROUNDS: span.seconds}


def _columns(span: TimeSpent, executor: str) -> tuple[list[str], list[str]]:
    """Seconds and per cent of every row."""
    rows = _seconds(span)
    whole = dict.fromkeys(rows, span.seconds)
    if executor != "serial":
        whole |= dict.fromkeys((*span.clients, ALL_CLIENTS), rows[ALL_CLIENTS])
    shares = [100 * seconds / whole[part] if whole[part] else 0.0 for part, seconds in rows.items()]
    return [f"{seconds:.2f}" for seconds in rows.values()], [f"{share:.1f}" for share in shares]


def _rounds(span: TimeSpent) -> str:
    if span.first_round == span.last_round:
        return f"round {span.first_round}"
    return f"rounds {span.first_round}–{span.last_round}"
