"""Convolutions that are fast on CPUs: the same layers and the same results, up to rounding.

Legend: B batch, K channels, F mel bins, L frames, H and W rows and columns of maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CELLS = 4
"""Rows and columns of a square of input cells."""


class ConvolutionBlocks(nn.Sequential):
    """A sequence of layers in which a batch norm in eval mode becomes part of the convolution before it.

    Parameters, buffers and result are those of `nn.Sequential`. It saves two passes over the maps in validation, in
    attacks, and in rounds that freeze the norm.
    """

    def forward(self, maps_BKHW: Tensor) -> Tensor:
        """Maps after the last layer, of shape (B, K, H, W)."""
        layers = list(self)
        for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
            if (pair := _standing_norm(layer, after)) is not None:
                maps_BKHW = _convolve_normed(*pair, maps_BKHW)
            elif _standing_norm(before, layer) is None:
                maps_BKHW = layer(maps_BKHW)
        return maps_BKHW


def _standing_norm(layer: nn.Module | None, after: nn.Module | None) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """A convolution and the norm after it, where that is in eval mode and neither has hooks that want to see it run."""
    if not isinstance(layer, nn.Conv2d) or not isinstance(after, nn.BatchNorm2d) or after.training:
        return None
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (layer, after))
    return None if hooked else (layer, after)


def _convolve_normed(convolution: nn.Conv2d, norm: nn.BatchNorm2d, maps_BKHW: Tensor) -> Tensor:
    """The convolution with the norm's running statistics, scale and shift in its weight and bias."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale_K = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias_K = norm.bias - norm.running_mean * scale_K
    if convolution.bias is not None:
        bias_K = bias_K + convolution.bias * scale_K
    maps: Tensor = convolution._conv_forward(maps_BKHW, convolution.weight * scale_K[:, None, None, None], bias_K)
    return maps


class StemConvolution(nn.Conv2d):
    """A 5 x 5 convolution of one input channel, stride 2, padding 2, without bias, channels last.

    Parameters and result are those of `nn.Conv2d`. CPU kernels are slow with one channel, so that on CPUs the gradient
    by the input is computed as that of another convolution, several times as fast: 2 x 2, from 16 channels (the cells
    of a square of 4 x 4 inputs) to 4 K channels (the four outputs above a square). On CPUs there is no second
    derivative.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, 5, stride=2, padding=2, bias=False)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or not input.requires_grad or input.dtype.itemsize not in _FOUR:
            maps: Tensor = super()._conv_forward(input, weight, bias)
            return maps
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        maps_BKHW: Tensor = _Stem.apply(input, weight, bias)
        return maps_BKHW


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps_B1FL: Tensor, weight: Tensor, bias_K: Tensor | None) -> Tensor:
        ctx.save_for_backward(maps_B1FL, weight)
        return functional.conv2d(maps_B1FL, weight, bias_K, stride=2, padding=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BKHW: Tensor) -> tuple[Tensor | None, ...]:
        maps_B1FL, weight = ctx.saved_tensors
        by_input = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_input = _gradient_by_squares(grad_BKHW, weight, maps_B1FL.shape)
        if ctx.needs_input_grad[1]:
            by_weight = _convolution_gradients(grad_BKHW, maps_B1FL, weight, 2, 2, (False, True))[1]
        if ctx.needs_input_grad[2]:
            by_bias = grad_BKHW.sum((0, 2, 3))
        return by_input, by_weight, by_bias


def _gradient_by_squares(grad_BKHW: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gradient by the input, of the given shape (B, 1, F, L)."""
    batch, channels, rows, columns = grad_BKHW.shape
    down, along = (rows + 1) // 2, (columns + 1) // 2
    grad_BHWK = grad_BKHW.permute(0, 2, 3, 1)
    if rows % 2 or columns % 2:
        grad_BHWK = functional.pad(grad_BHWK, (0, 0, 0, columns % 2, 0, rows % 2))
    above = grad_BHWK.reshape(batch, down, 2, along, 2 * channels).transpose(2, 3).flatten(3)
    spread = functional.pad(weight.flatten(1), (0, 1))[:, _SPREAD.flatten()].view(channels, *_SPREAD.shape)
    kernel = spread.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)
    squares = grad_BKHW.new_empty(batch, down + 1, along + 1, _CELLS * _CELLS).permute(0, 3, 1, 2)
    found = _convolution_gradients(above.permute(0, 3, 1, 2), squares, kernel, 1, 0, (True, False))[0]
    cells = found.permute(0, 2, 3, 1).contiguous()
    # Four cells of a row are moved as one number.
    fours = (
        cells.view(_FOUR[cells.dtype.itemsize]).view(batch, down + 1, along + 1, _CELLS).transpose(2, 3).contiguous()
    )
    padded = fours.view(cells.dtype).view(batch, 1, _CELLS * (down + 1), _CELLS * (along + 1))
    return padded[..., 2 : 2 + shape[2], 2 : 2 + shape[3]]


def _convolution_gradients(
    grad: Tensor, maps: Tensor, weight: Tensor, stride: int, padding: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, maps, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return gradients


def _spread() -> Tensor:
    """Which of a 5 x 5 kernel's weights (25: none) falls on each cell of 2 x 2 squares, (4 values, 2, 2, 16 cells).

    The window of the value at row i and column j above a square begins at the square's cell (2 i, 2 j).
    """
    cells = torch.full((4, 2 * _CELLS, 2 * _CELLS), 25)
    kernel = torch.arange(25).view(5, 5)
    for value in range(4):
        i, j = divmod(value, 2)
        cells[value, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] = kernel
    return cells.view(4, 2, _CELLS, 2, _CELLS).transpose(2, 3).flatten(3)


_SPREAD = _spread()
_FOUR = {2: torch.int64, 4: torch.complex128}
"""A type as long as four values of so many bytes."""
