"""How far a step of an iterated attack moves where nothing else is said: in training, selection and benchmark alike."""

from __future__ import annotations


def default_step_size(epsilon: float) -> float:
    """A quarter of epsilon, in its units."""
    return epsilon / 4
