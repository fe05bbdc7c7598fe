"""The normalisation between convolutions.

Legend: B batch, K channels; of maps, H and W are rows and columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def normalisation(norm: str, channels: int) -> nn.Module:
    """Batch norm, batch renormalisation, or group norm of up to 8 groups, which keeps no statistics to be shared."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "renorm":
        return BatchRenorm2d(channels)
    return nn.GroupNorm(max(count for count in range(1, 9) if channels % count == 0), channels)


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch norm that trains what is tested (batch renormalisation: Ioffe, arXiv 1702.03275, algorithm 1).

    With a batch's mean m and deviation s, and the running ones M and S: y = weight * ((x - m) / s * r + d) + bias with
    r = s / S and d = (m - M) / S. No gradient passes through r and d, and they are clipped to [1 / 3, 3] and [-5, 5],
    as in the paper. Where nothing is clipped that is (x - M) / S, the output in evaluation, with batch norm's gradient.
    It matters to federated clients: their minibatches are of one speaker, whose own statistics batch norm removes in
    training and keeps in a test.

    Parameters, buffers and evaluation are those of `nn.BatchNorm2d`. Two deviations from the paper, since corpora of
    emotion have few batches: the bounds of r and d grow from 1 and 0 (batch norm) to the full ones over the first 300
    batches, not over 40,000 and 25,000; and the running statistics move by 0.02 a batch, not by 0.01: they average some
    fifty batches (in FedSGD: fifty rounds).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.02)

    def forward(self, maps_BKHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(maps_BKHW)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            # Mean and variance by batch norm's own kernel: several times as fast on CPUs.
            mean_K, variance_K = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_mean)
            functional.batch_norm(maps_BKHW, mean_K, variance_K, training=True, momentum=1.0)
            count = maps_BKHW.numel() // len(mean_K)
            biased_K = variance_K * ((count - 1) / count)
            deviation_K = (self.running_var + self.eps).sqrt()
            share = (self.num_batches_tracked.float() / 300).clamp(max=1)
            largest, furthest = 1 + share * (3.0 - 1), share * 5.0
            scale_K = ((biased_K + self.eps).sqrt() / deviation_K).clamp(1 / largest, largest)
            shift_K = ((mean_K - self.running_mean) / deviation_K).clamp(-furthest, furthest)
            self.num_batches_tracked.add_(1)
        return functional.batch_norm(
            maps_BKHW,
            self.running_mean,
            self.running_var,
            self.weight * scale_K,
            self.bias + self.weight * shift_K,
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )
