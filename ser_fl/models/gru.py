"""A bidirectional GRU layer that is fast on CPUs: both directions in one loop, its backward pass by hand.

PyTorch's GRU runs some forty small operations a step and direction through autograd, which for the short sequences and
small batches of this field is most of the cost of a CRNN. Here a step is a handful of operations for both directions
together, and the weight gradients of all steps are one matrix product.

Legend: D directions (2), B batch, L steps, I inputs, H hidden units, G = 3 H gate units (reset, update, new).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BidirectionalGRU(nn.GRU):
    """One bidirectional layer, batch first: parameters, equations and result of `torch.nn.GRU`.

    Tensors on a GPU go through cuDNN as ever.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, inputs_BLI: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Outputs of shape (B, L, 2 H), forward direction first, and the last hidden states, (2, B, H).

        Args:
            inputs_BLI: shape (B, L, I).
            initial: hidden states of shape (2, B, H) before the first step; zeros by default.
        """
        if inputs_BLI.device.type != "cpu":
            outputs, last = super().forward(inputs_BLI, initial)
            return outputs, last
        with torch.autocast("cpu", enabled=False):
            inputs_BLI = inputs_BLI.to(next(self.parameters()).dtype)
            inputs_DLBI = torch.stack([inputs_BLI, inputs_BLI.flip(1)]).transpose(1, 2)
            weights_DIG = self._both("weight_ih").transpose(1, 2)
            weights_DHG = self._both("weight_hh").transpose(1, 2)
            bias_DG, hidden_bias_DG = self._both("bias_ih"), self._both("bias_hh")
            directions, steps, batch, _ = inputs_DLBI.shape
            gates = torch.baddbmm(bias_DG[:, None], inputs_DLBI.flatten(1, 2), weights_DIG)
            gates_DLBG = gates.view(directions, steps, batch, -1)
            start_DBH = inputs_BLI.new_zeros(directions, batch, self.hidden_size) if initial is None else initial
            states_DLBH: Tensor = _Recurrence.apply(gates_DLBG, start_DBH, weights_DHG, hidden_bias_DG)
        forwards, backwards = states_DLBH.transpose(1, 2)
        return torch.cat([forwards, backwards.flip(1)], dim=2), states_DLBH[:, -1]

    def _both(self, name: str) -> Tensor:
        """A parameter of the forward and of the backward direction, stacked."""
        return torch.stack([getattr(self, f"{name}_l0"), getattr(self, f"{name}_l0_reverse")])


class _Recurrence(torch.autograd.Function):
    """States of all steps from the gates' share of the inputs.

    r = sigmoid(g_r + h W_r + b_r), z = sigmoid(g_z + h W_z + b_z), n = tanh(g_n + r (h W_n + b_n)), h' = n + z (h - n).
    """

    @staticmethod
    def forward(ctx: Any, gates_DLBG: Tensor, start_DBH: Tensor, weights_DHG: Tensor, bias_DG: Tensor) -> Tensor:
        """States of shape (D, L, B, H)."""
        size = start_DBH.shape[-1]
        steps = gates_DLBG.shape[1]
        # Steps lead, so that each is one contiguous block.
        gates_LDBG = gates_DLBG.transpose(0, 1).contiguous()
        states_LDBH = gates_LDBG.new_empty(steps + 1, *start_DBH.shape)
        states_LDBH[0] = start_DBH
        resets_updates = gates_LDBG[..., : 2 * size].clone()
        news = gates_LDBG[..., 2 * size :].clone()
        hidden_news = torch.empty_like(news)
        bias_D1G = bias_DG[:, None]
        for step in range(steps):
            hidden_DBG = torch.baddbmm(bias_D1G, states_LDBH[step], weights_DHG)
            reset_update = resets_updates[step].add_(hidden_DBG[..., : 2 * size]).sigmoid_()
            hidden_news[step] = hidden_DBG[..., 2 * size :]
            new = news[step].addcmul_(reset_update[..., :size], hidden_news[step]).tanh_()
            torch.lerp(new, states_LDBH[step], reset_update[..., size:], out=states_LDBH[step + 1])
        ctx.save_for_backward(states_LDBH, resets_updates, news, hidden_news, weights_DHG)
        return states_LDBH[1:].transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Backpropagation through time; what does not depend on later steps is computed for all at once."""
        states_LDBH, resets_updates, news, hidden_news, weights_DHG = ctx.saved_tensors
        size = news.shape[-1]
        resets, updates = resets_updates[..., :size], resets_updates[..., size:]
        to_update = (states_LDBH[:-1] - news) * updates * (1 - updates)
        to_new = (1 - updates) * (1 - news.square())
        to_reset = to_new * hidden_news * resets * (1 - resets)
        to_hidden_new = to_new * resets
        factors = torch.stack([to_reset, to_update, to_hidden_new], dim=-2)
        weights_DGH = weights_DHG.transpose(1, 2).contiguous()
        grad_LDBH = grads[0].transpose(0, 1)
        hidden_gates = torch.empty_like(factors)
        total_LDBH = torch.empty_like(news)
        carried_DBH = torch.zeros_like(news[0])
        for step in range(len(news) - 1, -1, -1):
            total = torch.add(grad_LDBH[step], carried_DBH, out=total_LDBH[step])
            torch.mul(total.unsqueeze(-2), factors[step], out=hidden_gates[step])
            carried_DBH = torch.baddbmm(total * updates[step], hidden_gates[step].flatten(-2), weights_DGH)
        hidden_LDBG = hidden_gates.flatten(-2)
        input_LDBG = torch.cat([hidden_LDBG[..., : 2 * size], total_LDBH * to_new], dim=-1)
        weight_grad = bias_grad = None
        if ctx.needs_input_grad[2]:
            stacked_DNG = hidden_LDBG.transpose(0, 1).flatten(1, 2)
            weight_grad = torch.bmm(states_LDBH[:-1].transpose(0, 1).flatten(1, 2).transpose(1, 2), stacked_DNG)
            bias_grad = stacked_DNG.sum(1)
        return input_LDBG.transpose(0, 1), carried_DBH, weight_grad, bias_grad
