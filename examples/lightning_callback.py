"""A Lightning callback that sees every batch of every client: here, how large the gradients are."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

import ser_fl


class GradientNorms(pl.Callback):
    """The norm of each step's gradient, by client.

    Every client of every round has its own Trainer; ``trainer.datamodule`` says whose it is. With worker processes
    (``executor=processes``) each has its own copy of the callback, and what it gathers stays there.
    """

    def __init__(self) -> None:
        self.norms: dict[str, list[float]] = defaultdict(list)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """After the backward pass."""
        gradients = [parameter.grad.flatten() for parameter in pl_module.parameters() if parameter.grad is not None]
        self.norms[trainer.datamodule.client_id].append(float(torch.cat(gradients).norm()))


def main() -> None:
    """Three rounds of two clients."""
    watch = GradientNorms()
    ser_fl.train(ser_fl.compose(["experiment=debug", "federation.num_rounds=3"]), callbacks=[watch])
    for client_id, norms in sorted(watch.norms.items()):
        print(f"client {client_id}: {len(norms)} steps, median gradient norm {median(norms):.3f}")


if __name__ == "__main__":
    main()
