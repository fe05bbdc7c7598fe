"""How far a step of an iterated attack moves where nothing else is said: in training, selection and benchmark alike."""

STEPS_TO_THE_EDGE = 4.0
"""Of the ball, from its middle."""


def default_step_size(epsilon: float) -> float:
    """A quarter of epsilon, in its units."""
    return epsilon / STEPS_TO_THE_EDGE
