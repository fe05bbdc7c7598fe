"""A test-time defence of your own, and an attacker who knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import ser_fl
from ser_fl.defences.squeezing import Deterministic


@dataclass(frozen=True)
class Averaging(Deterministic):
    """Every cell replaced by the mean of a few frames. It has no randomness, and a gradient of its own.

    What is random, or has no useful gradient, says more: see `ser_fl.defences.Defence`.
    """

    frames: int = 5
    name: str = "averaging"

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """What the classifier is shown, of the same shape."""
        size_L = features_BFL.shape[-1]
        padded_BFL = features_BFL[..., [0] * (self.frames - 1) + list(range(size_L))]
        return padded_BFL.unfold(-1, self.frames, 1).mean(dim=-1)


def main() -> None:
    """PGD on the bare model shown to the defended one, and PGD on the defended model itself."""
    run = ser_fl.train(
        ser_fl.compose(["experiment=debug", "federation.local_epochs=10", "optimiser.learning_rate=0.01"])
    )
    test = run.test_set()
    records = ser_fl.benchmark(
        run.load(),
        test.features_NFL,
        test.labels_N,
        attacks={"name": "pgd", "steps": 10, "restarts": 1},
        adaptive={"name": "pgd", "steps": 10, "restarts": 1},
        epsilons=[0.05],
        defences=["none", Averaging(frames=5)],
    )
    for record in records:
        print(f"{record.attack:10} {record.knowledge:20} {record.defence:10} UAR {record.robust_uar:.3f}")


if __name__ == "__main__":
    main()
