"""Which updates are averaged and how, against worked numbers and np.average."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ser_fl.federation.aggregation import WeightedMean
from ser_fl.federation.algorithm import GLOBAL, Algorithm, FedAdam, FedAvg, FedAvgM, LocalOnly
from ser_fl.federation.server import ClientResults, RoundAverage, Server, find_problem
from ser_fl.runs.records import ClientUpdate, State


def update(num_examples: int, state: State, client_id: str = "a", train_loss: float = 1.0) -> ClientUpdate:
    return ClientUpdate(
        client_id=client_id,
        state=state,
        num_examples=num_examples,
        train_loss=train_loss,
        seconds=0.0,
        update_norm=0.0,
    )


def fedavg(updates: Sequence[ClientUpdate]) -> State:
    average = WeightedMean()
    for one in updates:
        average.add(one)
    return average.result()


def fedavg_of_a_list(updates: Sequence[ClientUpdate]) -> State:
    """The formula over all updates at once."""
    total = sum(update.num_examples for update in updates)
    average: State = {}
    for name, first in updates[0].state.items():
        if not first.is_floating_point():
            average[name] = torch.stack([update.state[name] for update in updates]).amax(0)
            continue
        running = torch.zeros_like(first, dtype=torch.float64)
        for update in updates:
            running += update.state[name].double() * update.num_examples
        average[name] = (running / total).to(first.dtype)
    return average


def random_updates(sizes: tuple[int, ...]) -> list[ClientUpdate]:
    stream = torch.Generator().manual_seed(3)
    return [
        update(size, {"weight": torch.randn(5, 4, generator=stream), "bias": torch.randn(4, generator=stream)})
        for size in sizes
    ]


def trained_norm(value: float, steps: int) -> State:
    """State of a batch norm that has seen `steps` batches of 0 and 2 * `value`: mean `value`, variance 2 value^2."""
    norm = nn.BatchNorm1d(1, momentum=None)  # running statistics are plain means over batches
    for _ in range(steps):
        norm(torch.tensor([[0.0], [2 * value]]))
    return dict(norm.state_dict())


def test_weighted_average_of_worked_numbers() -> None:
    """Weights 1/8, 3/8 and 4/8: (1 + 3 * 3 + 4 * 5) / 8 = 3.75 and (2 - 3 * 2 + 4 * 8) / 8 = 3.5."""
    average = fedavg(
        [
            update(1, {"layer.weight": torch.tensor([[1.0, 2.0]])}),
            update(3, {"layer.weight": torch.tensor([[3.0, -2.0]])}),
            update(4, {"layer.weight": torch.tensor([[5.0, 8.0]])}),
        ]
    )
    assert list(average) == ["layer.weight"]
    assert average["layer.weight"].tolist() == [[3.75, 3.5]]
    assert average["layer.weight"].dtype == torch.float32


def test_equals_numpys_average() -> None:
    sizes = (7, 1, 40, 25)
    updates = random_updates(sizes)
    average = fedavg(updates)
    for name in ("weight", "bias"):
        stacked = np.stack([one.state[name].double().numpy() for one in updates])
        np.testing.assert_allclose(average[name].numpy(), np.average(stacked, axis=0, weights=sizes), rtol=0, atol=1e-7)


def test_running_statistics_are_averaged_and_counters_take_the_largest() -> None:
    """Means 1 and 5 with weights 1/4 and 3/4 make 4; unbiased variances 2 and 50 make 38."""
    average = fedavg([update(1, trained_norm(1.0, steps=5)), update(3, trained_norm(5.0, steps=2))])
    assert average["running_mean"].tolist() == pytest.approx([4.0])
    assert average["running_var"].tolist() == pytest.approx([38.0])
    assert average["num_batches_tracked"].item() == 5
    assert average["num_batches_tracked"].dtype == torch.int64
    nn.BatchNorm1d(1).load_state_dict(average)


def test_large_counters_stay_exact() -> None:
    """2^60 + 1 has no float64."""
    states: list[State] = [{"count": torch.tensor(2**60 + 1)}, {"count": torch.tensor(2**60)}]
    assert fedavg([update(1, state) for state in states])["count"].item() == 2**60 + 1


def test_sums_are_taken_in_float64() -> None:
    """In float32, 1e8 + 1 is 1e8, and the average would be 0."""
    values = (1e8, 1.0, -1e8)
    average = fedavg([update(1, {"weight": torch.tensor([value])}) for value in values])
    assert average["weight"].tolist() == pytest.approx([1 / 3], rel=1e-6)


def test_a_running_sum_has_the_bits_of_the_sum_over_a_list() -> None:
    """Of values of unlike size, in all types that a state may have, in its own memory format."""
    stream = torch.Generator().manual_seed(11)
    updates = []
    for size in (7, 1, 40, 25, 3, 111):
        kernel = torch.randn(6, 4, 3, 3, generator=stream) * 10 ** float(torch.randn((), generator=stream))
        state = {
            "kernel": kernel.to(memory_format=torch.channels_last),
            "negative zero": torch.tensor([-0.0, 0.0]),
            "wide": torch.randn(5, generator=stream, dtype=torch.float64),
            "half": torch.randn(5, generator=stream).bfloat16(),
            "count": torch.randint(2**60, (3,), generator=stream),
            "flag": torch.randint(2, (3,), generator=stream).bool(),
        }
        updates.append(update(size, state))
    average, expected = fedavg(updates), fedavg_of_a_list(updates)
    assert list(average) == list(expected)
    for name, tensor in average.items():
        assert tensor.dtype == expected[name].dtype and tensor.stride() == expected[name].stride()
        assert torch.equal(tensor, expected[name])
        if tensor.is_floating_point():
            assert torch.equal(tensor.signbit(), expected[name].signbit())


def test_a_running_sum_keeps_no_update() -> None:
    average = WeightedMean()
    states = [WeakSet(one.state.values()) for one in random_updates((3, 5)) if average.add(one) is None]
    gc.collect()
    assert [len(state) for state in states] == [0, 0]


@pytest.mark.parametrize("num_examples", [1, 3, 25, 1999])
def test_one_client_is_the_identity(num_examples: int) -> None:
    (alone,) = random_updates((num_examples,))
    average = fedavg([alone])
    assert all(torch.equal(average[name], tensor) for name, tensor in alone.state.items())


def test_equal_updates_are_their_average() -> None:
    (first,) = random_updates((1,))
    average = fedavg([update(size, first.state) for size in (3, 7, 25)])
    assert all(torch.equal(average[name], tensor) for name, tensor in first.state.items())


def test_the_order_of_clients_hardly_matters_and_the_same_order_gives_the_same_bits() -> None:
    updates = random_updates((7, 1, 40, 25, 3))
    average, again, permuted = fedavg(updates), fedavg(updates), fedavg(updates[::-1])
    for name, tensor in average.items():
        assert torch.equal(tensor, again[name])
        torch.testing.assert_close(tensor, permuted[name], rtol=0, atol=1e-7)


def test_the_weight_is_the_number_of_examples() -> None:
    """A client with three utterances counts like three clients with one, whatever else it reports."""
    one, other = random_updates((1, 1))
    thrice = fedavg([one, one, one, other])
    heavy = fedavg([update(3, one.state, train_loss=99.0), other])
    for name in thrice:
        torch.testing.assert_close(thrice[name], heavy[name], rtol=0, atol=1e-7)


def test_averaging_changes_no_update() -> None:
    updates = random_updates((2, 5))
    before = [{name: tensor.clone() for name, tensor in one.state.items()} for one in updates]
    fedavg(updates)
    for one, state in zip(updates, before, strict=True):
        assert all(torch.equal(one.state[name], tensor) for name, tensor in state.items())


REFERENCE: State = {"weight": torch.zeros(2, 3), "count": torch.tensor(4)}


def with_weight(weight: Tensor) -> State:
    return {**REFERENCE, "weight": weight}


@pytest.mark.parametrize(
    ("state", "num_examples", "message"),
    [
        (with_weight(torch.tensor([[0.0, float("nan"), 0.0], [0.0, 0.0, 0.0]])), 1, "weight is not finite"),
        (with_weight(torch.full((2, 3), float("inf"))), 1, "weight is not finite"),
        (with_weight(torch.full((2, 3), -float("inf"))), 1, "weight is not finite"),
        (with_weight(torch.zeros(3, 2)), 1, r"weight has shape \(3, 2\), expected \(2, 3\)"),
        ({"weight": torch.zeros(2, 3)}, 1, "other entries: .*count"),
        ({**REFERENCE, "extra": torch.zeros(1)}, 1, "other entries: .*extra"),
        (REFERENCE, 0, "no utterance"),
    ],
)
def test_what_cannot_be_averaged_is_told_why(state: State, num_examples: int, message: str) -> None:
    problem = find_problem(update(num_examples, state), REFERENCE)
    assert problem is not None
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"train_loss": float("nan")}, "train_loss is nan: not finite"),
        ({"update_norm": float("inf")}, "update_norm is inf: not finite"),
        ({"optimiser_state": {"0.exp_avg": torch.tensor([float("inf")])}}, r"optimiser's 0\.exp_avg is not finite"),
        (
            {"state": {**REFERENCE, "weight": torch.zeros(2, 3, dtype=torch.float64)}},
            "type torch.float64, expected torch",
        ),
        ({"state": None}, "state is of type NoneType, expected tensors by name"),
        ({"state": {**REFERENCE, "weight": "zeros"}}, "weight is of type str, expected a tensor"),
        ({"state": {**REFERENCE, "weight": torch.zeros(2, 3).to_sparse()}}, "weight is a torch.sparse_coo tensor"),
        ({"state": {**REFERENCE, "weight": torch.zeros(2, 3, device="meta")}}, "weight is a meta tensor"),
        ({"state": {**REFERENCE, 7: torch.zeros(1), None: torch.zeros(1)}}, r"other entries: \[7, None\]"),
        ({"state": {**REFERENCE, "x" * 9999: torch.zeros(1)}}, r"other entries: \['xx.{,250}$"),
        ({"optimiser_state": [1]}, "optimiser's state is of type list"),
        ({"optimiser_state": {"step": 3}}, "optimiser's step is of type int"),
        ({"train_loss": "0.5"}, "train_loss is '0.5': not a number"),
        ({"seconds": float("nan")}, "seconds is nan: not finite"),
        ({"num_examples": 7.0}, r"num_examples is 7\.0, expected a whole number"),
        ({"num_examples": True}, "num_examples is True, expected a whole number"),
        ({"num_examples": 2**80}, "num_examples is 1208925819614629174706176, expected a whole number up to"),
        ({"num_examples": -1}, r"no utterance \(num_examples=-1\)"),
        ({"nanoseconds": {"fit": "long"}}, "nanoseconds are {'fit': 'long'}"),
    ],
)
def test_what_comes_with_the_weights_must_be_sound_too(spoilt: dict[str, Any], message: str) -> None:
    problem = find_problem(replace(update(1, REFERENCE), **spoilt), REFERENCE)
    assert problem is not None and re.search(message, problem)


def test_a_sound_update_has_no_problem() -> None:
    assert find_problem(update(1, {**REFERENCE}), REFERENCE) is None


def server_with(algorithm: Algorithm, network: nn.Module | None = None, client_ids: Sequence[str] = ("a",)) -> Server:
    algorithm.start(network or Tiny(), client_ids)
    return Server(algorithm)


def results_of(server: Server, updates: Sequence[ClientUpdate]) -> ClientResults:
    """What comes back in round 3, taken one after the other."""
    reference = server.algorithm.model_for(updates[0].client_id)
    results = ClientResults(round=3, reference=reference, server=server)
    for one in updates:
        results.take(one.client_id, one)
    return results


def test_results_are_sorted_into_figures_and_failures_and_only_what_is_sound_is_added() -> None:
    server = Server(FedAvg())
    server.algorithm.models = {GLOBAL: REFERENCE}
    sound = [update(size, with_weight(torch.full((2, 3), 1.0 * size)), client_id=str(size)) for size in (1, 3)]
    spoilt = update(9, with_weight(torch.full((2, 3), float("nan"))), client_id="c")
    results = results_of(server, [sound[0]])
    results.take("b", "Traceback ...\nRuntimeError: microphone unplugged")
    results.take("c", spoilt)
    results.take("3", sound[1])
    assert [(record.round, record.client_id, record.num_examples) for record in results.records] == [
        (3, "1", 1),
        (3, "3", 3),
    ]
    assert {(record.bytes_down, record.bytes_up) for record in results.records} == {(6 * 4 + 8, 6 * 4 + 8)}
    assert [failure.client_id for failure in results.failures] == ["b", "c"]
    assert "microphone unplugged" in results.failures[0].error
    assert results.failures[1].error == "weight is not finite"
    models = server.algorithm.models
    assert torch.equal(models[GLOBAL]["weight"], REFERENCE["weight"]), "nothing counts before the round is finished"
    server.algorithm.finish(3)
    assert torch.equal(models[GLOBAL]["weight"], fedavg_of_a_list(sound)["weight"])
    assert models[GLOBAL]["weight"].tolist() == [[2.5] * 3] * 2


def finish(server: Server, updates: Sequence[ClientUpdate], number: int = 3) -> None:
    """A round in which these come back."""
    results_of(server, updates)
    server.algorithm.finish(number)


class Only(nn.Module):
    """One parameter, called weight."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.weight = parameter


class Tiny(nn.Module):
    """One parameter of shape (2, 3), one running statistic, all zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.register_buffer("running_mean", torch.zeros(1))


def tiny(weight: float, running_mean: float = 0.0) -> State:
    return {"weight": torch.full((2, 3), weight), "running_mean": torch.tensor([running_mean])}


def test_a_server_that_does_not_average_keeps_each_clients_model() -> None:
    server = server_with(LocalOnly(), client_ids=("a", "b"))
    changed = tiny(1.0)
    finish(server, [update(5, changed, client_id="b")])
    assert server.algorithm.model_for("a")["weight"].tolist() == [[0.0] * 3] * 2
    assert server.algorithm.model_for("b") is changed


def test_a_server_gives_all_clients_the_average() -> None:
    server = server_with(FedAvg(), client_ids=("a", "b"))
    finish(server, [update(1, tiny(1.0)), update(3, tiny(5.0))])
    assert list(server.algorithm.models) == [GLOBAL]
    for client_id in ("a", "b"):
        assert server.algorithm.model_for(client_id)["weight"].tolist() == [[4.0] * 3] * 2


def test_an_aggregation_of_ones_own_begins_every_round_anew() -> None:
    """The object itself takes in nothing: a copy of it does."""

    class Last(WeightedMean):
        def __init__(self) -> None:
            self.taken: list[State] = []

        def add(self, update: ClientUpdate) -> None:
            self.taken.append(update.state)

        def result(self) -> State:
            assert len(self.taken) == 2
            return self.taken[-1]

    server, own = server_with(FedAvgM(0.5)), Last()
    server.algorithm.aggregation = own
    for last, expected in ((2.0, 2.0), (4.0, 5.0)):  # 2, then 4 and half of the step of 2 before
        finish(server, [update(9, tiny(1.0)), update(1, tiny(last))])
        assert server.algorithm.models[GLOBAL]["weight"].tolist() == [[expected] * 3] * 2
    assert own.taken == [] and isinstance(FedAvg().aggregation, WeightedMean)


def test_momentum_of_worked_numbers_moves_parameters_and_not_statistics() -> None:
    """Averages 1, 3, 3: v = 1, 0.5 * 1 + (3 - 1) = 2.5, 0.5 * 2.5 + (3 - 3.5) = 0.75; model 1, 3.5, 4.25."""
    server = server_with(FedAvgM(0.5))
    for average, expected in ((1.0, 1.0), (3.0, 3.5), (3.0, 4.25)):
        finish(server, [update(7, tiny(average, running_mean=average))])
        model = server.algorithm.models[GLOBAL]
        assert model["weight"].tolist() == [[expected] * 3] * 2
        assert model["running_mean"].item() == average


def test_momentum_equals_torchs_sgd_on_the_pseudo_gradient() -> None:
    """FedAvgM is SGD with momentum and rate 1 along received - average."""
    stream = torch.Generator().manual_seed(5)
    parameter = nn.Parameter(torch.zeros(4))
    optimiser = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
    state, algorithm = {"weight": torch.zeros(4)}, FedAvgM(0.9)
    algorithm.start(Only(parameter), ["a"])
    for number in range(1, 6):
        average = {"weight": torch.randn(4, generator=stream)}
        parameter.grad = parameter.detach() - average["weight"]
        optimiser.step()
        state = algorithm.step(state, average, number)
        torch.testing.assert_close(state["weight"], parameter.detach())


def test_adam_equals_torchs_on_the_pseudo_gradient() -> None:
    """FedAdam is Adam along received - average, whatever the size of its entries."""
    stream = torch.Generator().manual_seed(5)
    sizes = torch.tensor([1e-4, 1e-2, 1.0, 100.0])
    parameter = nn.Parameter(torch.zeros(4))
    optimiser = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    state, algorithm = {"weight": torch.zeros(4)}, FedAdam(0.1, momentum=0.9, second_momentum=0.99, tau=1e-3)
    algorithm.start(Only(parameter), ["a"])
    for number in range(1, 9):
        change = sizes * torch.randn(4, generator=stream)
        parameter.grad = -change
        optimiser.step()
        average = {"weight": state["weight"] + change}
        state = algorithm.step(state, average, number)
        torch.testing.assert_close(state["weight"], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_adams_first_step_of_worked_numbers_moves_parameters_and_not_statistics() -> None:
    """Whatever way the clients went, by the learning rate: 4 / (4 + 4) of 0.1 at a tau as large as the update."""
    server = server_with(FedAdam(0.1, momentum=0.9, second_momentum=0.99, tau=4.0))
    finish(server, [update(7, tiny(4.0, running_mean=4.0))], number=1)
    model, carried = server.algorithm.models[GLOBAL], server.algorithm.carried
    assert model["weight"].flatten().tolist() == pytest.approx([0.05] * 6)
    assert model["running_mean"].item() == 4.0
    assert carried["exp_avg"]["weight"].flatten().tolist() == pytest.approx([0.4] * 6)
    assert carried["exp_avg_sq"]["weight"].flatten().tolist() == pytest.approx([0.16] * 6)


def test_the_average_over_rounds_of_worked_numbers_leaves_the_clients_models_alone() -> None:
    """Models 1, 3, 8 and decay 0.75: means 1, 2, 4 as long as 1 / n is above 1 / 4; then 4 + (12 - 4) / 4 = 6."""
    server = server_with(FedAvg())
    server.average = RoundAverage(0.75, tiny(0.0))
    assert server.judged is server.algorithm.models
    for model, expected in ((1.0, 1.0), (3.0, 2.0), (8.0, 4.0), (12.0, 6.0), (6.0, 6.0)):
        finish(server, [update(7, tiny(model, running_mean=-model))])
        server.average.add(server.algorithm.models[GLOBAL])
        assert server.judged[GLOBAL]["weight"].tolist() == [[expected] * 3] * 2
        assert server.judged[GLOBAL]["running_mean"].item() == -expected
        assert server.algorithm.model_for("a")["weight"].tolist() == [[model] * 3] * 2


def test_the_average_over_rounds_takes_counters_as_they_are() -> None:
    first, second = ({"weight": torch.ones(1), "batches": torch.tensor(count)} for count in (3, 8))
    average = RoundAverage(0.9, {})
    average.add(first)
    average.add(second)
    assert average.model["batches"].item() == 8 and average.model["batches"].dtype == torch.int64


def test_an_update_that_still_carries_gradients_leaves_none_in_the_model() -> None:
    average = WeightedMean()
    average.add(update(1, {"weight": torch.ones(2, requires_grad=True)}))
    assert not average.result()["weight"].requires_grad
