"""Types of settings that several stages share, and checks that say in one line what is wrong. Objects of the user's own
stand there by Hydra's ``_target_``: an import path, and the arguments beside it.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, PlainSerializer, Tag
from pydantic.dataclasses import dataclass

from ser_fl.errors import UserError, one_line, shown

_Settings = TypeVar("_Settings")
_Ours = TypeVar("_Ours")
_TARGET = "_target_"
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
Finite = Annotated[float, Field(allow_inf_nan=False)]
Reverberation = Annotated[float, Field(ge=0.01, le=10)]
Epsilon = NonNegative
Count = Annotated[int, Field(ge=1, lt=2**63)]
Amount = Annotated[int, Field(ge=0, lt=2**63)]
Speaker = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is int else given)]
"""Also from Python, where somebody may give the numbers of EmoDB's speakers."""
PATH = "a path"
Folder = Annotated[str, PATH]
"""A sweep does not take a comma in it for the next value."""


def must_be(wanted: str, fits: Callable[[Any], bool]) -> BeforeValidator:
    """A check of a union, of which pydantic would say once for each of its types what is wrong; ``wanted`` is the
    setting's name and what it must be.
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
    """Refuse settings that only ``owner`` has, where ``instead`` was chosen, unless they are empty or as by default."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in names:
        if (given := getattr(settings, name)) not in (None, (), 0, defaults[name]):
            raise ValueError(f"{prefix}.{name} goes with {owner}, got {as_yaml(given)} with {instead}")


def as_yaml(value: object) -> str:
    """A value as the user would write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectConfig:
    """A class or function, and its arguments: ``{_target_: mypackage.MyNetwork, width: 8}``; only `instantiate`
    imports.
    """

    target: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Also Hydra's own, such as ``_args_``; those with a ``_target_`` become objects too."""

    def plain(self) -> dict[str, Any]:
        return {_TARGET: self.target, **self.arguments}

    def instantiate(self, **more: Any) -> Any:
        """The object, whose package may lie in the working directory; a `UserError` where import or call fail."""
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            return instantiate(self.plain(), _convert_="all", **more)
        except InstantiationException as error:
            raise UserError(f"{self.target} cannot be made: {one_line(str(error.__cause__ or error), 600)}") from error

    def refusal(self) -> UserError:
        """What is said where the settings of a choice of ours are needed."""
        return UserError(f"{self.target} is an object of your own: what is asked for needs one of ser_fl's")


def _read(given: object) -> object:
    """An object's settings from YAML; a ValueError of what is no mapping with an import path."""
    if isinstance(given, ObjectConfig):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get(_TARGET), str):
        raise ValueError(f"an object of your own needs _target_: PACKAGE.CLASS and its arguments, got {shown(given)}")
    arguments = {str(name): value for name, value in given.items() if name != _TARGET}
    return ObjectConfig(target=given[_TARGET], arguments=arguments)


Own = Annotated[ObjectConfig, BeforeValidator(_read), PlainSerializer(ObjectConfig.plain)]
_WHOSE = Discriminator(
    lambda given: (
        "[own]" if isinstance(given, ObjectConfig) or (isinstance(given, Mapping) and _TARGET in given) else "[ours]"
    )
)
OrOwn = Annotated[Annotated[_Ours, Tag("[ours]")] | Annotated[Own, Tag("[own]")], _WHOSE]
"""A choice of ours, or an object in place of it; brackets keep the tags out of messages (`ser_fl.config.schema`)."""
