"""What the parameters of an attack may be: checked when the attack is made and whenever they are set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from ser_fl.errors import shown


@dataclass(frozen=True, slots=True)
class Parameter:
    """A default, and what else is allowed."""

    default: Any
    allowed: str
    """In words that follow "must be"."""
    allows: Callable[[Any], bool]
    kept: Callable[[Any], Any] = lambda value: value
    """Maps what a user gives to what the attack keeps."""
    settable: bool = True

    def checked(self, name: str, value: Any) -> Any:
        """The value as the attack keeps it.

        Raises:
            ValueError: another type, or out of range; one sentence.
        """
        if not self.allows(value):
            raise ValueError(f"{name} must be {self.allowed}, got {shown(value)}")
        return self.kept(value)


def whole(default: int, *, least: int) -> Parameter:
    """An integer, Python's or NumPy's; no bool, which Python takes for one."""
    return Parameter(
        default,
        f"an integer >= {least}",
        lambda value: _is_a(Integral, value) and value >= least,
        int,
    )


def real(default: float) -> Parameter:
    """A finite number, >= 0."""
    return Parameter(
        default,
        "a number >= 0 and finite",
        lambda value: _is_a(Real, value) and 0 <= value < math.inf,
        float,
    )


def flag(default: bool) -> Parameter:
    """True or False; no word or number that could be taken for either."""
    return Parameter(default, "True or False", lambda value: isinstance(value, bool | np.bool_), bool)


def choice(default: Any, known: Mapping[Any, Any]) -> Parameter:
    """One of the keys of a mapping, a number or a string."""
    words = " or ".join(map(repr, known))
    return Parameter(default, words, lambda value: isinstance(value, Real | str) and value in known)


def function() -> Parameter:
    """What can be called; there is no default."""
    return Parameter(None, "a function", callable)


def refused(default: Any, reason: str) -> Parameter:
    """A parameter that ART's users know, and that this attack refuses to have changed."""
    return Parameter(default, f"{default}, since {reason}", lambda value: value is default, settable=False)


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value is a number of this kind; a bool is none."""
    return isinstance(value, kind) and not isinstance(value, bool)
