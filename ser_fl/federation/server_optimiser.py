"""How far the server goes along the average of its clients: with momentum, or by Adam."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ser_fl.runs.records import State


def with_momentum(received: State, average: State, exp_avg: State, momentum: float) -> tuple[State, State]:
    """One step of the server with momentum (FedAvgM: Hsu et al., arXiv 1909.06335, section 4.2).

    v' = momentum * v + (average - received), model = received + v'. momentum = 0 would be FedAvg.

    Args:
        received: the model that the clients started from.
        average: what `FedAvg` made of their updates.
        exp_avg: v, for the parameters alone; what it does not name (running statistics, counters) is taken from
            ``average`` as it is. Empty for plain FedAvg.
        momentum: share of the last exp_avg that is carried on, 0 <= momentum < 1.

    Returns:
        The new model and v'.
    """
    onward = {name: momentum * before + (average[name] - received[name]) for name, before in exp_avg.items()}
    return average | {name: received[name] + step for name, step in onward.items()}, onward


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamStep:
    """The server's step of one round."""

    number: int
    """Steps with this one, from 1."""
    learning_rate: float
    momentum: float
    """Share of the mean update that is carried on, 0 <= momentum < 1 (beta 1)."""
    second_momentum: float
    """Share of the mean squared update that is carried on, 0 <= second_momentum < 1 (beta 2)."""
    tau: float
    """Added to the root of the mean squared update, above 0: the smaller, the more all parameters move alike."""


def with_adam(
    received: State, average: State, exp_avg: State, exp_avg_sq: State, step: AdamStep
) -> tuple[State, State, State]:
    """One step of the server by Adam (FedAdam: Reddi et al., arXiv 2003.00295, algorithm 2).

    With D = average - received: m' = momentum * m + (1 - momentum) * D, v' = second_momentum * v +
    (1 - second_momentum) * D^2, model = received + learning_rate * m^ / (sqrt(v^) + tau). Deviation: v begins at 0 and
    m^ and v^ are m' / (1 - momentum^n) and v' / (1 - second_momentum^n), as in Adam (Kingma and Ba, arXiv 1412.6980,
    algorithm 1); there v begins at tau^2 or above and nothing is corrected. So where clients take one step of plain SGD
    (FedSGD), D is the mean of their gradients, weighted by what each holds, and a round is a step of Adam in one place.

    Args:
        received: the model that the clients started from.
        average: what `FedAvg` made of their updates.
        exp_avg: m, for the parameters alone; what it does not name (running statistics, counters) is taken from
            ``average`` as it is.
        exp_avg_sq: v, of the same names.
        step: n and the settings.

    Returns:
        The new model, m' and v'.
    """
    model, exp_avgs, exp_avg_sqs = dict(average), dict[str, Tensor](), dict[str, Tensor]()
    for name, before in exp_avg.items():
        change = average[name] - received[name]
        mean = step.momentum * before + (1 - step.momentum) * change
        square = step.second_momentum * exp_avg_sq[name] + (1 - step.second_momentum) * change.square()
        root = (square / (1 - step.second_momentum**step.number)).sqrt()
        direction = mean / (1 - step.momentum**step.number) / (root + step.tau)
        model[name] = received[name] + step.learning_rate * direction
        exp_avgs[name], exp_avg_sqs[name] = mean, square
    return model, exp_avgs, exp_avg_sqs
