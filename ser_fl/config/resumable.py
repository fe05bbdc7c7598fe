"""Which settings a resumed run may change: they are marked where they are declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, TypeVar

T = TypeVar("T")

_MAY_CHANGE = "may change when a run is resumed"
Resumable = Annotated[T, _MAY_CHANGE]
"""The type of a setting that no bit of a run depends on: where its clients run, or what is watched."""


def fixed_settings(stage: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage, plain values by name, that a resumed run must share with its checkpoint."""
    fixed = dict[str, Any]()
    for name, declared in stage.__pydantic_fields__.items():  # type: ignore[attr-defined]
        if _MAY_CHANGE not in declared.metadata:
            is_stage = isinstance(declared.annotation, type) and is_dataclass(declared.annotation)
            fixed[name] = fixed_settings(declared.annotation, settings[name]) if is_stage else settings[name]
    return fixed
