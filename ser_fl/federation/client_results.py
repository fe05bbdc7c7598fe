"""What comes back from the clients of a round, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from ser_fl.federation.aggregation import Outcome, find_problem
from ser_fl.federation.server import Gathered
from ser_fl.runs.records import ClientFailure, ClientRecord, ClientUpdate, State
from ser_fl.runs.redaction import public_text


@dataclass(slots=True, kw_only=True)
class ClientResults:
    """Who came back with what. Of an update only its figures stay: its tensors are the server's to add up."""

    round: int
    reference: State
    """The model that clients received: what updates must look like."""
    gathered: Gathered
    folders: tuple[str, ...] = ()
    """Of the data and the run: what clients say names them by their last names alone."""
    records: list[ClientRecord] = field(default_factory=list)
    failures: list[ClientFailure] = field(default_factory=list)
    nanoseconds: list[dict[str, int]] = field(default_factory=list)
    """By part, of every client whose update is averaged."""

    def take(self, client_id: str, outcome: Outcome) -> None:
        """Hand an update on to the server, or note why there is none that can be averaged."""
        problem = outcome if isinstance(outcome, str) else find_problem(outcome, self.reference)
        if isinstance(outcome, str) or problem is not None:
            self.failures.append(ClientFailure(client_id=client_id, error=public_text(str(problem), self.folders)))
        else:
            self.nanoseconds.append(outcome.nanoseconds)
            self.gathered.add(outcome)
            self.records.append(client_record(self.round, outcome))


def client_record(number: int, update: ClientUpdate) -> ClientRecord:
    """A client's line of ``clients.jsonl``."""
    size = sum(tensor.nbytes for tensor in update.state.values())
    return ClientRecord(
        round=number,
        client_id=update.client_id,
        num_examples=update.num_examples,
        train_loss=update.train_loss,
        seconds=update.seconds,
        update_norm=update.update_norm,
        bytes_down=size,
        bytes_up=size,
    )
