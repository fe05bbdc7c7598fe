"""The fast convolutions against torch's own layers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from ser_fl.models.cpu_kernels import ConvolutionBlocks, StemConvolution
from ser_fl.models.normalisation import BatchRenorm2d

SHAPES = [(64, 100), (64, 186), (64, 93), (66, 61), (79, 40), (65, 63), (5, 7)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("shape", "dtype"), product(SHAPES, (torch.float32, torch.bfloat16, torch.float64)))
def test_the_stem_is_a_convolution(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Result, and gradients by input and weight, for even and odd numbers of rows and columns."""
    ours = StemConvolution(1, 6, 5, stride=2, padding=2, bias=False).to(dtype)
    theirs = nn.Conv2d(1, 6, 5, stride=2, padding=2, bias=False).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    given = torch.randn(3, 1, *shape, generator=stream()).to(dtype)
    results = []
    for layer in (ours, theirs):
        maps_B1FL = given.clone().requires_grad_()
        result = layer(maps_B1FL)
        result.backward(torch.randn(result.shape, generator=stream(1)).to(dtype))
        results.append((result, maps_B1FL.grad, layer.weight.grad))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float64: 1e-12}[dtype]
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=4 * tolerance)


def test_the_stem_follows_autocast() -> None:
    layer = StemConvolution(1, 4, 5, stride=2, padding=2, bias=False)
    maps_B1FL = torch.randn(2, 1, 16, 20, generator=stream())
    with torch.autocast("cpu", torch.bfloat16):
        results = [layer(maps_B1FL), layer(maps_B1FL.clone().requires_grad_())]
    assert [result.dtype for result in results] == [torch.bfloat16] * 2
    torch.testing.assert_close(*results, rtol=0, atol=0)


def blocks(cls: type[nn.Sequential], norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.Sequential:
    """Two convolutions, the second with a bias, whose norms have seen something and scale both ways."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = cls(
            StemConvolution(1, 4, 5, stride=2, padding=2, bias=False),
            norm(4),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=1),
            norm(6),
            nn.ReLU(inplace=True),
        ).double()
        for layer in (layers[1], layers[5]):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
        layers(1 + 2 * torch.randn(4, 1, 24, 30, dtype=torch.float64))
    return layers


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchRenorm2d])
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_blocks_are_a_sequence_of_their_layers(mode: str, norm: type[nn.BatchNorm2d]) -> None:
    """Results, gradients by input and by every parameter, and running statistics; frozen: one norm in eval mode."""
    results: list[list[Tensor | None]] = []
    for cls in (ConvolutionBlocks, nn.Sequential):
        layers = blocks(cls, norm).train(mode != "eval")
        if mode == "frozen":
            layers[5].eval()
        maps_B1FL = torch.randn(3, 1, 24, 30, dtype=torch.float64, generator=stream()).requires_grad_()
        result = layers(maps_B1FL)
        result.backward(torch.randn(result.shape, dtype=torch.float64, generator=stream(1)))
        gradients = [parameter.grad for parameter in layers.parameters()]
        results.append([result, maps_B1FL.grad, *gradients, *layers.buffers()])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


def test_a_norm_that_stands_still_is_not_run() -> None:
    layers = blocks(ConvolutionBlocks).eval()
    layers[1].forward = None  # type: ignore[method-assign,assignment]
    layers(torch.randn(1, 1, 24, 30, dtype=torch.float64))
    with pytest.raises(TypeError):
        layers.train()(torch.randn(2, 1, 24, 30, dtype=torch.float64))


def test_under_autocast_too() -> None:
    """Gradients by the input and by every parameter, all norms standing still, near those of the layers one by one."""
    results = []
    for cls in (ConvolutionBlocks, nn.Sequential):
        layers = blocks(cls).float().eval()
        maps_B1FL = torch.randn(3, 1, 24, 30, generator=stream()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = layers(maps_B1FL)
        result.float().square().sum().backward()
        results.append([result.float(), maps_B1FL.grad, *(parameter.grad for parameter in layers.parameters())])
    for mine, reference in zip(*results, strict=True):
        assert mine is not None and reference is not None
        assert float((mine - reference).detach().norm()) < 0.03 * float(reference.detach().norm())


def test_whoever_hooks_into_a_layer_sees_it_run() -> None:
    layers, seen = blocks(ConvolutionBlocks).eval(), []
    layers[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        hooked = layers(torch.ones(1, 1, 24, 30, dtype=torch.float64))
    assert seen == [1]
    torch.testing.assert_close(hooked, blocks(ConvolutionBlocks).eval()(torch.ones(1, 1, 24, 30, dtype=torch.float64)))
