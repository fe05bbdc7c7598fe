"""The fast GRU against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ser_fl.models.cpu_kernels import BidirectionalGRU


@pytest.mark.parametrize(("batch", "steps", "inputs", "hidden"), [(1, 1, 2, 3), (4, 7, 5, 3), (8, 23, 16, 8)])
def test_equals_torchs_gru_forward_and_backward(batch: int, steps: int, inputs: int, hidden: int) -> None:
    torch.manual_seed(0)
    ours = BidirectionalGRU(inputs, hidden, batch_first=True, bidirectional=True).double()
    theirs = nn.GRU(inputs, hidden, batch_first=True, bidirectional=True).double()
    theirs.load_state_dict(ours.state_dict())
    initial = torch.randn(2, batch, hidden, dtype=torch.float64)
    weights = torch.randn(batch, steps, 2 * hidden, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        features = torch.randn(batch, steps, inputs, generator=torch.Generator().manual_seed(1))
        features = features.double().requires_grad_()
        outputs, last = layer(features, initial)
        (outputs * weights).sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        results.append((outputs, last, features.grad, *gradients))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["weight_hh", "bias_hh", "weight_ih"])
def test_what_is_frozen_leaves_the_others_their_gradients(frozen: str) -> None:
    """And gradients by the states before and after, through the last of which alone the loss goes here."""
    torch.manual_seed(0)
    ours = BidirectionalGRU(4, 3, batch_first=True, bidirectional=True).double()
    theirs = nn.GRU(4, 3, batch_first=True, bidirectional=True).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        initial = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        features = torch.randn(
            5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        _, last = layer(features, initial)
        last.square().sum().backward()
        results.append([features.grad, initial.grad, *(parameter.grad for parameter in layer.parameters())])
    for mine, reference in zip(*results, strict=True):
        assert (mine is None) == (reference is None)
        if mine is not None:
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_in_bfloat16_only_the_inputs_product_is() -> None:
    """Near the result in float32, wherever the backward pass runs."""
    torch.manual_seed(0)
    layer, features = BidirectionalGRU(16, 8, batch_first=True, bidirectional=True), torch.randn(4, 9, 16)
    gradients = []
    for forward, backward in ((False, False), (True, False), (True, True)):
        given = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            outputs, _ = layer(given)
        assert outputs.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            gradients.append(torch.autograd.grad(outputs.square().sum(), [given, *layer.parameters()]))
    exact, outside, inside = gradients
    for wanted, found, found_inside in zip(exact, outside, inside, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
        torch.testing.assert_close(found_inside, found, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
