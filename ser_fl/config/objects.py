"""Objects of the user's own, by Hydra's ``_target_``: an import path, and the arguments beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Discriminator, PlainSerializer, Tag

from ser_fl.errors import UserError, one_line, shown

_TARGET = "_target_"
_Ours = TypeVar("_Ours")


@dataclass(frozen=True, kw_only=True)
class ObjectConfig:
    """A class or function, and what it is called with: ``{_target_: mypackage.MyNetwork, width: 8}``.

    Reading one imports nothing: only `instantiate` runs somebody's code.
    """

    target: str
    """Import path."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Also Hydra's own, such as ``_args_``; those with a ``_target_`` become objects too."""

    def plain(self) -> dict[str, Any]:
        """As it stands in YAML."""
        return {_TARGET: self.target, **self.arguments}

    def instantiate(self, **more: Any) -> Any:
        """The object, whose package may lie in the working directory.

        Raises:
            UserError: it cannot be imported, or does not take its arguments.
        """
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
    """An object's settings from YAML.

    Raises:
        ValueError: no mapping with an import path.
    """
    if isinstance(given, ObjectConfig):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get(_TARGET), str):
        raise ValueError(f"an object of your own needs _target_: PACKAGE.CLASS and its arguments, got {shown(given)}")
    arguments = {str(name): value for name, value in given.items() if name != _TARGET}
    return ObjectConfig(target=given[_TARGET], arguments=arguments)


def _whose(given: object) -> str:
    is_own = isinstance(given, ObjectConfig) or (isinstance(given, Mapping) and _TARGET in given)
    return "[own]" if is_own else "[ours]"


Own = Annotated[ObjectConfig, BeforeValidator(_read), PlainSerializer(ObjectConfig.plain)]
OrOwn = Annotated[Annotated[_Ours, Tag("[ours]")] | Annotated[Own, Tag("[own]")], Discriminator(_whose)]
"""A choice of ours, or an object in place of it; brackets keep the tags out of messages (`ser_fl.config.schema`)."""
