"""Updates that no client of ours would send: what is refused is named, what is accepted averages to finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import cases_of, check_line
from hypothesis import strategies as st
from torch import Tensor

from ser_fl.federation.algorithm import GLOBAL, FedAvg
from ser_fl.federation.server import ClientResults, Server
from ser_fl.runs.records import ClientUpdate, State

HUGE = (1e308, -1e308, 3.4e38, -3.4e38, 1e-45, 0.0, 1.0)
NOT_FINITE = (math.nan, math.inf, -math.inf)


def reference() -> State:
    """Every kind of entry that our models have, and a half-precision one."""
    return {
        "weight": torch.linspace(-1, 1, 6).reshape(2, 3),
        "running_var": torch.ones(3),
        "scale": torch.ones(2, dtype=torch.bfloat16),
        "num_batches_tracked": torch.tensor(7),
    }


@dataclass
class Claim:
    """What a client says of itself."""

    state: Any
    num_examples: Any
    train_loss: Any
    update_norm: Any
    seconds: Any
    optimiser_state: Any
    nanoseconds: Any

    def update(self) -> ClientUpdate:
        return ClientUpdate(client_id="a", **vars(self))


shapes = st.sampled_from([(), (0,), (2, 3), (3, 2), (6,), (1, 2, 3), (3,), (2,)])
types = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
numbers = st.one_of(
    st.sampled_from([*HUGE, *NOT_FINITE, 0, -1, 1, 2**80, -(2**80), 10**400, 2**53 + 1, True, False, None, "7", b"7"]),
    st.sampled_from([[], {}, 1j, 0.5, 7.0, torch.tensor(3), torch.tensor([1.0, 2.0]), torch.tensor(math.nan)]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
honest_numbers = st.integers(1, 1000)


@st.composite
def odd_tensors(draw: st.DrawFn) -> Any:
    """Something in place of a tensor."""
    kind = draw(st.sampled_from(["plain", "sparse", "csr", "quantised", "expanded", "strided", "meta", "other"]))
    plain = torch.full(draw(shapes), draw(st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf]))).to(draw(types))
    if kind == "sparse":
        return torch.full((2, 3), draw(st.sampled_from([1.0, math.nan]))).to_sparse()
    if kind == "csr":
        return torch.ones(2, 3).to_sparse_csr()
    if kind == "quantised":
        return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    if kind == "expanded":
        return torch.tensor(draw(st.sampled_from([1.0, 3e38, math.inf]))).expand(2, 3)
    if kind == "strided":
        return torch.as_strided(torch.arange(4.0), (2, 3), draw(st.sampled_from([(1, 1), (0, 0), (0, 1)])))
    if kind == "meta":
        return torch.empty(2, 3, device="meta")
    if kind == "other":
        return draw(st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.floats(), max_size=3)))
    return plain


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    """An honest update with some of it replaced."""
    state: dict[Any, Any] = {name: tensor.clone() for name, tensor in reference().items()}
    for name in draw(st.lists(st.sampled_from(sorted(state)), max_size=2)):
        change = draw(st.sampled_from(["drop", "odd", "fill", "alias", "weight_requires_grad"]))
        if change == "drop":
            state.pop(name, None)
        elif change == "odd":
            state[name] = draw(odd_tensors())
        elif change == "fill" and isinstance(state.get(name), Tensor) and state[name].is_floating_point():
            filler = torch.tensor(draw(st.sampled_from([*HUGE, *NOT_FINITE])), dtype=torch.float64)
            state[name] = filler.to(reference()[name].dtype).expand(reference()[name].shape)
        elif change == "alias" and "weight" in state:
            state[name] = state["weight"]
        elif change == "weight_requires_grad":
            state["weight"] = reference()["weight"].requires_grad_()
    extra = draw(st.lists(st.one_of(st.text(max_size=400), st.integers(), st.none()), max_size=2))
    state |= {name: torch.ones(1) for name in extra if draw(st.booleans())}
    odd = st.one_of(st.dictionaries(st.text(max_size=9), odd_tensors(), max_size=2), st.none(), st.text(max_size=3))
    return Claim(
        state=draw(st.sampled_from([state, state, state, state, None, [], "state"])),
        num_examples=draw(st.one_of(honest_numbers, honest_numbers, numbers)),
        train_loss=draw(st.one_of(st.just(0.5), st.just(0.5), numbers)),
        update_norm=draw(st.one_of(st.just(1.0), st.just(1.0), numbers)),
        seconds=draw(st.one_of(st.just(1.0), st.just(1.0), numbers)),
        optimiser_state=draw(st.one_of(st.just({}), st.just({}), odd)),
        nanoseconds=draw(st.one_of(st.just({}), st.just({}), st.none(), st.dictionaries(st.text(), numbers))),
    )


@cases_of("updates", quick=50)
def test_updates(explore: Callable[..., None], num_cases: int) -> None:
    def take(claims: list[Claim]) -> None:
        algorithm = FedAvg()
        algorithm.models = {GLOBAL: reference()}
        results = ClientResults(round=1, reference=reference(), server=Server(algorithm))
        honest = Claim(reference(), 7, 0.5, 1.0, 1.0, {}, {})
        for place, claim in enumerate([honest, *claims]):
            results.take(f"client {place}", claim.update())
        assert len(results.records) + len(results.failures) == len(claims) + 1
        assert results.records[0].num_examples == 7
        for failure in results.failures:
            check_line(failure.error)
        algorithm.finish(1)
        for name, tensor in algorithm.models[GLOBAL].items():
            assert (tensor.shape, tensor.dtype) == (reference()[name].shape, reference()[name].dtype)
            assert torch.isfinite(tensor).all(), name
        for record in results.records:
            assert type(record.num_examples) is int and all(
                type(figure) is float and math.isfinite(figure)
                for figure in (record.train_loss, record.update_norm, record.seconds)
            )

    explore(st.lists(claims(), min_size=1, max_size=3), take)
