"""A network of your own: any torch module that maps log-mel features (B, F, L) to logits (B, C).

Give `ser_fl.train` a class or function that makes one for a number of classes, or a module whose weights are the
initial ones. Everything else (federation, adversarial training, attacks) works on it as on the networks shipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ser_fl


class Statistics(nn.Module):
    """Two layers over the mean and the deviation over time of every mel bin."""

    def __init__(self, num_classes: int, num_mels: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * num_mels, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C)."""
        statistics_BF = torch.cat([features_BFL.mean(dim=2), features_BFL.std(dim=2)], dim=1)
        return self.layers(statistics_BF)


def main() -> None:
    """Train it for some rounds, then attack it."""
    config = ser_fl.compose(["experiment=debug", "federation.local_epochs=10", "optimiser.learning_rate=0.01"])
    run = ser_fl.train(config, network=Statistics)
    print(f"test UAR {run.metrics().uar:.3f}")

    test = run.test_set()
    model = run.load()  # later: ser_fl.load(folder, network=Statistics), since no file holds the code
    records = ser_fl.benchmark(model, test.features_NFL, test.labels_N, attacks="pgd", epsilons=[0.1, 1.0])
    for record in records:
        print(f"{record.attack:10} epsilon {record.epsilon or 0:.1f}  UAR {record.robust_uar:.3f}")


if __name__ == "__main__":
    main()
