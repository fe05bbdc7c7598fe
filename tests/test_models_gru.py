"""The fast GRU against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ser_fl.models.gru import BidirectionalGRU


@pytest.mark.parametrize(("batch", "steps", "inputs", "hidden"), [(1, 1, 2, 3), (4, 7, 5, 3), (8, 23, 16, 8)])
def test_equals_torchs_gru_forward_and_backward(batch: int, steps: int, inputs: int, hidden: int) -> None:
    torch.manual_seed(0)
    ours = BidirectionalGRU(inputs, hidden).double()
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
