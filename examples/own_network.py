"""A network of your own in federated training, and loaded again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ser_fl


class MeanPool(nn.Module):
    """Logits (B, C) from log-mel features (B, F, L): two layers on their mean over frames."""

    def __init__(self, num_classes: int, num_mels: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_mels, 32), nn.ReLU(), nn.Linear(32, num_classes))

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Differentiable throughout, so that it can be attacked."""
        logits_BC: Tensor = self.layers(features_BFL.mean(dim=2))
        return logits_BC


def main() -> None:
    """Two rounds of two clients."""
    run = ser_fl.train(ser_fl.compose(["experiment=debug"]), network=MeanPool)
    model = ser_fl.load(run, network=MeanPool)  # the run folder holds its weights and its name, and no code
    print(f"logits of shape {tuple(model(torch.zeros(1, 64, 61)).shape)}")


if __name__ == "__main__":
    main()
