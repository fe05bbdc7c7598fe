"""When an update is too large to be an honest one: worked numbers."""

import pytest
import torch

from ser_fl.federation.screening import Magnitude, find_excess, usual_norms

RECEIVED = {"weight": torch.tensor([3.0, 4.0]), "running_mean": torch.tensor([1.0])}


def excess(norm: float, before: list[float], usual: float = 0.0, num_examples: int = 10, shift: float = 0.1) -> bool:
    """Whether an update of this norm is refused, with six times what is usual as the most."""
    earlier: list[Magnitude] = [(each, 0.1, 10) for each in before]
    return find_excess((norm, shift, num_examples), earlier, [usual, 0.1], RECEIVED, ["weight"], 6.0) is not None


@pytest.mark.parametrize(
    ("norm", "before", "refused"),
    [
        (6.0, [1.0, 1.0, 1.0], False),
        (6.1, [1.0, 1.0, 1.0], True),
        (6.1, [1.0, 1.0, 60.0, 60.0], True),  # half of them hostile: the lower of the two middle ones counts
        (6.1, [1.0, 1.0], False),  # too few to compare with
        (64.0, [], False),  # ten times the model's 5 and the root of its 2 weights
        (64.2, [], True),
        (64.2, [60.0] * 5, True),  # that bound holds whatever the others send
    ],
)
def test_an_update_is_held_against_those_before_and_the_model(norm: float, before: list[float], refused: bool) -> None:
    assert excess(norm, before) == refused


def test_who_stays_as_he_was_is_not_refused_when_others_become_small() -> None:
    assert excess(0.9, [0.1] * 9)
    assert not excess(0.9, [0.1] * 9, usual=1.0)
    assert excess(6.1, [0.1] * 9, usual=1.0)


def test_more_utterances_go_further() -> None:
    assert not excess(12.0, [1.0] * 5, num_examples=20)
    assert excess(12.1, [1.0] * 5, num_examples=20)
    assert excess(6.1, [1.0] * 5, num_examples=5)


def test_running_statistics_have_a_bound_of_their_own() -> None:
    assert not excess(1.0, [1.0] * 5, shift=6.0)
    assert excess(1.0, [1.0] * 5, shift=6.1)


def test_what_is_usual_is_the_largest_median_of_a_round() -> None:
    averaged: list[Magnitude] = [(1.0, 0.2, 10), (2.0, 0.1, 10), (9.0, 0.4, 10), (8.0, 0.3, 10)]
    assert usual_norms(averaged, [0.0, 0.0]) == [2.0, 0.2]
    assert usual_norms(averaged, [3.0, 0.1]) == [3.0, 0.2]
    assert usual_norms(averaged[:2], [3.0, 0.1]) == [3.0, 0.1]
