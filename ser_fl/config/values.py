"""Types of settings that several stages share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

_Settings = TypeVar("_Settings")
_decorated: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def stage(settings: type[_Settings]) -> type[_Settings]:
    """Decorates the settings of a stage: checked, frozen, keyword-only, and no unknown ones."""
    return cast(type[_Settings], _decorated(settings))


Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Proportion = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Epsilon = NonNegative
Count = Annotated[int, Field(ge=1, lt=2**63)]
Amount = Annotated[int, Field(ge=0, lt=2**63)]
Speaker = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is int else given)]
"""Also from Python, where somebody may give the numbers of EmoDB's speakers."""
PATH = "a path"
Folder = Annotated[str, PATH]
"""A sweep does not take a comma in it for the next value."""


def as_yaml(value: object) -> str:
    """A value as the user would write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
