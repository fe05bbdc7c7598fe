"""Batch renormalisation against batch norm and against its own formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ser_fl.models.normalisation import BatchRenorm2d, normalisation


def maps(seed: int = 0, shift: float = 0.0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    scales_K = torch.tensor([0.5, 1.0, 4.0, 2.0])[:, None, None]
    return shift + scales_K * torch.randn(3, 4, 5, 6, generator=stream)


def settled(seed: int = 7) -> BatchRenorm2d:
    """With a scale and a shift, statistics of maps that are not those of a test, and all its corrections."""
    norm, stream = BatchRenorm2d(4), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(4, generator=stream))
    norm.running_mean = torch.tensor([0.3, -0.2, 1.0, 0.0])
    norm.running_var = torch.tensor([0.5, 1.5, 9.0, 4.0])
    norm.num_batches_tracked = torch.tensor(300)
    return norm.train()


def test_before_its_first_batch_it_is_batch_norm() -> None:
    """Result and gradients, with running statistics that move as its own momentum says."""
    ours, theirs = BatchRenorm2d(4).train(), nn.BatchNorm2d(4, momentum=0.02).train()
    results = []
    for norm in (ours, theirs):
        given = maps().requires_grad_()
        result = norm(given)
        result.square().sum().backward()
        results.append([result, given.grad, *norm.buffers(), *(parameter.grad for parameter in norm.parameters())])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)


def test_once_settled_it_trains_on_what_it_is_tested_on() -> None:
    """Nothing is clipped here: the output of training mode is that of evaluation with the statistics before it."""
    norm = settled()
    with torch.no_grad():
        tested = norm.eval()(maps())
        trained = norm.train()(maps())
    torch.testing.assert_close(trained, tested)
    assert not torch.allclose(nn.BatchNorm2d(4).train()(maps()), tested, atol=0.1)


def test_gradients_are_those_of_the_formula_with_constant_corrections() -> None:
    norm, reference = settled(), settled()
    given, again = maps().double().requires_grad_(), maps().double().requires_grad_()
    coefficients = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norm.double()(given).backward(coefficients)
    mean_K, variance_K = again.mean((0, 2, 3)), again.var((0, 2, 3), correction=0)
    running = (reference.running_var.double() + reference.eps).sqrt()
    scale_K = ((variance_K + reference.eps).sqrt() / running).detach()
    shift_K = ((mean_K - reference.running_mean) / running).detach()
    normed = (again - mean_K[:, None, None]) / (variance_K + reference.eps).sqrt()[:, None, None]
    corrected = normed * scale_K[:, None, None] + shift_K[:, None, None]
    weight, bias = (parameter.detach().double().requires_grad_() for parameter in reference.parameters())
    (corrected * weight[:, None, None] + bias[:, None, None]).backward(coefficients)
    for mine, expected in ((given, again), (norm.weight, weight), (norm.bias, bias)):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("tracked", "furthest"), [(0, 0.0), (150, 2.5), (300, 5.0), (10_000, 5.0)])
def test_corrections_grow_to_their_bounds(tracked: int, furthest: float) -> None:
    """Maps a thousand deviations away: a shift as large as it may be, of maps that are normalised to 0 on average."""
    norm = BatchRenorm2d(4).train()
    norm.num_batches_tracked = torch.tensor(tracked)
    result = norm(maps(shift=1000.0))
    assert result.mean((0, 2, 3)).tolist() == pytest.approx([furthest] * 4, abs=1e-3)
    assert int(norm.num_batches_tracked) == tracked + 1
    largest = 1 + 2 * min(tracked / 300, 1)
    norm = BatchRenorm2d(4).train()
    norm.num_batches_tracked = torch.tensor(tracked)
    deviations = norm(1000 * maps()).std((0, 2, 3), correction=0)
    assert deviations.tolist() == pytest.approx([largest] * 4, rel=1e-3)


def test_low_precision_and_other_layouts_give_the_same() -> None:
    expected = settled()(maps())
    channels_last = settled()(maps().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, expected)
    low = settled()(maps().bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.05)


def test_a_state_of_batch_norm_is_one_of_its_own() -> None:
    norm = nn.BatchNorm2d(4)
    assert {name: t.dtype for name, t in BatchRenorm2d(4).state_dict().items()} == {
        name: t.dtype for name, t in norm.state_dict().items()
    }
    assert isinstance(normalisation("renorm", 4), BatchRenorm2d)
