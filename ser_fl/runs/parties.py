"""Who took part in a run, and who no longer does: a client, or a node of Flower with all who are there."""

from collections.abc import Sequence
from dataclasses import dataclass

from ser_fl.errors import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Who takes part in nothing any more, and why."""

    names: tuple[str, ...]
    """Clients and speakers."""
    node: str | None
    """Number of a node of Flower; None where there is none."""
    reason: str

    @property
    def who(self) -> str:
        return f"node {self.node} ({shown_names(self.names)})" if self.node else shown_names(self.names)

    def __str__(self) -> str:
        return f"{self.who} is left out: {self.reason}"


def shown_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are; fit for a terminal."""
    first = ", ".join(one_line(name, 60) for name in names[:5]) or "no name"
    return f"{first} and {len(names) - 5} more" if len(names) > 5 else first


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """An entry of "parties" in ``summary.json``. What is seen of one client or node alone, which may say of its
    utterances and of its figures what it likes within what it was enrolled with.
    """

    names: tuple[str, ...]
    num_examples: int
    """Training utterances."""
    rounds: int
    """With an update that was averaged."""
    offences: int
    times_median: float | None
    """Median over rounds of its update's norm, as a multiple of the median of all clients in that round."""
    cosine: float | None
    """Median over rounds, of its update with the sum of the others', all of one length."""
    share: float | None
    """Mean over its rounds of what the aggregation took of it, as a multiple of its share by utterances."""
    uar: float | None
    """Of its test utterances."""
    outlier: tuple[str, ...] = ()
    """In which it stands out, in words."""
