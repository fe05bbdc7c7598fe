"""Convolutions and a GRU that are fast on CPUs: the same layers and the same results as torch's, up to rounding.

PyTorch's GRU runs some forty small operations a step and direction through autograd: with short sequences and small
batches most of the cost of a CRNN. Here a step takes a handful for both directions together. What the inputs give to
all gates is one matrix product, in the precision of autocast; the recurrence is in float32. The weight gradients of all
steps are one product as well.

Legend: B batch, K channels, F mel bins, L frames or steps, H and W rows and columns of maps. In the GRU D directions
(2), I inputs, H hidden units, G = 3 H gate units (reset, update, new).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ser_fl.devices import CPU, autocast

_CELLS = 4
"""Rows and columns of a square of input cells."""
_FOUR = {2: torch.int64, 4: torch.complex128}
"""A type as long as four values of so many bytes."""


class ConvolutionBlocks(nn.Sequential):
    """A sequence of layers in which a batch norm in eval mode becomes part of the convolution before it: parameters,
    buffers and result are those of `nn.Sequential`. It saves two passes over the maps in validation, in attacks, and in
    rounds that freeze the norm. Layers with hooks, which want to see them run, run by themselves.
    """

    def forward(self, maps_BKHW: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer, norm = layers.pop(0), layers[0] if layers else None
            if (
                isinstance(layer, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and not norm.training
                and not any(part._forward_hooks or part._forward_pre_hooks for part in (layer, norm))
            ):
                assert norm.running_mean is not None and norm.running_var is not None
                scale_K = norm.weight * (norm.running_var + norm.eps).rsqrt()
                bias_K = norm.bias - norm.running_mean * scale_K
                if layer.bias is not None:
                    bias_K = bias_K + layer.bias * scale_K
                maps_BKHW = layer._conv_forward(maps_BKHW, layer.weight * scale_K[:, None, None, None], bias_K)
                layers.pop(0)
            else:
                maps_BKHW = layer(maps_BKHW)
        return maps_BKHW


class StemConvolution(nn.Conv2d):
    """A 5 x 5 convolution of one input channel, stride 2, padding 2, without bias, channels last; else an `nn.Conv2d`.

    CPU kernels are slow with one channel, so that there the gradient by the input is that of another convolution,
    several times as fast: 2 x 2, from 16 channels (the cells of a square of 4 x 4 inputs) to 4 K (the four outputs
    above a square). On CPUs there is no second derivative.
    """

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
        convolution_backward = torch.ops.aten.convolution_backward
        by_input = by_weight = by_bias = None
        if ctx.needs_input_grad[1]:
            by_weight = convolution_backward(
                grad_BKHW, maps_B1FL, weight, None, [2, 2], [2, 2], [1, 1], False, [0, 0], 1, [False, True, False]
            )[1]
        if ctx.needs_input_grad[2]:
            by_bias = grad_BKHW.sum((0, 2, 3))
        if ctx.needs_input_grad[0]:
            batch, channels, rows, columns = grad_BKHW.shape
            down, along = (rows + 1) // 2, (columns + 1) // 2
            grad_BHWK = grad_BKHW.permute(0, 2, 3, 1)
            if rows % 2 or columns % 2:
                grad_BHWK = functional.pad(grad_BHWK, (0, 0, 0, columns % 2, 0, rows % 2))
            above = grad_BHWK.reshape(batch, down, 2, along, 2 * channels).transpose(2, 3).flatten(3)
            spread = functional.pad(weight.flatten(1), (0, 1))[:, _SPREAD.flatten()].view(channels, *_SPREAD.shape)
            kernel = spread.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)
            squares = grad_BKHW.new_empty(batch, down + 1, along + 1, _CELLS * _CELLS).permute(0, 3, 1, 2)
            above = above.permute(0, 3, 1, 2)
            found = convolution_backward(
                above, squares, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
            cells = found.permute(0, 2, 3, 1).contiguous()
            # Four cells of a row are moved as one number.
            fours = cells.view(_FOUR[cells.dtype.itemsize]).view(batch, down + 1, along + 1, _CELLS)
            padded = fours.transpose(2, 3).contiguous().view(cells.dtype)
            padded = padded.view(batch, 1, _CELLS * (down + 1), _CELLS * (along + 1))
            by_input = padded[..., 2 : 2 + maps_B1FL.shape[2], 2 : 2 + maps_B1FL.shape[3]]
        return by_input, by_weight, by_bias


def _spread() -> Tensor:
    """Which of a 5 x 5 kernel's weights (25: none) falls on each cell of 2 x 2 squares, (4 values, 2, 2, 16 cells). The
    window of the value at row i, column j above a square begins at its cell (2 i, 2 j).
    """
    cells = torch.full((4, 2 * _CELLS, 2 * _CELLS), 25)
    kernel = torch.arange(25).view(5, 5)
    for value in range(4):
        i, j = divmod(value, 2)
        cells[value, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] = kernel
    return cells.view(4, 2, _CELLS, 2, _CELLS).transpose(2, 3).flatten(3)


_SPREAD = _spread()


class BidirectionalGRU(nn.GRU):
    """One bidirectional layer, batch first: parameters, equations and result of `torch.nn.GRU`, which it is on a GPU.
    On a CPU it takes batches only and has no second derivative.
    """

    def forward(self, inputs_BLI: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Outputs of shape (B, L, 2 H), forward direction first, and the last hidden states, (2, B, H), from inputs of
        shape (B, L, I) and hidden states before the first step, (2, B, H), zeros by default.
        """
        if inputs_BLI.device.type != "cpu":
            outputs, last = super().forward(inputs_BLI, initial)
            return outputs, last
        input_weight_DGI, input_bias_DG, weight_DGH, bias_DG = (
            torch.stack([getattr(self, f"{name}_l0"), getattr(self, f"{name}_l0_reverse")])
            for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        )
        gates_BLG = functional.linear(inputs_BLI, input_weight_DGI.flatten(0, 1), input_bias_DG.flatten())
        with autocast(CPU, bf16=False):
            gates_BLDG = gates_BLG.to(bias_DG.dtype).view(*gates_BLG.shape[:2], 2, -1)
            start_DBH = gates_BLDG.new_zeros(2, len(inputs_BLI), self.hidden_size) if initial is None else initial
            outputs_BLH, last_DBH = _Recurrence.apply(gates_BLDG, start_DBH, weight_DGH, bias_DG)
        return outputs_BLH, last_DBH


class _Recurrence(torch.autograd.Function):
    """States of all steps, from what the inputs give to the gates; the backward direction's steps in reverse order.

    r = sigmoid(g_r + h W_r + b_r), z = sigmoid(g_z + h W_z + b_z), n = tanh(g_n + r (h W_n + b_n)), h' = n + z (h - n).
    """

    @staticmethod
    def forward(
        ctx: Any, gates_BLDG: Tensor, start_DBH: Tensor, weights_DGH: Tensor, bias_DG: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, steps, directions, _ = gates_BLDG.shape
        size = start_DBH.shape[-1]
        # Steps lead, so that each is one contiguous block.
        gates_LDBG = gates_BLDG.permute(1, 2, 0, 3)
        resets_updates = gates_BLDG.new_empty(steps, directions, batch, 2 * size)
        news = gates_BLDG.new_empty(steps, directions, batch, size)
        _turn(gates_LDBG[..., : 2 * size], resets_updates)
        _turn(gates_LDBG[..., 2 * size :], news)
        hiddens = torch.empty(steps, directions, batch, 3 * size, dtype=news.dtype)
        states_LDBH = torch.empty(steps + 1, directions, batch, size, dtype=news.dtype)
        states_LDBH[0] = start_DBH
        weights_DHG, bias_D1G = weights_DGH.transpose(1, 2).contiguous(), bias_DG[:, None]
        hidden_resets_updates, hidden_news = hiddens[..., : 2 * size], hiddens[..., 2 * size :]
        resets, updates = resets_updates[..., :size], resets_updates[..., size:]
        states = states_LDBH.unbind()
        for state, following, hidden, hidden_reset_update, hidden_new, reset_update, reset, update, new in zip(
            states[:-1],
            states[1:],
            hiddens.unbind(),
            hidden_resets_updates.unbind(),
            hidden_news.unbind(),
            resets_updates.unbind(),
            resets.unbind(),
            updates.unbind(),
            news.unbind(),
            strict=True,
        ):
            torch.baddbmm(bias_D1G, state, weights_DHG, out=hidden)
            reset_update.add_(hidden_reset_update).sigmoid_()
            new.addcmul_(reset, hidden_new).tanh_()
            torch.lerp(new, state, update, out=following)
        ctx.save_for_backward(states_LDBH, resets_updates, news, hidden_news, weights_DGH)
        outputs_BLDH = news.new_empty(batch, steps, directions, size)
        _turn(states_LDBH[1:], outputs_BLDH.permute(1, 2, 0, 3))
        return outputs_BLDH.flatten(2), states_LDBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BLH: Tensor, grad_last_DBH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Backpropagation through time; what does not depend on later steps is computed for all at once."""
        with autocast(CPU, bf16=False):  # a caller may ask for the gradient inside autocast
            states_LDBH, resets_updates, news, hidden_news, weights_DGH = ctx.saved_tensors
            steps, directions, batch, size = news.shape
            resets, updates = resets_updates[..., :size], resets_updates[..., size:]
            to_new = (1 - updates) * (1 - news * news)
            factors = torch.empty(steps, directions, batch, 3, size, dtype=news.dtype)
            torch.mul(to_new * hidden_news, resets * (1 - resets), out=factors[..., 0, :])
            torch.mul(states_LDBH[:-1] - news, updates * (1 - updates), out=factors[..., 1, :])
            torch.mul(to_new, resets, out=factors[..., 2, :])
            totals_LDBH = torch.empty_like(news)
            _turn(grad_BLH.reshape(batch, steps, directions, size).permute(1, 2, 0, 3), totals_LDBH)
            hidden_gates = torch.empty_like(factors)
            carried_DBH, kept_DBH = grad_last_DBH.clone(), torch.empty_like(news[0])
            for total, total_1, factor, update, hidden_gate, hidden_gate_G in zip(
                totals_LDBH.unbind()[::-1],
                totals_LDBH.unsqueeze(-2).unbind()[::-1],
                factors.unbind()[::-1],
                updates.unbind()[::-1],
                hidden_gates.unbind()[::-1],
                hidden_gates.flatten(-2).unbind()[::-1],
                strict=True,
            ):
                total.add_(carried_DBH)
                torch.mul(total_1, factor, out=hidden_gate)
                torch.mul(total, update, out=kept_DBH)
                torch.baddbmm(kept_DBH, hidden_gate_G, weights_DGH, out=carried_DBH)
            hidden_LDBG = hidden_gates.flatten(-2)
            weight_grad = bias_grad = None
            stacked_DNG = hidden_LDBG.transpose(0, 1).flatten(1, 2)
            if ctx.needs_input_grad[2]:
                weight_grad = torch.bmm(stacked_DNG.transpose(1, 2), states_LDBH[:-1].transpose(0, 1).flatten(1, 2))
            if ctx.needs_input_grad[3]:
                bias_grad = stacked_DNG.sum(1)
            gates_BLDG = news.new_empty(batch, steps, directions, 3 * size)
            _turn(hidden_LDBG[..., : 2 * size], gates_BLDG.permute(1, 2, 0, 3)[..., : 2 * size])
            _turn(totals_LDBH.mul_(to_new), gates_BLDG.permute(1, 2, 0, 3)[..., 2 * size :])
            return gates_BLDG, carried_DBH, weight_grad, bias_grad


def _turn(source_LDB: Tensor, target_LDB: Tensor) -> None:
    """Copy from positions in the sequence to steps, or back: the backward direction's first step is at the last
    position.
    """
    target_LDB[:, 0] = source_LDB[:, 0]
    target_LDB[:, 1] = source_LDB[:, 1].flip(0)
