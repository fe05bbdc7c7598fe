"""Defences by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from ser_fl.defences.defence import Defence, NoDefence
from ser_fl.defences.randomisation import ExpectedRandomisation, Randomisation, RandomisationEnsemble
from ser_fl.defences.squeezing import MedianSmoothing, Quantisation
from ser_fl.errors import UserError, shown, unknown_name

DEFENCES: dict[str, Callable[[], Defence]] = {
    "none": NoDefence,
    "randomisation": Randomisation,
    "randomisation_expected": ExpectedRandomisation,
    "randomisation_ensemble": RandomisationEnsemble,
    "quantisation": Quantisation,
    "smoothing": MedianSmoothing,
}
"""Defences by name, each with its default settings when called; an entry more makes another name."""


def build_defence(given: str | Defence) -> Defence:
    """The defence of that name, with its default settings; or the very object, checked.

    Raises:
        UserError: no such defence (the known ones are listed), or an object that is none.
    """
    if isinstance(given, str):
        if given not in DEFENCES:
            raise unknown_name("defence", given, DEFENCES)
        return DEFENCES[given]()
    if not isinstance(given, Defence):
        raise UserError(
            f"a defence is a name or an object of a class derived from ser_fl.defences.Defence, got {shown(given)}"
        )
    weights = given.run_weights
    if not math.isclose(sum(weights), 1, abs_tol=1e-6) or min(weights) < 0:
        raise UserError(f"run_weights of defence {given.name!r} must be 0 or more and sum to 1, got {shown(weights)}")
    return given
