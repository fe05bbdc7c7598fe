"""What nodes may say: every answer is checked against one of these before anything of it is used."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ser_fl.data.splits import Part
from ser_fl.errors import one_line
from ser_fl.federation.flower.serialisation import WireError
from ser_fl.runs.records import ClientFigures

answer = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))

Name = Annotated[str, Field(min_length=1, max_length=200)]
Reason = Annotated[str, Field(max_length=20_000)]
Count = Annotated[int, Field(ge=1, le=1 << 53)]
Amount = Annotated[int, Field(ge=0, le=1 << 53)]


@answer
class Refusal:
    """A node that could not answer says why."""

    error: Reason

    @property
    def reason(self) -> str:
        """Its lines, fit for a terminal and a log, whatever the node sent."""
        return "\n".join(filter(None, map(one_line, self.error.splitlines()))) or "it gives no reason"


@answer
class Speaker:
    """Of `query.speakers`."""

    speaker: Name
    sex: Name | None
    emotions: list[Name]


@answer
class Speakers:
    """Who is here, and how many files could not be used."""

    speakers: list[Speaker]
    skipped: Amount


@answer
class Enrolled:
    """Counts and digests; the sums over features are tensors."""

    clients: dict[Name, Count]
    """Training utterances of each."""
    frames: dict[Name, Count]
    """Of each client's training features."""
    sizes: dict[Part, dict[Name, Count]]
    digests: dict[Name, Name]


@answer
class Figures(ClientFigures):
    """Of a client's update; its state is tensors. What makes no sense is refused where updates are."""


@answer
class Updates:
    """By client; the error of one that failed."""

    updates: dict[Name, Figures | Refusal]


@answer
class Confusions:
    """By speaker: how often each true class (row) was predicted as each class."""

    confusions: dict[Name, list[list[Amount]]]


T = TypeVar("T")


def checked(kind: type[T], content: dict[str, Any]) -> T:
    """An answer of this kind.

    Raises:
        WireError: it is of another.
    """
    try:
        return TypeAdapter(kind).validate_json(
            json.dumps(content)
        )  # of JSON: else objects would have to be of the class
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise WireError(f"{place or 'it'}: {problem['msg']}") from None
