"""Which settings a resumed run may change: they are marked where they are declared."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, TypeVar, get_args

T = TypeVar("T")

_MAY_CHANGE, _MAY_GROW = "may change when a run is resumed", "may grow when a run is resumed"
Resumable = Annotated[T, _MAY_CHANGE]
"""The type of a setting that no bit of a run depends on: where its clients run, or what is watched."""
Growing = Annotated[T, _MAY_GROW]
"""The type of a number that says where a run ends: no bit of what is done depends on it."""


def fixed_settings(stage: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage, plain values by name, that a resumed run must share with its checkpoint."""
    fixed = dict[str, Any]()
    for name, declared in vars(stage)["__pydantic_fields__"].items():
        if _MAY_CHANGE not in declared.metadata:
            is_stage = isinstance(declared.annotation, type) and is_dataclass(declared.annotation)
            fixed[name] = fixed_settings(declared.annotation, settings[name]) if is_stage else settings[name]
            if free := _free_in_choice(declared.annotation):
                fixed[name] = {key: value for key, value in settings[name].items() if key not in free}
    return fixed


def _free_in_choice(annotation: Any) -> set[str]:
    """Settings that may change of any of the stages that one is chosen of."""
    stages = [choice[0] for choice in map(get_args, get_args(annotation)) if choice and is_dataclass(choice[0])]
    settings = (setting for stage in stages for setting in vars(stage).get("__pydantic_fields__", {}).items())
    return {name for name, declared in settings if _MAY_CHANGE in declared.metadata}


def _told(value: Any) -> Any:
    """Of one among stages, without what is null or false, as settings are that are newer than a checkpoint."""
    if not isinstance(value, Mapping):
        return value
    return {key: one for key, one in value.items() if one is not None and one is not False}


def differing(stage: type, before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings by which a run cannot go on from a checkpoint, both as `fixed_settings` gives them. One
    that is newer than the checkpoint had its default there.
    """
    names, known = list[str](), vars(stage)["__pydantic_fields__"]
    for name in sorted({*before, *now}):
        declared = known.get(name)
        kind, default = getattr(declared, "annotation", None), getattr(declared, "default", None)
        if is_dataclass(default) and not isinstance(default, type):
            default = asdict(default)
        was, is_now = before.get(name, default), now.get(name, default)
        if isinstance(kind, type) and is_dataclass(kind) and name in before:
            names += differing(kind, was, is_now, f"{prefix}{name}.")
        elif _told(was) != _told(is_now) and not (declared and _MAY_GROW in declared.metadata and was < is_now):
            names.append(prefix + name)
    return names
