"""A bidirectional GRU layer that is fast on CPUs: both directions in one loop, its backward pass by hand.

PyTorch's GRU runs some forty small operations a step and direction through autograd. With the short sequences and
small batches of this field that is most of the cost of a CRNN. Here a step takes a handful of operations for both
directions together. What the inputs give to all gates is one matrix product, in the precision of autocast; the
recurrence is in float32. The weight gradients of all steps are one product as well.

Legend: D directions (2), B batch, L steps, I inputs, H hidden units, G = 3 H gate units (reset, update, new).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ser_fl.devices import CPU, autocast


class BidirectionalGRU(nn.GRU):
    """One bidirectional layer, batch first: parameters, equations and result of `torch.nn.GRU`.

    On a GPU it is `torch.nn.GRU` itself. On a CPU it takes batches only and has no second derivative.
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
        input_weight, hidden_bias_DG = self._both("weight_ih").flatten(0, 1), self._both("bias_hh")
        gates_BLG = functional.linear(inputs_BLI, input_weight, self._both("bias_ih").flatten())
        with autocast(CPU, bf16=False):
            gates_BLDG = gates_BLG.to(hidden_bias_DG.dtype).view(*gates_BLG.shape[:2], 2, -1)
            start_DBH = gates_BLDG.new_zeros(2, len(inputs_BLI), self.hidden_size) if initial is None else initial
            outputs_BLH, last_DBH = _Recurrence.apply(gates_BLDG, start_DBH, self._both("weight_hh"), hidden_bias_DG)
        return outputs_BLH, last_DBH

    def _both(self, name: str) -> Tensor:
        """A parameter of the forward and of the backward direction, stacked."""
        return torch.stack([getattr(self, f"{name}_l0"), getattr(self, f"{name}_l0_reverse")])


class _Recurrence(torch.autograd.Function):
    """States of all steps, from what the inputs give to the gates.

    r = sigmoid(g_r + h W_r + b_r), z = sigmoid(g_z + h W_z + b_z), n = tanh(g_n + r (h W_n + b_n)), h' = n + z (h - n).
    The backward direction runs through the same loop with its steps in reverse order.
    """

    @staticmethod
    def forward(
        ctx: Any, gates_BLDG: Tensor, start_DBH: Tensor, weights_DGH: Tensor, bias_DG: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs of shape (B, L, 2 H) and the last states, (D, B, H)."""
        batch, steps, directions, _ = gates_BLDG.shape
        size = start_DBH.shape[-1]
        # Steps lead, so that each is one contiguous block.
        resets_updates = gates_BLDG.new_empty(steps, directions, batch, 2 * size)
        news = gates_BLDG.new_empty(steps, directions, batch, size)
        _by_step(gates_BLDG[..., : 2 * size], resets_updates)
        _by_step(gates_BLDG[..., 2 * size :], news)
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
        _by_position(states_LDBH[1:], outputs_BLDH)
        return outputs_BLDH.flatten(2), states_LDBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BLH: Tensor, grad_last_DBH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        with autocast(CPU, bf16=False):  # a caller may ask for the gradient inside autocast
            return _Recurrence.through_time(ctx, grad_BLH, grad_last_DBH)

    @staticmethod
    def through_time(
        ctx: Any, grad_BLH: Tensor, grad_last_DBH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Backpropagation through time; what does not depend on later steps is computed for all at once."""
        states_LDBH, resets_updates, news, hidden_news, weights_DGH = ctx.saved_tensors
        steps, directions, batch, size = news.shape
        resets, updates = resets_updates[..., :size], resets_updates[..., size:]
        to_new = (1 - updates) * (1 - news * news)
        factors = torch.empty(steps, directions, batch, 3, size, dtype=news.dtype)
        torch.mul(to_new * hidden_news, resets * (1 - resets), out=factors[..., 0, :])
        torch.mul(states_LDBH[:-1] - news, updates * (1 - updates), out=factors[..., 1, :])
        torch.mul(to_new, resets, out=factors[..., 2, :])
        totals_LDBH = torch.empty_like(news)
        _by_step(grad_BLH.reshape(batch, steps, directions, size), totals_LDBH)
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
        _by_position(hidden_LDBG[..., : 2 * size], gates_BLDG[..., : 2 * size])
        _by_position(totals_LDBH.mul_(to_new), gates_BLDG[..., 2 * size :])
        return gates_BLDG, carried_DBH, weight_grad, bias_grad


def _by_step(source_BLD: Tensor, target_LDB: Tensor) -> None:
    """Copy from positions in the sequence to steps: the backward direction's first step is at the last position."""
    target_LDB[:, 0] = source_BLD[:, :, 0].transpose(0, 1)
    target_LDB[:, 1] = source_BLD[:, :, 1].transpose(0, 1).flip(0)


def _by_position(source_LDB: Tensor, target_BLD: Tensor) -> None:
    """Copy from steps back to positions in the sequence."""
    target_BLD[:, :, 0] = source_LDB[:, 0].transpose(0, 1)
    target_BLD[:, :, 1] = source_LDB[:, 1].flip(0).transpose(0, 1)
