"""Types of settings that several stages share, and checks that say in one line what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from ser_fl.errors import shown

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


def must_be(wanted: str, fits: Callable[[Any], bool]) -> BeforeValidator:
    """A check of a union, of which pydantic would say once for each of its types what is wrong.

    Args:
        wanted: the setting's name and what it must be.
        fits: whether a value is that.
    """

    def check(given: object) -> object:
        if not fits(given):
            raise ValueError(f"{wanted}, got {shown(given)}")
        return given

    return BeforeValidator(check)


def is_count(given: object) -> bool:
    """A whole number from 1 up, and neither true nor 2.0."""
    return type(given) is int and given >= 1


def refuse_given(settings: Any, prefix: str, names: Iterable[str], *, owner: str, instead: str) -> None:
    """Refuse settings that only another choice has, where they are neither empty nor at their defaults.

    Raises:
        ValueError: one of them is given; the message names the ``owner`` and what was chosen ``instead``.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        if (given := getattr(settings, name)) not in (None, (), 0, defaults[name]):
            raise ValueError(f"{prefix}.{name} goes with {owner}, got {as_yaml(given)} with {instead}")


def as_yaml(value: object) -> str:
    """A value as the user would write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
