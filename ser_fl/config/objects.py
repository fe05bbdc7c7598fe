"""Objects of the user's own, by Hydra's ``_target_``: an import path, and the arguments beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, PlainSerializer
from pydantic_core import CoreSchema, core_schema

from ser_fl.errors import UserError, shown

_TARGET = "_target_"


@dataclass(frozen=True, kw_only=True)
class ObjectConfig:
    """A class or function, and what it is called with: ``{_target_: mypackage.MyNetwork, width: 8}``.

    Reading one imports nothing: only `instantiated` runs somebody's code.
    """

    target: str
    """Import path."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Also Hydra's own, such as ``_args_``; those with a ``_target_`` become objects too."""

    def plain(self) -> dict[str, Any]:
        """As it stands in YAML."""
        return {_TARGET: self.target, **self.arguments}


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


def _read_own(given: object, read_stock: Callable[[object], object]) -> object:
    """An object's settings where there is a ``_target_``, else those of a class of ours."""
    is_own = isinstance(given, ObjectConfig) or (isinstance(given, Mapping) and _TARGET in given)
    return _read(given) if is_own else read_stock(given)


def _write_own(value: object, write_stock: Callable[[object], object]) -> object:
    return value.plain() if isinstance(value, ObjectConfig) else write_stock(value)


Own = Annotated[ObjectConfig, BeforeValidator(_read), PlainSerializer(ObjectConfig.plain)]


class OrOwn:
    """Annotates a setting that takes an object in place of a choice of ours, by whose schema all else is checked."""

    def __init__(self, stock: object) -> None:
        self.stock = stock

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler.generate_schema(self.stock)
        written = core_schema.wrap_serializer_function_ser_schema(_write_own, schema=schema)
        return core_schema.no_info_wrap_validator_function(_read_own, schema, serialization=written)


def refusal(own: ObjectConfig) -> UserError:
    """What is said where the settings of a choice of ours are needed."""
    return UserError(f"{own.target} is an object of your own: what is asked for needs one of ser_fl's")
